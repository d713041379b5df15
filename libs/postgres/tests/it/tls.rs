use std::{path::Path, process::Command};

use palimpsest_postgres::{ClientError, ConnInfo, Connection};
use palimpsest_types::ErrorKind;

use crate::server::{Cluster, Server, run};

/// A self-signed certificate for `localhost`, as an operator makes one.
fn self_signed(certificate: &Path, key: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]);
    openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost"]);
    run(openssl.arg("-out").arg(certificate).arg("-keyout").arg(key));
}

/// An authority, and a certificate of it for `localhost`.
fn issued(authority: &Path, certificate: &Path, key: &Path) {
    let authority_key = authority.with_extension("key");
    self_signed(authority, &authority_key);
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=server",
    ]);
    openssl.args([
        "-newkey",
        "rsa:2048",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost"]);
    openssl
        .arg("-CA")
        .arg(authority)
        .arg("-CAkey")
        .arg(authority_key);
    run(openssl.arg("-out").arg(certificate).arg("-keyout").arg(key));
}

fn secure(server: &Server, rest: &str) -> ConnInfo {
    server.tcp(&format!(r"user=secure password='it\'s secret' {rest}"))
}

async fn assert_encrypted(server: &Server, info: &ConnInfo, expected: bool) {
    let connection = Connection::connect(info).await.unwrap();
    let encrypted = server.sql(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE backend_type = 'walsender'",
    );
    assert_eq!(encrypted, if expected { "t" } else { "f" }, "{info}");
    connection.close().await;
    // The next question must not see this connection any more.
    let senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    assert!(
        (0..200).any(|_| server.sql(senders) == "0"),
        "the connection stays"
    );
}

#[tokio::test]
async fn verifies_a_self_signed_certificate_that_is_its_own_root() {
    let make =
        |cluster: &Cluster| self_signed(&cluster.path("server.crt"), &cluster.path("server.key"));
    let server = Server::start_with_tls(make).await;
    let root = server.path("server.crt");
    let root = root.display();
    let other = server.path("other.crt");
    self_signed(&other, &server.path("other.key"));

    // Role `secure` may only come by TLS, with SCRAM bound to the connection.
    for mode in ["verify-full", "verify-ca", "require"] {
        let info = secure(&server, &format!("sslmode={mode} sslrootcert={root}"));
        assert_encrypted(&server, &info, true).await;
        let info = secure(
            &server,
            &format!("sslmode={mode} sslrootcert={}", other.display()),
        );
        let error = Connection::connect(&info).await.unwrap_err();
        assert!(matches!(&error, ClientError::Tls { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    for mode in ["require", "prefer", "allow"] {
        assert_encrypted(&server, &secure(&server, &format!("sslmode={mode}")), true).await;
    }
    let error = Connection::connect(&secure(&server, "sslmode=disable"))
        .await
        .unwrap_err();
    assert_eq!(error.server_error().unwrap().code(), "28000");
    // Role `clear` may not come by TLS: preferring it falls back.
    assert_encrypted(&server, &server.tcp("user=clear sslmode=prefer"), false).await;

    let error = Connection::connect(&secure(&server, "sslmode=verify-full"))
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Invalid,
        "the system does not trust it"
    );
    let error = Connection::connect(&secure(&server, "sslmode=require sslrootcert=/none")).await;
    assert!(matches!(error, Err(ClientError::RootCertificates { .. })));
}

#[tokio::test]
async fn verifies_an_issued_certificate_and_its_name() {
    let make = |cluster: &Cluster| {
        let [authority, certificate, key] =
            ["ca.crt", "server.crt", "server.key"].map(|name| cluster.path(name));
        issued(&authority, &certificate, &key);
    };
    let server = Server::start_with_tls(make).await;
    let root = server.path("ca.crt");
    let root = root.display();
    let info = secure(&server, &format!("sslmode=verify-full sslrootcert={root}"));
    assert_encrypted(&server, &info, true).await;

    let elsewhere = |mode| {
        let port = server.port;
        let text = format!(
            r"host=db.example hostaddr=127.0.0.1 port={port} user=secure password='it\'s secret'
              sslmode={mode} sslrootcert={root}"
        );
        text.parse::<ConnInfo>().unwrap()
    };
    assert_encrypted(&server, &elsewhere("verify-ca"), true).await;
    let error = Connection::connect(&elsewhere("verify-full"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_demanded() {
    let server = Server::start().await;
    let error = Connection::connect(&server.tcp("user=trusted sslmode=require"))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::TlsNotOffered { .. }));
    assert_encrypted(&server, &server.tcp("user=trusted sslmode=prefer"), false).await;
    assert_encrypted(
        &server,
        &server.unix("user=trusted sslmode=verify-full"),
        false,
    )
    .await;
}
