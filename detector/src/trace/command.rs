//! `detector trace`: what a trace covers, and its records as JSON lines.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Subcommand;

use super::{
    Item, Reader, cut,
    dump::Line,
    info::{Info, line},
};
use crate::{cli::help, escape::escape, record::Body};

/// Look into traces
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Say what traces cover: host, time, records by kind, bytes, and whether anything was lost
    #[command(after_help = help::TRACE)]
    Info {
        /// Trace files; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print the records of traces as JSON lines, kernel records decoded
    #[command(after_help = help::TRACE)]
    Dump {
        /// Trace files; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Add each kernel record's bytes, in hexadecimal digits
        #[arg(long)]
        raw: bool,
    },
    /// Write a while of traces as a trace of its own: it opens with what stood when it begins
    #[command(after_help = help::TRACE)]
    Cut(cut::Options),
    /// Make files of traces that databases and timelines read
    #[command(after_help = help::TRACE)]
    #[cfg(feature = "export")]
    Export(crate::export::Options),
}

/// Does it. The exit code is 1 when anything was damaged; what was readable is printed all the same.
///
/// # Errors
/// When a file cannot be read, or is no trace.
pub fn trace(command: &TraceCommand) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match command {
        TraceCommand::Info { files } => each(files, |name, file| info(name, file, &mut out)),
        TraceCommand::Dump { files, raw } => each(files, |name, file| dump(name, file, *raw, &mut out)),
        TraceCommand::Cut(options) => cut::cut(options),
        #[cfg(feature = "export")]
        TraceCommand::Export(options) => crate::export::files::export(options),
    };
    match done.and_then(|whole| Ok(out.flush().map(|()| whole)?)) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        // Whoever reads has read enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

/// Whether the reader of standard output has gone away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Opens one file after the other; false when one of them is damaged.
fn each(files: &[PathBuf], mut done: impl FnMut(&str, Box<dyn Read>) -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let mut whole = true;
    for path in files {
        let Input { name, read, .. } = open(path)?;
        whole &= done(&name, read)?;
    }
    Ok(whole)
}

/// A trace's bytes.
pub(crate) struct Input {
    /// As it was named, not escaped.
    pub name: String,
    /// How many bytes there are, of a regular file.
    pub bytes: Option<u64>,
    pub read: Box<dyn Read>,
}

/// Opens a trace; `-` is standard input.
///
/// # Errors
/// When it cannot be opened, or is a directory.
pub(crate) fn open(path: &Path) -> anyhow::Result<Input> {
    let name = path.display().to_string();
    if path == Path::new("-") {
        return Ok(Input { name, bytes: None, read: Box::new(io::stdin().lock()) });
    }
    let file = File::open(path).with_context(|| escape(&name))?;
    let metadata = file.metadata().with_context(|| escape(&name))?;
    anyhow::ensure!(!metadata.is_dir(), "{}: a directory. Name the traces in it: DIR/*.trace", escape(&name));
    Ok(Input { name, bytes: metadata.is_file().then_some(metadata.len()), read: Box::new(file) })
}

fn info(name: &str, file: impl Read, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut info = Info::default();
    let mut reader = Reader::new(file).with_context(|| escape(name))?;
    for item in &mut reader {
        let item = item.with_context(|| escape(name))?;
        if let Item::Damage(damage) = &item
            && damage.is_loss()
        {
            eprintln!("{}", line(name, damage));
        }
        info.add(&item);
    }
    writeln!(out, "{}", escape(name))?;
    info.print(out, &reader.progress())?;
    Ok(info.is_whole())
}

fn dump(name: &str, file: impl Read, raw: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut whole = true;
    let mut boot = None;
    for item in Reader::new(file).with_context(|| escape(name))? {
        let (record, opening) = match item.with_context(|| escape(name))? {
            Item::Opening(record) => (record, true),
            Item::Record(record) => (record, false),
            Item::Damage(damage) => {
                whole &= !damage.is_loss();
                eprintln!("{}", line(name, &damage));
                continue;
            }
        };
        if let Body::Start(start) = &record.body {
            boot = Some(start.boot_time_ns);
        }
        serde_json::to_writer(&mut *out, &Line::new(&record, boot, opening, raw)).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    Ok(whole)
}
