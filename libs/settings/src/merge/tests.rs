use std::{num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};

use super::*;
use crate::{PortBase, Service, TomlFile};

#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Sample {
    /// Where to listen
    #[arg(long)]
    listen: String,
    /// How many
    #[arg(long)]
    lane_count: NonZeroUsize,
    /// How long
    #[arg(long, value_parser = crate::duration::parse)]
    #[serde(with = "crate::duration")]
    patience: Duration,
}

impl Settings for Sample {
    const SERVICE: Option<Service> = Some(Service::PageServe);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::PageServe),
            lane_count: NonZeroUsize::MIN,
            patience: Duration::from_secs(10),
        }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self::defaults(PortBase::default())
    }
}

fn sources(file: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let own = |pairs: &[(&str, &str)]| {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    };
    Sources {
        file: Some(TomlFile::parse("p.toml", file).unwrap()),
        variables: own(variables),
        flags: own(flags),
    }
}

const LISTEN: &str = "PALIMPSEST_PAGE_SERVE__LISTEN";
const LANES: &str = "PALIMPSEST_PAGE_SERVE__LANE_COUNT";

fn problems(sources: &Sources) -> Vec<String> {
    let Problems(found) = merge(&Sample::default(), sources).unwrap_err();
    found.iter().map(Problem::in_full).collect()
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let file = "[page-serve]\nlisten = 'f:1'\nlane-count = 2\npatience = '3s'\n[wal-ingest]\nx = 1";
    let sources = sources(file, &[(LISTEN, "v:1"), (LANES, "4")], &[("listen", "g:1")]);
    let effective = merge(&Sample::default(), &sources).unwrap();
    let settings = &effective.settings;
    assert_eq!(settings.listen, "g:1");
    assert_eq!(settings.lane_count.get(), 4);
    assert_eq!(settings.patience, Duration::from_secs(3));
    assert_eq!(
        effective.to_toml(),
        "[page-serve]\nlisten = \"g:1\" # --listen\n\
         lane-count = 4 # PALIMPSEST_PAGE_SERVE__LANE_COUNT\npatience = \"3s\" # p.toml:4\n"
    );
}

#[test]
fn what_is_printed_has_the_same_effect_as_a_file() {
    let printed = merge(&Sample::default(), &sources("", &[(LANES, "9")], &[])).unwrap();
    let again = merge(&Sample::default(), &sources(&printed.to_toml(), &[], &[])).unwrap();
    assert_eq!(again.settings, printed.settings);
    assert!(printed.to_toml().contains("127.0.0.1:7702\" # default"));
}

#[test]
fn every_problem_is_found_with_its_place_and_what_was_expected() {
    let file = "[page-serve]\nlsten = 'x'\npatience = '5 parsecs'\n";
    let variables = [(LANES, "0"), ("PALIMPSEST_PAGE_SERVE__LANES", "1")];
    let found = problems(&sources(file, &variables, &[("lane-count", "many")]));
    let [first, second, third, fourth] = found.as_slice() else {
        panic!("{found:#?}");
    };
    assert_eq!(
        first,
        "p.toml:2: page-serve has no setting \"lsten\"; it has listen, lane-count, patience"
    );
    assert!(second.starts_with("PALIMPSEST_PAGE_SERVE__LANES: page-serve has no setting"));
    assert!(third.starts_with("--lane-count: lane-count: "), "{third}");
    assert!(fourth.starts_with("p.toml:3: patience: "), "{fourth}");
    assert!(fourth.contains("write for example 500ms"), "{fourth}");
}

#[test]
fn zero_where_there_must_be_some_is_refused() {
    let found = problems(&sources("", &[(LANES, "0")], &[]));
    assert!(found[0].starts_with(LANES), "{found:?}");
    assert!(found[0].contains("nonzero"), "{found:?}");
}
