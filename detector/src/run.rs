//! `detector run`: the live source, the pipeline behind it, and standard output at the end.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    os::fd::RawFd,
    time::Instant,
};

use serde::Serialize;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    signal::unix::{SignalKind, signal},
};

use crate::{
    context::container::FirstExecs,
    pipeline::Pipeline,
    record::{Body, DirState, Record, Watched},
    sink::Stdout,
    source::live::{self, Identity, Live},
};

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
    /// From the start of the process until every hook was attached and the first look taken, in ms.
    pub attach_ms: f64,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the live source cannot start or go on, or standard output is gone.
pub fn run(options: &live::Options, mut sink: Stdout, started: Instant) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut records = Vec::new();
        let mut pipeline = Pipeline::new();
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
        pass_on(&mut records, &mut pipeline, &mut sink, &mut stats)?;
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
            pass_on(&mut records, &mut pipeline, &mut sink, &mut stats)?;
        }
        live.step(&mut records)?;
        live.last(&mut records)?;
        pass_on(&mut records, &mut pipeline, &mut sink, &mut stats)?;
        stats.undecodable = pipeline.stats().undecodable;
        stats.first_execs = pipeline.context().first_execs;
        stats.identity = live.identity();
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

fn pass_on(
    records: &mut Vec<Record>,
    pipeline: &mut Pipeline,
    sink: &mut Stdout,
    stats: &mut Stats,
) -> anyhow::Result<()> {
    for record in records.drain(..) {
        stats.records += 1;
        match &record.body {
            Body::Loss(loss) if loss.skipped => *stats.skipped.entry(loss.hook.clone()).or_default() += loss.lost,
            Body::Loss(loss) => *stats.lost.entry(loss.hook.clone()).or_default() += loss.lost,
            Body::Watched(watched) => say_watched(watched),
            _ => {}
        }
        for alert in pipeline.push(&record) {
            stats.alerts += 1;
            sink.send(&alert)?;
        }
    }
    // A burst must not leave its high-water mark behind for good.
    records.shrink_to(1024);
    Ok(())
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
