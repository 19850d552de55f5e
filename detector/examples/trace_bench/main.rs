//! What traces cost: `cargo xtask bench --trace` runs it. Streams are a node's, made up (shells in loops, probes in containers, a
//! hundred processes that live on), or what was recorded on this host.

mod capture;
mod node;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use detector::{
    record::Record,
    trace::{Item, Reader, Writer},
};
use nix::time::{ClockId, clock_gettime};
use node::Node;
use serde::Serialize;

/// Records of which gzip'd JSON is made: it takes a hundred times longer.
const JSON_RECORDS: usize = 100_000;

#[derive(Parser)]
enum Command {
    /// Make streams up, and print a table
    MadeUp {
        records: usize,
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Print figures of a trace's stream as JSON
    Measure { trace: PathBuf },
    /// Write the trace's stream to standard output, repeated until it has so many records
    Repeat { trace: PathBuf, records: u64 },
    /// Push the trace's stream through the recorder at so many records a second; print figures as JSON
    Record {
        trace: PathBuf,
        out: PathBuf,
        rate: u64,
        #[arg(default_value_t = 10)]
        seconds: u64,
    },
}

/// Figures of one stream. Field names are stable.
#[derive(Serialize)]
struct Figures {
    records: usize,
    records_per_second_of_stream: f64,
    /// As the records lie in memory: kernel records, and JSON of the others.
    raw_bytes_per_record: f64,
    trace_bytes_per_record: f64,
    gzip_json_bytes_per_record: f64,
    encode_ns_per_record: f64,
    decode_ns_per_record: f64,
    gzip_json_encode_ns_per_record: f64,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::MadeUp { records, json } => made_up(records, json),
        Command::Measure { trace } => {
            let records = capture::load(&trace)?;
            let seconds = capture::seconds(&records);
            let figures = measure(records.into_iter(), |_| seconds)?;
            println!("{}", serde_json::to_string(&figures)?);
            Ok(())
        }
        Command::Repeat { trace, records } => capture::repeat(&trace, records),
        Command::Record { trace, out, rate, seconds } => {
            let figures = capture::record(&trace, out, rate, seconds)?;
            println!("{}", serde_json::to_string(&figures)?);
            Ok(())
        }
    }
}

fn made_up(count: usize, json: Option<PathBuf>) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:>10} {:>12} {:>12} {:>14} {:>10} {:>10} {:>15}",
        "records", "records/s", "bytes/record", "gzip'd JSON", "encode ns", "decode ns", "gzip'd JSON ns"
    )?;
    for gap in [40_000, 1_000_000] {
        let node = Node::new(gap);
        let start = node.now;
        let figures = measure(node.take(count), |last| (last.time.0 - start) as f64 / 1e9)?;
        writeln!(
            out,
            "{:>10} {:>12.0} {:>12.2} {:>14.2} {:>10.0} {:>10.0} {:>15.0}",
            figures.records,
            figures.records_per_second_of_stream,
            figures.trace_bytes_per_record,
            figures.gzip_json_bytes_per_record,
            figures.encode_ns_per_record,
            figures.decode_ns_per_record,
            figures.gzip_json_encode_ns_per_record
        )?;
        all.push(figures);
    }
    if let Some(file) = json {
        fs::write(&file, serde_json::to_string_pretty(&all)? + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Time that this thread has had: others on the machine do not count.
fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Writes and reads a stream. `seconds` is what the stream spans, by its last record.
fn measure(mut stream: impl Iterator<Item = Record>, seconds: impl Fn(&Record) -> f64) -> anyhow::Result<Figures> {
    let mut writer = Writer::new(Vec::new())?;
    let (mut encode, mut json_time) = (Duration::ZERO, Duration::ZERO);
    let mut gzip = io::BufWriter::with_capacity(
        64 * 1024,
        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default()),
    );
    let (mut done, mut raw, mut spans) = (0, 0, 0.0);
    loop {
        let batch: Vec<Record> = stream.by_ref().take(50_000).collect();
        let Some(last) = batch.last() else { break };
        spans = seconds(last);
        raw += capture::raw_bytes(&batch)?;
        let began = cpu()?;
        for record in &batch {
            writer.push(record)?;
        }
        encode += cpu()? - began;
        let began = cpu()?;
        for record in batch.iter().take(JSON_RECORDS.saturating_sub(done)) {
            serde_json::to_writer(&mut gzip, record)?;
            gzip.write_all(b"\n")?;
        }
        json_time += cpu()? - began;
        done += batch.len();
    }
    let began = cpu()?;
    let trace = writer.finish()?;
    encode += cpu()? - began;
    let began = cpu()?;
    let json_bytes = gzip.into_inner()?.finish()?.len();
    json_time += cpu()? - began;
    let began = cpu()?;
    let mut read = 0;
    for item in Reader::new(&trace[..])? {
        match item? {
            Item::Record(record) => read += usize::from(std::hint::black_box(record).seq > 0),
            other => anyhow::bail!("unexpected: {other:?}"),
        }
    }
    let decode = cpu()? - began;
    anyhow::ensure!(read == done, "{read} of {done} records came back");
    let each = |time: Duration, records: usize| time.as_nanos() as f64 / records as f64;
    Ok(Figures {
        records: read,
        records_per_second_of_stream: done as f64 / spans,
        raw_bytes_per_record: raw as f64 / done as f64,
        trace_bytes_per_record: trace.len() as f64 / done as f64,
        gzip_json_bytes_per_record: json_bytes as f64 / done.min(JSON_RECORDS) as f64,
        encode_ns_per_record: each(encode, done),
        decode_ns_per_record: each(decode, done),
        gzip_json_encode_ns_per_record: each(json_time, done.min(JSON_RECORDS)),
    })
}
