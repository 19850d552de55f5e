//! A timeline for Perfetto: each process a track with a slice for its life and one for each program that it ran, what it did
//! to what is watched as instants on it, and tracks of their own for alerts and for what the node told.

mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{BufWriter, Write},
};

use detector_common as wire;

use crate::{
    alert::Alert,
    context::{Context, program::Kept},
    decode::Event,
    detect::base,
    escape::escape,
    export::{
        ExportError, Exporter, Seen, buffered,
        rows::{COLUMNS, Cell, Row},
    },
    record::{Body, BootNs, ProcessKey},
};
use message::{
    BEGIN, BOOTTIME, Clock, ClockSnapshot, DebugAnnotation, END, INSTANT, ProcessDescriptor, REALTIME, TracePacket,
    TrackDescriptor, TrackEvent, Value,
};

/// Most tracks that may still get events: more than there are processes in the table of the context.
const MAX: usize = 64 * 1024;

/// Columns that say nothing beside the others, or that the timeline shows.
const LEFT_OUT: [&str; 4] = ["time", "kind", "start_time", "alerts"];

/// A track that is not a process's.
const ALERTS: u64 = 1;
const NODE: u64 = 2;

/// A Perfetto trace over a writer.
pub struct Perfetto<W: Write> {
    out: BufWriter<W>,
    scratch: Vec<u8>,
    tracks: BTreeMap<ProcessKey, Track>,
    /// Of processes that ended, in that order: the first to go.
    ended: VecDeque<ProcessKey>,
    last_uuid: u64,
    /// Boot of the first stream's host, in ns since the epoch: the others' times are moved to that clock.
    epoch: Option<u64>,
}

/// A process's.
struct Track {
    uuid: u64,
    /// Its last event's time: what comes later must not be earlier, or slices nest wrongly.
    last: u64,
    /// A program's slice is open.
    runs: bool,
    /// Its own slice has ended. What is read late, or told again, opens and ends none any more.
    over: bool,
    /// What it ran last, which it is called by: told late, since Perfetto keeps the first name that it is told.
    program: Kept,
    named: bool,
}

impl<W: Write> Perfetto<W> {
    #[must_use]
    pub fn new(out: W) -> Self {
        Self {
            out: buffered(out),
            scratch: Vec::new(),
            tracks: BTreeMap::new(),
            ended: VecDeque::new(),
            last_uuid: NODE,
            epoch: None,
        }
    }

    /// A file is a `Trace`, which is nothing but its packets: each can be written alone.
    fn packet(&mut self, packet: TracePacket) -> Result<(), ExportError> {
        self.scratch.clear();
        let packet = TracePacket { trusted_packet_sequence_id: 1, ..packet };
        prost::encoding::message::encode(1, &packet, &mut self.scratch);
        Ok(self.out.write_all(&self.scratch)?)
    }

    fn describe(&mut self, track_descriptor: TrackDescriptor) -> Result<(), ExportError> {
        self.packet(TracePacket { track_descriptor: Some(track_descriptor), ..TracePacket::default() })
    }

    fn event(&mut self, time: u64, track_event: TrackEvent) -> Result<(), ExportError> {
        self.packet(TracePacket { timestamp: Some(time), track_event: Some(track_event), ..TracePacket::default() })
    }

    fn start(&mut self, seen: &Seen<'_>) -> Result<(), ExportError> {
        let boot = seen.context.start.boot_time_ns;
        if self.epoch.is_none() {
            self.epoch = Some(boot);
            let clock = |clock_id, timestamp| Clock { clock_id, timestamp };
            let BootNs(now) = seen.record.time;
            let clocks = vec![clock(BOOTTIME, now), clock(REALTIME, boot.saturating_add(now))];
            let clock_snapshot = Some(ClockSnapshot { clocks, primary_trace_clock: BOOTTIME });
            self.packet(TracePacket { clock_snapshot, ..TracePacket::default() })?;
            for (uuid, name) in [(ALERTS, "alerts"), (NODE, "node")] {
                self.describe(TrackDescriptor { uuid, name: name.to_owned(), process: None })?;
            }
        }
        // Another stream: nobody in it is one of those before.
        self.end_stream()?;
        self.instant(seen, NODE, format!("start {}", seen.context.start.node))
    }

    /// A record's time on the clock of the first stream's host.
    fn time(&self, time: BootNs, context: &Context) -> u64 {
        let boot = context.start.boot_time_ns;
        let first = self.epoch.unwrap_or(boot);
        time.0.saturating_add(boot.saturating_sub(first)).saturating_sub(first.saturating_sub(boot))
    }

