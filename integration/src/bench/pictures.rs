use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};

/// Puts a picture into the directory that has the name of `text` without its ending; returns where it is
/// for a link in `text`. One that is there already stays: a part of the text shows it.
///
/// # Errors
/// If it can't be written.
pub fn put_picture(text: &Path, name: &str, svg: &str) -> Result<String> {
    let directory = text.with_extension("");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let mut number = 1_u32;
    loop {
        let file = match number {
            1 => format!("{name}.svg"),
            more => format!("{name}-{more}.svg"),
        };
        let path = directory.join(&file);
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            created => {
                let written = created.and_then(|mut picture| picture.write_all(svg.as_bytes()));
                written.with_context(|| format!("writing {}", path.display()))?;
                let directory = directory.file_name().context("a file has a name")?;
                return Ok(format!("{}/{file}", directory.to_string_lossy()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_picture_takes_the_place_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("figures.md");
        let links = ["first", "second", "third"].map(|svg| put_picture(&text, "it", svg).unwrap());
        let expected = ["figures/it.svg", "figures/it-2.svg", "figures/it-3.svg"];
        assert_eq!(links, expected);
        let first = fs::read_to_string(directory.path().join("figures/it.svg"));
        assert_eq!(first.unwrap(), "first");
    }
}
