//! Records to a block's payload.

use std::{collections::HashMap, io};

use bytes::Bytes;
use zstd::bulk::Compressor;

use super::{
    RECORD_MAX,
    frame::{BlockHeader, checksum},
    model::{Given, Model, NONE, Words},
    streams::{self, Bits, Id, Streams},
    wire::{self, FORK, Layout, WORDS, fork, header},
};
use crate::record::{Body, Record};

/// zstd's level: 9 takes twice the time for 3% less.
const LEVEL: i32 = 3;

/// Codes of [`Id::Kinds`] behind those of symbols.
pub const LITERAL: u8 = 254;
pub const JSON: u8 = 255;
/// Code of [`Id::Tasks`] for a process that is none of the recent ones.
pub const FAR: u8 = 255;
/// Code of [`Id::Masks`] for a mask that has no code.
pub const RARE: u8 = 255;
/// Codes of [`Id::Tails`]; those of tails that the block has had follow.
pub const EXPECTED: u64 = 0;
pub const NEW: u64 = 1;
pub const KNOWN: u64 = 2;

/// Puts a block together.
pub struct Packer {
    compressor: Compressor<'static>,
    streams: Streams,
    bits: Bits,
    model: Model,
    /// Tails of the block by their checksum.
    known: HashMap<u64, u32>,
    header: BlockHeader,
    /// Records since the last exception from consecutive sequence numbers.
    since: u64,
    scratch: Vec<u8>,
}

/// A kernel record taken apart.
struct Parts<'a> {
    kind: u16,
    hook: u16,
    layout: &'static Layout,
    words: Words,
    tails: [&'a [u8]; 2],
}

