//! PostgreSQL's own compression, decompression side (`pg_lzcompress.c`).
//!
//! Items come in groups of eight behind a control byte, lowest bit first: a clear bit is one
//! literal byte, a set bit a back reference of two or three bytes.

/// Decompresses `source` into `out` and says how many bytes that gave; `None` on bytes that no
/// compressor wrote or that do not fit.
pub(crate) fn decompress(source: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut input = source.iter().copied();
    let mut filled = 0;
    while let Some(control) = input.next() {
        for bit in 0..8 {
            if control >> bit & 1 == 0 {
                let Some(literal) = input.next() else {
                    return Some(filled);
                };
                *out.get_mut(filled)? = literal;
                filled += 1;
            } else {
                let Some(first) = input.next() else {
                    return Some(filled);
                };
                let (length, offset) = back_reference(first, &mut input)?;
                filled = copy_back(out, filled, length, offset)?;
            }
        }
    }
    Some(filled)
}

/// Length and distance of a back reference whose first byte is `first`.
fn back_reference(first: u8, input: &mut impl Iterator<Item = u8>) -> Option<(usize, usize)> {
    let offset = usize::from(first & 0xF0) << 4 | usize::from(input.next()?);
    let length = usize::from(first & 0x0F) + 3;
    let length = if length == 18 {
        length + usize::from(input.next()?)
    } else {
        length
    };
    Some((length, offset))
}

/// Repeats `length` bytes from `offset` back. Source and target overlap when `length > offset`:
/// that is how runs are written. The last reference may claim more than is wanted.
fn copy_back(out: &mut [u8], filled: usize, length: usize, offset: usize) -> Option<usize> {
    let from = filled.checked_sub(offset).filter(|_| offset > 0)?;
    let end = (filled + length).min(out.len());
    for (source, target) in (from..).zip(filled..end) {
        out[target] = *out.get(source)?;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_runs_and_literals() {
        // 'a', 'b', then 6 bytes from 2 back, then the extended length form: 18 + 2 from 1 back.
        let source = [0b0000_1100, b'a', b'b', 0x03, 2, 0x0F, 1, 2];
        let mut out = [0; 28];
        assert_eq!(decompress(&source, &mut out), Some(28));
        assert_eq!(&out[..8], b"abababab");
        assert!(out[8..].iter().all(|byte| *byte == b'b'));
    }

    #[test]
    fn refuses_references_before_the_beginning() {
        assert_eq!(decompress(&[1, 0x03, 9], &mut [0; 16]), None);
        assert_eq!(decompress(&[1, 0x03, 0], &mut [0; 16]), None);
    }
}
