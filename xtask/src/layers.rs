//! The direction of dependencies, as `xtask/layers.toml` lays it down.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::manifests::{Package, packages};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layers {
    ranks: Vec<Vec<String>>,
    tools: Vec<String>,
    only: Vec<Only>,
    core: Core,
}

/// A crate that just these may use.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
    #[serde(rename = "crate")]
    name: String,
    users: Vec<String>,
}

/// Sources that may not name these crates.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Core {
    directory: PathBuf,
    forbidden: Vec<String>,
}

/// Every edge and every name that the rules forbid.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>> {
    let path = root.join("xtask/layers.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let layers: Layers = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let packages = packages(root)?;
    let mut found = edges(&layers, &packages);
    for package in &packages {
        found.extend(core_names(&layers.core, &package.directory)?);
    }
    Ok(found)
}

fn edges(layers: &Layers, packages: &[Package]) -> Vec<String> {
    let rank_of: HashMap<&str, usize> = (layers.ranks.iter().enumerate())
        .flat_map(|(rank, crates)| crates.iter().map(move |name| (name.as_str(), rank)))
        .collect();
    let ours = |name: &str| packages.iter().any(|package| package.name == name);
    let mut found = Vec::new();
    for package in packages
        .iter()
        .filter(|package| !layers.tools.contains(&package.name))
    {
        let Some(rank) = rank_of.get(package.name.as_str()) else {
            found.push(format!("{} has no rank in xtask/layers.toml", package.name));
            continue;
        };
        for used in package.dependencies.iter().filter(|name| ours(name)) {
            let lower = rank_of.get(used.as_str()).is_some_and(|other| other < rank);
            let barred = layers
                .only
                .iter()
                .any(|only| only.name == *used && !only.users.contains(&package.name));
            if !lower {
                found.push(format!(
                    "{} may not depend on {used}: it is not of a lower rank",
                    package.name
                ));
            } else if barred {
                found.push(format!(
                    "{} may not depend on {used}: it is not among its users",
                    package.name
                ));
            }
        }
    }
    found
}

/// Forbidden crate names in the core of the crate in `directory`.
fn core_names(core: &Core, directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in rust_files(&directory.join(&core.directory))? {
        let text = fs::read_to_string(&file)?;
        for (number, line) in text.lines().enumerate() {
            for name in core.forbidden.iter().filter(|name| uses(line, name)) {
                found.push(format!("{}:{}: names {name}", file.display(), number + 1));
            }
        }
    }
    Ok(found)
}

/// Whether a line of code names a crate: `tonic::…` or `use tonic…`. Comments may speak of it.
fn uses(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let whole = !before.ends_with(is_word) && !after.starts_with(is_word);
        let is_path = after.starts_with("::") && !before.ends_with("::");
        whole && (is_path || before.trim_end().ends_with("use"))
    })
}

/// All Rust files below `directory`; none if it does not exist.
fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !directory.is_dir() {
        return Ok(files);
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Layers {
        toml::from_str(
            "ranks = [['types'], ['kit'], ['ingest', 'serve']]\ntools = ['xtask']\n\
             [[only]]\ncrate = 'kit'\nusers = ['ingest']\n\
             [core]\ndirectory = 'src/core'\nforbidden = ['tonic']",
        )
        .unwrap()
    }

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            directory: PathBuf::new(),
            dependencies: dependencies.iter().map(|&name| name.into()).collect(),
        }
    }

    #[test]
    fn only_edges_to_lower_ranks_and_by_listed_users_pass() {
        let packages = [
            package("types", &["serde"]),
            package("kit", &["types"]),
            package("ingest", &["kit", "types", "serve"]),
            package("serve", &["kit"]),
            package("stray", &[]),
            package("xtask", &["ingest"]),
        ];
        assert_eq!(
            edges(&layers(), &packages),
            [
                "ingest may not depend on serve: it is not of a lower rank",
                "serve may not depend on kit: it is not among its users",
                "stray has no rank in xtask/layers.toml",
            ]
        );
    }

    #[test]
    fn sees_paths_and_imports_but_no_comments_and_no_parts_of_words() {
        assert!(uses("use tonic::Status;", "tonic"));
        assert!(uses("fn f() -> Result<(), tonic::Status> {", "tonic"));
        assert!(!uses("let architectonic = 1; // tonic::Status", "tonic"));
        assert!(!uses("let url = \"http://x\";", "http"));
        assert!(!uses("self::http::go()", "http"));
    }
}
