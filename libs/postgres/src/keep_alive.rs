//! Has the kernel find out that the other end of a TCP connection is gone.
//!
//! Without data on its way TCP notices nothing: a server that lost its power looks like one that
//! has nothing to say. By default Linux first asks after two hours.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    set_tcp_user_timeout,
};

/// Silence before the kernel asks.
const IDLE: Duration = Duration::from_secs(30);
/// Time between its questions.
const INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which the connection is broken.
const PROBES: u32 = 3;
/// How long what we sent may stay unacknowledged: as long as the questions take. While something
/// is, the kernel asks nothing, and would send it again for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Sets it up; before connecting, so that it also limits how long that takes.
pub(crate) fn enable(socket: impl AsFd) -> io::Result<()> {
    set_socket_keepalive(&socket, true)?;
    set_tcp_keepidle(&socket, IDLE)?;
    set_tcp_keepintvl(&socket, INTERVAL)?;
    set_tcp_keepcnt(&socket, PROBES)?;
    let millis = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    set_tcp_user_timeout(&socket, millis)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{
        socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl, tcp_user_timeout,
    };
    use tokio::net::TcpSocket;

    use super::*;

    #[test]
    fn the_kernel_gives_up_a_dead_peer_after_a_minute() {
        let socket = TcpSocket::new_v4().unwrap();
        enable(&socket).unwrap();
        assert!(socket_keepalive(&socket).unwrap());
        let probing = tcp_keepintvl(&socket).unwrap() * tcp_keepcnt(&socket).unwrap();
        assert_eq!(tcp_keepidle(&socket).unwrap() + probing, UNACKNOWLEDGED);
        assert_eq!(tcp_user_timeout(&socket).unwrap(), 60_000);
    }
}
