//! What `pal up` was told: by its command line, variables and a file. `pal doctor` is told the same, so
//! that it looks at what will be used.

use std::{
    env,
    path::{Path, PathBuf},
};

use palimpsest_service_kit::ProcessSettings;
use palimpsest_settings::{Effective, Problems, Sources, merge};
use palimpsest_store::StoreLocation;

use crate::stack::{ServiceSettings, StackSettings};

/// What was found out from all that was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) process: Effective<ProcessSettings>,
    pub(crate) stack: StackSettings,
    pub(crate) services: ServiceSettings,
}

/// What a command line says.
#[derive(Debug, Default)]
pub(crate) struct Flags<'a> {
    /// The file.
    pub(crate) config: Option<&'a Path>,
    /// Settings of the process, by key.
    pub(crate) process: Vec<(String, String)>,
    pub(crate) pg_bin: Option<PathBuf>,
    pub(crate) redo_build: Option<PathBuf>,
    pub(crate) store: Option<StoreLocation>,
}

impl Told {
    /// Gathers and merges; touches no file but that of the settings.
    ///
    /// # Errors
    /// All that is wrong with the settings.
    pub(crate) fn gather(data: &Path, flags: Flags<'_>) -> Result<Self, Problems> {
        let sources = Sources::gather(flags.config, env::vars_os())?;
        let process = sources.clone().with_flags(flags.process);
        let process = merge(&ProcessSettings::default(), &process)?;
        let stack = StackSettings {
            port_base: process.settings.port_base,
            pg_bin: flags.pg_bin,
            redo_build: flags.redo_build,
            store: flags.store,
            sources,
        };
        let services = stack.services(data)?;
        Ok(Self {
            process,
            stack,
            services,
        })
    }
}
