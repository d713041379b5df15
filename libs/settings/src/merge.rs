//! The one decision: which value holds, and whether it can.

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use crate::{
    Problem, Problems, Settings, Sources,
    file::kind,
    inventory::{Setting, inventory, table},
    sources::Origin,
};

/// Settings with the origin of each.
#[derive(Debug, Clone)]
pub struct Effective<S> {
    /// What holds.
    pub settings: S,
    /// Keys and where their values come from, as the struct orders them.
    origins: Vec<(String, String)>,
}

/// What one source says.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// Lays file, variables and flags over the defaults, in this order, and checks every value.
///
/// # Errors
/// All that is wrong: unknown settings, and values that are none.
pub fn merge<S: Settings>(defaults: &S, sources: &Sources) -> Result<Effective<S>, Problems> {
    let inventory = inventory(defaults)?;
    let mut problems = Vec::new();
    if S::SERVICE.is_none() {
        problems.extend(sources.strange_variables());
    }
    let keys: Vec<_> = inventory
        .iter()
        .map(|setting| setting.key.as_str())
        .collect();
    let mut builder = Config::builder().add_source(default_layer(defaults)?);
    for said in sources.settings(S::SERVICE, &keys) {
        let (known, unknown) =
            (said.into_iter()).partition(|(key, ..)| keys.contains(&key.as_str()));
        problems.extend(strangers::<S>(unknown, &keys));
        builder = builder.add_source(layer(known));
    }
    let merged = builder.build().and_then(|config| config.collect());
    // Our sources can't fail, and have no references to resolve.
    let merged = merged.expect("merging plain values");
    problems.extend(
        inventory
            .iter()
            .filter_map(|setting| probe::<S>(setting, &merged)),
    );
    let origins = keys
        .iter()
        .map(|key| ((*key).to_owned(), origin(merged.get(*key))));
    let origins = origins.collect();
    match deserialize(merged) {
        Ok(settings) if problems.is_empty() => {
            // Whoever asks what holds gets it as a file.
            table(&settings)?;
            Ok(Effective { settings, origins })
        }
        Ok(_) => Err(Problems(problems)),
        Err(error) if problems.is_empty() => {
            Err(wrong("settings", Origin::Default.to_string(), error).into())
        }
        Err(_) => Err(Problems(problems)),
    }
}

type Said = (String, Origin, ValueKind);

fn default_layer<S: Settings>(defaults: &S) -> Result<Layer, Problem> {
    let values = table(defaults)?;
    let said = (values.iter()).map(|(key, value)| (key.clone(), Origin::Default, kind(value)));
    Ok(layer(said.collect()))
}

fn layer(said: Vec<Said>) -> Layer {
    let tagged = said.into_iter().map(|(key, origin, value)| {
        let value = Value::new(Some(&origin.to_string()), value);
        (key, value)
    });
    Layer(tagged.collect())
}

fn strangers<S: Settings>(said: Vec<Said>, keys: &[&str]) -> impl Iterator<Item = Problem> {
    said.into_iter()
        .map(|(key, origin, _)| Problem::UnknownSetting {
            origin,
            whose: S::SERVICE.map_or("this program", |service| service.name()),
            key,
            known: keys.join(", "),
        })
}

/// What is wrong with one value, found by reading it alone: so all wrong ones are found, each with
/// its origin.
fn probe<S: Settings>(setting: &Setting, merged: &Map<String, Value>) -> Option<Problem> {
    let value = merged.get(&setting.key)?;
    let origin = origin(Some(value));
    let alone = Map::from_iter([(setting.key.clone(), value.clone())]);
    let error = deserialize::<S>(alone).err()?;
    Some(wrong(&setting.key, origin, error))
}

fn deserialize<S: Settings>(values: Map<String, Value>) -> Result<S, ConfigError> {
    Value::new(None, ValueKind::Table(values)).try_deserialize()
}

fn origin(value: Option<&Value>) -> String {
    let origin = value.and_then(Value::origin);
    origin.map_or_else(|| Origin::Default.to_string(), str::to_owned)
}

fn wrong(key: &str, origin: String, error: ConfigError) -> Problem {
    Problem::Value {
        origin,
        key: key.to_owned(),
        message: reason(error),
    }
}

/// What the error says beside key and origin, which are said anyway.
fn reason(error: ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => reason(*error),
        ConfigError::Type {
            unexpected,
            expected,
            ..
        } => format!("{unexpected} is not {expected}"),
        other => other.to_string(),
    }
}

impl<S: Settings> Effective<S> {
    /// The settings as a file that would have the same effect, each with its origin.
    pub fn to_toml(&self) -> String {
        // What was merged can be written.
        let values = table(&self.settings).unwrap_or_default();
        let section = S::SERVICE.map(|service| format!("[{service}]\n"));
        let lines = self.origins.iter().filter_map(|(key, origin)| {
            let value = values.get(key)?;
            Some(format!("{key} = {value} # {origin}\n"))
        });
        section.into_iter().chain(lines).collect()
    }

    /// Fails with the problem of a value that is of its type and still can't work.
    ///
    /// # Errors
    /// All such problems.
    pub fn checked(self) -> Result<Self, Problems> {
        let found = self.settings.check();
        if found.is_empty() {
            return Ok(self);
        }
        let problem = |(key, message)| self.problem(key, message);
        Err(Problems(found.into_iter().map(problem).collect()))
    }

    /// A problem with the value of `key`.
    pub fn problem(&self, key: &str, message: String) -> Problem {
        let origin = self.origins.iter().find(|(name, _)| name == key);
        Problem::Value {
            origin: origin.map(|(_, origin)| origin.clone()).unwrap_or_default(),
            key: key.to_owned(),
            message,
        }
    }
}

#[cfg(test)]
mod tests;
