//! Reads traces: from any stream of bytes, and on behind whatever is damaged.

use std::{collections::VecDeque, io::Read};

use super::{
    Damage, FORMAT, Item, PACKED_MAX, TraceError, Why,
    frame::{BLOCK_HEADER, BlockHeader, FILE_HEADER, Frame, checksum, kind, readable},
    input::Input,
    unpack::Unpacker,
};

/// How far a first block is looked for in what does not begin as a trace: a whole block fits in between.
const LOOK: u64 = PACKED_MAX as u64 + (1 << 20);

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file, or of what was unpacked where the whole trace is compressed once more.
    pub bytes: u64,
    /// Traces that begin in the file.
    pub traces: u64,
    /// Whole blocks of records and of opening records.
    pub blocks: u64,
    pub opening_blocks: u64,
    /// Version of the format of the last trace.
    pub format: u16,
    /// Version of the wire of the last trace.
    pub wire: u16,
    /// Index and end are there.
    pub finished: bool,
}

/// Reads a trace, or several that lie one behind the other.
pub struct Reader<R: Read> {
    input: Input<R>,
    unpacker: Unpacker,
    /// The block that records are taken from, and where it is.
    block: Option<(BlockHeader, u64)>,
    items: VecDeque<Damage>,
    /// Number that the next block has to have; `None` behind damage.
    expected: Option<u32>,
    /// Sequence number of the last record.
    last: Option<u64>,
    /// Nothing more has to come.
    ended: bool,
    done: bool,
    progress: Progress,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When it cannot be read, is no trace, or one of a newer version.
    pub fn new(reader: R) -> Result<Self, TraceError> {
        let mut reader = Self {
            input: Input::new(reader)?,
            unpacker: Unpacker::new()?,
            block: None,
            items: VecDeque::new(),
            expected: None,
            last: None,
            ended: true,
            done: false,
            progress: Progress::default(),
        };
        let first = reader.input.look(FILE_HEADER)?;
        if let Some(Frame::File(_)) = Frame::parse(first) {
            reader.advance()?;
            return Ok(reader);
        }
        let first = first[..first.len().min(8)].to_vec();
        match reader.resume(0, LOOK)? {
            Some(frame) => {
                reader.damage(0, Why::FileHeader, None, Some(frame));
                Ok(reader)
            }
            None => Err(match reader.input.broken() {
                Some(broken) => TraceError::Compression(broken),
                None => TraceError::NotATrace(first),
            }),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { bytes: self.input.offset(), ..self.progress }
    }

    /// Goes on to the next block of records, the next trace or the end.
    fn advance(&mut self) -> Result<(), TraceError> {
        let offset = self.input.offset();
        let first = self.input.look(BLOCK_HEADER)?;
        if first.is_empty() {
            self.done = true;
            if let Some(why) = self.input.broken() {
                self.damage(offset, Why::Compression(why), None, None);
            } else if !self.ended {
                self.damage(offset, Why::Unfinished, None, None);
            }
            return Ok(());
        }
        match Frame::parse(first) {
            Some(Frame::File(versions)) => {
                readable(versions, offset)?;
                if !self.ended {
                    self.damage(offset, Why::Unfinished, None, None);
                }
                self.input.consume(FILE_HEADER);
                self.expected = Some(0);
                self.ended = false;
                self.progress.traces += 1;
                [self.progress.format, self.progress.wire] = versions;
                self.progress.finished = false;
                Ok(())
            }
            Some(Frame::Block(header)) => self.block(header, offset),
            None => {
                let frame = self.resume(1, u64::MAX)?;
                self.damage(offset, Why::NoBlock, None, frame);
                Ok(())
            }
        }
    }

    fn block(&mut self, header: BlockHeader, offset: u64) -> Result<(), TraceError> {
        if header.format == 0 || header.format > FORMAT {
            return Err(TraceError::Newer { offset, found: header.format });
        }
        if let Some(expected) = self.expected
            && header.number != expected
        {
            let found = header.number;
            self.damage(offset, Why::Missing { expected, found }, None, Some(Frame::Block(header)));
            return Ok(());
        }
        if !header.is_bounded() {
            let frame = self.resume(BLOCK_HEADER, u64::MAX)?;
            self.damage(offset, Why::Lengths, None, frame);
            return Ok(());
        }
        let len = header.len();
        // With the header behind it: whether the next block is where this one's length says.
        let all = self.input.look(len + BLOCK_HEADER)?;
        let payload = all.get(BLOCK_HEADER..len);
        let why = match payload {
            Some(payload) if checksum(payload) == header.checksum => match header.kind {
                kind::OPENING | kind::RECORDS => match self.unpacker.block(&header, payload) {
                    Ok(()) => None,
                    Err(error) => Some(Why::Malformed(error.to_string())),
                },
                kind::INDEX | kind::END => None,
                other => Some(Why::UnknownKind(other)),
            },
            Some(_) => Some(Why::Checksum),
            None => Some(Why::Cut),
        };
        let Some(why) = why else {
            self.input.consume(len);
            self.expected = Some(header.number.wrapping_add(1));
            self.ended = header.kind == kind::END;
            match header.kind {
                kind::OPENING => self.progress.opening_blocks += 1,
                kind::RECORDS => self.progress.blocks += 1,
                kind::END => self.progress.finished = true,
                _ => {}
            }
            if matches!(header.kind, kind::OPENING | kind::RECORDS) {
                self.block = Some((header, offset));
            }
            return Ok(());
        };
        // Bytes that changed leave the next block where it was; bytes that are gone do not. What lies inside a block is
        // looked at only then: its text is other people's.
        let behind = all.get(len..).unwrap_or_default();
        let frame = if payload.is_some() && (behind.is_empty() || Frame::parse(behind).is_some()) {
            let frame = Frame::parse(behind);
            self.input.consume(len);
            frame
        } else {
            self.resume(BLOCK_HEADER, u64::MAX)?
        };
        self.damage(offset, why, records(&header), frame);
        Ok(())
    }

    /// Skips `least` bytes and then whatever is no frame, up to `most`; yields the frame that follows, if there is one.
    fn resume(&mut self, least: usize, most: u64) -> Result<Option<Frame>, TraceError> {
        const WINDOW: usize = 64 * 1024;
        self.input.consume(least);
        let start = self.input.offset();
        loop {
            let window = self.input.look(WINDOW)?;
            let ended = window.len() < WINDOW;
            let found = (0..window.len()).find_map(|at| Some((at, Frame::parse(&window[at..])?)));
            if let Some((at, frame)) = found {
                self.input.consume(at);
                return Ok(Some(frame));
            }
            // What begins in the window and ends behind it is found in the next one.
            let step = if ended { window.len() } else { window.len() - BLOCK_HEADER };
            self.input.consume(step);
            if ended || self.input.offset() - start > most {
                return Ok(None);
            }
        }
    }

    /// Notes damage between `offset` and where the input is now, before `next`.
    fn damage(&mut self, offset: u64, why: Why, records: Option<u64>, next: Option<Frame>) {
        let after = match next {
            Some(Frame::Block(header)) if header.kind == kind::RECORDS => Some(header.first_seq),
            _ => None,
        };
        let mut damage = Damage { offset, bytes: self.input.offset() - offset, records, before: self.last, after, why };
        if let Some(broken) = self.input.broken() {
            damage.why = Why::Compression(broken);
        }
        // What follows may be anything: it is said once.
        self.expected = None;
        self.ended = true;
        self.items.push_back(damage);
    }
}

fn records(header: &BlockHeader) -> Option<u64> {
    (header.kind == kind::RECORDS).then(|| header.records.into())
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Item, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((header, offset)) = self.block {
                let opening = header.kind == kind::OPENING;
                match self.unpacker.record() {
                    Some(Ok(record)) if opening => return Some(Ok(Item::Opening(record))),
                    Some(Ok(record)) => {
                        self.last = Some(record.seq);
                        return Some(Ok(Item::Record(record)));
                    }
                    Some(Err(error)) => {
                        let why = Why::Body(error.to_string());
                        let records = Some(1);
                        let damage = Damage { offset, bytes: 0, records, before: self.last, after: None, why };
                        return Some(Ok(Item::Damage(damage)));
                    }
                    None => self.block = None,
                }
            }
            if let Some(damage) = self.items.pop_front() {
                return Some(Ok(Item::Damage(damage)));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.advance() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}
