//! Traces: the record stream on disk. `docs/trace-format.md` says it for whoever writes another reader.
//!
//! A file header, then blocks that can be read each by itself: records packed by [`pack`], compressed, with checksums. A
//! reader needs no seeking, trusts nothing that it reads, and goes on behind what is damaged.

pub mod command;
mod cut;
mod dump;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod index;
mod info;
mod input;
mod join;
mod model;
mod pack;
mod reader;
mod streams;
#[cfg(test)]
mod tests;
mod unpack;
mod wire;
mod writer;

use std::{fmt, io};

pub use dump::kind_name;
pub use index::{Block, blocks};
pub use info::line;
pub use join::{Joiner, Next};
pub use reader::Reader;
pub use writer::Writer;

use crate::record::Record;

// Kernel records are in the byte order of their host; the format takes them for little-endian.
#[cfg(target_endian = "big")]
compile_error!("traces are read and written on little-endian machines alone");

/// Version of the format that is written. Older ones are read.
pub const FORMAT: u16 = 1;

/// Most bytes that a block's records may have when unpacked.
pub const RAW_MAX: u32 = 32 << 20;
/// Most bytes that a block's payload may have in the file.
pub const PACKED_MAX: u32 = 16 << 20;
/// Most records of a block that a reader accepts.
pub const RECORDS_MAX: u32 = 1 << 16;
/// Most bytes of a record that can be written: the sources keep far below.
pub const RECORD_MAX: usize = 8 << 20;

/// What a trace holds, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Rebuilds the state at the start of a later segment; whoever has read the segments before skips it.
    Opening(Record),
    /// The next record of the stream.
    Record(Record),
    /// Something could not be read; reading goes on behind it.
    Damage(Damage),
}

/// A part of a trace that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where in the file (or in what was unpacked, where the whole trace is compressed once more).
    pub offset: u64,
    /// How many bytes were skipped.
    pub bytes: u64,
    /// At least so many records were in them, where that is known.
    pub records: Option<u64>,
    /// Sequence number of the last record before, where there is one.
    pub before: Option<u64>,
    /// Sequence number of the first record behind, where it is known.
    pub after: Option<u64>,
    pub why: Why,
}

/// Why a part cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the file header is damaged")]
    FileHeader,
    #[error("there is no block where one has to be")]
    NoBlock,
    #[error("a block's checksum does not match its content")]
    Checksum,
    #[error("a block is cut off")]
    Cut,
    #[error("a block's header says impossible lengths")]
    Lengths,
    #[error("a block is not as its header says: {0}")]
    Malformed(String),
    #[error("blocks are missing: number {found} stands where {expected} has to be")]
    Missing { expected: u32, found: u32 },
    #[error("the trace has no end: it was cut, its recorder was killed, or still writes. What came later is not in it")]
    Unfinished,
    #[error("a block of an unknown kind ({0}): the trace was written by a newer version")]
    UnknownKind(u16),
    #[error("a record that this version does not know: {0}")]
    Body(String),
    #[error("the compression around the trace: {0}")]
    Compression(String),
}

impl Damage {
    /// Whether something that was recorded cannot be read. A trace without an end is as whole as it ever was: its recorder was
    /// killed, or goes on.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.why != Why::Unfinished
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged at byte {}: {}", self.offset, self.why)?;
        if self.bytes > 0 {
            write!(f, "; {} bytes are skipped", self.bytes)?;
        }
        if let Some(records) = self.records {
            write!(f, "; at least {records} records are missing")?;
        }
        match (self.before, self.after) {
            (Some(before), Some(after)) => write!(f, ", between sequence numbers {before} and {after}"),
            (Some(before), None) => write!(f, ", behind sequence number {before}"),
            (None, Some(after)) => write!(f, ", before sequence number {after}"),
            (None, None) => Ok(()),
        }
    }
}

/// Why a trace cannot be read at all, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("reading: {0}")]
    Io(#[from] io::Error),
    #[error(
        "not a trace: it begins with {}, and a trace with {} (is it a file that `detector record` or `run --record` made?)",
        shown(.0), shown(&frame::FILE_MAGIC)
    )]
    NotATrace(Vec<u8>),
    #[error("the compression around the trace: {0}. Is the file whole?")]
    Compression(String),
    #[error(
        "at byte {offset}: the trace is in version {found} of the format, and this program reads up to {FORMAT}: read it with a newer one"
    )]
    Newer { offset: u64, found: u16 },
    #[error(
        "at byte {offset}: the trace's kernel records have layout {found}, and this program reads up to {}: read it with a newer one",
        wire::VERSION
    )]
    NewerWire { offset: u64, found: u16 },
}

fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing (it is empty)".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
