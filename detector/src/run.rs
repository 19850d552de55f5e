//! `detector run`: the live source, the pipeline behind it, and standard output and the recorder at the end.

use std::{collections::BTreeMap, io, os::fd::RawFd, time::Instant};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    alert::{Alert, Severity},
    cli,
    config::{Config, file::Problem, watch::Watch},
    confine,
    context::{container::FirstExecs, standing::Standing},
    escape::escape,
    monitor::{Counts as Counted, HookShown, Monitor, Snapshot},
    opener::Opener,
    pipeline::Pipeline,
    record::{Body, BootNs, DirState, OwnRole, Record, Watched},
    recorder::{Recorded, Recorder},
    sink::{self, Sinks, StartError},
    source::{
        audit,
        live::{Identity, Live},
        proc,
    },
    trace::kind_name,
    triage::{Counts, Outcome, Triage},
};

/// A finding from which on what was recorded around it is kept as evidence.
const EVIDENCE: Severity = Severity::Medium;

/// So many records take enough memory, some MiB, to hand back what of it is free, once a second at most.
const BURST: usize = 8192;
const TRIM_NS: u64 = 1_000_000_000;

/// What happened while the agent ran: the last line on standard error, as JSON behind `stats: `.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    pub records: u64,
    pub alerts: u64,
    /// What those alerts stand for: identical ones and those that were held back come as one.
    pub findings: u64,
    /// Events lost in the kernel, by hook.
    pub lost: BTreeMap<String, u64>,
    /// Runs that the kernel skipped, by hook; whether any of them mattered is not known.
    pub skipped: BTreeMap<String, u64>,
    /// What was not told each.
    #[serde(flatten)]
    pub untold: Counts,
    /// Kernel records that could not be decoded.
    pub undecodable: u64,
    /// Containers by what was known of them when their first program ran.
    pub first_execs: FirstExecs,
    /// What it cost to look containers up.
    pub identity: Identity,
    /// What was read of audit logs, where any is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<audit::Counts>,
    /// What became of the alerts, by sink.
    pub sinks: Vec<sink::State>,
    /// What was recorded, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Recorded>,
    /// From the start of the process until every hook was attached and the first look taken, in ms.
    pub attach_ms: f64,
}

