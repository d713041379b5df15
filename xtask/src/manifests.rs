//! The workspace's crates and what each depends on, read from the `Cargo.toml` files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use toml::{Table, Value};

/// One crate of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    /// What it is built from; dev-dependencies are not among them.
    pub(crate) dependencies: Vec<String>,
}

/// Reads every member of the workspace.
pub(crate) fn packages(root: &Path) -> Result<Vec<Package>> {
    let workspace = read(&root.join("Cargo.toml"))?;
    let members = workspace
        .get("workspace")
        .and_then(|table| table.get("members"))
        .and_then(Value::as_array)
        .context("the root Cargo.toml has no workspace.members")?;
    let mut packages = Vec::new();
    for member in members.iter().filter_map(Value::as_str) {
        for directory in directories(root, member)? {
            packages.push(package(directory)?);
        }
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// The directories that a member names; `libs/*` names each one below `libs` that is a crate.
fn directories(root: &Path, member: &str) -> Result<Vec<PathBuf>> {
    let Some(parent) = member.strip_suffix("/*") else {
        return Ok(vec![root.join(member)]);
    };
    let parent = root.join(parent);
    let entries = fs::read_dir(&parent).with_context(|| format!("listing {}", parent.display()))?;
    let paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    Ok(paths
        .into_iter()
        .filter(|path| path.join("Cargo.toml").is_file())
        .collect())
}

fn package(directory: PathBuf) -> Result<Package> {
    let manifest = read(&directory.join("Cargo.toml"))?;
    let name = manifest
        .get("package")
        .and_then(|table| table.get("name"))
        .and_then(Value::as_str)
        .with_context(|| format!("{} has no package.name", directory.display()))?
        .to_owned();
    Ok(Package {
        name,
        directory,
        dependencies: dependencies(&manifest),
    })
}

/// Names from `[dependencies]` and `[build-dependencies]`, those for some targets only included.
fn dependencies(manifest: &Table) -> Vec<String> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let of_targets = targets
        .into_iter()
        .flat_map(Table::values)
        .filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(of_targets)
        .flat_map(|table| ["dependencies", "build-dependencies"].map(|section| table.get(section)))
        .filter_map(|section| section?.as_table())
        .flatten()
        .map(|(key, value)| {
            let renamed = value.get("package").and_then(Value::as_str);
            renamed.unwrap_or(key).to_owned()
        })
        .collect()
}

fn read(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_renamed_and_target_dependencies_but_not_those_of_tests() {
        let text = "[dependencies]\na = '1'\nb = { package = 'c' }\n[dev-dependencies]\nd = '1'\n\
            [target.'cfg(unix)'.dependencies]\ne = '1'\n[build-dependencies]\nf = '1'\n";
        assert_eq!(
            dependencies(&toml::from_str(text).unwrap()),
            ["a", "c", "f", "e"]
        );
    }
}
