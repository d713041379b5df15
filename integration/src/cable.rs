//! The way between the services and a PostgreSQL, which a judge can cut.

use std::{
    fs::{self, Permissions},
    future::pending,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// Passes connections on to a server's Unix socket while it is plugged in.
#[derive(Debug)]
pub struct Cable {
    near: TempDir,
    port: u16,
    plugged: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Cable {
    /// A cable to the server with that socket directory and port, plugged in.
    ///
    /// # Errors
    /// If there can be no socket.
    pub fn to(directory: &Path, port: u16) -> Result<Self> {
        let near = tempfile::Builder::new().prefix("pal-").tempdir_in("/tmp")?;
        let name = format!(".s.PGSQL.{port}");
        let listener = UnixListener::bind(near.path().join(&name))?;
        // A standby comes as the server's user.
        for (path, mode) in [
            (near.path().to_owned(), 0o711),
            (near.path().join(&name), 0o777),
        ] {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        let far = directory.join(name);
        let (plugged, state) = watch::channel(true);
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, far.clone(), state.clone()));
            }
        });
        Ok(Self {
            near,
            port,
            plugged,
            listening,
        })
    }

    /// Where its socket is.
    pub fn directory(&self) -> &Path {
        self.near.path()
    }

    /// How the server is reached through it.
    pub fn conninfo(&self, user: &str) -> String {
        let Self { near, port, .. } = self;
        format!("host={} port={port} user={user}", near.path().display())
    }

    /// Breaks all connections, and every new one at once.
    pub fn unplug(&self) {
        self.plugged.send_replace(false);
    }

    /// Lets new connections through again.
    pub fn plug_in(&self) {
        self.plugged.send_replace(true);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.unplug();
        self.listening.abort();
    }
}

/// One connection, until an end closes it or the cable is unplugged.
async fn pass(mut near: UnixStream, far: PathBuf, mut plugged: watch::Receiver<bool>) {
    let passing = async {
        if let Ok(mut far) = UnixStream::connect(&far).await {
            // However it ends, both ends see it closed.
            let _ = copy_bidirectional(&mut near, &mut far).await;
        }
    };
    let unplugged = async {
        // Without a sender the judge is over.
        if plugged.wait_for(|plugged| !plugged).await.is_err() {
            pending::<()>().await;
        }
    };
    tokio::select! {
        () = passing => {}
        () = unplugged => {}
    }
}
