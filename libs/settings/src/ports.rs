//! The ports of an instance, all counted from one number.

use std::{fmt, net::Ipv4Addr, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Service;

/// What is added to a gRPC port to get the one of metrics and probes.
pub const SIDE_PORT_OFFSET: u16 = 100;
/// gRPC ports that an instance may come to use.
const SERVICES: u16 = 5;
const MAX: u16 = u16::MAX - SIDE_PORT_OFFSET - SERVICES + 1;
const DEFAULT: u16 = 7700;

/// The storage-broker's port; the other services have the next ones. 0: each takes any free port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PortBase(u16);

/// No port base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePortBaseError {
    /// Not a number, or not one of a port.
    #[error("{text:?} is not a port; write a number from 0 to {MAX}")]
    Number {
        /// What was given.
        text: String,
        /// Why not.
        #[source]
        source: ParseIntError,
    },
    /// Some port would be beyond the last one.
    #[error("port base {0} leaves no room for the other ports; take 0 to {MAX}")]
    Room(u16),
}

impl PortBase {
    /// Any free ports.
    pub const ANY: Self = Self(0);

    /// Where a service listens unless it is told otherwise.
    pub fn address(self, service: Service) -> String {
        let port = match self.0 {
            0 => 0,
            base => base.saturating_add(service.port_offset()),
        };
        format!("{}:{port}", Ipv4Addr::LOCALHOST)
    }
}

impl Default for PortBase {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl fmt::Display for PortBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u16> for PortBase {
    type Error = ParsePortBaseError;

    fn try_from(base: u16) -> Result<Self, Self::Error> {
        match base <= MAX {
            true => Ok(Self(base)),
            false => Err(ParsePortBaseError::Room(base)),
        }
    }
}

impl From<PortBase> for u16 {
    fn from(base: PortBase) -> Self {
        base.0
    }
}

impl FromStr for PortBase {
    type Err = ParsePortBaseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number: u16 = text.parse().map_err(|source| ParsePortBaseError::Number {
            text: text.to_owned(),
            source,
        })?;
        number.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_from_the_base_and_zero_is_any() {
        let address = |base: u16, service| PortBase::try_from(base).unwrap().address(service);
        assert_eq!(address(7700, Service::StorageBroker), "127.0.0.1:7700");
        assert_eq!(address(7700, Service::RedoWorker), "127.0.0.1:7703");
        assert_eq!(address(0, Service::PageServe), "127.0.0.1:0");
    }

    #[test]
    fn refuses_a_base_without_room_for_the_side_ports() {
        assert!(PortBase::try_from(MAX).is_ok());
        assert_eq!(
            PortBase::try_from(MAX + 1),
            Err(ParsePortBaseError::Room(MAX + 1))
        );
        assert!("x".parse::<PortBase>().is_err());
    }
}
