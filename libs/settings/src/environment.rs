//! Variables: `PALIMPSEST_WAL_INGEST__LOCAL_DISK` is `local-disk` of `[wal-ingest]`.

use crate::Service;

/// What all our variables begin with.
pub(crate) const PREFIX: &str = "PALIMPSEST_";
/// Between section and key.
const SEPARATOR: &str = "__";

/// The variable of a setting.
pub(crate) fn variable(service: Option<Service>, key: &str) -> String {
    let section = service.map(|service| format!("{}{SEPARATOR}", service.name()));
    let name = format!("{}{key}", section.unwrap_or_default());
    format!("{PREFIX}{}", name.replace('-', "_").to_uppercase())
}

/// The section and key that a variable means, if it is written like one of a service.
pub(crate) fn section_and_key(variable: &str) -> Option<(String, String)> {
    let (section, key) = variable.strip_prefix(PREFIX)?.split_once(SEPARATOR)?;
    let kebab = |text: &str| text.replace('_', "-").to_lowercase();
    Some((kebab(section), kebab(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_names_section_and_key() {
        let name = variable(Some(Service::WalIngest), "local-disk");
        assert_eq!(name, "PALIMPSEST_WAL_INGEST__LOCAL_DISK");
        let back = section_and_key(&name).unwrap();
        assert_eq!(back, ("wal-ingest".to_owned(), "local-disk".to_owned()));
        assert_eq!(variable(None, "port-base"), "PALIMPSEST_PORT_BASE");
        assert_eq!(section_and_key("PALIMPSEST_PORT_BASE"), None);
    }
}
