//! A block's payload to records. Any bytes give records or an error, within the lengths that the block's header says.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use zerocopy::IntoBytes as _;
use zstd::bulk::Decompressor;

use super::{
    frame::BlockHeader,
    model::{Given, Model, NONE, Words},
    pack::{EXPECTED, FAR, JSON, KNOWN, LITERAL, NEW, RARE},
    streams::{BitCursor, Cursor, Id, Malformed, Streams},
    wire::{self, FORK, WORDS},
};
use crate::record::{Body, BootNs, Record};

/// Where a record of a block lies.
#[derive(Clone, Copy)]
struct Place {
    seq: u64,
    time: u64,
    end: u32,
    json: bool,
}

/// Takes blocks apart; keeps its memory from one to the next.
pub struct Unpacker {
    decompressor: Decompressor<'static>,
    streams: Streams,
    model: Model,
    places: Vec<Place>,
    /// Kernel records and JSON, one behind the other.
    raws: Bytes,
    /// The next record's place, and where it starts.
    next: usize,
    start: usize,
}

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            decompressor: Decompressor::new()?,
            streams: Streams::default(),
            model: Model::default(),
            places: Vec::new(),
            raws: Bytes::new(),
            next: 0,
            start: 0,
        })
    }

    /// Takes a payload apart, whose checksum fits.
    pub fn block(&mut self, header: &BlockHeader, payload: &[u8]) -> Result<(), Malformed> {
        self.places.clear();
        (self.next, self.start) = (0, 0);
        self.streams.unpack(&mut self.decompressor, payload)?;
        self.model.clear();
        // The memory of the last block, when nobody holds a record of it.
        let mut raws = std::mem::take(&mut self.raws).try_into_mut().unwrap_or_default();
        raws.clear();
        raws.reserve(header.raw as usize);
        let mut cursors = Cursors::new(&self.streams);
        let done = cursors.records(header, &mut self.model, &mut self.places, &mut raws);
        if done.is_err() {
            self.places.clear();
        }
        self.raws = raws.freeze();
        done
    }

    /// The next record; `Err` when it is none that this version knows.
    pub fn record(&mut self) -> Option<Result<Record, serde_json::Error>> {
        let place = self.places.get(self.next)?;
        let range = self.start..place.end as usize;
        self.next += 1;
        self.start = range.end;
        let body = if place.json {
            match serde_json::from_slice(&self.raws[range]) {
                Ok(body) => body,
                Err(error) => return Some(Err(error)),
            }
        } else {
            Body::Kernel { raw: self.raws.slice(range) }
        };
        Some(Ok(Record { seq: place.seq, time: BootNs(place.time), body }))
    }
}

/// The streams while they are read.
struct Cursors<'a> {
    kinds: Cursor<'a>,
    seqs: Cursor<'a>,
    times: Cursor<'a>,
    starts: Cursor<'a>,
    bits: BitCursor<'a>,
    tasks: Cursor<'a>,
    children: Cursor<'a>,
    masks: Cursor<'a>,
    words: Cursor<'a>,
    tails: Cursor<'a>,
    text: &'a [u8],
    /// How much of the text the tails so far have.
    text_end: usize,
    opaque: Cursor<'a>,
    /// The fixed part of the record that is read.
    fixed: Words,
}

impl<'a> Cursors<'a> {
    fn new(streams: &'a Streams) -> Self {
        Self {
            kinds: streams.cursor(Id::Kinds),
            seqs: streams.cursor(Id::Seqs),
            times: streams.cursor(Id::Times),
            starts: streams.cursor(Id::Starts),
            bits: BitCursor::new(streams.cursor(Id::Bits)),
            tasks: streams.cursor(Id::Tasks),
            children: streams.cursor(Id::Children),
            masks: streams.cursor(Id::Masks),
            words: streams.cursor(Id::Words),
            tails: streams.cursor(Id::Tails),
            text: streams.cursor(Id::Text).rest(),
            text_end: 0,
            opaque: streams.cursor(Id::Opaque),
            fixed: [0; WORDS],
        }
    }

    fn records(
        &mut self,
        header: &BlockHeader,
        model: &mut Model,
        places: &mut Vec<Place>,
        raws: &mut BytesMut,
    ) -> Result<(), Malformed> {
        let limit = header.raw as usize;
        let mut seq = header.first_seq;
        let mut exception = self.exception()?;
        for number in 0..u64::from(header.records) {
            if number > 0 {
                seq = seq.wrapping_add(1);
            }
            if let Some((at, by)) = &mut exception
                && number > 0
            {
                *at -= 1;
                if *at == 0 {
                    seq = seq.wrapping_add(*by);
                    exception = self.exception()?;
                }
            }
            let code = self.kinds.byte()?;
            let class = self.times.byte()?;
            let time = self.bits.get(class, model.time)?;
            model.time = time;
            match code {
                JSON | LITERAL => {
                    let len = usize::try_from(self.opaque.varint()?).map_err(|_| Malformed::TooLong)?;
                    let bytes = self.opaque.take(len)?;
                    room(raws, len, limit)?;
                    raws.put_slice(bytes);
                }
                symbol => self.kernel(model, symbol.into(), time, raws, limit)?,
            }
            // Within `limit`, which is a u32.
            places.push(Place { seq, time, end: raws.len() as u32, json: code == JSON });
        }
        if raws.len() != limit {
            return Err(Malformed::Raw);
        }
        let rest = [&self.kinds, &self.seqs, &self.times, &self.starts, &self.tasks, &self.children, &self.masks];
        let empty = rest.iter().chain(&[&self.words, &self.tails, &self.opaque]).all(|cursor| cursor.is_empty());
        let whole = empty && self.bits.is_empty() && self.text_end == self.text.len() && exception.is_none();
        if whole { Ok(()) } else { Err(Malformed::Rest) }
    }

