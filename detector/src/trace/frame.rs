//! File and block headers: fixed forms, little-endian, each with a checksum of its own.

use twox_hash::XxHash3_64;

use super::{FORMAT, PACKED_MAX, RAW_MAX, RECORDS_MAX, TraceError, wire};

/// As PNG's: a byte that is no ASCII, and line ends that text-mode transfers change.
pub const FILE_MAGIC: [u8; 8] = *b"\x89DTR\r\n\x1a\n";
pub const FILE_HEADER: usize = 24;
pub const BLOCK_MAGIC: [u8; 4] = *b"\x8aBLK";
pub const BLOCK_HEADER: usize = 72;
/// Payload of the last block.
pub const END_PAYLOAD: usize = 24;

/// XXH3, 64 bits, no seed.
pub fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// What a block holds.
pub mod kind {
    pub const OPENING: u16 = 1;
    pub const RECORDS: u16 = 2;
    pub const INDEX: u16 = 3;
    pub const END: u16 = 4;
}

/// The header that every trace begins with.
pub fn file_header() -> [u8; FILE_HEADER] {
    let mut out = [0; FILE_HEADER];
    out[..8].copy_from_slice(&FILE_MAGIC);
    out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    out[10..12].copy_from_slice(&wire::VERSION.to_le_bytes());
    let sum = checksum(&out[..16]);
    out[16..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Versions of the format and of the wire, when the bytes begin with a whole file header.
pub fn parse_file_header(bytes: &[u8]) -> Option<[u16; 2]> {
    let header: &[u8; FILE_HEADER] = bytes.first_chunk()?;
    let whole = header.starts_with(&FILE_MAGIC) && u64_at(header, 16) == checksum(&header[..16]);
    whole.then(|| [u16_at(header, 8), u16_at(header, 10)])
}

/// Whether this program reads these versions.
pub fn readable([format, wire]: [u16; 2], offset: u64) -> Result<(), TraceError> {
    if format == 0 || format > FORMAT {
        return Err(TraceError::Newer { offset, found: format });
    }
    if wire == 0 || wire > wire::VERSION {
        return Err(TraceError::NewerWire { offset, found: wire });
    }
    Ok(())
}

/// A block's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockHeader {
    pub kind: u16,
    pub format: u16,
    pub raw: u32,
    pub packed: u32,
    pub records: u32,
    /// Position among this trace's blocks, from 0.
    pub number: u32,
    pub first_seq: u64,
    pub last_seq: u64,
    pub min_time: u64,
    pub max_time: u64,
    pub checksum: u64,
}

impl BlockHeader {
    pub fn bytes(&self) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        out[..4].copy_from_slice(&BLOCK_MAGIC);
        out[4..6].copy_from_slice(&self.kind.to_le_bytes());
        out[6..8].copy_from_slice(&self.format.to_le_bytes());
        for (at, value) in [(8, self.raw), (12, self.packed), (16, self.records), (20, self.number)] {
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let longs = [self.first_seq, self.last_seq, self.min_time, self.max_time, self.checksum];
        for (at, value) in (24..).step_by(8).zip(longs) {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&out[..64]);
        out[64..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The header, when the bytes begin with a whole one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; BLOCK_HEADER] = bytes.first_chunk()?;
        if !header.starts_with(&BLOCK_MAGIC) || u64_at(header, 64) != checksum(&header[..64]) {
            return None;
        }
        Some(Self {
            kind: u16_at(header, 4),
            format: u16_at(header, 6),
            raw: u32_at(header, 8),
            packed: u32_at(header, 12),
            records: u32_at(header, 16),
            number: u32_at(header, 20),
            first_seq: u64_at(header, 24),
            last_seq: u64_at(header, 32),
            min_time: u64_at(header, 40),
            max_time: u64_at(header, 48),
            checksum: u64_at(header, 56),
        })
    }

    /// Whether its lengths are such that a reader may believe them.
    pub fn is_bounded(&self) -> bool {
        self.raw <= RAW_MAX && self.packed <= PACKED_MAX && self.records <= RECORDS_MAX
    }

    /// Bytes of the block, its header included.
    pub fn len(&self) -> usize {
        BLOCK_HEADER + self.packed as usize
    }
}

/// What stands at a place where something may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    File([u16; 2]),
    Block(BlockHeader),
}

impl Frame {
    /// What the bytes begin with, if it is whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? {
            0x89 => parse_file_header(bytes).map(Self::File),
            0x8a => BlockHeader::parse(bytes).map(Self::Block),
            _ => None,
        }
    }
}

// Callers have checked the length: an offset that is out of bounds is a defect here, and reads as zero.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |value| u16::from_le_bytes(*value))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |value| u32::from_le_bytes(*value))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |value| u64::from_le_bytes(*value))
}
