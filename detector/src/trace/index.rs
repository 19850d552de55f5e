//! Where a trace's blocks are: written every so many blocks and at the end, found through the last block, and put together
//! by a walk through the headers where that is missing.

use std::io::{self, Read, Seek, SeekFrom};

use super::{
    TraceError,
    frame::{BLOCK_HEADER, BlockHeader, END_PAYLOAD, FILE_HEADER, Frame, checksum, kind, readable, u64_at},
    streams::{Cursor, Id, varint},
};

/// Blocks that an index lists: a writer remembers no more.
pub const INDEX_EVERY: usize = 8192;

/// A block of records, or of opening records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Of its header in the file.
    pub offset: u64,
    /// Its records rebuild the state at the start of the segment.
    pub opening: bool,
    pub records: u32,
    pub first_seq: u64,
    pub last_seq: u64,
    /// Earliest and latest time of its records in ns.
    pub min_time: u64,
    pub max_time: u64,
}

impl Block {
    pub(super) fn new(offset: u64, header: &BlockHeader) -> Self {
        Self {
            offset,
            opening: header.kind == kind::OPENING,
            records: header.records,
            first_seq: header.first_seq,
            last_seq: header.last_seq,
            min_time: header.min_time,
            max_time: header.max_time,
        }
    }
}

/// An index block's payload: where the index before is, then the blocks.
pub fn payload(before: u64, blocks: &[Block]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + blocks.len() * 16);
    varint(&mut out, before);
    varint(&mut out, blocks.len() as u64);
    let (mut offset, mut seq) = (0, 0_u64);
    for block in blocks {
        varint(&mut out, block.offset - offset);
        varint(&mut out, block.opening.into());
        varint(&mut out, block.records.into());
        varint(&mut out, block.first_seq.wrapping_sub(seq));
        varint(&mut out, block.last_seq.wrapping_sub(block.first_seq));
        varint(&mut out, block.min_time);
        varint(&mut out, block.max_time - block.min_time);
        (offset, seq) = (block.offset, block.last_seq);
    }
    out
}

/// The other direction; `None` when it is none.
fn parse(bytes: &[u8]) -> Option<(u64, Vec<Block>)> {
    let mut cursor = Cursor::new(Id::Opaque, bytes);
    let mut next = || cursor.varint().ok();
    let (before, count) = (next()?, next()?);
    if count > INDEX_EVERY as u64 {
        return None;
    }
    let (mut offset, mut seq) = (0_u64, 0_u64);
    let mut blocks = Vec::new();
    for _ in 0..count {
        offset = offset.checked_add(next()?)?;
        let opening = next()? != 0;
        let records = u32::try_from(next()?).ok()?;
        let first_seq = seq.wrapping_add(next()?);
        seq = first_seq.wrapping_add(next()?);
        let min_time = next()?;
        let max_time = min_time.checked_add(next()?)?;
        blocks.push(Block { offset, opening, records, first_seq, last_seq: seq, min_time, max_time });
    }
    cursor.is_empty().then_some((before, blocks))
}

/// The blocks of all traces in a file, in its order: by their indices, else by a walk through the headers. Payloads are not
/// looked at: one that is damaged is in the list as well.
///
/// # Errors
/// When the file cannot be read, or a trace is in a newer version.
pub fn blocks(file: &mut (impl Read + Seek)) -> Result<Vec<Block>, TraceError> {
    let end = file.seek(SeekFrom::End(0))?;
    match indexed(file, end)? {
        Some(blocks) => Ok(blocks),
        None => walked(file, end),
    }
}

/// By the indices, from the file's end backwards.
fn indexed(file: &mut (impl Read + Seek), mut end: u64) -> Result<Option<Vec<Block>>, TraceError> {
    const LAST: u64 = (BLOCK_HEADER + END_PAYLOAD) as u64;
    let mut parts: Vec<Vec<Block>> = Vec::new();
    while end > 0 {
        let Some(at) = end.checked_sub(LAST) else { return Ok(None) };
        let Some((kind::END, payload)) = block_at(file, at)? else { return Ok(None) };
        let (mut index, length) = (u64_at(&payload, 0), u64_at(&payload, 8));
        let Some(start) = end.checked_sub(length) else { return Ok(None) };
        // Its own header and end are in it: so it is shorter each time.
        if at.checked_sub(start).is_none_or(|rest| rest < FILE_HEADER as u64) {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(start))?;
        let Some(Frame::File(versions)) = Frame::parse(&read(file, FILE_HEADER)?) else { return Ok(None) };
        readable(versions, start)?;
        let mut later = at;
        while index != 0 {
            // Backwards alone: nothing that is read makes this go round.
            let at = start.saturating_add(index);
            if at >= later {
                return Ok(None);
            }
            later = at;
            let Some((kind::INDEX, payload)) = block_at(file, at)? else { return Ok(None) };
            let Some((before, mut blocks)) = parse(&payload) else { return Ok(None) };
            // Blocks are between the trace's header and the index that lists them.
            if !blocks.iter().all(|block| (FILE_HEADER as u64..index).contains(&block.offset)) {
                return Ok(None);
            }
            blocks.iter_mut().for_each(|block| block.offset += start);
            parts.push(blocks);
            index = before;
        }
        end = start;
    }
    Ok(Some(parts.into_iter().rev().flatten().collect()))
}

/// Kind and payload of the whole block there.
fn block_at(file: &mut (impl Read + Seek), at: u64) -> io::Result<Option<(u16, Vec<u8>)>> {
    file.seek(SeekFrom::Start(at))?;
    let Some(header) = BlockHeader::parse(&read(file, BLOCK_HEADER)?) else { return Ok(None) };
    if !header.is_bounded() {
        return Ok(None);
    }
    let payload = read(file, header.packed as usize)?;
    let whole = payload.len() == header.packed as usize && checksum(&payload) == header.checksum;
    Ok(whole.then_some((header.kind, payload)))
}

/// So many bytes, fewer at the end of the file.
fn read(file: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// By the headers, one after the other; where there is none, byte by byte to the next.
fn walked(file: &mut (impl Read + Seek), end: u64) -> Result<Vec<Block>, TraceError> {
    /// How much is looked through at once.
    const WINDOW: usize = 64 * 1024;
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < end {
        file.seek(SeekFrom::Start(at))?;
        match Frame::parse(&read(file, BLOCK_HEADER)?) {
            Some(Frame::File(versions)) => {
                readable(versions, at)?;
                at += FILE_HEADER as u64;
            }
            Some(Frame::Block(header)) if header.is_bounded() => {
                if matches!(header.kind, kind::OPENING | kind::RECORDS) {
                    blocks.push(Block::new(at, &header));
                }
                at += header.len() as u64;
            }
            _ => {
                file.seek(SeekFrom::Start(at + 1))?;
                let window = read(file, WINDOW)?;
                let found = (0..window.len()).find(|from| Frame::parse(&window[*from..]).is_some());
                // What begins in the window and ends behind it is found in the next one.
                at += found.map_or_else(|| window.len().saturating_sub(BLOCK_HEADER).max(1), |from| from + 1) as u64;
            }
        }
    }
    Ok(blocks)
}