/// How to run.
pub struct Setup {
    pub config: Config,
    /// The file that the configuration is of.
    pub watch: Option<Watch>,
    pub sinks: Sinks,
    pub recorder: Option<Recorder>,
    /// Tells others how the agent is.
    pub monitor: Monitor,
    /// Say which exception silenced what.
    pub explain: bool,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the live source cannot start or go on, standard output is gone, or a recording to one file fails.
pub fn run(setup: Setup, started: Instant) -> anyhow::Result<()> {
    let Setup { mut config, mut watch, sinks, recorder, mut monitor, explain } = setup;
    crate::memory::settle();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Without a file a terminal that is closed ends the agent, as it always did.
        let mut hangup = watch.is_some().then(|| signal(SignalKind::hangup())).transpose()?;
        let mut records = Vec::new();
        let mut ends = Ends::new(sinks, recorder, explain)?;
        let mut stats = Stats::default();
        let mut options = config.options();
        options.own.extend(watch.as_ref().map(|watch| (OwnRole::Configuration, watch.path().to_owned())));
        let mut live = Live::start(&options, &mut records)?;
        // Parsing the kernel's types took many times what the agent needs from now on.
        crate::memory::give_back();
        stats.attach_ms = started.elapsed().as_secs_f64() * 1e3;
        // SAFETY: the descriptors are those of `live`, which is dropped after these two.
        let [alerting, context] =
            live.kernel().fds().map(|fd| unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) });
        let (alerting, context) = (alerting.map_err(io::Error::from)?, context.map_err(io::Error::from)?);
        // SAFETY: as above.
        let runtimes = live.runtimes_fd().map(|fd| unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) });
        let runtimes = runtimes.transpose().map_err(io::Error::from)?;
        if let Some(confined) = confine::process(|| live.rehearse()) {
            eprintln!("{confined}");
        }
        let hooks = live.kernel().hooks();
        for hook in hooks.iter().filter(|hook| hook.backend.is_none()) {
            eprintln!("degraded: hook {}: {}", hook.name, hook.reason.as_deref().unwrap_or("not attached"));
        }
        let attached = hooks.iter().filter(|hook| hook.backend.is_some()).count();
        let total = hooks.len();
        ends.pass_on(&mut records, &mut stats)?;
        eprintln!("ready: {attached} of {total} hooks attached in {:.0} ms", stats.attach_ms);
        monitor.ready(ends.snapshot(&mut live, &stats));
        loop {
            tokio::select! {
                ready = alerting.readable() => ready?.clear_ready(),
                ready = context.readable() => ready?.clear_ready(),
                ready = answered(runtimes.as_ref()) => ready?.clear_ready(),
                () = tokio::time::sleep(live.idle()) => {}
                changed = changed(watch.as_mut()) => {
                    monitor.reloading();
                    // What happened before it changed is judged by what stood then.
                    live.step(&mut records)?;
                    if let Some(before) = reload(&mut config, changed) {
                        live.configure(config.rules(), &mut records);
                        ends.pass_on(&mut records, &mut stats)?;
                        if config.outputs != before.outputs {
                            stats.sinks.extend(ends.reopen(&before, &mut config)?);
                        }
                    }
                    monitor.ready(ends.snapshot(&mut live, &stats));
                }
                () = hung_up(hangup.as_mut()) => watch.iter().for_each(Watch::ask),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            live.step(&mut records)?;
            live.warnings().for_each(|warning| eprintln!("degraded: {warning}"));
            ends.pass_on(&mut records, &mut stats)?;
            live.told();
            monitor.stepped(|| ends.snapshot(&mut live, &stats));
        }
        monitor.stopping(ends.snapshot(&mut live, &stats));
        live.step(&mut records)?;
        live.last(&mut records)?;
        ends.pass_on(&mut records, &mut stats)?;
        ends.finish(&mut stats)?;
        live.told();
        stats.audit = live.audit();
        stats.untold = ends.triage.counts().clone();
        stats.undecodable = ends.pipeline.stats().undecodable;
        stats.first_execs = ends.pipeline.context().first_execs;
        stats.identity = live.identity();
        stats.sinks.extend(ends.sinks.finish()?);
        stats.recorded = ends.recorder.map(Recorder::finish).transpose().context("recording")?;
        eprintln!("stats: {}", serde_json::to_string(&stats)?);
        Ok(())
    })
}

/// When container runtimes have answered; never without any.
async fn answered(runtimes: Option<&AsyncFd<RawFd>>) -> io::Result<AsyncFdReadyGuard<'_, RawFd>> {
    match runtimes {
        Some(runtimes) => runtimes.readable().await,
        None => std::future::pending().await,
    }
}

