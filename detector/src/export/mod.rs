//! Traces for other tools: one row a record as Parquet or CSV, processes and alerts on a timeline for Perfetto.
//!
//! Records are pushed one by one, so memory does not grow with the trace. Each stream goes through the [`Pipeline`] on its way:
//! every row says its pod, and every alert is there.

mod csv;
pub mod files;
mod fill;
mod parquet;
mod perfetto;
pub mod rows;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use crate::{
    alert::Alert,
    context::Context,
    decode::{self, DecodeError, Event},
    pipeline::Pipeline,
    record::{Body, Record},
};
use rows::Row;

/// What to export, and how.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Traces, one after the other into one output; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// For which tools
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// Where to; - is standard output, which must not be a terminal then
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// For which tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A row for each record, for DuckDB, DataFusion and the like
    Parquet,
    /// Processes and alerts on a timeline, for ui.perfetto.dev
    Perfetto,
    /// The same rows as text
    Csv,
}

/// Why records could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("writing the output")]
    Io(#[from] io::Error),
    #[error("writing CSV")]
    Csv(#[from] ::csv::Error),
    #[error("writing Parquet")]
    Parquet(#[from] ::parquet::errors::ParquetError),
}

/// A record, and what is known of it once the pipeline has seen it.
pub struct Seen<'a> {
    pub record: &'a Record,
    /// The decoded form of a kernel record.
    pub event: Option<&'a Event<'a>>,
    pub row: Row<'a>,
    /// Those that this record completed.
    pub alerts: &'a [Alert],
    pub context: &'a Context,
}

/// Writes one format.
pub trait Exporter {
    /// Takes the next record.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn push(&mut self, seen: &Seen<'_>) -> Result<(), ExportError>;

    /// Writes what is left to write. Without it the output is not whole.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn finish(self: Box<Self>) -> Result<(), ExportError>;
}

/// The exporter of a format, over a writer that it buffers by itself.
///
/// # Errors
/// When the output cannot be written.
pub fn exporter<'w>(format: Format, out: impl Write + Send + 'w) -> Result<Box<dyn Exporter + 'w>, ExportError> {
    Ok(match format {
        Format::Parquet => Box::new(parquet::Parquet::new(out)?),
        Format::Perfetto => Box::new(perfetto::Perfetto::new(out)),
        Format::Csv => Box::new(csv::Csv::new(out)?),
    })
}

/// Streams of records on their way into one output.
pub struct Export<'w> {
    pipeline: Pipeline,
    out: Box<dyn Exporter + 'w>,
}

impl<'w> Export<'w> {
    /// # Errors
    /// When the output cannot be written.
    pub fn new(format: Format, out: impl Write + Send + 'w) -> Result<Self, ExportError> {
        Ok(Self { pipeline: Pipeline::new(), out: exporter(format, out)? })
    }

    /// Takes the next record. One that says what host it is begins another stream: nothing is known of that one yet.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn push(&mut self, record: &Record) -> Result<(), ExportError> {
        if matches!(record.body, Body::Start(_)) {
            self.pipeline = Pipeline::new();
        }
        let alerts = self.pipeline.push(record);
        let event: Option<Result<Event<'_>, DecodeError>> = match &record.body {
            Body::Kernel { raw } => Some(decode::event(raw)),
            _ => None,
        };
        let event = event.as_ref().map(Result::as_ref);
        let context = self.pipeline.context();
        let row = fill::row(record, event, &alerts, context);
        self.out.push(&Seen { record, event: event.and_then(Result::ok), row, alerts: &alerts, context })
    }

    /// # Errors
    /// When the output cannot be written.
    pub fn finish(self) -> Result<(), ExportError> {
        self.out.finish()
    }
}

/// What became of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub records: u64,
    /// What could not be read of the traces: each was said on standard error.
    pub damage: u64,
}

/// Exports what `records` yields to `out`; progress and damage go to standard error. After damage it goes on with the records that
/// follow: what can be read is exported.
///
/// # Errors
/// When the output cannot be written, or is a terminal. A file is then left as it was before.
pub fn run(
    format: Format,
    records: impl Iterator<Item = anyhow::Result<Record>>,
    out: &Path,
) -> anyhow::Result<Summary> {
    if out == Path::new("-") {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            bail!("standard output is a terminal: name a file with --output, or pipe it somewhere");
        }
        return drain(format, records, stdout).context("standard output");
    }
    let shown = || crate::escape::escape(&out.to_string_lossy());
    // A pipe or a device is written as it is; a file takes its name when it is whole.
    if out.metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = File::options().write(true).open(out).with_context(shown)?;
        return drain(format, records, file).with_context(shown);
    }
    let mut part = out.as_os_str().to_owned();
    part.push(".partial");
    let part = PathBuf::from(part);
    // Of an export that was killed. Made anew, so that no symlink is followed.
    let _ = std::fs::remove_file(&part);
    let file = File::options().write(true).create_new(true).open(&part).with_context(shown)?;
    let done = drain(format, records, file)
        .and_then(|summary| std::fs::rename(&part, out).map(|()| summary).map_err(Into::into))
        .with_context(shown);
    if done.is_err() {
        // The first error is the one that counts.
        let _ = std::fs::remove_file(&part);
    }
    done
}

fn drain(
    format: Format,
    records: impl Iterator<Item = anyhow::Result<Record>>,
    out: impl Write + Send,
) -> anyhow::Result<Summary> {
    /// Records between two looks at progress.
    const STEP: u64 = 1 << 16;
    let watched = io::stderr().is_terminal();
    let mut export = Export::new(format, out)?;
    let mut summary = Summary::default();
    for record in records {
        match record {
            Ok(record) => {
                export.push(&record)?;
                summary.records += 1;
                if watched && summary.records.is_multiple_of(STEP) {
                    eprint!("\r{} records", summary.records);
                }
            }
            Err(damage) => {
                summary.damage += 1;
                eprintln!("damaged: {damage:#}");
            }
        }
    }
    export.finish()?;
    let clear = if watched { "\r" } else { "" };
    let damage = if summary.damage == 0 { String::new() } else { format!(", {} places damaged", summary.damage) };
    eprintln!("{clear}exported: {} records{damage}", summary.records);
    Ok(summary)
}

/// Bytes that are kept until they are written together.
const BUFFER: usize = 64 * 1024;

fn buffered<W: Write>(out: W) -> BufWriter<W> {
    BufWriter::with_capacity(BUFFER, out)
}
