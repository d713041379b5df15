//! The commands of the replication protocol that answer with rows.

use palimpsest_types::{Lsn, SystemIdentifier};

use crate::{ClientError, Connection, SlotName, TimelineHistory, Tli, quote};

/// Answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster.
    pub system_id: SystemIdentifier,
    /// Its current timeline.
    pub timeline: Tli,
    /// How far its WAL is flushed (or, on a standby, replayed).
    pub xlogpos: Lsn,
    /// The database of the connection; `None` on a physical replication connection.
    pub dbname: Option<String>,
}

/// A physical replication slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// The oldest WAL that the slot keeps; `None` if it keeps none yet.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub restart_tli: Option<Tli>,
}

impl Connection {
    /// `IDENTIFY_SYSTEM`: which cluster this is, and where its WAL ends.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ClientError> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: SystemIdentifier::new(row.value(0, "the system identifier")?),
            timeline: row.value(1, "the timeline")?,
            xlogpos: row.value(2, "the WAL position")?,
            dbname: row.optional(3, "the database")?.map(str::to_owned),
        })
    }

    /// `SHOW`: the value of a setting such as `wal_segment_size`, as the server displays it.
    ///
    /// # Errors
    /// If the server does not have the setting (kind `NotFound`) or cannot be asked.
    pub async fn show(&mut self, name: &str) -> Result<String, ClientError> {
        let row = self.row(&format!("SHOW {}", quote::setting(name)?)).await?;
        row.text(0, "the setting").map(str::to_owned)
    }

    /// Creates a physical slot. With `reserve_wal` it keeps WAL from now on, otherwise from the
    /// first use on; the returned state says from where.
    ///
    /// # Errors
    /// Kind `AlreadyExists` if there is a slot of this name, `Conflict` if all slots are taken.
    pub async fn create_physical_slot(
        &mut self,
        name: &SlotName,
        reserve_wal: bool,
    ) -> Result<SlotState, ClientError> {
        let options = if reserve_wal { " (RESERVE_WAL)" } else { "" };
        self.rows(&format!(
            "CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL{options}"
        ))
        .await?;
        // What the command itself reports as position is only meaningful for logical slots.
        let missing = || ClientError::protocol("the slot is gone right after its creation");
        self.read_replication_slot(name).await?.ok_or_else(missing)
    }

    /// Drops a slot, so that the server may recycle its WAL.
    ///
    /// # Errors
    /// Kind `NotFound` if there is no such slot, `Conflict` if a connection is using it.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), ClientError> {
        self.rows(&format!("DROP_REPLICATION_SLOT \"{name}\""))
            .await
            .map(drop)
    }

    /// What a physical slot keeps, or `None` if there is no such slot.
    ///
    /// # Errors
    /// Kind `Invalid` if it is a logical slot, or if the server is older than PostgreSQL 15.
    pub async fn read_replication_slot(
        &mut self,
        name: &SlotName,
    ) -> Result<Option<SlotState>, ClientError> {
        let row = self
            .row(&format!("READ_REPLICATION_SLOT \"{name}\""))
            .await?;
        if row.optional(0, "the slot type")?.is_none() {
            return Ok(None);
        }
        Ok(Some(SlotState {
            restart_lsn: row.optional_value(1, "the slot's position")?,
            restart_tli: row.optional_value(2, "the slot's timeline")?,
        }))
    }

    /// The history of a timeline. Timeline 1 has none.
    ///
    /// # Errors
    /// Kind `NotFound` if the server has no history file of it.
    pub async fn timeline_history(
        &mut self,
        timeline: Tli,
    ) -> Result<TimelineHistory, ClientError> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let file_name = row.text(0, "the history file's name")?;
        TimelineHistory::parse(file_name, row.text(1, "the history")?)
            .map_err(|error| ClientError::protocol(error.to_string()))
    }
}
