//! A listing of relations as messages, each made when the one before was taken.

use futures::{Stream, stream};
use palimpsest_api::rel_tag_to_wire;
use palimpsest_proto::page::v1::{ListRelationsResponse, list_relations_response::Relation};
use palimpsest_types::{BlockNumber, Lsn, RelTag};

/// Relations in one message.
const RELATIONS: usize = 1000;

/// The messages: one at least, because the LSN is an answer, too.
pub(super) fn messages(
    lsn: Lsn,
    relations: Vec<(RelTag, BlockNumber)>,
) -> impl Stream<Item = ListRelationsResponse> + Send {
    let count = relations.len().div_ceil(RELATIONS).max(1);
    let mut rest = relations.into_iter();
    let message = move |_| ListRelationsResponse {
        lsn: lsn.get(),
        relations: rest.by_ref().take(RELATIONS).map(relation).collect(),
    };
    stream::iter((0..count).map(message))
}

/// Relations, as many as are in one message at once.
pub(super) fn portions(
    relations: Vec<(RelTag, BlockNumber)>,
) -> impl Iterator<Item = Vec<Relation>> + Send {
    let mut rest = relations.into_iter();
    std::iter::from_fn(move || {
        let portion: Vec<_> = rest.by_ref().take(RELATIONS).map(relation).collect();
        (!portion.is_empty()).then_some(portion)
    })
}

fn relation((rel, blocks): (RelTag, BlockNumber)) -> Relation {
    Relation {
        rel: Some(rel_tag_to_wire(rel)),
        blocks: blocks.get(),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    fn lengths(count: u32) -> Vec<usize> {
        let rel: RelTag = "1663/5/16384".parse().unwrap();
        let relations = (0..count).map(|blocks| (rel, BlockNumber::new(blocks)));
        let messages = messages(Lsn::new(7), relations.collect()).collect::<Vec<_>>();
        let messages = messages.now_or_never().unwrap();
        let all = messages.iter().flat_map(|message| &message.relations);
        assert!(all.map(|relation| relation.blocks).eq(0..count));
        assert!(messages.iter().all(|message| message.lsn == 7));
        let lengths = messages.iter().map(|message| message.relations.len());
        lengths.collect()
    }

    #[test]
    fn every_relation_is_in_one_message_and_none_makes_a_message_too() {
        assert_eq!(lengths(0), [0]);
        assert_eq!(lengths(1000), [1000]);
        assert_eq!(lengths(2001), [1000, 1000, 1]);
    }
}
