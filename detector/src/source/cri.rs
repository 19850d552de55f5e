//! The container runtime, asked over its unix socket: image references, digests and labels, which bundles do not have.
//!
//! A runtime may hang, lie or not be there. So it is asked from a thread of its own, each call has a deadline, and the agent
//! only ever looks at the answers that have come. Whoever drives this watches [`Cri::fd`] and calls [`Cri::answers`].

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::Notify;

use crate::{
    confine,
    record::{ContainerInfo, ImageNames},
};

mod client;
mod convert;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod message;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

pub use socket::{Socket, sockets};

/// Most questions that wait. The oldest one is dropped for a new one.
const ASKS_MAX: usize = 1024;
/// Most answers that wait; the thread waits then too.
const ANSWERS_MAX: usize = 256;
/// Longest id of a container that is asked for, in bytes; runtimes use 64.
const ID_MAX: usize = 256;

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest wait for an answer.
    pub deadline: Duration,
    /// Wait before the first new try to connect; it doubles with each failure.
    pub first: Duration,
    /// Longest wait between two tries.
    pub longest: Duration,
    /// A connection that lasted this long makes failures before it forgotten.
    pub steady: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(2),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            steady: Duration::from_secs(60),
        }
    }
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A runtime has been connected to. When everything was asked for before, that runtime's part follows.
    Connected(Connected),
    /// A container or sandbox: asked for by its id, or with everything.
    Container(Box<ContainerInfo>),
    /// All images of one runtime.
    Images(Vec<ImageNames>),
    /// No runtime that answered knows a container or sandbox of this id.
    NotFound(String),
    /// No runtime could be asked for this id: it may well exist.
    Unanswered(String),
    /// Something for people, in one line. Said once, until it changes.
    Warning(String),
}

/// A runtime that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Path of its socket.
    pub socket: String,
    /// Its name and version in its own words, escaped: `containerd v1.7.2`.
    pub runtime: String,
    /// Version of the interface that is spoken with it: `v1` or `v1alpha2`.
    pub api: &'static str,
}

/// The thread that asks. It ends when this is dropped, without waiting for any runtime.
pub struct Cri {
    shared: Arc<Shared>,
}

impl Cri {
    /// Starts the thread, which connects to each socket as soon as that is possible. Nothing is asked by itself.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn start(sockets: Vec<Socket>) -> io::Result<Self> {
        Self::start_at(sockets, Pace::default())
    }

    /// As [`Cri::start`], with other time limits.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn start_at(sockets: Vec<Socket>, pace: Pace) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            asks: Mutex::default(),
            asked: Notify::new(),
            answers: Mutex::default(),
            room: Notify::new(),
            ready: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            stop: Notify::new(),
            dropped: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("cri".to_owned()).spawn(move || {
            confine::visitor();
            runtime.block_on(async {
                tokio::select! {
                    () = theirs.stop.notified() => {}
                    () = worker::run(&theirs, sockets, pace) => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { shared })
    }

    /// Readable when there are answers.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    /// Asks for a container or sandbox by its id. It is answered with [`Answer::Container`], [`Answer::NotFound`] or
    /// [`Answer::Unanswered`]; with nothing, if it is dropped because too many others wait, or no runtime can have such
    /// an id.
    pub fn ask_container(&self, id: &str) {
        if !id.is_empty() && id.len() <= ID_MAX {
            self.ask(Ask::Container(id.to_owned()));
        }
    }

    /// Asks every runtime that is up for its images.
    pub fn ask_images(&self) {
        self.ask(Ask::Images);
    }

    /// Asks every runtime for its images, and its containers and sandboxes that have not ended: now, and again each time a
    /// runtime has been connected to, for what happened before is not known.
    pub fn ask_all(&self) {
        self.ask(Ask::All);
    }

    /// Asks these sockets from now on. Connections to those of them that were asked before stay.
    pub fn set_sockets(&self, sockets: Vec<Socket>) {
        self.ask(Ask::Sockets(sockets));
    }

    /// How many questions were dropped, because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Appends the answers that have come. Never waits.
    pub fn answers(&self, out: &mut Vec<Answer>) {
        // Cleared first: what comes after is signalled anew. Nothing to clear is no error.
        let _ = self.shared.ready.read();
        out.extend(lock(&self.shared.answers).drain(..));
        self.shared.room.notify_one();
    }

    fn ask(&self, ask: Ask) {
        let mut asks = lock(&self.shared.asks);
        if asks.contains(&ask) {
            return;
        }
        if asks.len() >= ASKS_MAX {
            // What is asked for seldom, and answered with much, is not what gives way.
            let oldest = asks.iter().position(|ask| matches!(ask, Ask::Container(_))).unwrap_or(0);
            asks.remove(oldest);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        asks.push_back(ask);
        drop(asks);
        self.shared.asked.notify_one();
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        self.shared.stop.notify_one();
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    Container(String),
    Images,
    All,
    Sockets(Vec<Socket>),
}

/// What both threads see.
struct Shared {
    asks: Mutex<VecDeque<Ask>>,
    asked: Notify,
    answers: Mutex<VecDeque<Answer>>,
    /// Answers have been taken.
    room: Notify,
    ready: EventFd,
    stop: Notify,
    dropped: AtomicU64,
}

impl Shared {
    /// The next question, as soon as there is one.
    async fn next_ask(&self) -> Ask {
        loop {
            if let Some(ask) = lock(&self.asks).pop_front() {
                return ask;
            }
            self.asked.notified().await;
        }
    }

    /// Hands an answer over, as soon as there is room.
    async fn answer(&self, answer: Answer) {
        loop {
            {
                let mut answers = lock(&self.answers);
                if answers.len() < ANSWERS_MAX {
                    answers.push_back(answer);
                    break;
                }
            }
            self.room.notified().await;
        }
        // It fails only when its count is about to overflow, and then it is readable anyway.
        let _ = self.ready.write(1);
    }
}

/// A thread that panicked left nothing half done in these: one push or pop each.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
