//! `detector run`: the live source, the pipeline behind it, and sinks and the recorder at the end.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    os::fd::RawFd,
    time::Instant,
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    signal::unix::{SignalKind, signal},
};

use crate::{
    alert::Severity,
    context::{container::FirstExecs, standing::Standing},
    pipeline::Pipeline,
    record::{Body, DirState, Record, Watched},
    recorder::{Recorded, Recorder},
    sink::{self, Sinks},
    source::live::{self, Identity, Live},
};

/// A finding from which on what was recorded around it is kept as evidence.
const EVIDENCE: Severity = Severity::Medium;

/// What happened while the agent ran: the last line on standard error, as JSON behind `stats: `.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    pub records: u64,
    pub alerts: u64,
    /// Events lost in the kernel, by hook.
    pub lost: BTreeMap<String, u64>,
    /// Runs that the kernel skipped, by hook; whether any of them mattered is not known.
    pub skipped: BTreeMap<String, u64>,
    /// Kernel records that could not be decoded.
    pub undecodable: u64,
    /// Containers by what was known of them when their first program ran.
    pub first_execs: FirstExecs,
    /// What it cost to look containers up.
    pub identity: Identity,
    /// What was recorded, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Recorded>,
    /// What became of the alerts, by sink.
    pub sinks: Vec<sink::State>,
    /// From the start of the process until every hook was attached and the first look taken, in ms.
    pub attach_ms: f64,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the live source cannot start or go on, standard output is gone, or a recording to one file fails.
pub fn run(options: &live::Options, sinks: Sinks, recorder: Option<Recorder>, started: Instant) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut records = Vec::new();
        let mut ends = Ends { pipeline: Pipeline::new(), standing: Standing::default(), sinks, recorder };
        let mut stats = Stats::default();
        let mut live = Live::start(options, &mut records)?;
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
        let hooks = live.kernel().hooks();
        for hook in hooks.iter().filter(|hook| hook.backend.is_none()) {
            eprintln!("degraded: hook {}: {}", hook.name, hook.reason.as_deref().unwrap_or("not attached"));
        }
        let attached = hooks.iter().filter(|hook| hook.backend.is_some()).count();
        let total = hooks.len();
        ends.pass_on(&mut records, &mut stats)?;
        eprintln!("ready: {attached} of {total} hooks attached in {:.0} ms", stats.attach_ms);
        loop {
            tokio::select! {
                ready = alerting.readable() => ready?.clear_ready(),
                ready = context.readable() => ready?.clear_ready(),
                ready = answered(runtimes.as_ref()) => ready?.clear_ready(),
                () = tokio::time::sleep(live.idle()) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            live.step(&mut records)?;
            live.warnings().for_each(|warning| eprintln!("degraded: {warning}"));
            ends.pass_on(&mut records, &mut stats)?;
        }
        live.step(&mut records)?;
        live.last(&mut records)?;
        ends.pass_on(&mut records, &mut stats)?;
        stats.undecodable = ends.pipeline.stats().undecodable;
        stats.first_execs = ends.pipeline.context().first_execs;
        stats.identity = live.identity();
        stats.sinks = ends.sinks.finish()?;
        stats.recorded = ends.recorder.map(Recorder::finish).transpose().context("recording")?;
        writeln!(io::stderr(), "stats: {}", serde_json::to_string(&stats)?)?;
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

/// What is behind the source.
struct Ends {
    pipeline: Pipeline,
    standing: Standing,
    sinks: Sinks,
    recorder: Option<Recorder>,
}

impl Ends {
    fn pass_on(&mut self, records: &mut Vec<Record>, stats: &mut Stats) -> anyhow::Result<()> {
        let Some(last) = records.last().map(|last| (last.seq, last.time)) else { return Ok(()) };
        let mut found = false;
        for record in records.iter() {
            stats.records += 1;
            match &record.body {
                Body::Loss(loss) if loss.skipped => *stats.skipped.entry(loss.hook.clone()).or_default() += loss.lost,
                Body::Loss(loss) => *stats.lost.entry(loss.hook.clone()).or_default() += loss.lost,
                Body::Watched(watched) => say_watched(watched),
                _ => {}
            }
            if self.recorder.is_some() {
                self.standing.observe(record);
            }
            for alert in self.pipeline.push(record) {
                stats.alerts += 1;
                found |= alert.severity >= EVIDENCE;
                self.sinks.send(alert)?;
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
        Ok(())
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
