//! The PostgreSQL that a timeline is read from: how it is reached, and whether it can be attached.

use palimpsest_postgres::{ClientError, ConnInfo, Connection};
use palimpsest_types::{ByteCount, ErrorKind, PAGE_SIZE, SystemIdentifier};
use palimpsest_wal::SegmentSize;

use super::error::IngestError;

/// What the checks before an attach found.
#[derive(Debug, Clone)]
pub struct SourceReport {
    /// Which cluster it is.
    pub system_identifier: SystemIdentifier,
    /// 15 for PostgreSQL 15.
    pub pg_version: u32,
    /// The PostgreSQL timeline it is on.
    pub pg_timeline: u32,
    /// Size of its WAL segment files.
    pub wal_segment_size: SegmentSize,
    /// Blocks in one relation segment file.
    pub relation_segment_blocks: u32,
    /// Page LSNs may be set by hint bits: checksums or `wal_log_hints` are on.
    pub wal_log_hints: bool,
    /// What works but deserves attention.
    pub warnings: Vec<String>,
}

/// The source can't be attached as it is. Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Another major version.
    #[error("the source is PostgreSQL {0}; this version of Palimpsest reads 15")]
    Version(String),
    /// WAL lacks what redo needs.
    #[error("the source has wal_level = {0}; set wal_level = replica (or logical) and restart it")]
    WalLevel(String),
    /// A standby.
    #[error("the source is a standby; give the connection string of its primary")]
    Standby,
    /// Another page size.
    #[error("the source has {name} = {value}; only {supported} is supported")]
    Size {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What works.
        supported: usize,
    },
    /// A setting could not be understood.
    #[error("the source says {name} = {value:?}, which is not a size")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// No connection left.
    #[error(
        "the source allows {0} WAL senders; set max_wal_senders to at least 3 more than its standbys need"
    )]
    WalSenders(String),
    /// Others use them all.
    #[error(
        "the source has too few free WAL senders ({SENDERS} are needed); raise max_wal_senders, or stop a standby or backup that is not needed"
    )]
    NoFreeSender(#[source] Box<ClientError>),
    /// The same cluster is attached already.
    #[error(
        "this cluster (system identifier {id}) is attached already, as {name}; delete that tenant first"
    )]
    AttachedAlready {
        /// Its system identifier.
        id: SystemIdentifier,
        /// The tenant.
        name: String,
    },
    /// The server refused the user.
    #[error(
        "the source refuses the connection; the user needs REPLICATION and pg_hba.conf a line for database \"replication\""
    )]
    Refused(#[source] ClientError),
}

const PG_VERSION: u32 = 15;
/// WAL senders that we use at a time: the stream, the slot's keeper, and the base backup.
const SENDERS: u32 = 3;

/// Connects to a source. The password may be in the password file.
pub(super) async fn connect(conninfo: &str) -> Result<Connection, IngestError> {
    connect_as(conninfo, "palimpsest").await
}

/// Connects to a source under a name that it shows in its views.
pub(super) async fn connect_as(conninfo: &str, name: &str) -> Result<Connection, IngestError> {
    let info = parse(conninfo)?.with_application_name(name);
    Connection::connect(&info)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::Invalid if error.server_error().is_some() => {
                CheckError::Refused(error).into()
            }
            _ => error.into(),
        })
}

fn parse(conninfo: &str) -> Result<ConnInfo, IngestError> {
    let info: ConnInfo = conninfo.parse()?;
    // The one place that looks at the environment: libpq's own variables for the password file.
    let passfile = std::env::var_os("PGPASSFILE").map(std::path::PathBuf::from);
    let home = std::env::home_dir();
    Ok(info.with_default_passfile(passfile.as_deref(), home.as_deref()))
}

/// Looks at a source without changing anything there.
///
/// # Errors
/// The first thing that stands in the way, with what to do about it.
pub async fn check_source(conninfo: &str) -> Result<SourceReport, IngestError> {
    let mut connection = connect(conninfo).await?;
    let report = inspect(&mut connection).await?;
    connection.close().await;
    Ok(report)
}

