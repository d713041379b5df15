//! What is read besides relations: SLRU segments and relation maps.

use bytes::Bytes;
use palimpsest_proto::page::v1 as wire;
use palimpsest_types::{Lsn, Oid, SlruKind};

use super::{PageClient, ReadAt};
use crate::{
    convert::{InvalidMessageError, TimelineRef},
    status::RemoteError,
};

/// The pages of a segment of an SLRU area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlruSegment {
    /// The LSN that was read.
    pub lsn: Lsn,
    /// Pages that exist, by their number in the area.
    pub pages: Vec<(u32, Bytes)>,
}

/// A relation map file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMapFile {
    /// The LSN that was read.
    pub lsn: Lsn,
    /// What the file holds.
    pub content: Bytes,
}

impl PageClient {
    /// A segment of an SLRU area.
    ///
    /// # Errors
    /// What page-serve says; not found if the segment does not exist.
    pub async fn slru_segment(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
        kind: SlruKind,
        segment: u32,
    ) -> Result<SlruSegment, RemoteError> {
        let request = wire::GetSlruSegmentRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
            kind: slru_kind_to_wire(kind).into(),
            segment_number: segment,
        };
        let mut client = self.unary.clone();
        let answer = client.get_slru_segment(request).await?.into_inner();
        let pages = answer.pages.into_iter();
        Ok(SlruSegment {
            lsn: Lsn::new(answer.lsn),
            pages: pages.map(|page| (page.page_number, page.data)).collect(),
        })
    }

    /// The relation map file of a database.
    ///
    /// # Errors
    /// What page-serve says; not found if there is no such database.
    pub async fn relation_map(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
        spc: Oid,
        db: Oid,
    ) -> Result<RelationMapFile, RemoteError> {
        let request = wire::GetRelationMapRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
            spc_oid: spc,
            db_oid: db,
        };
        let mut client = self.unary.clone();
        let answer = client.get_relation_map(request).await?.into_inner();
        Ok(RelationMapFile {
            lsn: Lsn::new(answer.lsn),
            content: answer.content,
        })
    }
}

const fn slru_kind_to_wire(kind: SlruKind) -> wire::SlruKind {
    match kind {
        SlruKind::Clog => wire::SlruKind::Clog,
        SlruKind::MultiXactOffsets => wire::SlruKind::MultixactOffsets,
        SlruKind::MultiXactMembers => wire::SlruKind::MultixactMembers,
        SlruKind::CommitTs => wire::SlruKind::CommitTs,
    }
}

/// An SLRU area from its number on the wire.
///
/// # Errors
/// If no area has it.
pub fn slru_kind(number: i32) -> Result<SlruKind, InvalidMessageError> {
    match wire::SlruKind::try_from(number) {
        Ok(wire::SlruKind::Clog) => Ok(SlruKind::Clog),
        Ok(wire::SlruKind::MultixactOffsets) => Ok(SlruKind::MultiXactOffsets),
        Ok(wire::SlruKind::MultixactMembers) => Ok(SlruKind::MultiXactMembers),
        Ok(wire::SlruKind::CommitTs) => Ok(SlruKind::CommitTs),
        Ok(wire::SlruKind::Unspecified) => Err(InvalidMessageError::missing("kind")),
        Err(_) => Err(InvalidMessageError::new(
            "kind",
            format!("{number} is no SLRU area"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_area_survives_the_wire_and_no_other_number_is_one() {
        for kind in SlruKind::ALL {
            assert_eq!(slru_kind(slru_kind_to_wire(kind).into()), Ok(kind));
        }
        assert!(slru_kind(0).is_err());
        assert!(slru_kind(99).is_err());
    }
}
