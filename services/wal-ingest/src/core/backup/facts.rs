//! What a control file says, in the forms in which the log goes on from it.
//!
//! The file may be of a checkpoint that came after the backup's start. The log from there on then says
//! some of it again, which changes nothing: such numbers only advance.

use palimpsest_postgres::{CheckPoint, ControlFile};
use palimpsest_wal::{ControlData, NextMultiXact, v15::Parameters};

/// The settings, as the log has them when they change.
pub(super) fn parameters_of(control: &ControlFile) -> Parameters {
    Parameters {
        max_connections: control.max_connections,
        max_worker_processes: control.max_worker_processes,
        max_wal_senders: control.max_wal_senders,
        max_prepared_transactions: control.max_prepared_transactions,
        max_locks_per_transaction: control.max_locks_per_transaction,
        wal_level: control.wal_level,
        wal_log_hints: control.wal_log_hints,
        track_commit_timestamp: control.track_commit_timestamp,
    }
}

/// What the log changes of it.
pub(super) fn control_data_of(control: &ControlFile) -> ControlData {
    let CheckPoint {
        redo,
        timeline,
        previous_timeline,
        full_page_writes,
        next_xid,
        next_oid,
        next_multi: _,
        next_multi_offset: _,
        oldest_xid,
        oldest_xid_db,
        oldest_multi,
        oldest_multi_db,
        time,
        oldest_commit_ts_xid,
        newest_commit_ts_xid,
        oldest_active_xid,
    } = control.checkpoint_copy;
    ControlData {
        checkpoint: control.checkpoint,
        redo,
        time,
        next_xid,
        timeline,
        previous_timeline,
        next_oid,
        oldest_xid,
        oldest_xid_db,
        oldest_multi,
        oldest_multi_db,
        oldest_commit_ts_xid,
        newest_commit_ts_xid,
        oldest_active_xid,
        full_page_writes,
    }
}

/// The next multixact.
pub(super) fn next_multixact_of(control: &ControlFile) -> NextMultiXact {
    NextMultiXact {
        id: control.checkpoint_copy.next_multi,
        offset: control.checkpoint_copy.next_multi_offset,
    }
}
