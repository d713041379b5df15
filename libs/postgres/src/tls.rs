//! TLS as `sslmode` asks for it, through rustls with the ring provider.

use std::{io, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{ClientError, ConnInfo, SslMode, channel_binding};

/// A bundle of the world's authorities is a quarter of this.
const MAX_PEM_FILE: u64 = 1 << 20;

/// TLS settings of one connection string, made once for all its servers.
pub(crate) struct Tls(TlsConnector);

/// A finished handshake.
pub(crate) struct Secured {
    pub(crate) stream: TlsStream<TcpStream>,
    /// What SCRAM binds itself to, if the certificate allows it.
    pub(crate) end_point: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the trusted certificates, if the mode needs any.
    pub(crate) async fn new(info: &ConnInfo) -> Result<Self, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier {
            trust: trust(info).await?,
            algorithms: provider.signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the ring provider has cipher suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Performs the handshake with the server called `host`.
    pub(crate) async fn handshake(&self, host: &str, stream: TcpStream) -> io::Result<Secured> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let end_point = certificates
            .and_then(|chain| chain.first())
            .and_then(|certificate| channel_binding::tls_server_end_point(certificate));
        Ok(Secured { stream, end_point })
    }
}

/// What a certificate must be to be accepted.
#[derive(Debug)]
enum Trust {
    /// Anything: encryption without authentication, as libpq's `require` and below.
    Anyone,
    /// Issued by one of these.
    Authority(Authorities),
    /// Issued by one of these, for the name of the server.
    AuthorityAndName(Authorities),
}

#[derive(Debug)]
struct Authorities {
    roots: RootCertStore,
    /// The same certificates whole: a server may present one of them itself.
    pinned: Vec<CertificateDer<'static>>,
}

async fn trust(info: &ConnInfo) -> Result<Trust, ClientError> {
    match (info.ssl_mode(), info.ssl_root_cert()) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
            Ok(Trust::Anyone)
        }
        // libpq does the same: who names an authority wants it to be asked.
        (SslMode::Require | SslMode::VerifyCa, file) => {
            authorities(file).await.map(Trust::Authority)
        }
        (SslMode::VerifyFull, file) => authorities(file).await.map(Trust::AuthorityAndName),
    }
}

async fn authorities(file: Option<&Path>) -> Result<Authorities, ClientError> {
    let path = file.unwrap_or(Path::new("system")).to_owned();
    let loaded = match file {
        Some(path) => read_pem(path).await,
        None => system_certificates().await,
    };
    let error = |source| ClientError::RootCertificates { path, source };
    let certificates = match loaded {
        Ok(certificates) => certificates,
        Err(source) => return Err(error(source)),
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it holds no usable certificate");
        return Err(error(source));
    }
    // The system's are all authorities; only a file of the operator's can name a server's own.
    let pinned = if file.is_some() {
        certificates
    } else {
        Vec::new()
    };
    Ok(Authorities { roots, pinned })
}

async fn read_pem(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_PEM_FILE + 1).read_to_end(&mut bytes).await?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_PEM_FILE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 1 MiB",
        ));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    certificates.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn system_certificates() -> io::Result<Vec<CertificateDer<'static>>> {
    // Reads some hundred files, which is no work for a thread of the runtime.
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    loaded
        .await
        .map(|result| result.certs)
        .map_err(io::Error::other)
}

/// Judges a server's certificate. A name counts only as subject alternative name.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check_issuer(
        &self,
        authorities: &Authorities,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let verdict = verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &authorities.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match verdict {
            // `openssl req -x509` marks a self-signed certificate as an authority, which webpki
            // refuses in a server's place (after it has checked the dates). The operator trusts
            // exactly this certificate, so it stands for itself, as it does with OpenSSL.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if authorities
                    .pinned
                    .iter()
                    .any(|pinned| pinned == certificate) =>
            {
                Ok(())
            }
            verdict => verdict,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anyone => {}
            Trust::Authority(authorities) => {
                self.check_issuer(authorities, certificate, intermediates, now)?;
            }
            Trust::AuthorityAndName(authorities) => {
                self.check_issuer(authorities, certificate, intermediates, now)?;
                verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
