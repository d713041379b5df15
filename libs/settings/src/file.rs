//! The TOML file, with the line of everything in it.

use config::{Map, Value, ValueKind};
use toml::{Table, de::DeTable};

use crate::{Problem, Problems, Service, sources::Origin};

/// What a file says, unjudged but for its sections.
#[derive(Debug, Clone, Default)]
pub struct TomlFile {
    name: String,
    /// Settings with the section that they stand in, if any.
    entries: Vec<Entry>,
}

/// A setting in a file.
#[derive(Debug, Clone)]
struct Entry {
    section: Option<String>,
    key: String,
    line: usize,
    value: ValueKind,
}

impl TomlFile {
    /// Reads the text of the file called `name`.
    ///
    /// # Errors
    /// If it is not TOML, or has sections of services that do not exist.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problems> {
        let not_toml = |error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            Problem::NotToml {
                origin: Origin::line(name, line_of(text, offset)),
                message: error.message().to_owned(),
            }
        };
        // Once for the values, once for the lines.
        let values: Table = text.parse().map_err(not_toml)?;
        let lines = DeTable::parse(text).map_err(not_toml)?;
        let mut file = Self {
            name: name.to_owned(),
            entries: Vec::new(),
        };
        let mut problems = Vec::new();
        for (key, value) in lines.get_ref() {
            let line = line_of(text, key.span().start);
            let key = key.get_ref().as_ref();
            let Some(section) = value.get_ref().as_table() else {
                file.add(None, key, line, values.get(key));
                continue;
            };
            if !Service::ALL.iter().any(|service| service.name() == key) {
                problems.push(Problem::UnknownSection {
                    origin: Origin::line(name, line),
                    section: key.to_owned(),
                });
            }
            let values = values.get(key).and_then(toml::Value::as_table);
            for inner in section.keys() {
                let line = line_of(text, inner.span().start);
                let inner = inner.get_ref().as_ref();
                let value = values.and_then(|values| values.get(inner));
                file.add(Some(key), inner, line, value);
            }
        }
        match problems.is_empty() {
            true => Ok(file),
            false => Err(Problems(problems)),
        }
    }

    fn add(&mut self, section: Option<&str>, key: &str, line: usize, value: Option<&toml::Value>) {
        self.entries.extend(value.map(|value| Entry {
            section: section.map(str::to_owned),
            key: key.to_owned(),
            line,
            value: kind(value),
        }));
    }

    /// What it says for a service, or before all sections.
    pub(crate) fn settings(
        &self,
        service: Option<Service>,
    ) -> impl Iterator<Item = (String, Origin, ValueKind)> {
        let ours = move |entry: &&Entry| entry.section.as_deref() == service.map(Service::name);
        self.entries.iter().filter(ours).map(|entry| {
            let origin = Origin::line(&self.name, entry.line);
            (entry.key.clone(), origin, entry.value.clone())
        })
    }
}

/// Lines are counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// A value in the types of the crate that merges.
pub(crate) fn kind(value: &toml::Value) -> ValueKind {
    let nested = |value: &toml::Value| Value::new(None, kind(value));
    match value {
        toml::Value::String(text) => text.clone().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(yes) => (*yes).into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => ValueKind::Array(values.iter().map(nested).collect()),
        toml::Value::Table(table) => ValueKind::Table(
            (table.iter())
                .map(|(key, value)| (key.clone(), nested(value)))
                .collect::<Map<_, _>>(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "port-base = 8800\n\n[wal-ingest]\n# much\nmemory = '2GiB'\n";

    #[test]
    fn everything_has_its_line() {
        let file = TomlFile::parse("p.toml", TEXT).unwrap();
        let found: Vec<_> = file.settings(Some(Service::WalIngest)).collect();
        let [(key, origin, value)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(
            (key.as_str(), origin.to_string().as_str()),
            ("memory", "p.toml:5")
        );
        assert_eq!(value, &ValueKind::from("2GiB"));
        assert_eq!(file.settings(None).count(), 1);
        assert_eq!(file.settings(Some(Service::PageServe)).count(), 0);
    }

    #[test]
    fn refuses_sections_of_nobody_and_what_is_not_toml() {
        let error = TomlFile::parse("p.toml", "\n[wal-injest]\n").unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("p.toml:2: there is no service \"wal-injest\""),
            "{text}"
        );
        let error = TomlFile::parse("p.toml", "a = 1\nb = \n").unwrap_err();
        assert!(error.to_string().starts_with("p.toml:2: "), "{error}");
    }
}
