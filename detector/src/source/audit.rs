//! The audit logs of the API servers on this node, followed in a thread of their own: a log may lie on a disk that hangs, and a flood of
//! requests is not to hold the kernel's records back. Nothing is lost where that cannot keep up: it is a file.
//!
//! A position is kept once everything before it was told. An agent that is killed in between tells the last events twice rather than
//! never.

pub mod file;
pub mod find;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod line;
mod log;
mod position;
#[cfg(test)]
mod tests;
mod thin;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use self::{
    file::Line,
    log::Log,
    position::{Place, Positions},
    thin::Thin,
};
use crate::{
    confine,
    escape::escape,
    record::{AuditLog, Body, LogState},
    source::{kubelet, root::Root},
};

/// How often logs are looked at.
const EVERY: Duration = Duration::from_millis(200);
/// How often API servers are looked for when none was seen to start.
const FIND_EVERY: Duration = Duration::from_secs(30);
/// How soon after one was: it has to read its flags first.
const FIND_AFTER: Duration = Duration::from_secs(1);
/// Most that is read for one batch, in bytes: some hundred events, which the agent's loop takes between two looks at the rings.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that may wait.
const BATCHES: usize = 2;
/// Most logs at once.
const LOGS_MAX: usize = 16;
/// How long the end may take: the last position is written then.
const END: Duration = Duration::from_secs(2);

/// What to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Logs that the user names, as the node names them.
    pub logs: Vec<PathBuf>,
    /// Follow those of running API servers too.
    pub find: bool,
    /// Read a log from its beginning where nothing is known of it.
    pub whole: bool,
    /// Where positions are kept; `None` to keep none.
    pub state: Option<PathBuf>,
    /// `/proc`, with the pids of the node.
    pub proc: PathBuf,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub lines: u64,
    /// Lines that are no event of `audit.k8s.io/v1`.
    pub unusable: u64,
    /// Events that were passed on.
    pub events: u64,
    /// Reads that say nothing new, and stages that another one follows.
    pub left_out: u64,
}

#[derive(Debug, Default)]
struct Batch {
    bodies: Vec<Body>,
    warnings: Vec<String>,
    positions: Positions,
    counts: Counts,
}

enum Order {
    /// An API server may have been started.
    Find,
    /// Everything before these positions was told.
    Told(Positions),
}

/// The thread, and what it has read.
pub struct AuditLogs {
    batches: Receiver<Batch>,
    orders: Option<Sender<Order>>,
    ended: Receiver<()>,
    /// What is told with the records that were taken last.
    taken: Option<Positions>,
    counts: Counts,
    /// There may be another batch.
    more: bool,
}

impl AuditLogs {
    /// Begins to follow.
    ///
    /// # Errors
    /// When the directory for positions cannot be used, or there can be no thread.
    pub fn start(options: &Options) -> io::Result<Self> {
        if let Some(dir) = &options.state {
            let named = |error: io::Error| io::Error::other(format!("{}: {error}", dir.display()));
            fs::create_dir_all(dir).map_err(named)?;
        }
        let (send, batches) = sync_channel(BATCHES);
        let (orders, given) = channel();
        let (end, ended) = sync_channel(1);
        let mut worker = Worker::new(options.clone());
        thread::Builder::new().name("audit".to_owned()).spawn(move || {
            // It finds logs in the file systems of processes, and keeps positions in a directory of root's.
            confine::visitor();
            worker.run(&send, &given);
            // Nobody waits for it any more once that took too long.
            let _ = end.try_send(());
        })?;
        Ok(Self { batches, orders: Some(orders), ended, taken: None, counts: Counts::default(), more: true })
    }

    /// What was read, of at most one batch.
    pub fn poll(&mut self, warnings: &mut Vec<String>) -> Vec<Body> {
        match self.batches.try_recv() {
            Ok(batch) => {
                self.more = true;
                warnings.extend(batch.warnings);
                self.taken = Some(batch.positions);
                self.counts = batch.counts;
                batch.bodies
            }
            Err(error) => {
                self.more = false;
                if error == TryRecvError::Disconnected && self.orders.take().is_some() {
                    warnings.push("audit logs are not followed any more: the thread that does it has ended".to_owned());
                }
                Vec::new()
            }
        }
    }

    /// Whether there may be more at once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Everything that was taken was told.
    pub fn told(&mut self) {
        if let (Some(positions), Some(orders)) = (self.taken.take(), &self.orders) {
            // A thread that has ended keeps no positions.
            let _ = orders.send(Order::Told(positions));
        }
    }

