use std::fmt::Write as _;

const WIDTH: usize = 16;

/// Bytes in rows of sixteen, as `hexdump -C` shows them: `*` stands for rows equal to the one above.
pub(crate) fn hex_dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut above: Option<&[u8]> = None;
    let mut skipping = false;
    for (index, row) in bytes.chunks(WIDTH).enumerate() {
        if above == Some(row) {
            if !skipping {
                text.push_str("*\n");
            }
            skipping = true;
            continue;
        }
        skipping = false;
        above = Some(row);
        push_row(&mut text, index * WIDTH, row);
    }
    // Writing to a string cannot fail.
    let _ = write!(text, "{:08x}", bytes.len());
    text
}

fn push_row(text: &mut String, offset: usize, row: &[u8]) {
    let _ = write!(text, "{offset:08x} ");
    for column in 0..WIDTH {
        if column % 8 == 0 {
            text.push(' ');
        }
        match row.get(column) {
            Some(byte) => {
                let _ = write!(text, "{byte:02x} ");
            }
            None => text.push_str("   "),
        }
    }
    let shown = row.iter().map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    });
    let _ = writeln!(text, " |{}|", shown.collect::<String>());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_hexdump() {
        let mut bytes = vec![0; 48];
        bytes.extend_from_slice(b"palimpsest");
        let expected = "\
00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
00000030  70 61 6c 69 6d 70 73 65  73 74                    |palimpsest|
0000003a";
        assert_eq!(hex_dump(&bytes), expected);
    }
}
