use std::fmt;

/// Lines of figures, shown as Markdown.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

/// One figure, and what it is held against.
#[derive(Debug, Clone)]
pub struct Row {
    what: String,
    ours: String,
    reference: String,
    ratio: Option<f64>,
    aim: Option<Aim>,
}

/// What a ratio of ours to the reference should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// More is better: at least this.
    AtLeast(f64),
    /// Less is better: at most this.
    AtMost(f64),
}

impl Aim {
    fn is_met_by(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl Row {
    /// A figure that nothing is held against.
    pub fn figure(what: impl Into<String>, ours: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            ours: ours.into(),
            reference: String::new(),
            ratio: None,
            aim: None,
        }
    }

    /// A figure and its reference, as text, with the ratio of the two.
    pub fn compared(
        what: impl Into<String>,
        (ours, reference): (String, String),
        ratio: f64,
        aim: Option<Aim>,
    ) -> Self {
        Self {
            what: what.into(),
            ours,
            reference,
            ratio: Some(ratio),
            aim,
        }
    }
}

impl Table {
    /// Adds lines.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    /// The lines whose ratio misses its aim.
    pub fn missed(&self) -> impl Iterator<Item = &str> {
        let missed = |row: &&Row| match (row.ratio, row.aim) {
            (Some(ratio), Some(aim)) => !aim.is_met_by(ratio),
            _ => false,
        };
        self.rows.iter().filter(missed).map(|row| row.what.as_str())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | Palimpsest | reference | ratio | aim |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in &self.rows {
            let ratio = row.ratio.map(|ratio| format!("{ratio:.2}"));
            let aim = row.aim.map(|aim| aim.to_string());
            writeln!(
                f,
                "| {} | {} | {} | {} | {} |",
                row.what,
                row.ours,
                row.reference,
                ratio.unwrap_or_default(),
                aim.unwrap_or_default()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_ratios_and_knows_what_misses_its_aim() {
        let both = || ("2".to_owned(), "1".to_owned());
        let mut table = Table::default();
        table.extend([
            Row::figure("alone", "7"),
            Row::compared("met", both(), 2.0, Some(Aim::AtLeast(1.0))),
            Row::compared("missed", both(), 2.0, Some(Aim::AtMost(1.5))),
            Row::compared("free", both(), 2.0, None),
        ]);
        assert_eq!(table.missed().collect::<Vec<_>>(), ["missed"]);
        let text = table.to_string();
        assert!(text.contains("| alone | 7 |  |  |  |"));
        assert!(text.contains("| missed | 2 | 1 | 2.00 | ≤ 1.5 |"));
    }
}
