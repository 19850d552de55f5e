//! One file of an audit log, read line by line.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    time::Instant,
};

use nix::unistd::{Whence, lseek};

use super::position::{Position, TAIL, fingerprint};

/// Longest line that is read, in bytes.
pub const LINE_MAX: usize = 1 << 20;
/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// A line, or as much of it as is read of one.
pub struct Line<'a> {
    pub bytes: &'a [u8],
    /// It is all of it.
    pub whole: bool,
    /// Where it begins.
    pub offset: u64,
    /// Which it is, from 1; `None` where that is not known.
    pub number: Option<u64>,
}

/// A file that is read to its end, and on when it grows.
pub struct Open {
    file: File,
    pub dev: u64,
    pub ino: u64,
    /// Where the line begins that is not whole yet.
    offset: u64,
    lines: Option<u64>,
    /// What is there of it; empty within a line that was too long.
    partial: Vec<u8>,
    /// The rest of a line that was too long is passed over.
    within: bool,
    /// The last bytes before `offset`.
    tail: Vec<u8>,
    /// When it was changed last, as far as that was looked at.
    changed: i64,
    /// When it grew last.
    pub grew: Instant,
}

/// What reading came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There is no more at this moment.
    All,
    /// There may be more.
    More,
    /// It is shorter than what was read of it, or holds something else there.
    Rewritten { had: u64, has: u64 },
}

impl Open {
    /// A file from its beginning.
    pub fn at_start(file: File) -> io::Result<Self> {
        Self::at(file, 0, Some(0), false, Vec::new())
    }

    /// A file from the beginning of its last line on, where that is not whole; else from its end.
    pub fn at_end(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let back = size.min(LINE_MAX as u64);
        let mut last = vec![0; usize::try_from(back).unwrap_or(LINE_MAX)];
        file.read_exact_at(&mut last, size - back)?;
        let behind = last.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        // A line that is longer than what is read of one is passed over.
        let (len, within) = match behind {
            Some(len) => (len, false),
            None if back == size => (0, false),
            None => (last.len(), true),
        };
        last.truncate(len);
        let tail = last.split_off(len.saturating_sub(TAIL));
        let offset = size - back + len as u64;
        Self::at(file, offset, (offset == 0).then_some(0), within, tail)
    }

    /// A file from a position on; `None` when it is not the file that the position is of.
    pub fn resume(file: File, position: &Position) -> io::Result<Option<Self>> {
        let len = position.offset.min(TAIL as u64);
        let mut tail = vec![0; usize::try_from(len).unwrap_or(TAIL)];
        // Also a position that no file can have is none of this one.
        if file.read_exact_at(&mut tail, position.offset - len).is_err() || fingerprint(&tail) != position.tail {
            return Ok(None);
        }
        Self::at(file, position.offset, position.lines, position.within, tail).map(Some)
    }

    fn at(file: File, offset: u64, lines: Option<u64>, within: bool, tail: Vec<u8>) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (dev, ino) = (metadata.dev(), metadata.ino());
        Ok(Self { file, dev, ino, offset, lines, partial: Vec::new(), within, tail, changed: 0, grew: Instant::now() })
    }

    /// The file, and where to read on in it.
    pub fn position(&self) -> Position {
        Position {
            ino: self.ino,
            offset: self.offset,
            lines: self.lines,
            within: self.within,
            ended: self.file.metadata().is_ok_and(|metadata| metadata.len() == self.offset),
            tail: fingerprint(&self.tail),
            modified: self.modified(),
        }
    }

    /// When it was changed last, in ns since the epoch.
    pub fn modified(&self) -> i64 {
        self.file.metadata().map_or(0, |metadata| modified(&metadata))
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on, at most as much as `budget` says, of which it takes what it reads. `each` gets the lines that are whole.
    pub fn read(&mut self, budget: &mut usize, mut each: impl FnMut(Line<'_>)) -> io::Result<Read> {
        let mut chunk = [0; CHUNK];
        let mut first = true;
        loop {
            if *budget == 0 {
                return Ok(Read::More);
            }
            let at = self.offset + self.partial.len() as u64;
            let metadata = self.file.metadata()?;
            let size = metadata.len();
            if size < at {
                return Ok(Read::Rewritten { had: at, has: size });
            }
            // It may have been emptied and written to just this length.
            let changed = std::mem::replace(&mut self.changed, modified(&metadata)) != self.changed;
            if size == at && !(first && changed) {
                return Ok(Read::All);
            }
            if std::mem::take(&mut first) && !self.is_same()? {
                return Ok(Read::Rewritten { had: at, has: size });
            }
            let most = CHUNK.min(*budget);
            let len = self.file.read_at(&mut chunk[..most], at)?;
            if len == 0 {
                return Ok(Read::All);
            }
            *budget -= len;
            self.grew = Instant::now();
            self.take(&chunk[..len], &mut each);
        }
    }

    /// Begins anew, with what stands there now. Whoever writes goes on where it was, also in a file that was emptied: what is before
    /// that is a hole.
    pub fn restart(&mut self) {
        let data = lseek(&self.file, 0, Whence::SeekData);
        self.offset = data.ok().and_then(|at| u64::try_from(at).ok()).unwrap_or(0);
        self.lines = (self.offset == 0).then_some(0);
        self.partial = Vec::new();
        self.within = false;
        self.tail.clear();
    }

    /// Gives up on what is there of a line: nobody writes the rest.
    pub fn give_up(&mut self, mut each: impl FnMut(Line<'_>)) {
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            each(Line {
                bytes: &rest,
                whole: true,
                offset: self.offset,
                number: self.lines.map(|lines| lines.saturating_add(1)),
            });
        }
    }

    /// Whether what was read last still stands there.
    fn is_same(&self) -> io::Result<bool> {
        let mut now = vec![0; self.tail.len()];
        match self.file.read_exact_at(&mut now, self.offset - self.tail.len() as u64) {
            Ok(()) => Ok(now == self.tail),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, mut chunk: &[u8], each: &mut impl FnMut(Line<'_>)) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = chunk.split_at(end + 1);
            chunk = rest;
            self.add(line, each);
            let line = std::mem::take(&mut self.partial);
            if !std::mem::take(&mut self.within) {
                let number = self.lines.map(|lines| lines.saturating_add(1));
                each(Line { bytes: &line[..line.len() - 1], whole: true, offset: self.offset, number });
            }
            self.pass(&line);
            self.lines = self.lines.map(|lines| lines.saturating_add(1));
        }
        self.add(chunk, each);
    }

    /// More of a line; `chunk` ends with it, or it does not end yet.
    fn add(&mut self, chunk: &[u8], each: &mut impl FnMut(Line<'_>)) {
        if self.within {
            self.pass(chunk);
            self.partial.clear();
            return;
        }
        self.partial.extend_from_slice(chunk);
        if self.partial.len() > LINE_MAX {
            let line = std::mem::take(&mut self.partial);
            let number = self.lines.map(|lines| lines.saturating_add(1));
            each(Line { bytes: &line[..LINE_MAX], whole: false, offset: self.offset, number });
            self.pass(&line);
            self.within = true;
        }
    }

    /// Everything up to here was read.
    fn pass(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        let last = &bytes[bytes.len().saturating_sub(TAIL)..];
        let keep = self.tail.len().min(TAIL - last.len());
        self.tail.drain(..self.tail.len() - keep);
        self.tail.extend_from_slice(last);
    }
}

/// When a file was changed last, in ns since the epoch.
pub fn modified(metadata: &std::fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}
