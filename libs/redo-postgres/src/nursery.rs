//! A thread whose only task is to be the parent of redo processes.
//!
//! A redo process asks to be killed when its parent dies, and by "parent" Linux means the *thread*
//! that made it. Threads of the runtime come and go; this one lives as long as the engine.

use std::{io, sync::mpsc, thread};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

/// Ends its thread, and with it the processes made there, when dropped.
#[derive(Debug)]
pub(crate) struct Nursery {
    orders: mpsc::Sender<Order>,
}

struct Order {
    command: Command,
    child: oneshot::Sender<io::Result<Child>>,
}

impl Nursery {
    /// Starts the thread. Its processes belong to the current runtime.
    pub(crate) fn start() -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let runtime = Handle::current();
        thread::Builder::new()
            .name("redo-nursery".to_owned())
            .spawn(move || work(&runtime, &inbox))?;
        Ok(Self { orders })
    }

    /// Runs `command` as a child of the thread.
    pub(crate) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (child, spawned) = oneshot::channel();
        let gone = || io::Error::other("the thread that makes redo processes has ended");
        self.orders
            .send(Order { command, child })
            .map_err(|_| gone())?;
        spawned.await.map_err(|_| gone())?
    }
}

fn work(runtime: &Handle, inbox: &mpsc::Receiver<Order>) {
    let _context = runtime.enter();
    while let Ok(Order { mut command, child }) = inbox.recv() {
        // If nobody waits any more the child is dropped, which kills it.
        let _ = child.send(command.spawn());
    }
}
