//! Reading it again, when the file changes or somebody asks for it: in a thread of its own, since a disk may be slow and the rings
//! are not to wait.
//!
//! The content is compared, not the file's identity: that holds for an edit in place, a file renamed over it and the symlinks of a
//! ConfigMap alike, and a file that is written while it is read is seen whole a second later.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    Config,
    file::{self, Problem},
};
use crate::confine::{self, Files};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Flags, which override the file.
pub type Flags = Box<dyn Fn(&mut Config) + Send>;

/// A configuration that may change.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<Result<Config, Problem>>,
    ask: Sender<()>,
    path: PathBuf,
}

impl Watch {
    /// Watches the file, whose text is known to be this.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(path: PathBuf, text: String, flags: Flags) -> io::Result<Self> {
        Self::every(EVERY, path, text, flags)
    }

    pub(super) fn every(every: Duration, path: PathBuf, text: String, flags: Flags) -> io::Result<Self> {
        let (ask, asked) = channel();
        let (send, changes) = unbounded_channel();
        let watched = path.clone();
        let eye = Eye { path, flags, seen: Ok(text) };
        let files = Files::default().reading(&eye.path);
        thread::Builder::new().name("config".to_owned()).spawn(move || {
            confine::thread(&files);
            eye.run(every, &asked, &send);
        })?;
        Ok(Self { changes, ask, path: watched })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Somebody wants it read now, changed or not.
    pub fn ask(&self) {
        // The thread ends only when this is dropped.
        let _ = self.ask.send(());
    }

    /// The next one that is to be applied, or why it cannot be. Cancel safe.
    pub async fn next(&mut self) -> Result<Config, Problem> {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }
}

struct Eye {
    path: PathBuf,
    flags: Flags,
    /// What was read last.
    seen: Result<String, Problem>,
}

impl Eye {
    fn run(mut self, every: Duration, asked: &Receiver<()>, send: &UnboundedSender<Result<Config, Problem>>) {
        loop {
            let asked = match asked.recv_timeout(every) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(change) = self.look(asked)
                && send.send(change).is_err()
            {
                return;
            }
        }
    }

    fn look(&mut self, asked: bool) -> Option<Result<Config, Problem>> {
        let now = file::read(&self.path);
        if now == self.seen && !asked {
            return None;
        }
        let name = self.path.display().to_string();
        let change = match &now {
            Ok(text) => file::interpret(&name, text, &self.flags),
            Err(problem) => Err(problem.clone()),
        };
        self.seen = now;
        Some(change)
    }
}
