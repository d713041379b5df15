use std::{collections::BTreeMap, fmt, time::Duration};

use postgres_protocol::message::{
    backend::{Message, ParameterStatusBody},
    frontend,
};
use tokio::time::timeout;

use crate::{
    ClientError, ConnInfo, connect,
    row::Row,
    transport::{Incoming, Transport},
};

/// A replication connection that is ready for a command.
///
/// Commands borrow it; a base backup and a WAL stream take it over and give it back when they have
/// come to their end. A command whose future is dropped half-way leaves replies unread, so every
/// later command fails with [`ClientError::OutOfStep`].
pub struct Connection {
    transport: Transport,
    parameters: BTreeMap<String, String>,
    in_step: bool,
}

/// Limit on a command that answers with rows, and on the reply that begins a WAL stream. None of
/// them waits for anything at the server.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// More than any version of the server reports.
const MAX_PARAMETERS: usize = 256;
/// Most text kept of one command's result; the longest is the content of a timeline history.
const MAX_RESULT: usize = 4 << 20;
/// Most rows of one command's result.
const MAX_ROWS: usize = 1 << 16;

impl Connection {
    /// Connects to the first server of `info` that accepts, and logs in.
    ///
    /// # Errors
    /// Those of connecting, TLS and authentication; see [`ClientError::kind`].
    pub async fn connect(info: &ConnInfo) -> Result<Self, ClientError> {
        // Boxed because handshakes are large and callers' futures should not be.
        Box::pin(connect::connect(info)).await
    }

    /// A setting that the server reported, such as `server_version` or `TimeZone`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's major version, such as 15.
    pub fn server_major_version(&self) -> Option<u32> {
        let version = self.parameter("server_version")?;
        let digits = version.bytes().take_while(u8::is_ascii_digit).count();
        version[..digits].parse().ok()
    }

    /// Says goodbye, so that the server does not log a lost connection.
    pub async fn close(self) {
        self.transport.terminate().await;
    }

    /// Takes over after authentication and reads up to the first prompt.
    pub(crate) async fn ready(transport: Transport) -> Result<Self, ClientError> {
        let mut connection = Self {
            transport,
            parameters: BTreeMap::new(),
            in_step: false,
        };
        connection.finish().await?;
        Ok(connection)
    }

    /// Sends a command; its replies are read with [`Connection::recv`] up to the prompt.
    pub(crate) async fn send(&mut self, command: &str) -> Result<(), ClientError> {
        if !self.in_step {
            return Err(ClientError::OutOfStep);
        }
        self.transport.queue(|out| frontend::query(command, out))?;
        self.in_step = false;
        self.transport.flush().await
    }

    /// The next reply. Cancel-safe. After an error that leaves the connection alive, the caller reads
    /// on with [`Connection::finish`] if it wants to keep the connection.
    pub(crate) async fn recv(&mut self) -> Result<Incoming, ClientError> {
        loop {
            match self.transport.recv().await? {
                Incoming::Other(Message::ParameterStatus(body)) => self.remember(&body)?,
                Incoming::Other(Message::BackendKeyData(_)) => {}
                message => {
                    self.in_step |= matches!(message, Incoming::Other(Message::ReadyForQuery(_)));
                    return Ok(message);
                }
            }
        }
    }

    /// As [`Connection::recv`], for a reply that the server gives at once.
    pub(crate) async fn reply(&mut self) -> Result<Incoming, ClientError> {
        in_time(self.recv()).await
    }

    /// Reads to the prompt. Nothing but the end of the command may come before it.
    pub(crate) async fn finish(&mut self) -> Result<(), ClientError> {
        loop {
            match self.recv().await? {
                Incoming::Other(Message::ReadyForQuery(_)) => return Ok(()),
                Incoming::Other(Message::CommandComplete(_)) => {}
                message => return Err(unexpected(&message, "the end of the command")),
            }
        }
    }

    /// Runs a command to its end and returns the rows of its results. After [`COMMAND_LIMIT`] the
    /// command counts as abandoned.
    pub(crate) async fn rows(&mut self, command: &str) -> Result<Vec<Row>, ClientError> {
        in_time(self.run(command)).await
    }

