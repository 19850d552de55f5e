//! A run of messages: a file, or bytes in memory.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use twox_hash::XxHash3_64;

use super::Mark;

/// Longest message; a length beyond it is damage.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Length and checksum, little endian.
const HEAD: u64 = 8;

pub struct Segment {
    pub number: u64,
    store: Store,
    /// Bytes of whole frames, those in `unwritten` included.
    bytes: u64,
    messages: u64,
    /// Frames on their way to the file.
    unwritten: Vec<u8>,
    /// It takes no more.
    sealed: bool,
}

enum Store {
    File(File, PathBuf),
    Memory(Vec<u8>),
}

/// Bytes that a message takes.
pub fn framed(message: &[u8]) -> u64 {
    HEAD + message.len() as u64
}

/// The number in a segment's file name.
pub fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_suffix(".spool")?.parse().ok()
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.spool"))
}

fn checksum(message: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = XxHash3_64::oneshot(message).to_le_bytes();
    [a, b, c, d]
}

/// The message at the head of these bytes; `None` when it is not whole.
fn unframe(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= MESSAGE_MAX)?;
    rest.get(..length).filter(|message| checksum(message) == *sum)
}

impl Segment {
    pub fn in_memory(number: u64) -> Self {
        Self { number, store: Store::Memory(Vec::new()), bytes: 0, messages: 0, unwritten: Vec::new(), sealed: false }
    }

    pub fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let path = path(dir, number);
        let file = File::options().read(true).append(true).create_new(true).open(&path)?;
        Ok(Self { store: Store::File(file, path), ..Self::in_memory(number) })
    }

    /// One from an earlier agent, as far as it is whole; it takes no more.
    pub fn open(dir: &Path, number: u64, notes: &mut Vec<String>) -> io::Result<Self> {
        let path = path(dir, number);
        let file = File::options().read(true).open(&path)?;
        let content = fs::read(&path)?;
        let (mut at, mut messages) = (0, 0);
        while let Some(message) = content.get(at..).and_then(unframe) {
            at += usize::try_from(HEAD).unwrap_or(8) + message.len();
            messages += 1;
        }
        if at < content.len() {
            let (shown, lost) = (path.display(), content.len() - at);
            notes.push(format!(
                "{shown}: damaged from byte {at} on; {lost} bytes after {messages} whole messages are lost"
            ));
        }
        Ok(Self { store: Store::File(file, path), bytes: at as u64, messages, sealed: true, ..Self::in_memory(number) })
    }

    pub fn start(&self) -> Mark {
        Mark { segment: self.number, ..Mark::default() }
    }

    /// The mark at this offset; `None` when no message begins or ends there.
    pub fn mark(&self, offset: u64) -> Option<Mark> {
        let mut mark = self.start();
        while mark.offset < offset {
            mark = self.get(mark).ok()?.1;
        }
        (mark.offset == offset).then_some(mark)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn messages(&self) -> u64 {
        self.messages
    }

    pub fn is_on_disk(&self) -> bool {
        matches!(self.store, Store::File(..))
    }

    pub fn is_full(&self, limit: u64) -> bool {
        self.sealed || self.bytes >= limit
    }

    pub fn put(&mut self, message: &[u8]) {
        // `Spool::append` refuses what is longer than this holds.
        let Ok(length) = u32::try_from(message.len()) else { return };
        self.bytes += framed(message);
        self.messages += 1;
        let out = match &mut self.store {
            Store::File(..) => &mut self.unwritten,
            Store::Memory(bytes) => bytes,
        };
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&checksum(message));
        out.extend_from_slice(message);
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let Store::File(file, _) = &mut self.store else { return Ok(()) };
        file.write_all(&self.unwritten)?;
        self.unwritten.clear();
        Ok(())
    }

    /// Seals it at what was written; the messages that were not.
    pub fn take_unwritten(&mut self) -> Vec<Vec<u8>> {
        self.sealed = true;
        let unwritten = std::mem::take(&mut self.unwritten);
        self.bytes -= unwritten.len() as u64;
        if let Store::File(file, _) = &self.store {
            // A part of them may be there. Where it cannot be cut off, a later agent finds it torn.
            let _ = file.set_len(self.bytes);
        }
        let (mut rest, mut messages) = (&unwritten[..], Vec::new());
        while let Some(message) = unframe(rest) {
            messages.push(message.to_owned());
            rest = rest.get(usize::try_from(framed(message)).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        self.messages -= messages.len() as u64;
        messages
    }

    /// The message at a mark, and the mark behind it.
    pub fn get(&self, at: Mark) -> io::Result<(Vec<u8>, Mark)> {
        let damaged = |path: &str| io::Error::other(format!("{path}: damaged from byte {} on", at.offset));
        let message = match &self.store {
            Store::Memory(bytes) => {
                let bytes = usize::try_from(at.offset).ok().and_then(|offset| bytes.get(offset..));
                bytes.and_then(unframe).map(<[u8]>::to_owned).ok_or_else(|| damaged("memory"))?
            }
            Store::File(file, path) => {
                let shown = path.to_string_lossy();
                let mut head = [0; 8];
                file.read_exact_at(&mut head, at.offset).map_err(|_| damaged(&shown))?;
                let [a, b, c, d, ..] = head;
                let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if length > MESSAGE_MAX {
                    return Err(damaged(&shown));
                }
                let mut frame = vec![0; head.len() + length];
                file.read_exact_at(&mut frame, at.offset).map_err(|_| damaged(&shown))?;
                unframe(&frame).map(<[u8]>::to_owned).ok_or_else(|| damaged(&shown))?
            }
        };
        let behind = Mark { segment: self.number, offset: at.offset + framed(&message), index: at.index + 1 };
        Ok((message, behind))
    }

    /// Ends it before a mark; how many messages that costs.
    pub fn cut(&mut self, at: Mark) -> u64 {
        let lost = self.messages.saturating_sub(at.index);
        (self.messages, self.bytes, self.sealed) = (at.index, at.offset, true);
        self.unwritten.clear();
        lost
    }

    pub fn remove(self) {
        if let Store::File(_, path) = self.store {
            // What stays is delivered once more by the next agent, or gives way.
            let _ = fs::remove_file(path);
        }
    }
}
