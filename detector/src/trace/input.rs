//! A stream of bytes that can be looked at before it is consumed. Unwraps a trace that somebody compressed.

use std::io::{self, BufReader, Chain, Cursor, Read};

use zstd::stream::read::Decoder;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Read at once.
const STEP: usize = 64 * 1024;

/// The compressed bytes: what was looked at to tell, then the rest.
type Compressed<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

enum Source<R: Read> {
    Plain(R),
    Zstd(Box<Decoder<'static, Compressed<R>>>),
}

pub struct Input<R: Read> {
    source: Source<R>,
    /// What was read ahead, from `start` on.
    held: Vec<u8>,
    start: usize,
    /// Position of the first byte that is held.
    offset: u64,
    ended: bool,
    /// Why the compression around the trace cannot be undone any further.
    broken: Option<String>,
}

impl<R: Read> Input<R> {
    pub fn new(mut reader: R) -> io::Result<Self> {
        let mut first = Vec::new();
        (&mut reader).take(ZSTD_MAGIC.len() as u64).read_to_end(&mut first)?;
        let (source, held) = if first == ZSTD_MAGIC {
            let whole = BufReader::with_capacity(STEP, Cursor::new(first).chain(reader));
            (Source::Zstd(Box::new(Decoder::with_buffer(whole)?)), Vec::new())
        } else {
            (Source::Plain(reader), first)
        };
        Ok(Self { source, held, start: 0, offset: 0, ended: false, broken: None })
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Why there is no more, when that is not the end.
    pub fn broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    /// The next `len` bytes, or all that are left.
    pub fn look(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.held.len() - self.start < len && !self.ended {
            if self.start >= STEP {
                self.held.drain(..self.start);
                self.start = 0;
            }
            // Never more than is there: a length that lies makes nothing grow.
            let before = self.held.len();
            self.held.resize(before + STEP, 0);
            let read = self.read(before);
            self.held.truncate(before + read.as_ref().copied().unwrap_or(0));
            self.ended = read? == 0;
        }
        let all = &self.held[self.start..];
        Ok(&all[..all.len().min(len)])
    }

    pub fn consume(&mut self, len: usize) {
        let len = len.min(self.held.len() - self.start);
        self.start += len;
        self.offset += len as u64;
        if self.start == self.held.len() {
            self.held.clear();
            self.start = 0;
            // A large block's memory is not kept.
            self.held.shrink_to(16 * STEP);
        }
    }

    fn read(&mut self, from: usize) -> io::Result<usize> {
        let out = &mut self.held[from..];
        loop {
            let read = match &mut self.source {
                Source::Plain(reader) => reader.read(out),
                Source::Zstd(decoder) => match decoder.read(out) {
                    // Not the file's error, but what it holds.
                    Err(error) if error.raw_os_error().is_none() && error.kind() != io::ErrorKind::Interrupted => {
                        self.broken = Some(error.to_string());
                        return Ok(0);
                    }
                    read => read,
                },
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}
