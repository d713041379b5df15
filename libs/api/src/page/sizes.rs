//! How large relations and databases are.

use palimpsest_proto::page::v1 as wire;
use palimpsest_types::{BlockNumber, Lsn, Oid, RelTag};

use super::{PageClient, ReadAt, malformed};
use crate::{
    convert::{TimelineRef, rel_tag, rel_tag_to_wire},
    status::RemoteError,
};

/// The size of a relation fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationSize {
    /// The LSN that was read.
    pub lsn: Lsn,
    /// Its length; `None` if it does not exist.
    pub blocks: Option<BlockNumber>,
}

/// The size of a database: all relation forks in it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseSize {
    /// The LSN that was read.
    pub lsn: Lsn,
    /// Blocks; `None` if there is no relation fork of the database.
    pub blocks: Option<u64>,
}

impl PageClient {
    /// The size of a relation fork.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn relation_size(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
        rel: RelTag,
    ) -> Result<RelationSize, RemoteError> {
        let request = wire::GetRelationSizeRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
            rel: Some(rel_tag_to_wire(rel)),
        };
        let answer = self
            .unary
            .clone()
            .get_relation_size(request)
            .await?
            .into_inner();
        let blocks = answer.exists.then(|| BlockNumber::new(answer.blocks));
        Ok(RelationSize {
            lsn: Lsn::new(answer.lsn),
            blocks,
        })
    }

    /// All relation forks with their sizes, and the LSN that was read.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn relations(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
    ) -> Result<(Lsn, Vec<(RelTag, BlockNumber)>), RemoteError> {
        let request = wire::ListRelationsRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
        };
        let mut stream = self
            .unary
            .clone()
            .list_relations(request)
            .await?
            .into_inner();
        let (mut lsn, mut relations) = (Lsn::ZERO, Vec::new());
        while let Some(message) = stream.message().await? {
            lsn = Lsn::new(message.lsn);
            for relation in message.relations {
                let rel = rel_tag(relation.rel).map_err(malformed)?;
                relations.push((rel, BlockNumber::new(relation.blocks)));
            }
        }
        Ok((lsn, relations))
    }

    /// The size of a database, in all its tablespaces; `db` 0 is what all databases share.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn database_size(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
        db: Oid,
    ) -> Result<DatabaseSize, RemoteError> {
        let request = wire::GetDatabaseSizeRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
            db_oid: db,
        };
        let mut client = self.unary.clone();
        let answer = client.get_database_size(request).await?.into_inner();
        Ok(DatabaseSize {
            lsn: Lsn::new(answer.lsn),
            blocks: answer.exists.then_some(answer.blocks),
        })
    }
}
