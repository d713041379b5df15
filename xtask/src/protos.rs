//! The form of the protocol files: where they lie, what they are called, and that all is explained.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What is wrong with the files below `proto/`.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>> {
    let base = root.join("proto");
    let mut found = Vec::new();
    for file in proto_files(&base)? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let relative = file.strip_prefix(&base)?;
        let package = expected_package(relative);
        let complaints = lint(&text, &package);
        found.extend(
            complaints
                .into_iter()
                .map(|it| format!("proto/{}:{it}", relative.display())),
        );
    }
    Ok(found)
}

fn proto_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The package is the directory: `palimpsest/page/v1/page.proto` is in `palimpsest.page.v1`.
fn expected_package(relative: &Path) -> String {
    let directory = relative.parent().unwrap_or(Path::new(""));
    let parts: Vec<_> = directory
        .iter()
        .map(|part| part.to_string_lossy())
        .collect();
    parts.join(".")
}

/// What the block that a line lies in declares.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Block {
    Message,
    Enum(String),
    Service,
    /// Options, bodies of rpcs: nothing to look at.
    Other,
}

/// Complaints about one file, each beginning with its line number.
fn lint(text: &str, package: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut explained = false;
    if !text
        .lines()
        .any(|line| line.trim() == format!("package {package};"))
    {
        found.push(format!("1: the package must be {package}"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let (code, comment) = line
            .split_once("//")
            .map_or((line, None), |(a, b)| (a, Some(b)));
        let code = code.trim();
        if code.is_empty() {
            // A run of comment lines explains what follows it at once.
            explained = comment.is_some_and(|words| !words.trim().is_empty() || explained);
            continue;
        }
        let explained_here = explained || comment.is_some();
        let complaint = complaint(code, blocks.last(), explained_here);
        found.extend(complaint.map(|complaint| format!("{number}: {complaint}")));
        for character in code.chars() {
            match character {
                '{' => blocks.push(opened(code)),
                '}' => drop(blocks.pop()),
                _ => {}
            }
        }
        // The lines of one statement share the comment before it.
        explained = explained && !code.ends_with([';', '{', '}']);
    }
    found
}

fn opened(code: &str) -> Block {
    let mut words = code.split(|c: char| c.is_whitespace() || c == '{');
    match words.next() {
        Some("message" | "oneof") => Block::Message,
        Some("enum") => Block::Enum(words.next().unwrap_or_default().to_owned()),
        Some("service") => Block::Service,
        _ => Block::Other,
    }
}

fn complaint(code: &str, block: Option<&Block>, explained: bool) -> Option<String> {
    let mut words = code.split_whitespace();
    let (first, second) = (words.next()?, words.next().unwrap_or_default());
    if first == "service" && !second.trim_end_matches('{').ends_with("Service") {
        return Some(format!("service {second} must be called …Service"));
    }
    let declares = match block {
        Some(Block::Service) => first == "rpc",
        Some(Block::Message) => {
            code.contains('=') && !matches!(first, "option" | "reserved" | "extensions")
        }
        Some(Block::Enum(_)) => code.contains('=') && first != "option",
        Some(Block::Other) | None => matches!(first, "message" | "enum" | "service"),
    };
    if declares && !explained {
        return Some(format!(
            "{} has no comment",
            code.trim_end_matches(['{', ';', ' '])
        ));
    }
    let Some(Block::Enum(name)) = block else {
        return None;
    };
    let prefix = upper_snake(name);
    let is_value = declares && !first.starts_with(&prefix);
    let is_zero = code
        .split('=')
        .nth(1)
        .is_some_and(|n| n.trim_start().starts_with("0;"));
    if is_value {
        return Some(format!("{first} must begin with {prefix}_"));
    }
    (is_zero && first != format!("{prefix}_UNSPECIFIED"))
        .then(|| format!("value 0 must be {prefix}_UNSPECIFIED"))
}

/// `RedoStatus` as `REDO_STATUS`.
fn upper_snake(name: &str) -> String {
    let mut snake = String::new();
    for (at, character) in name.char_indices() {
        if at > 0 && character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_uppercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_a_file_in_which_all_is_explained() {
        let text = "syntax = \"proto3\";\npackage a.v1;\n\n// Serves.\nservice PageService {\n  \
            // Does.\n  rpc Get(GetRequest)\n      returns (GetResponse);\n}\n// Asks.\nmessage GetRequest {\n  \
            uint32 id = 1; // Which.\n  // Either.\n  oneof x {\n    // One.\n    bool y = 2;\n  }\n}\n\
            // State.\nenum RedoStatus {\n  // Never sent.\n  REDO_STATUS_UNSPECIFIED = 0;\n}\n";
        assert_eq!(lint(text, "a.v1"), Vec::<String>::new());
    }

    #[test]
    fn names_the_line_of_what_is_unexplained_or_misnamed() {
        let text = "package b.v1;\n// S.\nservice Page {\n  rpc Get(A) returns (B);\n}\n// M.\n\
            message A {\n  // Fine.\n  uint32 a = 1;\n  uint32 b = 2;\n}\n// E.\nenum Kind {\n  // Z.\n  KIND_NONE = 0;\n}\n";
        assert_eq!(
            lint(text, "a.v1"),
            [
                "1: the package must be a.v1",
                "3: service Page must be called …Service",
                "4: rpc Get(A) returns (B) has no comment",
                "10: uint32 b = 2 has no comment",
                "15: value 0 must be KIND_UNSPECIFIED",
            ]
        );
    }
}
