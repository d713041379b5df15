//! From a connection string to a connection that is ready for commands.

use std::{io, net::SocketAddr};

use palimpsest_types::ErrorKind;
use postgres_protocol::message::{backend::Message, frontend};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream, lookup_host},
};

use crate::{
    ClientError, ConnInfo, Connection, Endpoint, Host, SslMode,
    auth::{self, Login},
    conninfo::lookup_passfile,
    keep_alive,
    tls::Tls,
    transport::Transport,
};

/// SQLSTATE of "no rule in `pg_hba.conf` for this role, address and encryption".
const INVALID_AUTHORIZATION: &str = "28000";

/// Tries the servers in order until one accepts.
///
/// Only a server that is not there, not ready or full, or a standby where a primary is wanted, passes the turn to the
/// next: a refused password is reported at once, so that one wrong password is one failed login.
pub(crate) async fn connect(info: &ConnInfo) -> Result<Connection, ClientError> {
    let tls = match info.ssl_mode() {
        SslMode::Disable => None,
        _ => Some(Tls::new(info).await?),
    };
    let mut last = None;
    for endpoint in info.endpoints() {
        match connect_in_time(info, tls.as_ref(), endpoint).await {
            Ok(connection) => return Ok(connection),
            Err(error) if matches!(error.kind(), ErrorKind::NotReady | ErrorKind::Throttled) => {
                tracing::debug!(%endpoint, %error, "server not usable");
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.expect("a connection string has at least one endpoint"))
}

async fn connect_in_time(
    info: &ConnInfo,
    tls: Option<&Tls>,
    endpoint: &Endpoint,
) -> Result<Connection, ClientError> {
    let attempt = connect_to(info, tls, endpoint);
    let Some(after) = info.connect_timeout() else {
        return attempt.await;
    };
    match tokio::time::timeout(after, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::ConnectTimeout {
            endpoint: endpoint.to_string(),
            after,
        }),
    }
}

/// Whether one attempt uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Plain,
    IfOffered,
    Required,
}

/// The attempts that a mode allows, in order. Unix sockets never use TLS, as with libpq.
fn attempts(mode: SslMode, host: &Host) -> &'static [Encryption] {
    use Encryption::{IfOffered, Plain, Required};
    match (host, mode) {
        (Host::Unix(_), _) | (_, SslMode::Disable) => &[Plain],
        (_, SslMode::Allow) => &[Plain, Required],
        (_, SslMode::Prefer) => &[IfOffered, Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Required],
    }
}

/// Whether the other way to connect may do better: the handshake failed, or `pg_hba.conf` has no
/// rule for a connection of this kind.
fn worth_another_attempt(error: &ClientError) -> bool {
    match error {
        ClientError::Tls { .. } => true,
        ClientError::Server(error) => error.code() == INVALID_AUTHORIZATION,
        _ => false,
    }
}

async fn connect_to(
    info: &ConnInfo,
    tls: Option<&Tls>,
    endpoint: &Endpoint,
) -> Result<Connection, ClientError> {
    let mut first = None;
    for encryption in attempts(info.ssl_mode(), &endpoint.host) {
        let tls = if *encryption == Encryption::Plain {
            None
        } else {
            tls
        };
        let greeted = match open(tls, *encryption, endpoint).await {
            Ok(opened) => greet(info, opened).await,
            Err(error) => Err(error),
        };
        match greeted {
            // From here on there is no other attempt: a login that fails over TLS, above all in
            // its binding to TLS, must not be repeated in the clear.
            Ok((opened, request)) => return log_in(info, endpoint, opened, request).await,
            // The first refusal is the one that belongs to the preferred way.
            Err(error) if worth_another_attempt(&error) => {
                first.get_or_insert(error);
            }
            Err(error) => return Err(first.unwrap_or(error)),
        }
    }
    Err(first.expect("every mode makes at least one attempt"))
}

/// A socket over which nothing of the protocol proper has been said.
struct Opened {
    transport: Transport,
    end_point: Option<Vec<u8>>,
}

