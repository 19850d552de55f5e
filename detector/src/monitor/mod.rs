//! How the agent is: for Prometheus, for probes and for systemd.
//!
//! The loop owns a [`Monitor`], tells it of every step, and once a second swaps a [`Snapshot`] of what it has counted into
//! [`Published`]. The [`server`] reads that in a thread of its own: nobody who asks ever holds the loop back, and a loop that hangs is
//! noticed by its silence.

pub mod exposition;
pub mod metrics;
mod notify;
mod process;
mod server;
pub mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustc_hash::FxHashMap;

use crate::{
    alert::{Alert, Severity},
    context::container::FirstExecs,
    monitor::{exposition::Histogram, notify::Notify},
    record::HookState,
    recorder::Progress,
    sink,
    source::{
        kernel::{Detached, Ring},
        live::Identity,
    },
    triage,
};

/// How often a snapshot is taken.
const EVERY: Duration = Duration::from_secs(1);

/// What the stream came to, counted as it passes.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By the name of their kind; counted for every record, so not an ordered map.
    pub records: FxHashMap<&'static str, u64>,
    /// By the technique's id, before anything is grouped or silenced.
    pub findings: BTreeMap<(&'static str, Severity), u64>,
    /// The same of what was given to the sinks.
    pub alerts: BTreeMap<(&'static str, Severity), u64>,
    /// From the record to the alert.
    pub latency: Histogram,
}

impl Counts {
    /// Findings that the pipeline made of one record.
    pub fn found(&mut self, alerts: &[Alert]) {
        for alert in alerts {
            *self.findings.entry((alert.technique.id, alert.severity)).or_default() += 1;
        }
    }

    /// An alert is given to the sinks.
    pub fn told(&mut self, alert: &Alert) {
        *self.alerts.entry((alert.technique.id, alert.severity)).or_default() += 1;
    }
}

/// A hook, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookShown {
    pub name: String,
    /// How it was attached; `None` where it never was.
    pub backend: Option<String>,
    /// Why it never was.
    pub reason: String,
    pub required: bool,
    /// Why it is not attached any more.
    pub detached: Option<String>,
}

impl HookShown {
    /// The hooks as they were attached, and what became of them.
    #[must_use]
    pub fn all(states: &[HookState], detached: &[Detached]) -> Vec<Self> {
        let shown = |state: &HookState| Self {
            name: state.name.clone(),
            backend: state.backend.clone(),
            reason: state.reason.clone().unwrap_or_default(),
            required: state.required,
            detached: detached.iter().find(|gone| gone.hook == state.name).map(|gone| gone.why.to_owned()),
        };
        states.iter().map(shown).collect()
    }

    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.backend.is_some() && self.detached.is_none()
    }
}

/// How the agent is.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Hooks are attached, and the first look is taken.
    pub started: bool,
    pub stopping: bool,
    pub attach_seconds: f64,
    pub hooks: Vec<HookShown>,
    /// By hook.
    pub lost: BTreeMap<String, u64>,
    pub skipped: BTreeMap<String, u64>,
    pub rings: Vec<Ring>,
    pub counts: Counts,
    pub undecodable: u64,
    pub untold: triage::Counts,
    /// All, and those of them that have expired.
    pub exceptions: (usize, usize),
    pub sinks: Vec<sink::State>,
    pub recorder: Option<Progress>,
    pub processes: usize,
    pub processes_dropped: u64,
    pub containers: usize,
    pub first_execs: FirstExecs,
    pub identity: Identity,
}

/// What the loop publishes.
#[derive(Debug)]
pub(crate) struct Published {
    snapshot: Mutex<Arc<Snapshot>>,
    since: Instant,
    /// When the loop made its last step, in ms after `since`.
    stepped: AtomicU64,
    own: process::Files,
}

impl Published {
    fn new() -> Self {
        Self {
            snapshot: Mutex::default(),
            since: Instant::now(),
            stepped: AtomicU64::new(0),
            own: process::Files::open(),
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        // Held for the exchange of a pointer.
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    fn step(&self) {
        self.stepped.store(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The latest snapshot, and how long the loop has not made a step.
    fn look(&self) -> (Arc<Snapshot>, Duration) {
        let snapshot = Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner));
        let stepped = Duration::from_millis(self.stepped.load(Relaxed));
        (snapshot, self.since.elapsed().saturating_sub(stepped))
    }
}

/// The loop's side.
#[derive(Debug)]
pub struct Monitor {
    published: Arc<Published>,
    notify: Notify,
    next: Instant,
    /// What was said of on standard error.
    said: BTreeSet<String>,
}

impl Monitor {
    /// Listens, where that is wanted, and finds the service manager, where there is one. Probes are answered from here on.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(listen: Option<SocketAddr>) -> anyhow::Result<Self> {
        let published = Arc::new(Published::new());
        if let Some(listen) = listen {
            let address = server::start(listen, Arc::clone(&published)).with_context(|| {
                format!(
                    "metrics: {listen} cannot be listened on; choose another with --metrics-listen or metrics.listen"
                )
            })?;
            eprintln!("metrics: http://{address}/metrics");
        }
        let notify = Notify::of_environment().unwrap_or_else(|error| {
            eprintln!("degraded: NOTIFY_SOCKET: {error}; the service manager is told nothing");
            Notify::default()
        });
        Ok(Self { published, notify, next: Instant::now(), said: BTreeSet::new() })
    }

    /// The agent has started, or has taken or refused a new configuration.
    pub fn ready(&mut self, snapshot: Snapshot) {
        self.published.step();
        let status = self.take(snapshot);
        self.notify.ready(&status);
    }

    /// The loop has made a step. Once a second it is asked how it is.
    pub fn stepped(&mut self, snapshot: impl FnOnce() -> Snapshot) {
        self.published.step();
        let now = Instant::now();
        if self.next <= now {
            let status = self.take(snapshot());
            self.notify.status(&status);
        }
        self.notify.stepped(now);
    }

    /// A new configuration is about to be taken.
    pub fn reloading(&mut self) {
        self.notify.reloading();
    }

    /// The agent ends.
    pub fn stopping(&mut self, snapshot: Snapshot) {
        self.published.publish(Snapshot { stopping: true, ..snapshot });
        self.notify.stopping();
    }

    /// Publishes it; yields it in words.
    fn take(&mut self, snapshot: Snapshot) -> String {
        self.next = Instant::now() + EVERY;
        let reasons = verdict::judge(&snapshot, Duration::ZERO);
        for reason in reasons.iter().filter(|reason| reason.curable) {
            if self.said.insert(reason.what.clone()) {
                eprintln!("degraded: {}", reason.what);
            }
        }
        let attached = snapshot.hooks.iter().filter(|hook| hook.is_attached()).count();
        let alerts: u64 = snapshot.counts.alerts.values().sum();
        let status = match reasons.first() {
            None => format!("watching; {attached} of {} hooks attached, {alerts} alerts", snapshot.hooks.len()),
            Some(reason) => format!("degraded: {}", reason.what),
        };
        self.published.publish(snapshot);
        status
    }
}
