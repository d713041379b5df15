//! For fuzzing: what a redo process writes, read without one.

use bytes::BytesMut;

use crate::wire::{Answer, decode_answer, decode_page, decode_verified, decode_walls};

/// Takes answers from these bytes until there are no more, and each for all that it may be.
pub fn read_answers(bytes: &[u8]) {
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(answer)) = decode_answer(&mut input) {
        if let Answer::Done(body) = answer {
            let _ = decode_page(body.clone());
            let _ = decode_verified(body.clone());
            let _ = decode_walls(body);
        }
    }
}
