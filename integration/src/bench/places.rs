use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// The programs that are measured, and a directory for their files.
#[derive(Debug)]
pub struct Places {
    service: PathBuf,
    bench: PathBuf,
    files: TempDir,
}

impl Places {
    /// The programs beside the one that runs.
    ///
    /// # Errors
    /// If `service` was not built.
    pub fn beside_this_program() -> Result<Self> {
        let bench = std::env::current_exe()?;
        let service = bench.with_file_name("service");
        ensure!(
            service.exists(),
            "{} is missing; run make bench, which builds it",
            service.display()
        );
        let files = tempfile::tempdir().context("making a directory for the services' files")?;
        Ok(Self {
            service,
            bench,
            files,
        })
    }

    /// The binary that is any of the services.
    pub fn service(&self) -> &Path {
        &self.service
    }

    /// This program.
    pub fn bench(&self) -> &Path {
        &self.bench
    }

    /// The program `pal`.
    ///
    /// # Errors
    /// If it was not built.
    pub fn pal(&self) -> Result<PathBuf> {
        let pal = self.bench.with_file_name("pal");
        ensure!(
            pal.exists(),
            "{} is missing; run make bench, which builds it",
            pal.display()
        );
        Ok(pal)
    }

    /// A new directory of this name.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.files.path().join(name);
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}