impl Packer {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(LEVEL)?,
            streams: Streams::default(),
            bits: Bits::default(),
            model: Model::default(),
            known: HashMap::new(),
            header: BlockHeader::default(),
            since: 0,
            scratch: Vec::new(),
        })
    }

    /// The block so far: counts, numbers and times.
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Adds a record.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        // Before anything of it is in the streams.
        let json = match &record.body {
            Body::Kernel { raw } => {
                fits(raw.len())?;
                None
            }
            body => {
                let json = serde_json::to_vec(body)?;
                fits(json.len())?;
                Some(json)
            }
        };
        self.number(record);
        let class = self.bits.put(self.streams.of(Id::Bits), record.time.0, self.model.time);
        self.streams.of(Id::Times).push(class);
        self.model.time = record.time.0;
        match (&record.body, json) {
            (_, Some(json)) => self.opaque(JSON, &json),
            (Body::Kernel { raw }, None) => self.kernel(record.time.0, raw),
            (_, None) => {}
        }
        Ok(())
    }

    /// Appends the payload; yields the header, and starts the next block.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<BlockHeader> {
        self.bits.finish(self.streams.of(Id::Bits));
        let start = out.len();
        self.streams.pack(&mut self.compressor, out, &mut self.scratch)?;
        let payload = &out[start..];
        let mut header = std::mem::take(&mut self.header);
        header.packed = u32::try_from(payload.len()).map_err(io::Error::other)?;
        header.checksum = checksum(payload);
        self.streams.clear();
        self.model.clear();
        self.known.clear();
        self.since = 0;
        Ok(header)
    }

    fn number(&mut self, record: &Record) {
        let header = &mut self.header;
        if header.records == 0 {
            header.first_seq = record.seq;
            (header.min_time, header.max_time) = (record.time.0, record.time.0);
        } else {
            let expected = header.last_seq.wrapping_add(1);
            if record.seq != expected {
                let seqs = self.streams.of(Id::Seqs);
                streams::varint(seqs, self.since);
                streams::varint(seqs, record.seq.wrapping_sub(expected));
                self.since = 0;
            }
            header.min_time = header.min_time.min(record.time.0);
            header.max_time = header.max_time.max(record.time.0);
        }
        self.since += 1;
        header.last_seq = record.seq;
        header.records += 1;
    }

    fn opaque(&mut self, code: u8, bytes: &[u8]) {
        self.streams.of(Id::Kinds).push(code);
        let out = self.streams.of(Id::Opaque);
        streams::varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
        self.header.raw += bytes.len() as u32;
    }

    fn kernel(&mut self, time: u64, raw: &Bytes) {
        let Some(parts) = parts(raw) else { return self.opaque(LITERAL, raw) };
        let Some(symbol) = self.symbol(&parts) else { return self.opaque(LITERAL, raw) };
        self.header.raw += raw.len() as u32;
        let tgid = parts.words[header::TGID];
        let rank = self.model.rank(tgid);
        match rank {
            Some(rank) => self.streams.of(Id::Tasks).push(rank),
            None => {
                self.streams.of(Id::Tasks).push(FAR);
                streams::near(self.streams.of(Id::Words), tgid, self.model.child);
            }
        }
        let mut given = Given { time, tgid, rank, tails: [NONE; 2], child: 0, child_start: 0 };
        for (place, tail) in parts.tails.iter().enumerate().take(parts.layout.tails.len()) {
            given.tails[place] = self.tail(symbol, place, given.tails[0], tail);
        }
        if parts.kind == FORK {
            given.child = parts.words[fork::CHILD_TGID];
            given.child_start = wire::long(&parts.words, fork::CHILD_START);
            streams::near(self.streams.of(Id::Children), given.child, self.model.child);
            // The child starts a little before its fork is told.
            let class = self.bits.put(self.streams.of(Id::Bits), time, given.child_start);
            self.streams.of(Id::Starts).push(class);
        }
        let mut predicted = [0; WORDS];
        self.model.predict(symbol, &given, self.streams.of(Id::Text), &mut predicted);
        self.differences(&parts.words, &predicted);
        self.model.learn(symbol, &parts.words, &given);
    }

    fn symbol(&mut self, parts: &Parts<'_>) -> Option<usize> {
        let found = self.model.symbols.iter().position(|symbol| symbol.kind == parts.kind && symbol.hook == parts.hook);
        let symbol = match found {
            Some(symbol) => symbol,
            None => {
                let next = self.model.symbols.len();
                if next >= usize::from(LITERAL) {
                    return None;
                }
                self.model.add_symbol(parts.kind, parts.hook, parts.layout);
                let words = self.streams.of(Id::Words);
                streams::varint(words, parts.kind.into());
                streams::varint(words, parts.hook.into());
                next
            }
        };
        self.streams.of(Id::Kinds).push(u8::try_from(symbol).ok()?);
        Some(symbol)
    }

    fn tail(&mut self, symbol: usize, place: usize, first: u32, bytes: &[u8]) -> u32 {
        let of = |tail: &super::model::Tail| tail.start as usize..(tail.start + tail.len) as usize;
        let expected = self.model.expected_tail(symbol, place, first);
        if let Some(tail) = self.model.tails.get(expected as usize)
            && self.streams.of(Id::Text).get(of(tail)) == Some(bytes)
        {
            streams::varint(self.streams.of(Id::Tails), EXPECTED);
            return expected;
        }
        let sum = checksum(bytes);
        if let Some(known) = self.known.get(&sum)
            && let Some(tail) = self.model.tails.get(*known as usize)
            && self.streams.of(Id::Text).get(of(tail)) == Some(bytes)
        {
            streams::varint(self.streams.of(Id::Tails), KNOWN + u64::from(*known));
            return *known;
        }
        streams::varint(self.streams.of(Id::Tails), NEW);
        streams::varint(self.streams.of(Id::Tails), bytes.len() as u64);
        let text = self.streams.of(Id::Text);
        let tail = self.model.add_tail(text.len() as u32, bytes.len() as u32);
        text.extend_from_slice(bytes);
        self.known.insert(sum, tail);
        tail
    }

    fn differences(&mut self, words: &Words, predicted: &Words) {
        let mut mask = 0_u64;
        for (at, (word, predicted)) in words.iter().zip(predicted).enumerate() {
            mask |= u64::from(word != predicted) << at;
        }
        match self.model.masks.iter().position(|known| *known == mask) {
            Some(code) => self.streams.of(Id::Masks).push(u8::try_from(code).unwrap_or(RARE)),
            None => {
                // The next code, where there is one.
                let code = self.model.masks.len().min(usize::from(RARE));
                self.streams.of(Id::Masks).push(u8::try_from(code).unwrap_or(RARE));
                streams::varint(self.streams.of(Id::Words), mask);
                if code < usize::from(RARE) {
                    self.model.masks.push(mask);
                }
            }
        }
        let mut left = mask;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            streams::near(self.streams.of(Id::Words), words[at], predicted[at]);
            left &= left - 1;
        }
    }
}

fn fits(len: usize) -> io::Result<()> {
    if len <= RECORD_MAX {
        return Ok(());
    }
    let why = format!("a record of {len} bytes is longer than the {RECORD_MAX} that a trace takes");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Takes a kernel record apart; `None` when it is not exactly as its kind, length and tails say.
fn parts(raw: &[u8]) -> Option<Parts<'_>> {
    let first = wire::word(raw.get(..wire::HEADER * 4)?, 0);
    let (kind, hook) = ((first & 0xffff) as u16, (first >> 16) as u16);
    let layout = wire::layout(kind)?;
    let (fixed, mut rest) = raw.split_at_checked(layout.fixed)?;
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(fixed.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut tails = [&[][..]; 2];
    for (tail, spec) in tails.iter_mut().zip(layout.tails) {
        let len = match spec {
            wire::Tail::Length(at) => usize::from(u16::from_le_bytes(*fixed.get(*at..)?.first_chunk()?)),
            wire::Tail::Padded(len) => *len,
        };
        (*tail, rest) = rest.split_at_checked(len)?;
        if matches!(spec, wire::Tail::Padded(_)) {
            let end = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            *tail = &tail[..end];
        }
    }
    (rest.is_empty() && words[1] as usize == raw.len()).then_some(Parts { kind, hook, layout, words, tails })
}