    /// The next exception from consecutive numbers: after how many records, and by how much.
    fn exception(&mut self) -> Result<Option<(u64, u64)>, Malformed> {
        if self.seqs.is_empty() {
            return Ok(None);
        }
        match self.seqs.varint()? {
            0 => Err(Malformed::Reference("a sequence number")),
            after => Ok(Some((after, self.seqs.varint()?))),
        }
    }

    fn kernel(
        &mut self,
        model: &mut Model,
        symbol: usize,
        time: u64,
        raws: &mut BytesMut,
        limit: usize,
    ) -> Result<(), Malformed> {
        if symbol == model.symbols.len() {
            let [kind, hook] = [self.words.varint()?, self.words.varint()?].map(u16::try_from);
            let (Ok(kind), Ok(hook)) = (kind, hook) else { return Err(Malformed::Number) };
            let layout = wire::layout(kind).ok_or(Malformed::Reference("a kind"))?;
            model.add_symbol(kind, hook, layout);
        }
        let known = model.symbols.get(symbol).ok_or(Malformed::Reference("a kind"))?;
        let (kind, layout) = (known.kind, known.layout);
        let (tgid, rank) = match self.tasks.byte()? {
            FAR => (self.words.near(model.child)?, None),
            rank => (model.ranked(rank).ok_or(Malformed::Reference("a process"))?, Some(rank)),
        };
        let mut given = Given { time, tgid, rank, tails: [NONE; 2], child: 0, child_start: 0 };
        for place in 0..layout.tails.len() {
            given.tails[place] = self.tail(model, symbol, place, given.tails[0])?;
        }
        if kind == FORK {
            given.child = self.children.near(model.child)?;
            let class = self.starts.byte()?;
            // Written as what the fork comes later by.
            given.child_start = self.bits.get(class ^ 0x80, time)?;
        }
        model.predict(symbol, &given, self.text, &mut self.fixed);
        let code = self.masks.byte()?;
        let mut mask = match model.masks.get(usize::from(code)) {
            Some(mask) if code != RARE => *mask,
            _ => {
                if code != RARE && usize::from(code) != model.masks.len() {
                    return Err(Malformed::Reference("a mask"));
                }
                let mask = self.words.varint()?;
                if mask >> layout.words() != 0 {
                    return Err(Malformed::Reference("a mask"));
                }
                if code != RARE {
                    model.masks.push(mask);
                }
                mask
            }
        };
        while mask != 0 {
            let at = mask.trailing_zeros() as usize;
            let word = self.fixed.get_mut(at).ok_or(Malformed::Reference("a mask"))?;
            *word = self.words.near(*word)?;
            mask &= mask - 1;
        }
        model.learn(symbol, &self.fixed, &given);
        room(raws, layout.fixed, limit)?;
        // Little-endian, as every machine that this is built for.
        raws.put_slice(&self.fixed.as_bytes()[..layout.fixed]);
        for (tail, spec) in given.tails.iter().zip(layout.tails) {
            let tail = model.tails.get(*tail as usize).ok_or(Malformed::Reference("a tail"))?;
            let start = tail.start as usize;
            let bytes = self.text.get(start..start + tail.len as usize).ok_or(Malformed::Reference("a tail"))?;
            let len = match spec {
                wire::Tail::Length(_) => bytes.len(),
                wire::Tail::Padded(len) if bytes.len() <= *len => *len,
                wire::Tail::Padded(_) => return Err(Malformed::Reference("a tail")),
            };
            room(raws, len, limit)?;
            raws.put_slice(bytes);
            if len > bytes.len() {
                raws.put_bytes(0, len - bytes.len());
            }
        }
        Ok(())
    }

    fn tail(&mut self, model: &mut Model, symbol: usize, place: usize, first: u32) -> Result<u32, Malformed> {
        match self.tails.varint()? {
            EXPECTED => Ok(model.expected_tail(symbol, place, first)),
            NEW => {
                let len = usize::try_from(self.tails.varint()?).map_err(|_| Malformed::TooLong)?;
                let start = self.text_end;
                self.text_end = start.saturating_add(len);
                if self.text_end > self.text.len() {
                    return Err(Malformed::Short(Id::Text as usize));
                }
                // The text is shorter than 4 GiB.
                Ok(model.add_tail(start as u32, len as u32))
            }
            known => u32::try_from(known - KNOWN).map_err(|_| Malformed::Reference("a tail")),
        }
    }
}

/// Whether so many bytes more may come: the memory for them is there already.
fn room(raws: &BytesMut, len: usize, limit: usize) -> Result<(), Malformed> {
    if limit - raws.len() >= len { Ok(()) } else { Err(Malformed::Raw) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::{self, Actor},
        trace::pack::Packer,
    };

    /// A tail takes its bytes once in the file, and in memory as often as it is referred to.
    #[test]
    fn a_block_takes_no_more_memory_than_its_header_says() {
        let raw = testing::exec(Actor::host(2, 1), Actor::host(1, 1), "/bin/x", &["x"; 400]);
        let mut packer = Packer::new().unwrap();
        for seq in 0..2_000 {
            packer.push(&Record { seq, time: BootNs(seq), body: Body::Kernel { raw: raw.clone() } }).unwrap();
        }
        let mut payload = Vec::new();
        let mut header = packer.finish(&mut payload).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        assert_eq!(unpacker.block(&header, &payload), Ok(()));
        assert_eq!(unpacker.raws.len(), 2_000 * raw.len());
        header.raw = 10_000;
        assert_eq!(unpacker.block(&header, &payload), Err(Malformed::Raw));
        assert!(unpacker.raws.len() <= 10_000);
        assert!(unpacker.record().is_none());
    }
}