    /// The process's track, which begins now if it has none; with its uuid, the time of its next event.
    fn track(&mut self, key: ProcessKey, seen: &Seen<'_>) -> Result<(u64, u64), ExportError> {
        let now = self.time(seen.record.time, seen.context);
        if let Some(track) = self.tracks.get_mut(&key) {
            track.last = track.last.max(now);
            return Ok((track.uuid, track.last));
        }
        while self.tracks.len() >= MAX {
            let Some(victim) = self.ended.pop_front().or_else(|| self.tracks.keys().next().copied()) else { break };
            self.name(victim)?;
            self.tracks.remove(&victim);
        }
        self.last_uuid += 1;
        let uuid = self.last_uuid;
        let program = seen.context.processes.get(key).map(|state| state.program.clone()).unwrap_or_default();
        self.tracks.insert(key, Track { uuid, last: now, runs: false, over: false, program, named: false });
        self.describe(TrackDescriptor { uuid, name: String::new(), process: Some(descriptor(key)) })?;
        let args =
            vec![arg("start", Value::Uint(key.start)), arg("node", Value::String(seen.context.start.node.clone()))];
        self.event(now, slice(uuid, BEGIN, Some(format!("process {}", key.pid)), "process", args))?;
        Ok((uuid, now))
    }

    fn name(&mut self, key: ProcessKey) -> Result<(), ExportError> {
        let Some(track) = self.tracks.get_mut(&key).filter(|track| !track.named) else { return Ok(()) };
        track.named = true;
        let (cmdline, process_name) = (track.program.argv.to_vec(), called(&track.program.exe));
        let process = Some(ProcessDescriptor { cmdline, process_name, ..descriptor(key) });
        let uuid = track.uuid;
        self.describe(TrackDescriptor { uuid, name: String::new(), process })
    }

    /// Names whoever lives still. Their slices stay open, which Perfetto shows as such.
    fn end_stream(&mut self) -> Result<(), ExportError> {
        let keys: Vec<_> = self.tracks.keys().copied().collect();
        keys.into_iter().try_for_each(|key| self.name(key))?;
        self.tracks.clear();
        self.ended.clear();
        Ok(())
    }

    /// A program runs, until the next one or the end.
    fn runs(&mut self, key: ProcessKey, seen: &Seen<'_>) -> Result<(), ExportError> {
        let (uuid, now) = self.track(key, seen)?;
        if let (Some(track), Some(state)) = (self.tracks.get_mut(&key), seen.context.processes.get(key)) {
            track.program = state.program.clone();
        }
        let name = seen.row.exe.as_deref().map(called).unwrap_or_default();
        if self.tracks.get(&key).is_some_and(|track| track.over) {
            return self.event(now, slice(uuid, INSTANT, Some(name), "exec", args(&seen.row)));
        }
        if self.tracks.get_mut(&key).is_some_and(|track| std::mem::replace(&mut track.runs, true)) {
            self.event(now, slice(uuid, END, None, "", Vec::new()))?;
        }
        self.event(now, slice(uuid, BEGIN, Some(name), "exec", args(&seen.row)))
    }

    fn exits(&mut self, key: ProcessKey, seen: &Seen<'_>) -> Result<(), ExportError> {
        let (uuid, now) = self.track(key, seen)?;
        let Some(track) = self.tracks.get_mut(&key).filter(|track| !track.over) else { return Ok(()) };
        track.over = true;
        if std::mem::replace(&mut track.runs, false) {
            self.event(now, slice(uuid, END, None, "", Vec::new()))?;
        }
        let status = seen.row.exit_status.map(|status| arg("exit_status", Value::Int(status.into())));
        self.event(now, slice(uuid, END, None, "", status.into_iter().collect()))?;
        self.name(key)?;
        self.ended.push_back(key);
        Ok(())
    }

    /// Who is not among those that live has ended unseen.
    fn alive(&mut self, living: &[ProcessKey], seen: &Seen<'_>) -> Result<(), ExportError> {
        let living: BTreeSet<&ProcessKey> = living.iter().collect();
        let ended = self.tracks.iter().filter(|(key, track)| !track.over && !living.contains(key));
        let ended: Vec<_> = ended.map(|(key, _)| *key).collect();
        ended.into_iter().try_for_each(|key| self.exits(key, seen))
    }

