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
}

#[derive(Default)]
pub(super) struct Counts {
    alerts: AtomicU64,
    found: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    queued: AtomicU64,
    waiting: AtomicU64,
    /// When it was said last that alerts are lost, and how many of them.
    said: Mutex<Option<(Instant, u64)>>,
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
        self.lose(name, 1, "it does not keep up");
    }

    pub fn deliver(&self, count: u64) {
        self.delivered.fetch_add(count, Relaxed);
    }

    /// So many alerts wait in the spool.
    pub fn wait(&self, count: u64) {
        self.waiting.store(count, Relaxed);
    }

    /// Counts alerts that are lost, and says so now and then.
    pub fn lose(&self, name: &str, count: u64, why: &str) {
        let dropped = self.dropped.fetch_add(count, Relaxed) + count;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|(when, _)| when.elapsed() >= SAY) {
            let since = said.map_or(0, |(_, before)| before);
            eprintln!("degraded: sink {name}: {} alerts are lost: {why}", dropped - since);
            *said = Some((Instant::now(), dropped));
        }
    }

    pub fn refuse(&self, name: &str, count: u64, why: &str) {
        self.lose(name, count, &format!("the receiver refuses them ({})", crate::escape::escape_to(why, 200)));
    }

    pub fn state(&self, sink: &str) -> State {
        State {
            sink: sink.to_owned(),
            alerts: self.alerts.load(Relaxed),
            found: self.found.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            waiting: self.queued.load(Relaxed) + self.waiting.load(Relaxed),
        }
    }
}

/// The next alerts, as many as are there; `None` when no more will come.
pub(super) fn batch(queue: &Receiver<Queued>, counts: &Counts) -> Option<Vec<Queued>> {
    let mut alerts = vec![queue.recv().ok()?];
    alerts.extend(queue.try_iter().take(BATCH - 1));
    counts.queued.fetch_sub(alerts.len() as u64, Relaxed);
    Some(alerts)
}
