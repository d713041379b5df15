use std::str::FromStr;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::DataRowBody;

use crate::ClientError;

/// A row of a command's result: texts or NULLs.
#[derive(Debug)]
pub(crate) struct Row {
    columns: Vec<Option<String>>,
}

/// Most columns that any result of the replication protocol has, with room for later versions.
const MAX_COLUMNS: usize = 64;

impl Row {
    pub(crate) fn parse(body: &DataRowBody) -> Result<Self, ClientError> {
        let mut columns = Vec::new();
        let mut ranges = body.ranges();
        while let Some(range) = ranges.next().map_err(ClientError::Malformed)? {
            if columns.len() == MAX_COLUMNS {
                return Err(ClientError::protocol("a row has more than 64 columns"));
            }
            let bytes = range.and_then(|range| body.buffer().get(range));
            columns.push(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
        }
        Ok(Self { columns })
    }

    /// Bytes of text in it, for limits.
    pub(crate) fn size(&self) -> usize {
        self.columns.iter().flatten().map(String::len).sum()
    }

    /// The text in a column, which may be NULL but must be there.
    pub(crate) fn optional(&self, index: usize, what: &str) -> Result<Option<&str>, ClientError> {
        match self.columns.get(index) {
            Some(value) => Ok(value.as_deref()),
            None => Err(ClientError::protocol(format!(
                "the result has no column for {what}"
            ))),
        }
    }

    /// The text in a column that is never NULL.
    pub(crate) fn text(&self, index: usize, what: &str) -> Result<&str, ClientError> {
        let null = || ClientError::protocol(format!("{what} is NULL"));
        self.optional(index, what)?.ok_or_else(null)
    }

    /// The value in a column that is never NULL.
    pub(crate) fn value<T: FromStr>(&self, index: usize, what: &str) -> Result<T, ClientError> {
        parse(self.text(index, what)?, what)
    }

    /// The value in a column, or `None` for NULL.
    pub(crate) fn optional_value<T: FromStr>(
        &self,
        index: usize,
        what: &str,
    ) -> Result<Option<T>, ClientError> {
        self.optional(index, what)?
            .map(|text| parse(text, what))
            .transpose()
    }
}

fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, ClientError> {
    text.parse()
        .map_err(|_| ClientError::protocol(format!("{what} is {text:?}")))
}
