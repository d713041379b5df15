//! PostgreSQL's replication protocol as a client.
//!
//! [`Connection::connect`] takes a libpq-style [`ConnInfo`], logs in (trust, password, md5,
//! SCRAM-SHA-256 with and without channel binding; TLS by `sslmode`) and gives typed commands:
//! identify the system, slots, timeline history. [`Connection::base_backup`] reads a copy of the
//! cluster, [`Connection::start_physical_replication`] its WAL. The formats that come along are
//! parsed here too: tar archives, `pg_control`, `backup_label`, progress of origins. WAL itself is bytes to this crate.
//!
//! The server is not trusted: messages, rows and files have limits that are judged before memory
//! is taken, and nothing it sends makes this crate panic. Nothing reads the environment.

mod auth;
mod backup_label;
mod base_backup;
mod channel_binding;
mod command;
mod connect;
mod connection;
mod conninfo;
mod control_file;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod keep_alive;
mod quote;
mod replication;
mod replication_origins;
mod row;
mod server_error;
mod slot_file;
mod slot_name;
mod tar;
mod timeline_history;
mod tls;
mod transport;

pub use backup_label::{BackupLabel, BackupLabelError, BackupMethod, BackupSource};
pub use base_backup::{
    BackupEvent, BackupOptions, BackupStart, BaseBackup, Checkpoint, Tablespace,
};
pub use command::{SlotState, SystemIdentity};
pub use connection::Connection;
pub use conninfo::{ConnInfo, ConnInfoError, Endpoint, Host, Password, SslMode};
pub use control_file::{CheckPoint, ControlFile, ControlFileError, ShutDown};
pub use error::ClientError;
pub use replication::{PgTimestamp, ReplicationEvent, ReplicationStream, StandbyStatus};
pub use replication_origins::{ReplicationOrigins, ReplicationOriginsError};
pub use server_error::ServerError;
pub use slot_file::slot_file;
pub use slot_name::{InvalidSlotNameError, SlotName};
pub use tar::{TarDecoder, TarError, TarEvent};
pub use timeline_history::{TimelineHistory, TimelineHistoryError, TimelineSwitch, Tli};
