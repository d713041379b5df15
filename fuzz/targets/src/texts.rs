//! Texts that people write.

use std::path::Path;

use palimpsest_catalog::{QualifiedName, RelationName};
use palimpsest_postgres::{ConnInfo, SlotName, fuzz::password_in};
use palimpsest_types::{ByteCount, Lsn, RelTag, TenantId};

/// A connection string, and after the first line a password file.
pub fn conninfo(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let (text, passwords) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(info) = text.parse::<ConnInfo>() else {
        return;
    };
    assert!(!info.endpoints().is_empty());
    let redacted = info.redacted();
    assert_eq!(
        redacted.parse::<ConnInfo>().map(|info| info.redacted()),
        Ok(redacted.clone()),
        "what is shown can't be read"
    );
    for endpoint in info.endpoints() {
        let _ = password_in(passwords, endpoint, info.user());
    }
    let _ = info.with_default_passfile(Some(Path::new("passwords")), None);
}

/// Relations, LSNs, ids, sizes and slots by name: what is shown of one can be read again.
pub fn names(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(rel) = text.parse::<RelTag>() {
        assert_eq!(rel.to_string().parse(), Ok(rel));
    }
    if let Ok(name) = text.parse::<RelationName>() {
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        if let RelationName::Qualified(name) = name {
            let QualifiedName { database, .. } = &name;
            assert!(!database.is_empty());
        }
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(id) = text.parse::<TenantId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(size) = text.parse::<ByteCount>() {
        assert_eq!(String::from(size).parse(), Ok(size));
    }
    if let Ok(slot) = text.parse::<SlotName>() {
        assert_eq!(slot.as_str(), text);
    }
}
