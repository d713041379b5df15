//! `postgresql://[user[:password]@][host[:port][,…]][/dbname][?key=value[&…]]`, percent-encoded.

use super::{ConnInfoError, Pairs};

/// Parses what follows the scheme.
pub(super) fn parse(rest: &str) -> Result<Pairs, ConnInfoError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut pairs = Pairs::new();
    let named = [("user", user), ("password", password), ("dbname", dbname)];
    for (key, value) in named.into_iter().filter(|(_, value)| !value.is_empty()) {
        pairs.insert(key.to_owned(), decode(value, key)?);
    }
    insert_hosts(&mut pairs, hosts)?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').ok_or(ConnInfoError::Syntax {
            near: "?".to_owned(),
            reason: "a parameter after ? has no =",
        })?;
        let key = decode(key, "?")?;
        let value = decode(value, &key)?;
        pairs.insert(key, value);
    }
    Ok(pairs)
}

/// Splits `a:1,[::1]:2` into the two lists that the key/value form has.
fn insert_hosts(pairs: &mut Pairs, list: &str) -> Result<(), ConnInfoError> {
    if list.is_empty() {
        return Ok(());
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for item in list.split(',') {
        let (host, port) = split_port(item)?;
        hosts.push(decode(host, "host")?);
        ports.push(decode(port, "port")?);
    }
    pairs.insert("host".to_owned(), hosts.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.insert("port".to_owned(), ports.join(","));
    }
    Ok(())
}

fn split_port(item: &str) -> Result<(&str, &str), ConnInfoError> {
    let Some(bracketed) = item.strip_prefix('[') else {
        return Ok(item.split_once(':').unwrap_or((item, "")));
    };
    let syntax = |reason| ConnInfoError::Syntax {
        near: "host".to_owned(),
        reason,
    };
    let (host, rest) = bracketed
        .split_once(']')
        .ok_or_else(|| syntax("a [ has no ] after it"))?;
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, port)),
        None if rest.is_empty() => Ok((host, "")),
        None => Err(syntax("only a :port may follow ]")),
    }
}

fn decode(text: &str, key: &str) -> Result<String, ConnInfoError> {
    let error = |reason| ConnInfoError::Syntax {
        near: key.to_owned(),
        reason,
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let digits = (hex(rest.next()), hex(rest.next()));
                let (Some(high), Some(low)) = digits else {
                    return Err(error("a % is not followed by two hex digits"));
                };
                high << 4 | low
            }
            _ => byte,
        };
        if decoded == 0 {
            return Err(error("it contains a NUL character"));
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes).map_err(|_| error("it is not UTF-8 once decoded"))
}

fn hex(digit: Option<u8>) -> Option<u8> {
    char::from(digit?)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}
