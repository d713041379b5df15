use proptest::{collection::vec, prelude::*};

use super::*;

/// An entry's header as PostgreSQL writes it.
fn header(name: &str, kind: u8, size: &[u8; 12], link: &str) -> Block {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000600 ");
    block[124..136].copy_from_slice(size);
    block[136..148].copy_from_slice(b"14611740000 ");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut Block) {
    let sum = format!("{:07o} ", header::checksum(block));
    block[148..156].copy_from_slice(sum.as_bytes());
}

fn octal_size(size: usize) -> [u8; 12] {
    format!("{size:011o} ").into_bytes().try_into().unwrap()
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, b'0', &octal_size(content.len()), "").to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header("global/", b'5', &octal_size(0), "").to_vec();
    bytes.extend(header("pg_tblspc/16384", b'2', &octal_size(0), "/mnt/ts"));
    bytes.extend(files.iter().flat_map(|(name, content)| file(name, content)));
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

/// All events, with the pieces of each file joined: where data is cut is up to the chunks.
fn events<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Result<Vec<TarEvent>, TarError> {
    let mut decoder = TarDecoder::new();
    let mut events = Vec::new();
    for chunk in chunks {
        let mut chunk = Bytes::copy_from_slice(chunk);
        while let Some(event) = decoder.decode(&mut chunk)? {
            match (events.last_mut(), event) {
                (Some(TarEvent::Data(last)), TarEvent::Data(more)) => {
                    *last = [&last[..], &more[..]].concat().into();
                }
                (_, event) => events.push(event),
            }
        }
        assert!(chunk.is_empty());
    }
    decoder.finish().map(|()| events)
}

fn whole(bytes: &[u8]) -> Result<Vec<TarEvent>, TarError> {
    events(std::iter::once(bytes))
}

fn sample() -> Vec<(String, Vec<u8>)> {
    let files = [
        ("PG_VERSION", vec![b'1'; 3]),
        ("empty", vec![]),
        ("base/1/1259", vec![7; 1024]),
    ];
    files
        .map(|(name, content)| (name.to_owned(), content))
        .to_vec()
}

#[test]
fn reads_files_directories_and_links() {
    let events = whole(&archive(&sample())).unwrap();
    let path = |path: &str| path.to_owned();
    let begin = |name, size| TarEvent::File {
        path: path(name),
        size,
        mode: 0o600,
        modified: 0o14_611_740_000,
    };
    assert_eq!(
        events,
        [
            TarEvent::Directory {
                path: path("global")
            },
            TarEvent::Symlink {
                path: path("pg_tblspc/16384"),
                target: path("/mnt/ts")
            },
            begin("PG_VERSION", 3),
            TarEvent::Data(Bytes::from_static(b"111")),
            TarEvent::FileEnd,
            begin("empty", 0),
            TarEvent::FileEnd,
            begin("base/1/1259", 1024),
            TarEvent::Data(vec![7; 1024].into()),
            TarEvent::FileEnd,
        ]
    );
}

#[test]
fn a_cut_archive_is_truncated_wherever_it_is_cut() {
    let bytes = archive(&sample());
    for end in 0..bytes.len() {
        let result = whole(&bytes[..end]);
        assert!(matches!(result, Err(TarError::Truncated { offset, .. }) if offset == end as u64));
    }
}

#[test]
fn a_flipped_bit_in_a_header_is_found() {
    let bytes = archive(&[]);
    for bit in 0..2 * BLOCK * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let result = whole(&damaged);
        // A space and a NUL around a number mean the same, so such a flip may pass unharmed.
        assert!(
            result.is_err() || result == whole(&bytes),
            "bit {bit}: {result:?}"
        );
    }
}

#[test]
fn refuses_paths_that_lead_out_and_kinds_it_does_not_know() {
    for (name, kind, link) in [
        ("/etc/passwd", b'0', ""),
        ("a/../../b", b'0', ""),
        ("..", b'5', ""),
        ("", b'0', ""),
        ("./", b'0', ""),
        ("hard", b'1', "link"),
        ("fifo", b'6', ""),
        ("pax", b'x', ""),
        ("link", b'2', ""),
    ] {
        let result = whole(&header(name, kind, &octal_size(0), link));
        assert!(
            matches!(result, Err(TarError::Header { offset: 0, .. })),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn sizes_beyond_octal_are_base_256_and_never_allocated() {
    let mut size = [0; 12];
    size[0] = 0x80;
    size[4..].copy_from_slice(&(9u64 << 30).to_be_bytes());
    let mut chunk = Bytes::copy_from_slice(&header("big", b'0', &size, ""));
    let mut decoder = TarDecoder::new();
    let event = decoder.decode(&mut chunk).unwrap();
    assert!(matches!(event, Some(TarEvent::File { size, .. }) if size == 9 << 30));
    size[4] = 0x80;
    assert!(whole(&header("negative", b'0', &size, "")).is_err());
    size[..2].copy_from_slice(&[0x80, 1]);
    assert!(whole(&header("huge", b'0', &size, "")).is_err());
}

#[test]
fn nothing_but_zeros_may_follow_the_end() {
    let mut bytes = archive(&[]);
    bytes.extend([0; BLOCK]);
    assert!(whole(&bytes).is_ok());
    bytes.push(1);
    assert!(matches!(whole(&bytes), Err(TarError::Trailing { .. })));
    let mut decoder = TarDecoder::new();
    let mut damaged = Bytes::from(vec![1; BLOCK]);
    let first = decoder.decode(&mut damaged).unwrap_err();
    assert_eq!(
        decoder
            .decode(&mut Bytes::from_static(b"more"))
            .unwrap_err(),
        first
    );
    assert_eq!(decoder.finish(), Err(first));
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_events(
        contents in vec(vec(any::<u8>(), 0..1500), 0..5),
        cuts in vec(1usize..1200, 1..60),
    ) {
        let named = |(index, content)| (format!("base/5/{index}"), content);
        let files: Vec<_> = contents.into_iter().enumerate().map(named).collect();
        let bytes = archive(&files);
        let mut rest = &bytes[..];
        let mut chunks = Vec::new();
        for cut in cuts.iter().cycle() {
            let (chunk, after) = rest.split_at((*cut).min(rest.len()));
            chunks.push(chunk);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(events(chunks.into_iter()), whole(&bytes));
    }

    #[test]
    fn any_bytes_are_an_archive_or_an_error(bytes in vec(any::<u8>(), 0..2048), name: [u8; 32]) {
        let _ = whole(&bytes);
        let mut block = header("x", b'0', &octal_size(100), "");
        block[..32].copy_from_slice(&name);
        seal(&mut block);
        let _ = whole(&[&block[..], &bytes].concat());
    }
}