async fn open(
    tls: Option<&Tls>,
    encryption: Encryption,
    endpoint: &Endpoint,
) -> Result<Opened, ClientError> {
    let error = |source| ClientError::Connect {
        endpoint: endpoint.to_string(),
        source,
    };
    let name = match &endpoint.host {
        Host::Unix(_) => {
            let socket = UnixStream::connect(endpoint.socket_path())
                .await
                .map_err(error)?;
            return Ok(Opened {
                transport: Transport::new(socket),
                end_point: None,
            });
        }
        Host::Tcp { name, .. } => name,
    };
    let mut socket = connect_tcp(endpoint).await.map_err(error)?;
    let Some(tls) = tls else {
        return Ok(Opened {
            transport: Transport::new(socket),
            end_point: None,
        });
    };
    if offers_tls(&mut socket).await.map_err(error)? {
        let failed = |source| ClientError::Tls {
            endpoint: endpoint.to_string(),
            source,
        };
        let secured = tls.handshake(name, socket).await.map_err(failed)?;
        let transport = Transport::new(secured.stream);
        return Ok(Opened {
            transport,
            end_point: secured.end_point,
        });
    }
    if encryption == Encryption::Required {
        return Err(ClientError::TlsNotOffered {
            endpoint: endpoint.to_string(),
        });
    }
    Ok(Opened {
        transport: Transport::new(socket),
        end_point: None,
    })
}

async fn connect_tcp(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let Host::Tcp { name, addr } = &endpoint.host else {
        return Err(io::Error::other("not a TCP endpoint"));
    };
    let addresses: Vec<SocketAddr> = match addr {
        Some(addr) => vec![(*addr, endpoint.port).into()],
        None => lookup_host((name.as_str(), endpoint.port)).await?.collect(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match connect_address(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    keep_alive::enable(&socket)?;
    let stream = socket.connect(address).await?;
    // Status updates are small and must not wait for more to send.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks whether the server does TLS. One byte is read and no more: what came after it in the clear
/// could have been put there by somebody in between.
async fn offers_tls(socket: &mut TcpStream) -> io::Result<bool> {
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An error text before TLS is from nobody in particular, so it is not shown.
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it answers the TLS request with neither yes nor no",
        )),
    }
}

/// Says who we are; returns what the server asks for to believe it.
async fn greet(info: &ConnInfo, mut opened: Opened) -> Result<(Opened, Message), ClientError> {
    let mut parameters = vec![
        ("user", info.user()),
        // Ignored by the server, but what `pg_hba.conf` and its log call such a connection.
        ("database", "replication"),
        ("replication", "true"),
        ("client_encoding", "UTF8"),
    ];
    parameters.extend(
        info.application_name()
            .map(|name| ("application_name", name)),
    );
    opened
        .transport
        .queue(|out| frontend::startup_message(parameters, out))?;
    opened.transport.flush().await?;
    let request = auth::recv(&mut opened.transport).await?;
    Ok((opened, request))
}

/// Authentication, and the parameters that the server reports after it.
async fn log_in(
    info: &ConnInfo,
    endpoint: &Endpoint,
    Opened {
        mut transport,
        end_point,
    }: Opened,
    request: Message,
) -> Result<Connection, ClientError> {
    let from_file = match (info.password(), info.passfile()) {
        (None, Some(path)) => lookup_passfile(path, endpoint, info.user()),
        _ => None,
    };
    let password = info.password().or(from_file.as_ref());
    let login = Login {
        user: info.user(),
        password,
        end_point,
    };
    auth::authenticate(&mut transport, login, request).await?;
    let connection = Connection::ready(transport).await?;
    // Every server since PostgreSQL 14 says so after each login.
    if info.primary_only() && connection.parameter("in_hot_standby") == Some("on") {
        connection.close().await;
        return Err(ClientError::Standby {
            endpoint: endpoint.to_string(),
        });
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_makes_its_attempts() {
        use Encryption::{IfOffered, Plain, Required};
        let tcp = Host::Tcp {
            name: "db".to_owned(),
            addr: None,
        };
        assert_eq!(attempts(SslMode::Disable, &tcp), [Plain]);
        assert_eq!(attempts(SslMode::Allow, &tcp), [Plain, Required]);
        assert_eq!(attempts(SslMode::Prefer, &tcp), [IfOffered, Plain]);
        assert_eq!(attempts(SslMode::VerifyFull, &tcp), [Required]);
        assert_eq!(
            attempts(SslMode::VerifyFull, &Host::Unix("/s".into())),
            [Plain]
        );
    }
}