/// The next configuration; never without a file.
async fn changed(watch: Option<&mut Watch>) -> Result<Config, Problem> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// When SIGHUP came.
async fn hung_up(hangup: Option<&mut Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// Takes a configuration that was read again, and says what comes of it. Yields the one before where something changed that is applied
/// at once.
fn reload(config: &mut Config, changed: Result<Config, Problem>) -> Option<Config> {
    let new = match changed {
        Ok(new) => new,
        Err(problem) => {
            eprintln!("config: {problem}. What was read before stays in force");
            return None;
        }
    };
    if new == *config {
        eprintln!("config: read again, nothing has changed");
        return None;
    }
    let later = config.needs_restart(&new);
    if !later.is_empty() {
        eprintln!("config: {}: changed, and in force when the agent is started again", later.join(", "));
    }
    let now = new.rules() != config.rules() || new.outputs != config.outputs;
    if now {
        eprintln!("config: read again, in force from now on");
    }
    let before = std::mem::replace(config, new);
    now.then_some(before)
}

/// What is behind the source.
struct Ends {
    pipeline: Pipeline,
    triage: Triage,
    standing: Standing,
    counts: Counted,
    sinks: Sinks,
    /// Starts other sinks: this thread may not any more.
    opener: Opener<Box<Config>, Result<Sinks, StartError>>,
    recorder: Option<Recorder>,
    explain: bool,
    /// Records since memory was handed back, and when that was.
    untrimmed: usize,
    trimmed: BootNs,
}

impl Ends {
    fn new(sinks: Sinks, recorder: Option<Recorder>, explain: bool) -> io::Result<Self> {
        Ok(Self {
            pipeline: Pipeline::new(),
            triage: Triage::new(),
            standing: Standing::default(),
            counts: Counted::default(),
            sinks,
            opener: Opener::start(|config: Box<Config>| cli::sinks(&config))?,
            recorder,
            explain,
            untrimmed: 0,
            trimmed: BootNs(0),
        })
    }

    fn pass_on(&mut self, records: &mut Vec<Record>, stats: &mut Stats) -> anyhow::Result<()> {
        let Some(last) = records.last().map(|last| (last.seq, last.time)) else { return Ok(()) };
        self.untrimmed += records.len();
        let mut found = false;
        for record in records.iter() {
            stats.records += 1;
            *self.counts.records.entry(kind_name(&record.body)).or_default() += 1;
            match &record.body {
                Body::Loss(loss) if loss.skipped => *stats.skipped.entry(loss.hook.clone()).or_default() += loss.lost,
                Body::Loss(loss) => *stats.lost.entry(loss.hook.clone()).or_default() += loss.lost,
                Body::Watched(watched) => say_watched(watched),
                Body::AuditLog(log) => eprintln!("audit log: {}", audit::shown(log)),
                _ => {}
            }
            if self.recorder.is_some() {
                self.standing.observe(record);
            }
            let alerts = self.pipeline.push(record);
            self.counts.found(&alerts);
            let outcome = self.triage.push(record, alerts);
            found |= outcome.worst >= Some(EVIDENCE);
            say_outcome(&outcome, self.explain);
            // What a tick tells had to wait.
            let late = (!outcome.told.is_empty() && !matches!(record.body, Body::Tick)).then_some(record.time);
            self.tell(outcome.told, stats)?;
            if let Some(time) = late {
                self.counts.latency.observe(proc::now().0.saturating_sub(time.0));
            }
        }
        if let Some(recorder) = self.recorder.take_if(|recorder| recorder.has_ended()) {
            recorder.finish().context("recording")?;
        }
        match &mut self.recorder {
            Some(recorder) => {
                recorder.push(std::mem::take(records));
                if found {
                    recorder.found();
                }
                if recorder.wants_opening() {
                    recorder.open(self.standing.records(self.pipeline.context(), last.0, last.1));
                }
            }
            None => {
                records.clear();
                // A burst must not leave its high-water mark behind for good.
                records.shrink_to(1024);
            }
        }
        if self.untrimmed >= BURST && last.1.0.saturating_sub(self.trimmed.0) >= TRIM_NS {
            crate::memory::trim();
            (self.untrimmed, self.trimmed) = (0, last.1);
        }
        Ok(())
    }

    fn tell(&mut self, alerts: Vec<Alert>, stats: &mut Stats) -> anyhow::Result<()> {
        for alert in alerts {
            stats.alerts += 1;
            stats.findings += alert.count;
            self.counts.told(&alert);
            self.sinks.send(alert)?;
        }
        Ok(())
    }

    /// How the agent is.
    fn snapshot(&self, live: &mut Live, stats: &Stats) -> Snapshot {
        let context = self.pipeline.context();
        Snapshot {
            started: true,
            stopping: false,
            attach_seconds: stats.attach_ms / 1e3,
            hooks: HookShown::all(live.kernel().hooks(), live.detached()),
            lost: stats.lost.clone(),
            skipped: stats.skipped.clone(),
            rings: live.rings().to_vec(),
            counts: self.counts.clone(),
            undecodable: self.pipeline.stats().undecodable,
            untold: self.triage.counts().clone(),
            exceptions: self.triage.exceptions(),
            sinks: self.sinks.states(),
            recorder: self.recorder.as_ref().map(Recorder::progress),
            processes: context.processes.len(),
            processes_dropped: context.processes.dropped(),
            containers: context.containers.len(),
            first_execs: context.first_execs,
            identity: live.identity(),
        }
    }

    /// Takes other sinks. Those of before end first: both may have the same spool. Yields what became of their alerts.
    fn reopen(&mut self, before: &Config, config: &mut Config) -> anyhow::Result<Vec<sink::State>> {
        let states = std::mem::take(&mut self.sinks).finish()?;
        self.sinks = match self.opener.open(Box::new(config.clone()))? {
            Ok(sinks) => sinks,
            Err(error) => {
                eprintln!("config: outputs: {error}. Those of before stay in force");
                config.outputs.clone_from(&before.outputs);
                self.opener.open(Box::new(config.clone()))??
            }
        };
        Ok(states)
    }

    /// Tells what was counted until now.
    fn finish(&mut self, stats: &mut Stats) -> anyhow::Result<()> {
        let alerts = self.triage.finish();
        self.tell(alerts, stats)
    }
}

/// What exceptions did, on standard error.
pub(crate) fn say_outcome(outcome: &Outcome, explain: bool) {
    for note in &outcome.notes {
        eprintln!("warning: {note}");
    }
    for silenced in outcome.silenced.iter().filter(|_| explain) {
        eprintln!(
            "explain: exception \"{}\" ({}; until {}) silenced: {} {}",
            escape(&silenced.name),
            escape(&silenced.reason),
            escape(&silenced.expires),
            silenced.alert.severity.word(),
            escape(&silenced.alert.title)
        );
    }
}

fn say_watched(watched: &Watched) {
    if watched.dirs.is_empty() {
        eprintln!("watching: nothing. No kubelet runs here; name a directory with --manifest-dir");
    }
    for dir in &watched.dirs {
        let state = match &dir.state {
            DirState::Present(_) => String::new(),
            DirState::File(_) => " (a single file)".to_owned(),
            DirState::Missing => " (does not exist yet; its creation is watched)".to_owned(),
            DirState::Url => " (a URL: what it serves is not watched)".to_owned(),
            DirState::Unreadable(why) => format!(" (cannot be read: {why})"),
        };
        eprintln!("watching: {} [{}]{state}", crate::escape::escape(&dir.path), dir.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::file,
        record::ChangeKind,
        testing::{self, Actor, DIR, FILE, POD, Stream, manifest},
    };

    #[test]
    fn a_configuration_that_is_wrong_or_the_same_changes_nothing_and_a_new_one_is_taken() {
        let mut config = Config::default();
        let read = |text: &str| file::interpret("c.yaml", text, |_| {});
        assert_eq!(reload(&mut config, read("grouping: {window: x}")), None);
        assert_eq!(reload(&mut config, read("cri: {}")), None);
        assert_eq!(config, Config::default());
        assert_eq!(reload(&mut config, read("grouping: {window: 5s}")), Some(Config::default()));
        assert_eq!(config.rules().group_ns, 5_000_000_000);
        // What waits for a restart changes no alert, and is remembered so that it is said once.
        assert_eq!(reload(&mut config, read("{grouping: {window: 5s}, node_name: n}")), None);
        assert_eq!(config.node_name.as_deref(), Some("n"));
    }

    /// The configuration changes in the middle of a stream, to a wrong one, to one that silences, and back. Nothing of the stream
    /// is lost, and what was counted by then is told.
    #[test]
    fn a_reload_in_the_middle_of_a_stream_loses_nothing() {
        let mut ends = Ends::new(Sinks::default(), None, false).unwrap();
        let (mut stats, mut config, mut stream) = (Stats::default(), Config::default(), Stream::new());
        stream.push(Body::Config(Box::new(config.rules())));
        let actor = Actor::host(60, 90);
        stream.kernel(testing::fork(Actor::host(50, 10), actor));
        let mut found = 0;
        let read = |text: &str| file::interpret("c.yaml", text, |_| {});
        let exception = "exceptions: [{name: q, reason: r, expires: 2027-01-01T00:00:00Z, path: '/manifests/*'}]";
        for text in ["grouping: {window: 1h}", "grouping: {windw: 1h}", exception, "grouping: {window: 0s}", "{}"] {
            for n in 0..10 {
                let since = stream.now();
                stream.kernel(testing::open(actor, FILE, DIR, "/manifests/web.yaml"));
                let mut change = manifest(ChangeKind::Added, Some(POD), since);
                change.name = format!("{}.yaml", n % 3);
                stream.push(Body::Manifest(Box::new(change)));
                found += 1;
            }
            // As in the agent: what came before is judged by what stood then.
            let mut records = std::mem::take(&mut stream.records);
            ends.pass_on(&mut records, &mut stats).unwrap();
            if let Some(new) = reload(&mut config, read(text)) {
                stream.push(Body::Config(Box::new(new.rules())));
            }
        }
        ends.pass_on(&mut stream.records, &mut stats).unwrap();
        ends.finish(&mut stats).unwrap();
        let Counts { grouped, held_back, silenced } = ends.triage.counts().clone();
        assert_eq!(found, 50);
        assert_eq!(silenced, BTreeMap::from([("q".to_owned(), 10)]));
        assert_eq!(held_back, 0);
        assert!(grouped > 0);
        assert_eq!(stats.findings, found - 10, "each is told, alone or in the count of another");
    }
}
