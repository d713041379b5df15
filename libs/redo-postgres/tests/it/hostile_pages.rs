//! Pages and records that nobody wrote: whatever redo makes of them, it harms no other request, and
//! shows nothing of one.

use bytes::Bytes;
use palimpsest_redo_postgres::{ApplyRequest, Engine, RedoError};
use palimpsest_types::PAGE_SIZE;

use crate::{
    corpus::{Chain, Corpus},
    engine,
};

/// A repeatable stream of numbers.
struct Random(u64);

/// What came of requests.
#[derive(Debug, Default)]
struct Tally {
    pages: u64,
    refused: u64,
    died: u64,
}

/// Known to nobody but one request.
const SECRET: [u8; 16] = *b"\xC7secret\x9D=4711\xF2\xEE\xA1";
/// A part of it that does not come up by chance.
const WINDOW: usize = 6;
const ROUNDS: usize = 400;

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn page(&mut self) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.take(PAGE_SIZE / 8).flatten().collect()
    }

    fn chain<'a>(&mut self, corpus: &'a Corpus) -> &'a Chain {
        &corpus.chains[self.below(corpus.chains.len())]
    }
}

impl Tally {
    fn note(&mut self, outcome: Result<Bytes, RedoError>) -> Option<Bytes> {
        match outcome {
            Ok(page) => {
                assert_eq!(page.len(), PAGE_SIZE);
                self.pages += 1;
                return Some(page);
            }
            Err(RedoError::Refused { .. }) => self.refused += 1,
            Err(RedoError::Died { .. }) => self.died += 1,
            // A loop would be one, too; PostgreSQL has been seen to have none.
            Err(error) => panic!("{error:?}"),
        }
        None
    }
}

/// A request whose answer is known, served as ever.
async fn assert_unharmed(engine: &Engine, expected: &Bytes) {
    let page = engine.apply(good()).await.unwrap();
    assert!(page == *expected, "another request's page has changed");
}

fn good() -> ApplyRequest {
    Corpus::get().chain("appended", 0).request()
}

/// One to some of a chain's later records.
fn some_records(chain: &Chain, random: &mut Random) -> std::ops::Range<usize> {
    let first = random.below(chain.records.len());
    let count = 1 + random.below(8);
    first..chain.records.len().min(first + count)
}

/// A request with some bits of one record's bytes flipped.
fn flipped(chain: &Chain, random: &mut Random) -> ApplyRequest {
    let mut request = chain.request();
    let keep = 1 + random.below(request.records.len());
    request.records.truncate(keep);
    let record = random.below(keep);
    let mut bytes = request.records[record].bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len().min(200));
        bytes[at] ^= 1 << random.below(8);
    }
    request.records[record].bytes = bytes.into();
    request
}

#[tokio::test]
async fn random_pages_under_real_records_harm_nobody() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let expected = engine.apply(good()).await.unwrap();
    let (mut random, mut tally) = (Random(0x5EED), Tally::default());
    for round in 0..ROUNDS {
        let chain = random.chain(corpus);
        let records = some_records(chain, &mut random);
        let base = match round % 2 {
            0 => random.page(),
            // A page that passes for one at first sight.
            _ => {
                let page = corpus.page(chain.rel, chain.block);
                let mut page = page.map_or_else(|| random.page(), |page| page.to_vec());
                for _ in 0..20 {
                    let at = random.below(PAGE_SIZE);
                    page[at] = random.next().to_le_bytes()[0];
                }
                // Older than any record, or all of them would count as done.
                page[..8].fill(0);
                page
            }
        };
        let request = chain.part(Some(base.into()), &chain.records[records]);
        tally.note(engine.apply(request).await);
        if round % 8 == 0 {
            assert_unharmed(&engine, &expected).await;
        }
    }
    assert_unharmed(&engine, &expected).await;
    println!("{tally:?}");
    assert!(
        tally.pages > 0 && tally.refused + tally.died > 0,
        "{tally:?}"
    );
    assert_eq!(engine.deaths(), tally.died);
    engine.stop().await;
}

#[tokio::test]
async fn flipped_records_of_every_access_method_harm_nobody() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let expected = engine.apply(good()).await.unwrap();
    let (mut random, mut tally) = (Random(0xF11B), Tally::default());
    for round in 0..ROUNDS {
        let chain = random.chain(corpus);
        tally.note(engine.apply(flipped(chain, &mut random)).await);
        if round % 8 == 0 {
            assert_unharmed(&engine, &expected).await;
        }
    }
    assert_unharmed(&engine, &expected).await;
    println!("{tally:?}");
    assert!(tally.pages > 0 && tally.refused > 0, "{tally:?}");
    assert_eq!(engine.deaths(), tally.died);
    engine.stop().await;
}

#[tokio::test]
async fn nothing_of_one_request_is_in_the_page_of_the_next() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let expected = engine.apply(good()).await.unwrap();
    let (mut random, mut tally) = (Random(0x1EAC), Tally::default());
    let mut shown = 0;
    for _ in 0..ROUNDS {
        let secret = secretive(&corpus.chain("appended", 0).records, corpus);
        // It comes back, so it has been everywhere.
        assert!(shows_secret(&engine.apply(secret).await.unwrap()));
        shown += 1;
        let chain = random.chain(corpus);
        let page = tally.note(engine.apply(flipped(chain, &mut random)).await);
        assert!(
            !page.is_some_and(|page| shows_secret(&page)),
            "{} block {} shows what another request brought",
            chain.rel,
            chain.block
        );
    }
    assert_unharmed(&engine, &expected).await;
    println!("{tally:?}, {shown} secrets");
    assert!(shown == ROUNDS && tally.pages > 0, "{tally:?}");
    engine.stop().await;
}

/// A request full of the secret: its page, and in place of a row.
fn secretive(records: &[crate::wal::Record], corpus: &Corpus) -> ApplyRequest {
    let chain = corpus.chain("appended", 0);
    let mut page: Vec<u8> = SECRET.iter().copied().cycle().take(PAGE_SIZE).collect();
    // Newer than the records, which are therefore read and left out.
    page[..8].fill(0xFF);
    let mut request = chain.part(Some(page.into()), &records[1..5]);
    for record in &mut request.records {
        let mut bytes = record.bytes.to_vec();
        // Before the three bytes of main data stands the row.
        let row = bytes.len() - 3 - 4;
        bytes.splice(row..row + 4, SECRET.into_iter().take(4));
        record.bytes = bytes.into();
    }
    request
}

fn shows_secret(page: &[u8]) -> bool {
    let mut windows = page.windows(WINDOW);
    let parts: Vec<&[u8]> = SECRET.windows(WINDOW).collect();
    windows.any(|window| parts.contains(&window))
}