    fn instant(&mut self, seen: &Seen<'_>, uuid: u64, name: String) -> Result<(), ExportError> {
        let now = self.time(seen.record.time, seen.context);
        let kind = seen.row.kind.as_deref().unwrap_or_default();
        self.event(now, slice(uuid, INSTANT, Some(escape(&name)), kind, args(&seen.row)))
    }

    fn alert(&mut self, alert: &Alert, seen: &Seen<'_>) -> Result<(), ExportError> {
        let text = |name, value: &str| arg(name, Value::String(value.to_owned()));
        let mut args = vec![
            text("severity", severity(alert)),
            text("technique", alert.technique.name),
            text("title", &alert.title),
            text("node", &alert.node),
            arg("blocked", Value::Bool(alert.blocked)),
            arg("sequence", Value::Uint(alert.trace.sequence)),
        ];
        args.push(list("reasons", alert.reasons.iter()));
        if let Some(pod) = &alert.pod {
            args.push(text("pod", &format!("{}/{}", pod.namespace, pod.name)));
        }
        if let Some(container) = &alert.container {
            args.push(text("container", &container.id));
        }
        if let Some(file) = &alert.file {
            args.push(text("file", &file.path));
        }
        if let Some(process) = &alert.process {
            args.push(text("process", &process.exe));
            args.push(arg("pid", Value::Uint(process.pid.into())));
        }
        args.push(list("evidence", alert.evidence.iter().map(|evidence| &evidence.detail)));
        // An alert's time is when the act happened.
        let boot = seen.context.start.boot_time_ns;
        let since_boot = |time: jiff::Timestamp| u64::try_from(time.as_nanosecond() - i128::from(boot)).ok();
        let at = alert.time.parse().ok().and_then(since_boot).map_or(seen.record.time, BootNs);
        let at = self.time(at, seen.context);
        let name = format!("{}: {}", severity(alert), alert.title);
        for uuid in std::iter::once(ALERTS).chain(self.of(alert, seen.context)) {
            self.event(at, slice(uuid, INSTANT, Some(name.clone()), alert.technique.id, args.clone()))?;
        }
        Ok(())
    }

    /// The track of the process that an alert names.
    fn of(&self, alert: &Alert, context: &Context) -> Option<u64> {
        let process = alert.process.as_ref()?;
        let with_pid = ProcessKey { pid: process.pid, start: 0 }..=ProcessKey { pid: process.pid, start: u64::MAX };
        let started = |key: &ProcessKey| context.wall(BootNs(key.start.saturating_mul(ProcessKey::TICK_NS)));
        let (_, track) = self.tracks.range(with_pid).find(|(key, _)| Some(started(key)) == process.start_time)?;
        Some(track.uuid)
    }

    fn record(&mut self, seen: &Seen<'_>) -> Result<(), ExportError> {
        let node =
            |name: &str| format!("{name} {}", seen.row.path.as_deref().unwrap_or_default()).trim_end().to_owned();
        let Some(event) = seen.event else {
            return match &seen.record.body {
                Body::Start(_) => self.start(seen),
                Body::Process(seed) => {
                    let key = seed.key();
                    let program = seen.context.processes.get(key).map(|process| &process.program);
                    let is_same = |track: &Track| track.runs && Some(&track.program) == program;
                    // Looked at again, and found as it was.
                    if seed.again && self.tracks.get(&key).is_some_and(is_same) { Ok(()) } else { self.runs(key, seen) }
                }
                Body::Alive { processes } => self.alive(processes, seen),
                Body::Kernel { .. } => self.instant(seen, NODE, "undecodable".to_owned()),
                Body::Config(_) => self.instant(seen, NODE, "config".to_owned()),
                Body::Watched(_) => self.instant(seen, NODE, "watched".to_owned()),
                Body::Manifest(_) => {
                    let change = seen.row.change.as_deref().unwrap_or_default();
                    self.instant(seen, NODE, node(&format!("manifest {change}")))
                }
                Body::Container(info) => self.instant(seen, NODE, format!("container {}", info.id)),
                Body::Image(image) => self.instant(seen, NODE, format!("image {}", image.digest)),
                Body::Executed(_) => self.instant(seen, NODE, "executed".to_owned()),
                Body::PauseConfig(_) => self.instant(seen, NODE, node("pause image")),
                Body::Loss(loss) => self.instant(seen, NODE, format!("{} lost: {}", loss.lost, loss.hook)),
                Body::Hooks(_) => self.instant(seen, NODE, "hooks detached or attached again".to_owned()),
                Body::Secret(_) => self.instant(seen, NODE, node("secret")),
                Body::Components(_) => self.instant(seen, NODE, "components".to_owned()),
                Body::Clients(_) => self.instant(seen, NODE, "clients".to_owned()),
                Body::Audit(event) => self.instant(seen, NODE, node(&event.verb)),
                Body::NodeLogs(_) => self.instant(seen, NODE, node("logs")),
                Body::AuditLog(_) => self.instant(seen, NODE, node("audit log")),
                Body::Cgroup { .. } | Body::ImageNames(_) | Body::Tick => Ok(()),
            };
        };
        let header = event.header();
        let key = ProcessKey::from_ns(header.tgid, header.start_ns);
        match event {
            Event::Exec(_) => self.runs(key, seen),
            Event::Exit(_) => self.exits(key, seen),
            Event::Fork(fork) => {
                self.track(ProcessKey::from_ns(fork.child_tgid, fork.child_start_ns), seen).map(|_| ())
            }
            Event::Cgroup { .. } | Event::CgroupGone(_) | Event::CgroupMove(_) => Ok(()),
            // In nobody's name.
            Event::Connection(connection) if connection.act == wire::connection::ACCEPT => {
                self.instant(seen, NODE, "connection accepted".to_owned())
            }
            _ => {
                let (uuid, _) = self.track(key, seen)?;
                let row = &seen.row;
                let what = row.syscall.as_deref().or(row.hook.as_deref()).unwrap_or_default();
                self.instant(seen, uuid, node(what))
            }
        }
    }
}

