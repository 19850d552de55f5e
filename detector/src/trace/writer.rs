//! Writes traces.

use std::io;

use super::{
    FORMAT,
    frame::{self, BLOCK_HEADER, BlockHeader, kind},
    index::{Block, INDEX_EVERY, payload},
    pack::Packer,
};
use crate::record::Record;

/// Records of a block: a reader holds one block at a time.
const BLOCK_RECORDS: u32 = 16_384;
/// Bytes of unpacked records from which on a block is cut.
const BLOCK_RAW: u32 = 4 << 20;
/// Time that a block spans: what a killed agent loses, and what a damaged block does.
const BLOCK_NS: u64 = 1_000_000_000;

/// Writes a trace: records into the block at hand, whole blocks to `W`.
///
/// After an error the block at hand is lost, and what is written may end in a part of it: a reader says so. Go on with a new
/// file.
pub struct Writer<W: io::Write> {
    out: W,
    written: u64,
    packer: Packer,
    /// The block at hand is one of opening records.
    opening: bool,
    /// When it began, by its first record.
    began: u64,
    buffer: Vec<u8>,
    number: u32,
    records: u64,
    /// Blocks since the last index.
    blocks: Vec<Block>,
    /// Where the last index is; 0 for none.
    index: u64,
}

impl<W: io::Write> Writer<W> {
    /// Starts a trace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(mut out: W) -> io::Result<Self> {
        let header = frame::file_header();
        out.write_all(&header)?;
        Ok(Self {
            out,
            written: header.len() as u64,
            packer: Packer::new()?,
            opening: false,
            began: 0,
            buffer: Vec::new(),
            number: 0,
            records: 0,
            blocks: Vec::new(),
            index: 0,
        })
    }

    /// Adds a record that rebuilds the state at the start of this segment, and is not of its stream.
    ///
    /// # Errors
    /// When a block cannot be written, or the record is longer than [`super::RECORD_MAX`]: then it alone is left out.
    pub fn opening(&mut self, record: &Record) -> io::Result<()> {
        self.add(record, true)
    }

    /// Adds the next record of the stream.
    ///
    /// # Errors
    /// As [`Self::opening`].
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        self.add(record, false)
    }

    /// Writes the block at hand, however short, and lets `W` flush.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.cut()?;
        self.out.flush()
    }

    /// Bytes that were written so far. The block at hand is not among them.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Records of the block at hand, which a crash would lose.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.packer.header().records
    }

    /// Writes what is left, and the index.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.cut()?;
        self.write_index()?;
        let end = self.written + (BLOCK_HEADER + frame::END_PAYLOAD) as u64;
        let mut header = BlockHeader { kind: kind::END, ..BlockHeader::default() };
        let payload: Vec<u8> = [self.index, end, self.records].iter().flat_map(|value| value.to_le_bytes()).collect();
        self.write(&mut header, &payload)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// The writer below.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    fn add(&mut self, record: &Record, opening: bool) -> io::Result<()> {
        let block = self.packer.header();
        if block.records > 0
            && (self.opening != opening
                || block.records >= BLOCK_RECORDS
                || block.raw >= BLOCK_RAW
                || record.time.0.saturating_sub(self.began) > BLOCK_NS)
        {
            self.cut()?;
        }
        if self.packer.header().records == 0 {
            self.opening = opening;
            self.began = record.time.0;
        }
        self.packer.push(record)
    }

    /// Writes the block at hand.
    fn cut(&mut self) -> io::Result<()> {
        if self.packer.header().records == 0 {
            return Ok(());
        }
        let mut payload = std::mem::take(&mut self.buffer);
        payload.clear();
        let mut header = self.packer.finish(&mut payload)?;
        header.kind = if self.opening { kind::OPENING } else { kind::RECORDS };
        let offset = self.written;
        self.write(&mut header, &payload)?;
        self.buffer = payload;
        if !self.opening {
            self.records += u64::from(header.records);
        }
        self.blocks.push(Block::new(offset, &header));
        if self.blocks.len() >= INDEX_EVERY {
            self.write_index()?;
        }
        Ok(())
    }

    fn write_index(&mut self) -> io::Result<()> {
        let payload = payload(self.index, &self.blocks);
        let at = self.written;
        let mut header = BlockHeader { kind: kind::INDEX, ..BlockHeader::default() };
        self.write(&mut header, &payload)?;
        self.index = at;
        self.blocks.clear();
        Ok(())
    }

    fn write(&mut self, header: &mut BlockHeader, payload: &[u8]) -> io::Result<()> {
        header.format = FORMAT;
        header.number = self.number;
        header.packed = u32::try_from(payload.len()).map_err(io::Error::other)?;
        if matches!(header.kind, kind::INDEX | kind::END) {
            header.raw = header.packed;
        }
        header.checksum = frame::checksum(payload);
        // In one piece: where files are appended to, a reader sees more or fewer whole blocks.
        let header = header.bytes();
        self.out.write_all(&header)?;
        self.out.write_all(payload)?;
        self.written += (header.len() + payload.len()) as u64;
        self.number = self.number.wrapping_add(1);
        Ok(())
    }
}
