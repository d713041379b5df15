//! For fuzzing: what else needs a server, or a file.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    ClientError, Connection, Endpoint, Password, conninfo::passfile, transport::Transport,
};

/// A connection to a server that has just let us in.
///
/// # Errors
/// If the server does not prompt for a command.
pub async fn connection_over(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Connection, ClientError> {
    Connection::ready(Transport::new(socket)).await
}

/// The password that a password file has for a user of a server.
pub fn password_in(text: &str, endpoint: &Endpoint, user: &str) -> Option<Password> {
    passfile::find(text, endpoint, user)
}
