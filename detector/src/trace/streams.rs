//! The streams of a block: like values beside like, each compressed by itself.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

use super::RAW_MAX;

/// Which stream. Their order in the payload is that of these numbers.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Id {
    /// One byte a record: what it is.
    Kinds,
    /// Exceptions from sequence numbers without gaps.
    Seqs,
    /// One byte a record: length and sign of the time since the record before.
    Times,
    /// Forks: the same of the time since the child's start.
    Starts,
    /// The bits of these numbers.
    Bits,
    /// Kernel records: whose.
    Tasks,
    /// Forks: the child's id.
    Children,
    /// Which words are not as predicted.
    Masks,
    /// Those words, and whatever else is rare.
    Words,
    /// Which tail.
    Tails,
    /// Tails that are new in the block.
    Text,
    /// Records as they are: JSON, and kernel records that have no known form.
    Opaque,
}

pub const COUNT: usize = 12;

/// All of them, in their order.
#[cfg(test)]
pub const ALL: [Id; COUNT] = {
    use Id::*;
    [Kinds, Seqs, Times, Starts, Bits, Tasks, Children, Masks, Words, Tails, Text, Opaque]
};

/// Fewer bytes than this are not worth a frame.
const STORED: usize = 32;

/// Memory of a stream that is kept for the next block.
const KEPT: usize = 1 << 20;

/// Most bytes of all streams of a block. No record takes more in them than it has itself and a few.
const STREAMS_MAX: usize = RAW_MAX as usize;

/// The bytes of a block's streams.
#[derive(Default)]
pub struct Streams([Vec<u8>; COUNT]);

impl Streams {
    pub fn of(&mut self, id: Id) -> &mut Vec<u8> {
        &mut self.0[id as usize]
    }

    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Vec::clear);
    }

    pub fn cursor(&self, id: Id) -> Cursor<'_> {
        Cursor { id, bytes: &self.0[id as usize] }
    }

    /// Appends all streams: for each its length, its length as stored (0: as it is), its bytes.
    pub fn pack(&self, compressor: &mut Compressor<'_>, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> io::Result<()> {
        for stream in &self.0 {
            varint(out, stream.len() as u64);
            scratch.clear();
            if stream.len() >= STORED {
                scratch.reserve(zstd::zstd_safe::compress_bound(stream.len()));
                compressor.compress_to_buffer(stream, scratch)?;
            }
            if scratch.is_empty() || scratch.len() >= stream.len() {
                varint(out, 0);
                out.extend_from_slice(stream);
            } else {
                varint(out, scratch.len() as u64);
                out.extend_from_slice(scratch);
            }
        }
        Ok(())
    }

    /// The other direction.
    pub fn unpack(&mut self, decompressor: &mut Decompressor<'_>, payload: &[u8]) -> Result<(), Malformed> {
        let mut rest = Cursor { id: Id::Kinds, bytes: payload };
        // Else a trace whose blocks have one large stream each, every time another one, would take twelve times as much.
        self.clear();
        self.0.iter_mut().for_each(|stream| stream.shrink_to(KEPT));
        let mut total = 0;
        for stream in &mut self.0 {
            let len = usize::try_from(rest.varint()?).map_err(|_| Malformed::TooLong)?;
            total = len.saturating_add(total);
            if total > STREAMS_MAX {
                return Err(Malformed::TooLong);
            }
            match usize::try_from(rest.varint()?).map_err(|_| Malformed::TooLong)? {
                0 => stream.extend_from_slice(rest.take(len)?),
                packed => {
                    let packed = rest.take(packed)?;
                    stream.reserve(len);
                    let found = decompressor.decompress_to_buffer(packed, stream);
                    if found.map_err(|error| Malformed::Zstd(error.to_string()))? != len {
                        return Err(Malformed::Length);
                    }
                }
            }
        }
        if rest.bytes.is_empty() { Ok(()) } else { Err(Malformed::Rest) }
    }
}

/// Why a block's payload is none, although its checksum fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("stream {0:?} ends too early")]
    Short(usize),
    #[error("a stream is too long")]
    TooLong,
    #[error("a stream has another length than it says")]
    Length,
    #[error("something follows the last stream or record")]
    Rest,
    #[error("{0}")]
    Zstd(String),
    #[error("{0} refers to what is not there")]
    Reference(&'static str),
    #[error("its records have other lengths than its header says")]
    Raw,
    #[error("a number of more than 64 bits")]
    Number,
}

