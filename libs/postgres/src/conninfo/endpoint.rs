use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::ConnInfoError;

/// One server of a connection string. They are tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub host: Host,
    /// Its port, which also names the socket file of a unix socket.
    pub port: u16,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or address; `addr` (`hostaddr`) saves looking the name up.
    Tcp {
        /// The name, which a certificate is checked against.
        name: String,
        /// The address to use.
        addr: Option<IpAddr>,
    },
    /// The directory of a unix socket.
    Unix(PathBuf),
}

const DEFAULT_PORT: u16 = 5432;
/// More than any deployment lists; what is longer is a mistake.
const MAX_ENDPOINTS: usize = 64;

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Host::Unix(_) => write!(f, "{}", self.socket_path().display()),
        }
    }
}

impl Endpoint {
    /// The socket file that the server makes in a unix socket directory.
    pub(crate) fn socket_path(&self) -> PathBuf {
        Path::new(&self.host.to_string()).join(format!(".s.PGSQL.{}", self.port))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, .. } => f.write_str(name),
            Self::Unix(directory) => write!(f, "{}", directory.display()),
        }
    }
}

/// Zips the comma-separated lists. One port serves all hosts; a host may be given by address only.
pub(super) fn endpoints(
    host: Option<String>,
    hostaddr: Option<String>,
    port: Option<String>,
) -> Result<Vec<Endpoint>, ConnInfoError> {
    let split = |list: Option<String>| -> Vec<String> {
        list.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (hosts, addrs, ports) = (split(host), split(hostaddr), split(port));
    let count = hosts.len().max(addrs.len());
    if count == 0 {
        return Err(ConnInfoError::Missing("host"));
    }
    let fits = |list: &[String]| list.is_empty() || list.len() == count;
    if !fits(&hosts) || !fits(&addrs) || count > MAX_ENDPOINTS {
        let expected = "as many as there are host entries, and at most 64";
        return Err(ConnInfoError::Value {
            key: "hostaddr",
            expected,
        });
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnInfoError::Value {
            key: "port",
            expected: "one, or one for each host",
        });
    }
    let item = |list: &[String], index: usize| list.get(index).cloned().unwrap_or_default();
    (0..count)
        .map(|index| {
            let port = item(&ports, if ports.len() == 1 { 0 } else { index });
            let host = parse_host(item(&hosts, index), &item(&addrs, index))?;
            Ok(Endpoint {
                host,
                port: parse_port(&port)?,
            })
        })
        .collect()
}

fn parse_host(name: String, addr: &str) -> Result<Host, ConnInfoError> {
    let expected = "an IPv4 or IPv6 address";
    let addr: Option<IpAddr> = match addr {
        "" => None,
        _ => Some(addr.parse().map_err(|_| ConnInfoError::Value {
            key: "hostaddr",
            expected,
        })?),
    };
    match (name.as_str(), addr) {
        ("", None) => Err(ConnInfoError::Missing("host")),
        ("", Some(addr)) => Ok(Host::Tcp {
            name: addr.to_string(),
            addr: Some(addr),
        }),
        (path, None) if path.starts_with('/') => Ok(Host::Unix(PathBuf::from(path))),
        (_, addr) => Ok(Host::Tcp { name, addr }),
    }
}

fn parse_port(text: &str) -> Result<u16, ConnInfoError> {
    match text {
        "" => Ok(DEFAULT_PORT),
        _ => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(ConnInfoError::Value {
                key: "port",
                expected: "a number from 1 to 65535",
            }),
    }
}
