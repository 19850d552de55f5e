//! What was recorded on this host, again and faster.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use detector::{
    record::{Body, BootNs, Record},
    recorder::{Recorder, Target},
    trace::{Item, Reader, Writer},
};
use serde::Serialize;

/// The stream of a trace; it has to be whole.
pub fn load(trace: &Path) -> anyhow::Result<Vec<Record>> {
    let file = File::open(trace).with_context(|| trace.display().to_string())?;
    let mut records = Vec::new();
    for item in Reader::new(file)? {
        match item? {
            Item::Record(record) => records.push(record),
            other => anyhow::bail!("{}: unexpected: {other:?}", trace.display()),
        }
    }
    anyhow::ensure!(!records.is_empty(), "{}: no records", trace.display());
    Ok(records)
}

/// Of when the first and the last event of the kernel are, the time between.
pub fn seconds(records: &[Record]) -> f64 {
    let mut kernel = records.iter().filter(|record| matches!(record.body, Body::Kernel { .. }));
    let first = kernel.next().map_or(0, |record| record.time.0);
    let last = kernel.next_back().map_or(0, |record| record.time.0);
    last.saturating_sub(first) as f64 / 1e9
}

/// Kernel records as they are, others as JSON.
pub fn raw_bytes(records: &[Record]) -> anyhow::Result<usize> {
    records.iter().try_fold(0, |sum, record| {
        Ok(sum
            + match &record.body {
                Body::Kernel { raw } => raw.len(),
                body => serde_json::to_vec(body)?.len(),
            })
    })
}

/// A stream that goes on: what the host told when the agent started comes once, all else again and again, later each time.
struct Again {
    records: Vec<Record>,
    /// The first record that comes again.
    from: usize,
    at: usize,
    seq: u64,
    /// When the stream that is repeated begins.
    begins: u64,
    /// How much later everything is in this round.
    later: u64,
    /// What a second of the stream is made to last, in ns.
    second: u64,
}

impl Again {
    fn new(records: Vec<Record>, second: u64) -> Self {
        let from = records.iter().position(|record| matches!(record.body, Body::Kernel { .. } | Body::Tick));
        let from = from.unwrap_or(0);
        let begins = records.get(from).map_or(0, |record| record.time.0);
        Self { records, from, at: 0, seq: 0, begins, later: 0, second }
    }

    /// A moment of the recording in this round. What was before the recording stays there.
    fn moved(&self, time: u64) -> u64 {
        match time.checked_sub(self.begins) {
            None => time,
            Some(since) => {
                let since = u128::from(since) * u128::from(self.second) / 1_000_000_000;
                self.begins + self.later + u64::try_from(since).unwrap_or(0)
            }
        }
    }

    /// The same kernel record at its time in this round: also where it says when processes started.
    fn again(&self, raw: &Bytes) -> Bytes {
        const TIME: usize = 8;
        const START: usize = 16;
        // Behind the header, by kind: see `docs/trace-format.md`.
        let starts: &[usize] = match raw.first_chunk().map(|kind| u16::from_le_bytes(*kind)) {
            Some(1) => &[80],
            Some(2) => &[72, 88],
            Some(23) => &[72],
            Some(34) => &[80],
            _ => &[],
        };
        let mut raw = raw.to_vec();
        for at in [TIME, START].iter().chain(starts) {
            if let Some(field) = raw.get_mut(*at..).and_then(<[u8]>::first_chunk_mut) {
                *field = self.moved(u64::from_le_bytes(*field)).to_le_bytes();
            }
        }
        raw.into()
    }
}

impl Iterator for Again {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.at >= self.records.len() {
            self.at = self.from;
            let last = self.records.last()?.time.0;
            self.later = self.moved(last) + 1_000_000 - self.begins;
        }
        let record = &self.records[self.at];
        self.at += 1;
        self.seq += 1;
        let body = match &record.body {
            Body::Kernel { raw } => Body::Kernel { raw: self.again(raw) },
            Body::Manifest(change) => {
                let mut change = change.clone();
                change.since = BootNs(self.moved(change.since.0));
                Body::Manifest(change)
            }
            body => body.clone(),
        };
        Some(Record { seq: self.seq, time: BootNs(self.moved(record.time.0)), body })
    }
}

/// Writes the trace's stream, repeated, to standard output.
pub fn repeat(trace: &Path, count: u64) -> anyhow::Result<()> {
    let mut writer = Writer::new(BufWriter::new(io::stdout().lock()))?;
    for record in Again::new(load(trace)?, 1_000_000_000).take(usize::try_from(count)?) {
        writer.push(&record)?;
    }
    // It flushes what is buffered.
    drop(writer.finish()?);
    Ok(())
}

/// What recording took. Field names are stable.
#[derive(Serialize)]
pub struct Recorded {
    pub records: u64,
    pub records_per_second: f64,
    pub trace_bytes_per_record: f64,
    pub dropped: u64,
    /// Of one CPU, that the recorder's thread had.
    pub percent_of_a_core: f64,
}

/// Pushes the trace's stream through the recorder, as the agent does: in small batches, as they come.
pub fn record(trace: &Path, out: PathBuf, rate: u64, seconds: u64) -> anyhow::Result<Recorded> {
    const BATCH: Duration = Duration::from_millis(5);
    let records = load(trace)?;
    // Its time passes as fast as the records come.
    let second = 1e9 * (records.len() as f64 / self::seconds(&records)) / rate as f64;
    let mut stream = Again::new(records, second as u64);
    let mut recorder = Recorder::start(Target::File(out))?;
    let began = Instant::now();
    let each = usize::try_from(rate * u64::try_from(BATCH.as_millis())? / 1000)?;
    let mut pushed = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        let batch: Vec<_> = stream.by_ref().take(each).collect();
        pushed += batch.len() as u64;
        recorder.push(batch);
        let due = Duration::from_secs_f64(pushed as f64 / rate as f64);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let took = began.elapsed();
    // What waits is written within a second.
    thread::sleep(Duration::from_millis(1500));
    let cpu = thread_cpu("recorder")?;
    let recorded = recorder.finish()?;
    anyhow::ensure!(recorded.records + recorded.dropped == pushed, "{recorded:?} of {pushed}");
    Ok(Recorded {
        records: recorded.records,
        records_per_second: pushed as f64 / took.as_secs_f64(),
        trace_bytes_per_record: recorded.bytes as f64 / recorded.records as f64,
        dropped: recorded.dropped,
        percent_of_a_core: 100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
    })
}

/// Time that a thread of this process has had.
fn thread_cpu(name: &str) -> anyhow::Result<Duration> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let ns = text.split(' ').next().and_then(|ns| ns.parse().ok()).context("no schedstat")?;
            return Ok(Duration::from_nanos(ns));
        }
    }
    anyhow::bail!("no thread is called {name}")
}