/// Reads a stream.
pub struct Cursor<'a> {
    id: Id,
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(id: Id, bytes: &'a [u8]) -> Self {
        Self { id, bytes }
    }

    #[inline]
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.bytes.split_first().ok_or(Malformed::Short(self.id as usize))?;
        self.bytes = rest;
        Ok(*byte)
    }

    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(first.into());
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                // The tenth byte has room for one bit.
                return if shift == 63 && byte > 1 { Err(Malformed::Number) } else { Ok(value) };
            }
        }
        Err(Malformed::Number)
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Malformed::Short(self.id as usize))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A number of 32 bits that was written as the difference to a prediction.
    #[inline]
    pub fn near(&mut self, predicted: u32) -> Result<u32, Malformed> {
        let value = u32::try_from(self.varint()?).map_err(|_| Malformed::Number)?;
        Ok(predicted.wrapping_add(value >> 1 ^ (value & 1).wrapping_neg()))
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}

/// LEB128.
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The difference to a prediction, small in either direction.
pub fn near(out: &mut Vec<u8>, value: u32, predicted: u32) {
    let difference = value.wrapping_sub(predicted);
    varint(out, u64::from(difference << 1 ^ ((difference >> 31).wrapping_neg())));
}

/// Writes numbers of which only the length has a pattern: the length as a byte, that compresses; the bits below the leading
/// one as they are.
#[derive(Default)]
pub struct Bits {
    held: u64,
    count: u32,
}

impl Bits {
    /// Writes the difference of two moments; yields its class: how many bits, and 0x80 where it is negative.
    pub fn put(&mut self, out: &mut Vec<u8>, value: u64, before: u64) -> u8 {
        let difference = value.wrapping_sub(before).cast_signed();
        let size = difference.unsigned_abs();
        let len = u64::BITS - size.leading_zeros();
        let rest = len.saturating_sub(1);
        let bits = size & !(u64::MAX << rest);
        self.push(out, bits & 0xffff_ffff, rest.min(32));
        self.push(out, bits >> 32, rest.saturating_sub(32));
        len.to_le_bytes()[0] | if difference < 0 { 0x80 } else { 0 }
    }

    fn push(&mut self, out: &mut Vec<u8>, bits: u64, count: u32) {
        // Fewer than 32 are held, and at most 32 come.
        self.held |= bits << self.count;
        self.count += count;
        if self.count >= 32 {
            out.extend_from_slice(&self.held.to_le_bytes()[..4]);
            self.held >>= 32;
            self.count -= 32;
        }
    }

    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.held.to_le_bytes()[..self.count.div_ceil(8) as usize]);
        *self = Self::default();
    }
}

/// Reads what [`Bits`] wrote.
pub struct BitCursor<'a> {
    bytes: Cursor<'a>,
    held: u64,
    count: u32,
}

impl<'a> BitCursor<'a> {
    pub fn new(bytes: Cursor<'a>) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    #[inline]
    pub fn get(&mut self, class: u8, before: u64) -> Result<u64, Malformed> {
        let len = u32::from(class & 0x7f);
        let size = match len {
            0 => 0,
            1..=33 => 1 << (len - 1) | self.pull(len - 1)?,
            34..=64 => {
                let low = self.pull(32)?;
                1 << (len - 1) | self.pull(len - 33)? << 32 | low
            }
            _ => return Err(Malformed::Number),
        };
        Ok(if class & 0x80 == 0 { before.wrapping_add(size) } else { before.wrapping_sub(size) })
    }

    #[inline]
    fn pull(&mut self, count: u32) -> Result<u64, Malformed> {
        if self.count < count {
            // Fewer than 32 are held.
            let rest = self.bytes.rest();
            let (more, bits) = match rest.first_chunk() {
                Some(word) => (u64::from(u32::from_le_bytes(*word)), 32),
                None => (rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)), rest.len() * 8),
            };
            self.bytes.take(bits / 8)?;
            self.held |= more << self.count;
            self.count += bits as u32;
            if self.count < count {
                return Err(Malformed::Short(Id::Bits as usize));
            }
        }
        let bits = self.held & !(u64::MAX << count);
        self.held >>= count;
        self.count -= count;
        Ok(bits)
    }

    /// Nothing is left but the bits that fill the last byte.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.count < 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_large_stream_after_the_other_takes_the_memory_of_one() {
        let mut compressor = Compressor::new(1).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let mut read = Streams::default();
        for large in ALL {
            let mut streams = Streams::default();
            streams.of(large).resize(STREAMS_MAX, 7);
            let mut payload = Vec::new();
            streams.pack(&mut compressor, &mut payload, &mut Vec::new()).unwrap();
            assert!(payload.len() < 10_000);
            assert_eq!(read.unpack(&mut decompressor, &payload), Ok(()));
            assert_eq!(read.of(large).len(), STREAMS_MAX);
            let memory: usize = read.0.iter().map(Vec::capacity).sum();
            assert!(memory <= STREAMS_MAX + COUNT * KEPT, "{large:?}: {memory}");
        }
    }
}
