//! The bounded queue before each sink, and what became of the alerts that went in.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::alert::Alert;

pub(super) type Queued = Arc<Alert>;

/// Most alerts before one sink that its thread has not taken yet.
pub(super) const QUEUE: usize = 8192;
/// Most alerts that a thread takes at once.
const BATCH: usize = 256;
/// How often it is said that alerts are being lost.
const SAY: Duration = Duration::from_secs(10);

/// What became of a sink's alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    pub sink: String,
    /// Alerts that were meant for it since the agent started.
    pub alerts: u64,
    /// Those that an earlier agent left in its spool.
    pub found: u64,
    pub delivered: u64,
    /// Those that are lost: no bound had room for them, or the receiver refused them.
    pub dropped: u64,
    /// Those that wait: in the spool and, while the agent runs, in the queue.
    pub waiting: u64,
    /// Those of them that are in the queue, and how many it holds.
    #[serde(skip)]
    pub queued: u64,
    #[serde(skip)]
    pub queue_size: u64,
    /// What the spool takes and may take, in bytes; 0 for a sink that needs none.
    #[serde(skip)]
    pub spool_bytes: u64,
    #[serde(skip)]
    pub spool_size: u64,
    /// A thread of it has ended before its time.
    #[serde(skip)]
    pub ended: bool,
}

#[derive(Default)]
pub(super) struct Counts {
    alerts: AtomicU64,
    found: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    queued: AtomicU64,
    waiting: AtomicU64,
    spool_bytes: AtomicU64,
    spool_size: AtomicU64,
    /// Why alerts are lost, when that was said last, and how many since.
    said: Mutex<Vec<(Loss, Instant, u64)>>,
}

/// Why alerts are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The sink's queue is full.
    Queue,
    /// The spool is full.
    Spool,
    /// The receiver will never take them.
    Refused,
    /// The file cannot be written to.
    File,
    /// The agent ends while they wait in memory.
    End,
}

impl Loss {
    fn why(self) -> &'static str {
        match self {
            Self::Queue => "it does not keep up",
            Self::Spool => "more waits than the spool may hold, and the oldest give way",
            Self::Refused => "the receiver refuses them",
            Self::File => "the file cannot be written to",
            Self::End => "the agent ends, and they waited in memory (--spool DIR keeps them)",
        }
    }
}

impl Counts {
    pub fn found(&self, count: u64) {
        self.found.store(count, Relaxed);
        self.waiting.store(count, Relaxed);
    }

    /// One more is on its way to the sink's thread.
    pub fn queue(&self) {
        self.alerts.fetch_add(1, Relaxed);
        self.queued.fetch_add(1, Relaxed);
    }

    /// The last one of them found no room.
    pub fn overflow(&self, name: &str) {
        self.queued.fetch_sub(1, Relaxed);
        self.lose(name, 1, Loss::Queue);
    }

    pub fn deliver(&self, count: u64) {
        self.delivered.fetch_add(count, Relaxed);
    }

    /// So many alerts wait in the spool, which takes so many bytes.
    pub fn wait(&self, count: u64, bytes: u64) {
        self.waiting.store(count, Relaxed);
        self.spool_bytes.store(bytes, Relaxed);
    }

    /// The spool may take so many bytes.
    pub fn bound(&self, bytes: u64) {
        self.spool_size.store(bytes, Relaxed);
    }

    /// Counts alerts that are lost, and says so: at once, and then every ten seconds.
    pub fn lose(&self, name: &str, count: u64, loss: Loss) {
        if count == 0 {
            return;
        }
        self.dropped.fetch_add(count, Relaxed);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.iter_mut().find(|(known, ..)| *known == loss) {
            None => {
                said.push((loss, Instant::now(), 0));
                say(name, count, loss);
            }
            Some((_, when, since)) => {
                *since += count;
                if when.elapsed() >= SAY {
                    *when = Instant::now();
                    say(name, std::mem::take(since), loss);
                }
            }
        }
    }

    /// Says what was lost since it was said last.
    pub fn say_rest(&self, name: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for (loss, _, since) in said.iter_mut().filter(|(.., since)| *since > 0) {
            say(name, std::mem::take(since), *loss);
        }
    }

    pub fn state(&self, sink: &str) -> State {
        let queued = self.queued.load(Relaxed);
        State {
            sink: sink.to_owned(),
            alerts: self.alerts.load(Relaxed),
            found: self.found.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            waiting: queued + self.waiting.load(Relaxed),
            queued,
            queue_size: QUEUE as u64,
            spool_bytes: self.spool_bytes.load(Relaxed),
            spool_size: self.spool_size.load(Relaxed),
            ended: false,
        }
    }
}

fn say(name: &str, count: u64, loss: Loss) {
    eprintln!("degraded: sink {name}: alerts are lost, {count} more: {}", loss.why());
}

/// The next alerts, as many as are there; `None` when no more will come.
pub(super) fn batch(queue: &Receiver<Queued>, counts: &Counts) -> Option<Vec<Queued>> {
    let mut alerts = vec![queue.recv().ok()?];
    alerts.extend(queue.try_iter().take(BATCH - 1));
    counts.queued.fetch_sub(alerts.len() as u64, Relaxed);
    Some(alerts)
}
