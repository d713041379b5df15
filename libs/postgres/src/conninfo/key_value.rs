//! `key = value` pairs; a value with spaces stands in single quotes, `\` escapes one character.

use std::{iter::Peekable, str::Chars};

use super::{ConnInfoError, Pairs};

pub(super) fn parse(text: &str) -> Result<Pairs, ConnInfoError> {
    let mut chars = text.chars().peekable();
    let mut pairs = Pairs::new();
    loop {
        skip_spaces(&mut chars);
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let key = key(&mut chars)?;
        let value = value(&mut chars, &key)?;
        // As in libpq, the last of several wins.
        pairs.insert(key, value);
    }
}

pub(super) fn format(pairs: &[(&str, String)]) -> String {
    let pair = |(key, value): &(&str, String)| format!("{key}={}", quote(value));
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn quote(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && c != '\'' && c != '\\';
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn key(chars: &mut Peekable<Chars<'_>>) -> Result<String, ConnInfoError> {
    let mut key = String::new();
    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
        key.push(c);
    }
    skip_spaces(chars);
    match chars.next() {
        Some('=') if !key.is_empty() => Ok(key),
        Some('=') => Err(ConnInfoError::Syntax {
            near: key,
            reason: "a key is missing before =",
        }),
        // What stands here may be a piece of an unquoted password, so it is not repeated.
        _ => Err(ConnInfoError::Syntax {
            near: String::new(),
            reason: "a word has no = after it",
        }),
    }
}

fn value(chars: &mut Peekable<Chars<'_>>, key: &str) -> Result<String, ConnInfoError> {
    let error = |reason| ConnInfoError::Syntax {
        near: key.to_owned(),
        reason,
    };
    skip_spaces(chars);
    let quoted = chars.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match chars.next() {
            Some('\\') => value.push(
                chars
                    .next()
                    .ok_or_else(|| error("it ends in a backslash"))?,
            ),
            Some('\'') if quoted => return Ok(value),
            Some(c) if !quoted && c.is_whitespace() => return Ok(value),
            Some(c) => value.push(c),
            None if quoted => return Err(error("the quotation is not closed")),
            None => return Ok(value),
        }
    }
}

fn skip_spaces(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}
