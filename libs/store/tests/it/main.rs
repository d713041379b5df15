//! A bucket over HTTP, as a provider has it, with its whims.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bucket;
mod troubles;

use palimpsest_store::{ObjectStore, StoreError, StoreLocation, Variables};
use palimpsest_testkit::BucketServer;

/// The server's variables, some of them with other values.
fn variables(server: &BucketServer, other: &[(&str, &str)]) -> Variables {
    let usual = server.variables().into_iter().map(|(name, value)| {
        let other = other.iter().find(|(changed, _)| *changed == name);
        let value = other.map_or(value, |(_, value)| (*value).to_owned());
        (name.to_owned(), value)
    });
    usual.filter(|(_, value)| !value.is_empty()).collect()
}

fn location(text: &str) -> StoreLocation {
    text.parse().unwrap()
}

async fn open(server: &BucketServer) -> Result<ObjectStore, StoreError> {
    let place = location(&server.url("some/prefix"));
    ObjectStore::open_with(place, &variables(server, &[])).await
}

/// An error with its causes, as services and commands tell it.
fn in_full(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