/// The checks, over a connection that stays usable.
pub(super) async fn inspect(connection: &mut Connection) -> Result<SourceReport, IngestError> {
    let identity = connection.identify_system().await?;
    let version = connection.server_major_version();
    if version != Some(PG_VERSION) {
        let shown = connection
            .parameter("server_version")
            .unwrap_or("of unknown version");
        return Err(CheckError::Version(shown.to_owned()).into());
    }
    if connection.show("in_hot_standby").await? == "on" {
        return Err(CheckError::Standby.into());
    }
    let wal_level = connection.show("wal_level").await?;
    if wal_level == "minimal" {
        return Err(CheckError::WalLevel(wal_level).into());
    }
    let senders = connection.show("max_wal_senders").await?;
    if senders
        .parse::<u32>()
        .is_ok_and(|senders| senders < SENDERS)
    {
        return Err(CheckError::WalSenders(senders).into());
    }
    expect_size(connection, "block_size", PAGE_SIZE).await?;
    expect_size(connection, "wal_block_size", PAGE_SIZE).await?;
    let wal_segment = size(connection, "wal_segment_size").await?;
    let wal_segment_size =
        SegmentSize::new(wal_segment.get()).map_err(|_| CheckError::Setting {
            name: "wal_segment_size",
            value: wal_segment.to_string(),
        })?;
    let relation_segment = size(connection, "segment_size").await?;
    let checksums = connection.show("data_checksums").await? == "on";
    let hints = connection.show("wal_log_hints").await? == "on";
    Ok(SourceReport {
        system_identifier: identity.system_id,
        pg_version: PG_VERSION,
        pg_timeline: identity.timeline,
        wal_segment_size,
        relation_segment_blocks: (relation_segment.get() / PAGE_SIZE as u64) as u32,
        wal_log_hints: checksums || hints,
        warnings: warnings(connection).await?,
    })
}

/// Makes sure that as many WAL senders are free as we need, with one of them in hand.
pub(super) async fn expect_free_senders(conninfo: &str) -> Result<(), IngestError> {
    let mut others = Vec::new();
    for _ in 1..SENDERS {
        let connection = connect(conninfo).await.map_err(|error| match error {
            IngestError::Source(error) if is_too_many(&error) => {
                CheckError::NoFreeSender(Box::new(error)).into()
            }
            error => error,
        });
        others.push(connection?);
    }
    for connection in others {
        connection.close().await;
    }
    Ok(())
}

/// SQLSTATE 53300: no WAL sender, or no connection, is left.
fn is_too_many(error: &ClientError) -> bool {
    let code = error.server_error().map(|error| error.code());
    code == Some("53300")
}

/// What works but deserves attention.
pub(super) async fn warnings(connection: &mut Connection) -> Result<Vec<String>, ClientError> {
    let mut warnings = Vec::new();
    if connection.show("max_slot_wal_keep_size").await? == "-1" {
        warnings.push(
            "max_slot_wal_keep_size is -1 at the source: its disk has no limit of its own for WAL \
             kept by slots; set one"
                .to_owned(),
        );
    }
    if connection.show("full_page_writes").await? == "off" {
        warnings.push(
            "full_page_writes is off at the source: a crash of its machine can tear pages there, \
             and the base backup turns it on while it runs"
                .to_owned(),
        );
    }
    Ok(warnings)
}

async fn expect_size(
    connection: &mut Connection,
    name: &'static str,
    supported: usize,
) -> Result<(), IngestError> {
    let value = connection.show(name).await?;
    if value.parse() == Ok(supported) {
        return Ok(());
    }
    Err(CheckError::Size {
        name,
        value,
        supported,
    }
    .into())
}

/// A setting with a unit, as `SHOW` prints it: `16MB`, `1GB`.
async fn size(connection: &mut Connection, name: &'static str) -> Result<ByteCount, IngestError> {
    let value = connection.show(name).await?;
    parse_size(&value).ok_or_else(|| CheckError::Setting { name, value }.into())
}

fn parse_size(value: &str) -> Option<ByteCount> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(1 << shift)
        .map(ByteCount::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_as_postgres_shows_them() {
        assert_eq!(parse_size("16MB"), Some(ByteCount::mib(16)));
        assert_eq!(parse_size("1GB"), Some(ByteCount::gib(1)));
        assert_eq!(parse_size("8192"), Some(ByteCount::new(8192)));
        assert_eq!(parse_size("1 GB"), None);
        assert_eq!(parse_size(""), None);
    }
}