    /// An API server may have been started.
    pub fn find(&self) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order::Find);
        }
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Drop for AuditLogs {
    /// The last position is written before the agent ends.
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.ended.recv_timeout(END);
    }
}

struct Followed {
    log: Log,
    /// The user named it.
    named: bool,
    /// Lines of it that were unusable.
    unusable: u64,
}

impl Followed {
    /// Takes what is known of it.
    fn new(root: PathBuf, path: PathBuf, named: bool, known: &mut Vec<Place>) -> Self {
        let name = path.display().to_string();
        let at = known.iter().position(|place| place.path == name);
        let known = at.map(|at| known.swap_remove(at).files).unwrap_or_default();
        Self { log: Log::new(root, path, known), named, unusable: 0 }
    }
}

struct Worker {
    options: Options,
    logs: Vec<Followed>,
    /// What was kept of logs that were not found yet.
    known: Vec<Place>,
    thin: Thin,
    counts: Counts,
    /// What the file holds.
    kept: Positions,
    warnings: Vec<String>,
    find_at: Instant,
    refused: bool,
}

impl Worker {
    fn new(options: Options) -> Self {
        let mut warnings = Vec::new();
        let known = match options.state.as_deref().map(position::read).transpose() {
            Ok(known) => known.unwrap_or_default(),
            Err(error) => {
                warnings.push(format!(
                    "audit logs: {} cannot be used ({}): logs are read from their ends",
                    escape(&options.state.clone().unwrap_or_default().join(position::NAME).display().to_string()),
                    escape(&error.to_string())
                ));
                Positions::default()
            }
        };
        let root = kubelet::host_root(&options.proc);
        let kept = known.clone();
        let mut known = known.logs;
        let named = options.logs.iter().take(LOGS_MAX).map(|path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Followed::new(root.clone(), path, true, &mut known)
        });
        Self {
            logs: named.collect(),
            kept,
            known,
            thin: Thin::default(),
            counts: Counts::default(),
            warnings,
            find_at: Instant::now(),
            refused: false,
            options,
        }
    }

    /// Until there are no orders any more.
    fn run(&mut self, send: &SyncSender<Batch>, orders: &Receiver<Order>) {
        let mut waiting = None;
        loop {
            let (batch, mut more) = match waiting.take() {
                Some(batch) => (Some(batch), false),
                None => self.batch(),
            };
            if let Some(batch) = batch {
                match send.try_send(batch) {
                    Ok(()) => {}
                    Err(TrySendError::Full(batch)) => {
                        waiting = Some(batch);
                        more = false;
                    }
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            // A batch that waits is offered again soon.
            let wait = match (more, waiting.is_some()) {
                (true, _) => Duration::ZERO,
                (_, true) => EVERY / 40,
                // Without a log there is only to look for one.
                _ if self.logs.is_empty() => self.find_at.saturating_duration_since(Instant::now()),
                _ => EVERY,
            };
            match orders.recv_timeout(wait) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(order) = orders.try_recv() {
                self.obey(order);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Find => self.find_at = Instant::now() + FIND_AFTER,
            Order::Told(positions) => self.keep(positions),
        }
    }

    fn keep(&mut self, positions: Positions) {
        let Some(dir) = &self.options.state else { return };
        if positions == self.kept {
            return;
        }
        match position::write(dir, &positions) {
            Ok(()) => {
                self.kept = positions;
                self.refused = false;
            }
            Err(error) if !std::mem::replace(&mut self.refused, true) => {
                self.warnings.push(format!(
                    "audit logs: {}: {}; the next agent tells again what was told since then",
                    escape(&dir.join(position::NAME).display().to_string()),
                    escape(&error.to_string())
                ));
            }
            Err(_) => {}
        }
    }

    /// Looks, and reads on. The second value says that there is more to read at once.
    fn batch(&mut self) -> (Option<Batch>, bool) {
        if Instant::now() >= self.find_at {
            self.find_at = Instant::now() + FIND_EVERY;
            if self.options.find {
                self.find();
            }
        }
        let mut bodies = Vec::new();
        let mut more = false;
        let before = self.positions();
        let (mut bytes, now) = (BATCH_BYTES, Instant::now());
        self.look();
        let Self { logs, thin, counts, warnings, .. } = self;
        for Followed { log, unusable, .. } in logs {
            let path = log.path.display().to_string();
            let mut each = |line: Line<'_>| {
                counts.lines += 1;
                match read(&line) {
                    Ok(None) => counts.left_out += 1,
                    Ok(Some(event)) if !thin.is_new(&event, now) => counts.left_out += 1,
                    Ok(Some(mut event)) => {
                        counts.events += 1;
                        (event.log, event.offset) = (path.clone(), line.offset);
                        bodies.push(Body::Audit(Box::new(event)));
                    }
                    Err(why) => {
                        counts.unusable += 1;
                        *unusable += 1;
                        if *unusable == 1 {
                            let number = line.number.map(|number| format!(" (line {number})")).unwrap_or_default();
                            warnings.push(format!(
                                "audit log {}, byte {}{number}: {why}; left out. Other such lines are counted in `stats:` and not said",
                                escape(&path),
                                line.offset
                            ));
                        }
                    }
                }
            };
            more |= log.read(&mut bytes, &mut each);
            let said = log.said().into_iter();
            bodies.extend(said.map(|state| Body::AuditLog(Box::new(AuditLog { path: path.clone(), state }))));
        }
        let positions = self.positions();
        if bodies.is_empty() && self.warnings.is_empty() && positions == before {
            return (None, more);
        }
        let warnings = std::mem::take(&mut self.warnings);
        (Some(Batch { bodies, warnings, positions, counts: self.counts }), more)
    }

    /// Looks where the paths lead. One file under two names is read once.
    fn look(&mut self) {
        for followed in &mut self.logs {
            followed.log.look(self.options.whole);
        }
        let mut seen = BTreeSet::new();
        self.logs.retain(|followed| followed.log.inode().is_none_or(|inode| seen.insert(inode)));
    }

    /// How far everything was read; of logs that are not there yet, what is known.
    fn positions(&self) -> Positions {
        let places = self.logs.iter().filter_map(|followed| followed.log.place());
        Positions { logs: places.chain(self.known.iter().cloned()).take(2 * LOGS_MAX).collect() }
    }

    /// Looks for API servers. One that was started again writes the same log, and is seen by another root.
    fn find(&mut self) {
        let inode = |root: &Path, path: &Path| {
            let root = Root::open(root, PathBuf::from("/proc/self/mountinfo")).ok()?;
            root.stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
        };
        for find::Found { root, path } in find::logs(&self.options.proc) {
            let new = inode(&root, &path);
            let room = self.logs.len() < LOGS_MAX;
            let known = self.logs.iter_mut().find(|followed| {
                let log = &followed.log;
                let same = inode(&log.root, &log.path);
                (new.is_some() && same == new) || (log.path == path && (log.root == root || !log.root.exists()))
            });
            match known {
                // What the user named is looked at as the node sees it.
                Some(known) if known.named => {}
                Some(known) if known.log.root.exists() => {}
                Some(known) => known.log.root = root,
                None if room => {
                    self.logs.push(Followed::new(root, path, false, &mut self.known));
                }
                None => {}
            }
        }
    }
}

/// An event of a line. What an API server did not write before its log was emptied under it are zeros.
fn read(line: &Line<'_>) -> Result<Option<crate::record::AuditEvent>, String> {
    let zeros = line.bytes.iter().take_while(|byte| **byte == 0).count();
    match &line.bytes[zeros..] {
        [] => Ok(None),
        bytes => self::line::event(bytes, line.whole),
    }
}

/// What became of a log, in words.
#[must_use]
pub fn shown(log: &AuditLog) -> String {
    let path = escape(&log.path);
    match &log.state {
        LogState::Awaited => format!("{path} (does not exist yet; it is read once it is made)"),
        LogState::Begun { at: 0 } => format!("{path} from its beginning"),
        LogState::Begun { at } => format!("{path} from byte {at}, its end: nothing is known of an agent before"),
        LogState::Resumed { files: 1, at } => format!("{path} from byte {at}, where an agent before left off"),
        LogState::Resumed { files, at } => {
            format!("{path} from byte {at} of the oldest of {files} files, where an agent before left off")
        }
        LogState::Truncated { had, has } => {
            format!("{path} was emptied: {had} bytes were read of it, and it has {has}")
        }
        LogState::Replaced { had } => format!("{path} was replaced after byte {had}, and what it was is not beside it"),
        LogState::Removed { had } => format!("{path} was removed after byte {had}; it is read once there is one again"),
        LogState::Lost => format!("{path}: what an agent before had not read is gone"),
        LogState::Unreadable(why) => format!("{path} cannot be read: {}", escape(why)),
    }
}
