//! Where services may listen: on this machine only, until there are TLS and tokens.

use std::{io, net::SocketAddr};

use palimpsest_settings::SIDE_PORT_OFFSET;
use palimpsest_types::ErrorKind;
use tokio::net::{TcpListener, lookup_host};

/// The server can't listen there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The text names no address.
    #[error("{listen:?} is not an address to listen on; write host:port, for example 127.0.0.1:0")]
    Address {
        /// The text.
        listen: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could reach it.
    #[error(
        "{listen:?} can be reached from other machines; without TLS and tokens only loopback addresses are allowed"
    )]
    NotLoopback {
        /// The text.
        listen: String,
    },
    /// Metrics and probes would have no port.
    #[error(
        "{listen:?} leaves no port for metrics and probes, which is {SIDE_PORT_OFFSET} above; take a lower one"
    )]
    NoSidePort {
        /// The text.
        listen: String,
    },
    /// The system refuses.
    #[error("can't listen on {address}; is another instance running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } | Self::NotLoopback { .. } | Self::NoSidePort { .. } => {
                ErrorKind::Invalid
            }
            Self::Listen { .. } => ErrorKind::Conflict,
        }
    }
}

/// The address that `listen` means, if a service may listen there.
///
/// # Errors
/// If it is no address, or others could reach it.
pub async fn loopback_address(listen: &str) -> Result<SocketAddr, BindError> {
    let unusable = |source| BindError::Address {
        listen: listen.to_owned(),
        source,
    };
    let addresses: Vec<_> = lookup_host(listen).await.map_err(unusable)?.collect();
    if addresses.iter().any(|address| !address.ip().is_loopback()) {
        return Err(BindError::NotLoopback {
            listen: listen.to_owned(),
        });
    }
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    addresses.first().copied().ok_or_else(|| unusable(none()))
}

/// Takes an address; the one that is returned has the real port.
pub(crate) async fn bind(listen: &str) -> Result<(TcpListener, SocketAddr), BindError> {
    let address = loopback_address(listen).await?;
    let failed = |source| BindError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The address of the side port beside `listen`, which turned out to be `address`.
pub(crate) fn side_of(listen: &str, mut address: SocketAddr) -> Result<String, BindError> {
    let port = match any_port(listen) {
        true => Some(0),
        false => address.port().checked_add(SIDE_PORT_OFFSET),
    };
    let no_room = || BindError::NoSidePort {
        listen: listen.to_owned(),
    };
    address.set_port(port.ok_or_else(no_room)?);
    Ok(address.to_string())
}

fn any_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port == "0")
}

/// What is wrong with the storage-broker's address in the settings of a process: with ports taken
/// as they are free, nobody can know the broker's beforehand.
pub fn check_broker(broker: &str) -> Vec<(&'static str, String)> {
    let problem = || {
        let message = format!("{broker:?} has no port; say where the storage-broker is");
        ("broker", message)
    };
    any_port(broker).then(problem).into_iter().collect()
}
