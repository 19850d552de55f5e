//! What must hold of any bytes that are read as a trace.

use std::io::{self, Cursor};

use super::{
    FORMAT, Item, RAW_MAX, RECORD_MAX, RECORDS_MAX, Reader, Writer, blocks,
    dump::Line,
    frame::{BLOCK_HEADER, BLOCK_MAGIC, FILE_HEADER, checksum, file_header},
    info::Info,
    wire,
};
use crate::record::{Body, Record};

/// So many records are printed: hexadecimal digits of all would be most of what the fuzzer does.
const PRINTED: u64 = 256;

/// Bytes of the fixed part of a kind of kernel records.
pub(crate) fn layout(kind: u16) -> Option<usize> {
    Some(wire::layout(kind)?.fixed)
}

/// Traces, as they are and with the checksums that somebody would give them who forges one.
pub fn trace_reader(bytes: &[u8]) {
    check(bytes);
    let mended = mended(bytes);
    if mended != bytes {
        check(&mended);
    }
}

/// What was read is written again, and has to come back.
fn check(bytes: &[u8]) {
    if let Ok(blocks) = blocks(&mut Cursor::new(bytes)) {
        assert!(blocks.len() <= bytes.len() / BLOCK_HEADER);
        assert!(blocks.iter().all(|block| block.offset < bytes.len() as u64), "a block is outside");
    }
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let mut writer = Writer::new(Vec::new()).expect("memory takes everything");
    let mut info = Info::default();
    // Records and bytes of the block at hand, and which it is.
    let (mut block, mut records, mut raw) = (0, 0, 0);
    let mut offset = 0;
    let mut refused = false;
    while let Some(item) = reader.next() {
        let Ok(item) = item else { break };
        info.add(&item);
        let progress = reader.progress();
        let at = progress.blocks + progress.opening_blocks;
        assert!(at * BLOCK_HEADER as u64 <= progress.bytes, "more blocks than bytes");
        if at != block {
            (block, records, raw) = (at, 0, 0);
        }
        let written = match &item {
            Item::Record(record) => writer.push(record),
            Item::Opening(record) => writer.opening(record),
            Item::Damage(damage) => {
                assert!(damage.offset >= offset && damage.offset + damage.bytes <= progress.bytes, "{damage}");
                offset = damage.offset;
                continue;
            }
        };
        let record = record(&item).expect("damage was told");
        records += 1;
        raw += if let Body::Kernel { raw } = &record.body { raw.len() } else { 1 };
        assert!(records <= RECORDS_MAX && raw <= RAW_MAX as usize, "{records} records of {raw} bytes in a block");
        if let Err(error) = written {
            assert!(serde_json::to_vec(&record.body).is_ok_and(|json| json.len() > RECORD_MAX), "{error}");
            refused = true;
        }
        if u64::from(records) < PRINTED {
            let line = serde_json::to_string(&Line::new(record, Some(1), false, true)).expect("records are JSON");
            let read: Record = serde_json::from_str(&line).expect("a line is a record");
            assert_eq!(&read, record, "{line}");
        }
    }
    let _ = info.print(&mut io::sink(), &reader.progress());
    if !refused {
        let written = writer.finish().expect("memory takes everything");
        came_back(bytes, &written);
    }
}

/// One record at a time: a block may be large, and there may be many.
fn came_back(read: &[u8], written: &[u8]) {
    let all = |trace| Reader::new(trace).into_iter().flatten().map_while(Result::ok);
    let mut again = all(written);
    for item in all(read).filter(|item| record(item).is_some()) {
        assert_eq!(Some(item), again.next(), "what was read is written as something else");
    }
    assert_eq!(again.next(), None);
}

fn record(item: &Item) -> Option<&Record> {
    match item {
        Item::Record(record) | Item::Opening(record) => Some(record),
        Item::Damage(_) => None,
    }
}

/// The same bytes, with headers where headers have to be and checksums that fit.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(header) = out.first_chunk_mut::<FILE_HEADER>() {
        *header = file_header();
    }
    let mut at = FILE_HEADER;
    while let Some(block) = out.get_mut(at..).filter(|block| block.len() >= BLOCK_HEADER) {
        let (header, rest) = block.split_at_mut(BLOCK_HEADER);
        let says = header[12..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        let len = rest.len().min(says as usize);
        header[..4].copy_from_slice(&BLOCK_MAGIC);
        header[6..8].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&u32::try_from(len).unwrap_or(says).to_le_bytes());
        header[56..64].copy_from_slice(&checksum(&rest[..len]).to_le_bytes());
        let sum = checksum(&header[..64]);
        header[64..].copy_from_slice(&sum.to_le_bytes());
        at += BLOCK_HEADER + len;
    }
    out
}

/// Every kind of record.
#[cfg(test)]
pub(crate) use super::tests::every_record;

/// Traces to begin with. Their streams are not compressed: a fuzzer gets through nothing that is.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    use super::tests::{busy, golden, trace};
    let few = |records: &[Record]| stored(&trace(records));
    let mut opened = Writer::new(Vec::new()).unwrap();
    busy(2).iter().for_each(|record| opened.opening(record).unwrap());
    busy(2).iter().for_each(|record| opened.push(record).unwrap());
    let busy = few(&busy(6));
    let cut = &busy[..busy.len() - 130];
    let every = every_record();
    [
        ("golden-v1", std::fs::read(golden("v1.trace")).unwrap()),
        ("every", few(&every[..every.len().min(45)])),
        ("bodies", few(&every[every.len() - 16..])),
        ("opened", stored(&opened.finish().unwrap())),
        ("two", [cut, &busy].concat()),
        ("compressed", zstd::bulk::compress(&busy, 3).unwrap()),
        ("busy", busy),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

/// The same trace with streams that are stored as they are.
#[cfg(test)]
fn stored(trace: &[u8]) -> Vec<u8> {
    use super::{
        frame::{BlockHeader, kind},
        streams::{ALL, Streams, varint},
    };
    let mut streams = Streams::default();
    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
    let (mut out, mut rest) = (trace[..FILE_HEADER].to_vec(), &trace[FILE_HEADER..]);
    while let Some(mut header) = BlockHeader::parse(rest) {
        let mut payload = rest[BLOCK_HEADER..header.len()].to_vec();
        rest = &rest[header.len()..];
        if matches!(header.kind, kind::OPENING | kind::RECORDS) {
            streams.unpack(&mut decompressor, &payload).unwrap();
            payload.clear();
            for id in ALL {
                let stream = streams.cursor(id).rest();
                varint(&mut payload, stream.len() as u64);
                varint(&mut payload, 0);
                payload.extend_from_slice(stream);
            }
        }
        header.packed = u32::try_from(payload.len()).unwrap();
        header.checksum = checksum(&payload);
        out.extend(header.bytes());
        out.extend(payload);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::tests, *};

    /// Without that the fuzzer would never get behind a checksum.
    #[test]
    fn a_trace_whose_bytes_changed_is_read_once_it_is_mended() {
        let trace = stored(&tests::trace(&tests::busy(6)));
        let whole =
            |bytes: &[u8]| Reader::new(bytes).unwrap().filter(|item| matches!(item, Ok(Item::Record(_)))).count();
        let count = whole(&trace);
        assert!(count > 10 && mended(&trace) == trace);
        let mut changed = trace.clone();
        // In the payload of the first block: the bits of times, which may be any.
        let at = trace.windows(5).position(|bytes| bytes == b"sleep").unwrap();
        changed[at] = b'X';
        assert_eq!(whole(&changed), 0);
        assert_eq!(whole(&mended(&changed)), count);
    }
}