    async fn run(&mut self, command: &str) -> Result<Vec<Row>, ClientError> {
        self.send(command).await?;
        let result = self.collect_rows().await;
        if let Err(ClientError::Server(error)) = &result
            && error.severity() == "ERROR"
        {
            // The connection lives on and prompts for the next command. If it does not after all,
            // the connection stays out of step, and the first error is still the one that counts.
            let _ = self.finish().await;
        }
        result
    }

    /// Runs a command whose result is one row.
    pub(crate) async fn row(&mut self, command: &str) -> Result<Row, ClientError> {
        let mut rows = self.rows(command).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(ClientError::protocol(format!(
                "the result of {command} is not one row"
            ))),
        }
    }

    pub(crate) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    async fn collect_rows(&mut self) -> Result<Vec<Row>, ClientError> {
        let (mut rows, mut size) = (Vec::new(), 0);
        loop {
            match self.recv().await? {
                Incoming::Other(Message::ReadyForQuery(_)) => return Ok(rows),
                Incoming::Other(Message::DataRow(body)) => {
                    let row = Row::parse(&body)?;
                    size += row.size();
                    if size > MAX_RESULT || rows.len() == MAX_ROWS {
                        return Err(ClientError::protocol(
                            "the result of a command is too large",
                        ));
                    }
                    rows.push(row);
                }
                Incoming::Other(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse,
                ) => {}
                message => return Err(unexpected(&message, "a row")),
            }
        }
    }

    fn remember(&mut self, body: &ParameterStatusBody) -> Result<(), ClientError> {
        let name = body.name().map_err(ClientError::Malformed)?;
        let value = body.value().map_err(ClientError::Malformed)?;
        if self.parameters.len() < MAX_PARAMETERS {
            self.parameters.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.parameter("server_version");
        f.debug_struct("Connection")
            .field("server_version", &version)
            .finish_non_exhaustive()
    }
}

async fn in_time<T>(reply: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    match timeout(COMMAND_LIMIT, reply).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Silent {
            during: "which should answer a command",
            after: COMMAND_LIMIT,
        }),
    }
}

/// The error for a message that does not belong where it came.
pub(crate) fn unexpected(message: &Incoming, wanted: &str) -> ClientError {
    let name = match message {
        Incoming::CopyBoth => "CopyBothResponse",
        Incoming::CopyData(_) => "CopyData",
        Incoming::Other(Message::CopyDone) => "CopyDone",
        Incoming::Other(Message::CopyOutResponse(_)) => "CopyOutResponse",
        Incoming::Other(Message::CopyInResponse(_)) => "CopyInResponse",
        Incoming::Other(Message::RowDescription(_)) => "RowDescription",
        Incoming::Other(Message::DataRow(_)) => "DataRow",
        Incoming::Other(Message::CommandComplete(_)) => "CommandComplete",
        Incoming::Other(Message::ReadyForQuery(_)) => "ReadyForQuery",
        Incoming::Other(_) => "another message",
    };
    ClientError::protocol(format!("{name} where {wanted} was expected"))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt, DuplexStream},
        time::Instant,
    };

    use super::*;

    async fn connection() -> (DuplexStream, Connection) {
        let (client, mut server) = tokio::io::duplex(4096);
        server
            .write_all(b"S\0\0\0\x18server_version\x0015.8\0Z\0\0\0\x05I")
            .await
            .unwrap();
        let connection = Connection::ready(Transport::new(client)).await.unwrap();
        (server, connection)
    }

    #[tokio::test]
    async fn an_abandoned_command_makes_the_connection_unusable_not_wrong() {
        let (_server, mut connection) = connection().await;
        let abandoned = tokio::time::timeout(Duration::from_millis(5), connection.show("a"));
        assert!(abandoned.await.is_err(), "answered by nobody");
        let error = connection.show("b").await.unwrap_err();
        assert!(matches!(error, ClientError::OutOfStep));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_a_command_is_given_up() {
        let (_server, mut connection) = connection().await;
        let begun = Instant::now();
        let error = connection.identify_system().await.unwrap_err();
        assert!(matches!(error, ClientError::Silent { .. }), "{error}");
        assert_eq!(error.kind(), palimpsest_types::ErrorKind::NotReady);
        assert_eq!(begun.elapsed(), COMMAND_LIMIT);
        let error = connection.identify_system().await.unwrap_err();
        assert!(matches!(error, ClientError::OutOfStep));
    }
}
