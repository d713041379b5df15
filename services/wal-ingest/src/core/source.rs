//! The PostgreSQL that a timeline is read from: how it is reached, and whether it can be attached.

use std::time::Duration;

use futures::future::join_all;
use palimpsest_manifest::SourceCluster;
use palimpsest_postgres::{ClientError, ConnInfo, Connection, SystemIdentity};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, PAGE_SIZE, SystemIdentifier};
use palimpsest_wal::SegmentSize;
use tokio::time::timeout;

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
    #[error("the source is a standby; give the connection string of its primary, or of all hosts")]
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

/// Connects to a source that is to be attached: one that is a standby now is none.
pub(super) async fn connect_to_attach(conninfo: &str) -> Result<Connection, IngestError> {
    connect(conninfo).await.map_err(|error| match error {
        IngestError::Source(ClientError::Standby { .. }) => CheckError::Standby.into(),
        error => error,
    })
}

/// Connects to a source, under a name that it shows in its views. Of several hosts it is the first that is a
/// primary: standbys have the WAL as well, but not all that was committed.
async fn connect_as(conninfo: &str, name: &str) -> Result<Connection, IngestError> {
    connect_by(&parse(conninfo)?.with_application_name(name)).await
}

/// Connects to the primary that goes on with a cluster's history, under a name that it shows in its views. Of several
/// hosts that is the one on the latest PostgreSQL timeline: who was left behind by a promotion may answer, too. Each has
/// so long for that. If none goes on, a primary is returned all the same, for the caller to say what it is instead.
pub(super) async fn connect_to(
    conninfo: &str,
    name: &str,
    cluster: &SourceCluster,
    patience: Duration,
) -> Result<(Connection, SystemIdentity), IngestError> {
    let info = parse(conninfo)?.with_application_name(name);
    if info.endpoints().len() < 2 {
        return identified(&info).await;
    }
    let asked = info.each_endpoint().map(async |info| {
        let endpoint = info.endpoints().iter().map(ToString::to_string).collect();
        let silent = || ClientError::ConnectTimeout {
            endpoint,
            after: patience,
        };
        let answered = timeout(patience, identified(&info)).await;
        answered.unwrap_or_else(|_| Err(silent().into()))
    });
    let (answered, failed): (Vec<_>, Vec<_>) =
        join_all(asked).await.into_iter().partition(Result::is_ok);
    let mut answered: Vec<_> = answered.into_iter().flatten().collect();
    answered.sort_by_key(|(_, identity)| rank(identity, cluster));
    let latest = answered.pop();
    for (connection, _) in answered {
        connection.close().await;
    }
    latest.ok_or_else(|| none_of(failed.into_iter().filter_map(Result::err).collect()))
}

/// Whether each of several hosts answers, be it as a standby.
pub(super) async fn expect_all_answer(
    conninfo: &str,
    patience: Duration,
) -> Result<(), IngestError> {
    let info = parse(conninfo)?;
    if info.endpoints().len() < 2 {
        return Ok(());
    }
    let asked = info.each_endpoint().map(async |info| {
        let answered = timeout(patience, identified(&info)).await;
        match answered {
            Ok(Ok((connection, _))) => {
                connection.close().await;
                true
            }
            Ok(Err(IngestError::Source(ClientError::Standby { .. }))) => true,
            Ok(Err(_)) | Err(_) => false,
        }
    });
    match join_all(asked).await.into_iter().all(|answers| answers) {
        true => Ok(()),
        false => Err(IngestError::Hosts(
            "who answers has less than is here, and some do not answer".to_owned(),
        )),
    }
}

async fn identified(info: &ConnInfo) -> Result<(Connection, SystemIdentity), IngestError> {
    let mut connection = connect_by(info).await?;
    let identity = connection.identify_system().await?;
    Ok((connection, identity))
}

/// What each of several hosts said; a refused login above all, as that is for a person to mend.
fn none_of(mut failed: Vec<IngestError>) -> IngestError {
    let is_refusal = |error: &IngestError| matches!(error, IngestError::Check(_));
    match failed.iter().position(is_refusal) {
        Some(at) => failed.swap_remove(at),
        None => {
            let told: Vec<_> = failed.iter().map(IngestError::in_words).collect();
            IngestError::Hosts(told.join("; "))
        }
    }
}

/// The larger, the better: a server of another cluster comes after all others.
fn rank(identity: &SystemIdentity, cluster: &SourceCluster) -> (bool, u32, Lsn) {
    let is_same = identity.system_id == cluster.system_identifier;
    // Of two on one timeline, one is a copy that was left behind.
    (is_same, identity.timeline, identity.xlogpos)
}

async fn connect_by(info: &ConnInfo) -> Result<Connection, IngestError> {
    Connection::connect(&info.clone().with_primary_only())
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
    let mut connection = connect_to_attach(conninfo).await?;
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
    fn the_latest_of_a_cluster_is_read() {
        let cluster = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 2,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        let identity = |id, timeline| SystemIdentity {
            system_id: SystemIdentifier::new(id),
            timeline,
            xlogpos: Lsn::new(1),
            dbname: None,
        };
        let order =
            [(8, 9), (7, 1), (7, 2), (7, 3)].map(|(id, at)| rank(&identity(id, at), &cluster));
        assert!(order.is_sorted());
    }

    #[test]
    fn reads_sizes_as_postgres_shows_them() {
        assert_eq!(parse_size("16MB"), Some(ByteCount::mib(16)));
        assert_eq!(parse_size("1GB"), Some(ByteCount::gib(1)));
        assert_eq!(parse_size("8192"), Some(ByteCount::new(8192)));
        assert_eq!(parse_size("1 GB"), None);
        assert_eq!(parse_size(""), None);
    }
}
