use std::{fmt, iter::Peekable, str::Chars, str::FromStr};

use palimpsest_types::{Fork, RelTag};

/// A relation fork as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelationName {
    /// `SPC/DB/REL[:fork]`: by the numbers of its files.
    Files(RelTag),
    /// `database[.schema].table[:fork]`: as the catalogs have it.
    Qualified(QualifiedName),
}

/// The name of a relation, and which fork is meant.
///
/// Taken as written, upper and lower case too; a part that has a dot or a colon in it stands in
/// double quotes, in which a double quote is written twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QualifiedName {
    /// The database.
    pub database: String,
    /// The schema; `public` where none is written.
    pub schema: String,
    /// The table, index, sequence or materialized view.
    pub table: String,
    /// Which of its forks.
    pub fork: Fork,
}

/// The text names no relation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a relation; write database.schema.table[:fork] or SPC/DB/REL[:fork], for example postgres.public.orders or 1663/5/16384:vm"
)]
pub struct ParseRelationNameError(String);

const DEFAULT_SCHEMA: &str = "public";

impl FromStr for RelationName {
    type Err = ParseRelationNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(rel) = text.parse() {
            return Ok(Self::Files(rel));
        }
        let name = qualified(text).ok_or_else(|| ParseRelationNameError(text.to_owned()))?;
        Ok(Self::Qualified(name))
    }
}

fn qualified(text: &str) -> Option<QualifiedName> {
    let mut rest = text.chars().peekable();
    let mut parts = vec![part(&mut rest)?];
    while rest.next_if_eq(&'.').is_some() {
        parts.push(part(&mut rest)?);
    }
    let fork = match rest.next() {
        None => Fork::Main,
        Some(':') => Fork::from_name(&rest.collect::<String>())?,
        Some(_) => return None,
    };
    let (database, schema, table) = match <[String; 3]>::try_from(parts) {
        Ok([database, schema, table]) => (database, schema, table),
        Err(parts) => {
            let [database, table] = <[String; 2]>::try_from(parts).ok()?;
            (database, DEFAULT_SCHEMA.to_owned(), table)
        }
    };
    Some(QualifiedName {
        database,
        schema,
        table,
        fork,
    })
}

/// One part of a name; `None` if there is none.
fn part(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut part = String::new();
    if rest.next_if_eq(&'"').is_some() {
        loop {
            match rest.next()? {
                '"' if rest.next_if_eq(&'"').is_some() => part.push('"'),
                '"' => break,
                other => part.push(other),
            }
        }
    } else {
        // A slash is in no name that people write; it is a misspelt SPC/DB/REL.
        while let Some(character) = rest.next_if(|it| !matches!(it, '.' | ':' | '"' | '/')) {
            part.push(character);
        }
    }
    (!part.is_empty()).then_some(part)
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(rel) => rel.fmt(f),
            Self::Qualified(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.database, &self.schema, &self.table];
        let parts: Vec<_> = parts.into_iter().map(|part| quoted(part)).collect();
        f.write_str(&parts.join("."))?;
        match self.fork {
            Fork::Main => Ok(()),
            fork => write!(f, ":{}", fork.name()),
        }
    }
}

fn quoted(part: &str) -> String {
    if part.contains(['.', ':', '"', '/']) {
        format!("\"{}\"", part.replace('"', "\"\""))
    } else {
        part.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (String, String, String, Fork) {
        match text.parse() {
            Ok(RelationName::Qualified(name)) => {
                (name.database, name.schema, name.table, name.fork)
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn understands_what_people_write() {
        let name = |database: &str, schema: &str, table: &str, fork| {
            (database.into(), schema.into(), table.into(), fork)
        };
        assert_eq!(parsed("a.b.c"), name("a", "b", "c", Fork::Main));
        assert_eq!(parsed("a.c"), name("a", "public", "c", Fork::Main));
        assert_eq!(parsed("a.b.c:vm"), name("a", "b", "c", Fork::VisibilityMap));
        assert_eq!(
            parsed("\"a.b\".\"c\"\"d:e\":fsm"),
            name("a.b", "public", "c\"d:e", Fork::FreeSpaceMap)
        );
        let files = "1663/5/16384:vm".parse::<RelationName>();
        assert!(matches!(files, Ok(RelationName::Files(_))));
        for text in [
            "", "a", "a.b.c.d", "a..c", "a.b:", "a.b:heap", "1/2", "\"a.b", "\"a\"b.c",
        ] {
            assert!(text.parse::<RelationName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(database in ".{1,9}", schema in ".{1,9}", table in ".{1,9}") {
            let name = QualifiedName { database, schema, table, fork: Fork::VisibilityMap };
            let parsed = name.to_string().parse();
            prop_assert_eq!(parsed, Ok(RelationName::Qualified(name)));
        }
    }
}
