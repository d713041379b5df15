use std::{
    fmt::Display,
    io::{self, Write as _},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::CliError;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; field names are stable.
    Json,
}

/// Standard output. Whatever a command answers goes through here; progress and errors go to
/// standard error.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

/// A column's title and how its cells stand.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Output {
    /// Answers in this format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read the answers.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line.
    ///
    /// # Errors
    /// If nobody reads it, or the disk behind it is full.
    pub fn line(self, text: impl Display) -> Result<(), CliError> {
        writeln!(io::stdout(), "{text}").map_err(CliError::Output)
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        written.map_err(CliError::Output)
    }

    /// Prints a value as JSON, indented.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::Output(io::Error::other(error)))?;
        self.line(text)
    }

    /// Prints a table without lines.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn table(self, columns: &[Column], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        self.line(table(columns, rows))
    }
}

fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(title) | Column::Right(title) => *title,
    }));
    table.add_rows(rows);
    for (column, style) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if matches!(style, Column::Right(_)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let rows = vec![
            vec!["demo".into(), "8".into()],
            vec!["a".into(), "1024".into()],
        ];
        let text = table(&[Column::Left("NAME"), Column::Right("BLOCKS")], rows);
        assert_eq!(text, "NAME  BLOCKS\ndemo       8\na       1024");
    }
}
