//! Whether a PostgreSQL sorts as the source did: an index on text is in the order that was, and what is looked for in
//! another order is not found.

use std::{process::Output, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Record, Server};
use crate::error::CliError;

/// Databases whose text was sorted by another version of the machine's locales. Fields and rows end with a byte that no
/// name has. Each database is asked of by the same session: `pg_database` is everywhere.
const QUERY: &str = "SELECT datname, datcollversion, \
    coalesce(pg_database_collation_actual_version(oid), 'none') FROM pg_database \
    WHERE datallowconn AND datcollversion IS NOT NULL \
    AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) ORDER BY datname";
/// Who was let in a moment ago may have to knock again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// What a person must know about how it sorts.
    ///
    /// # Errors
    /// If psql can't be run. That it is not let in is no error: then it is not known.
    pub(crate) async fn collation_warnings(
        &self,
        record: &Record,
    ) -> Result<Vec<String>, CliError> {
        let begun = Instant::now();
        loop {
            let Output { status, stdout, .. } = self.ask(record, QUERY).await?;
            if status.success() {
                return Ok(warnings(&String::from_utf8_lossy(&stdout)));
            }
            if begun.elapsed() > PATIENCE {
                return Ok(vec![
                    "whether text is sorted here as at the source could not be found out"
                        .to_owned(),
                ]);
            }
            sleep(PAUSE).await;
        }
    }
}

/// Of what psql answers.
fn warnings(answer: &str) -> Vec<String> {
    let fields: Vec<_> = answer.split_terminator('\0').collect();
    let rows = fields.chunks_exact(3);
    let warning = |row: &[&str]| match row {
        [database, made, here] => Some(format!(
            "database {database} was sorted by locales of version {made}, here they are of version {here}: \
             indexes on text may miss rows until REINDEX DATABASE"
        )),
        _ => None,
    };
    rows.filter_map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_database_that_is_sorted_differently_is_named() {
        assert!(warnings("").is_empty());
        let two = warnings("a\nb\x002.31\x002.36\x00shop\x00153.14\x00none\x00");
        let [one, other] = two.as_slice() else {
            panic!("{two:?}");
        };
        assert!(one.starts_with(
            "database a\nb was sorted by locales of version 2.31, here they are of version 2.36"
        ));
        assert!(other.contains("shop") && other.contains("153.14") && other.contains("none"));
    }
}