impl<W: Write> Exporter for Perfetto<W> {
    fn push(&mut self, seen: &Seen<'_>) -> Result<(), ExportError> {
        // A record's own event first: what an alert is shown on is there then.
        self.record(seen)?;
        seen.alerts.iter().try_for_each(|alert| self.alert(alert, seen))
    }

    fn finish(mut self: Box<Self>) -> Result<(), ExportError> {
        self.end_stream()?;
        Ok(self.out.flush()?)
    }
}

/// What a program is called on a timeline. Kernel threads are `[kworker/0:1]` and have no path.
fn called(exe: &str) -> String {
    escape(if exe.starts_with('[') && exe.ends_with(']') { exe } else { base(exe) })
}

fn slice(
    track_uuid: u64,
    r#type: i32,
    name: Option<String>,
    category: &str,
    debug_annotations: Vec<DebugAnnotation>,
) -> TrackEvent {
    let categories = if category.is_empty() { Vec::new() } else { vec![category.to_owned()] };
    TrackEvent { debug_annotations, r#type, track_uuid, categories, name }
}

fn descriptor(key: ProcessKey) -> ProcessDescriptor {
    let started = key.start.saturating_mul(ProcessKey::TICK_NS);
    ProcessDescriptor {
        pid: key.pid.cast_signed(),
        start_timestamp_ns: i64::try_from(started).unwrap_or(i64::MAX),
        ..ProcessDescriptor::default()
    }
}

/// Everything that a row says and the timeline does not.
fn args(row: &Row<'_>) -> Vec<DebugAnnotation> {
    let said = |column: &crate::export::rows::Column| {
        let value = match (column.get)(row)? {
            Cell::U32(number) => Value::Uint(number.into()),
            Cell::U64(number) => Value::Uint(number),
            Cell::I32(number) => Value::Int(number.into()),
            Cell::Time(number) => Value::Int(number),
            Cell::Bool(is) => Value::Bool(is),
            Cell::Text(text) => Value::String(text.to_owned()),
        };
        Some(arg(column.name, value))
    };
    COLUMNS.iter().filter(|column| !LEFT_OUT.contains(&column.name)).filter_map(said).collect()
}

fn arg(name: &str, value: Value) -> DebugAnnotation {
    DebugAnnotation { value: Some(value), name: name.to_owned(), array_values: Vec::new() }
}

fn list<'a>(name: &str, values: impl Iterator<Item = &'a String>) -> DebugAnnotation {
    let array_values = values.map(|value| arg("", Value::String(value.clone()))).collect();
    DebugAnnotation { value: None, name: name.to_owned(), array_values }
}

fn severity(alert: &Alert) -> &'static str {
    use crate::alert::Severity::{Critical, High, Info, Low, Medium};
    match alert.severity {
        Info => "info",
        Low => "low",
        Medium => "medium",
        High => "high",
        Critical => "critical",
    }
}
