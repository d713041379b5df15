//! `docs/settings.md` has every setting, as its struct explains it.

use std::{env, fs, path::Path};

use palimpsest_api::tenant_settings::TenantSettings;
use palimpsest_service_kit::ProcessSettings;
use palimpsest_settings::reference;

/// What follows this line is made from the code.
const MARK: &str = "<!-- From here on made from the code; see the end. -->\n";
const END: &str =
    "Written anew by `PALIMPSEST_BLESS=1 cargo test -p palimpsest-console --test it`.\n";
const BLESS: &str = "PALIMPSEST_BLESS";

fn generated() -> String {
    [
        reference::<ProcessSettings>(),
        reference::<palimpsest_storage_broker::Settings>(),
        reference::<palimpsest_wal_ingest::Settings>(),
        reference::<palimpsest_page_serve::Settings>(),
        reference::<palimpsest_redo_worker::Settings>(),
        reference::<palimpsest_compactor::Settings>(),
        of_tenants(),
        END.to_owned(),
    ]
    .join("\n")
}

fn of_tenants() -> String {
    let title = "## Of tenants\n\n| setting | what it is |\n|---|---|\n".to_owned();
    let settings = TenantSettings::all().into_iter();
    let rows = settings.map(|setting| format!("| `{}` | {} |\n", setting.key, setting.help));
    title + &rows.collect::<String>()
}

#[test]
fn every_setting_is_documented_as_the_code_explains_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let text = fs::read_to_string(&path).unwrap();
    let (prose, reference) = text.split_once(MARK).expect("the mark is there");
    let generated = generated();
    if env::var_os(BLESS).is_some() {
        fs::write(&path, format!("{prose}{MARK}\n{generated}")).unwrap();
        return;
    }
    for (written, meant) in reference.trim_start().lines().zip(generated.lines()) {
        assert_eq!(written, meant, "docs/settings.md is not as the code is");
    }
    assert_eq!(reference.trim(), generated.trim());
}
