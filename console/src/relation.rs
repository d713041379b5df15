//! Relations by the names that people give them.

use palimpsest_api::{
    RemoteError, TimelineRef,
    page::{PageClient, TimelineAt},
};
use palimpsest_catalog::{RelationName, resolve, resolve_database};
use palimpsest_types::{Lsn, Oid, RelTag};

use crate::error::CliError;

/// The fork that a name means at an LSN, and the LSN to read it at. A name is looked up at one LSN,
/// so that what is then read belongs to it: the newest one, if none is wanted.
pub(crate) async fn locate(
    client: &PageClient,
    timeline: TimelineRef,
    name: &RelationName,
    lsn: Option<Lsn>,
) -> Result<(RelTag, Option<Lsn>), CliError> {
    let qualified = match name {
        RelationName::Files(rel) => return Ok((*rel, lsn)),
        RelationName::Qualified(qualified) => qualified,
    };
    let unresolved = |source| CliError::Unresolved {
        name: name.to_string(),
        source: Box::new(source),
    };
    let lsn = lsn_or_newest(client, timeline, lsn).await?;
    let source = TimelineAt::new(client, timeline, lsn);
    let rel = resolve(&source, qualified).await.map_err(unresolved)?;
    Ok((rel, Some(lsn)))
}

/// The object id of a database by its name, and the LSN at which it was looked up.
pub(crate) async fn locate_database(
    client: &PageClient,
    timeline: TimelineRef,
    name: &str,
    lsn: Option<Lsn>,
) -> Result<(Oid, Lsn), CliError> {
    let lsn = lsn_or_newest(client, timeline, lsn).await?;
    let source = TimelineAt::new(client, timeline, lsn);
    let unresolved = |source| CliError::Unresolved {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let oid = resolve_database(&source, name).await;
    Ok((oid.map_err(unresolved)?, lsn))
}

async fn lsn_or_newest(
    client: &PageClient,
    timeline: TimelineRef,
    lsn: Option<Lsn>,
) -> Result<Lsn, CliError> {
    match lsn {
        Some(lsn) => Ok(lsn),
        None => newest(client, timeline)
            .await
            .map_err(CliError::remote("asking for the newest LSN")),
    }
}

async fn newest(client: &PageClient, timeline: TimelineRef) -> Result<Lsn, RemoteError> {
    let (_oldest, newest) = client.readable(timeline).await?;
    Ok(newest)
}
