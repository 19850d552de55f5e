//! What is written comes back; what is damaged is said, and costs what it holds and nothing more.

use std::{
    io::{Cursor, Read},
    path::PathBuf,
};

use bytes::Bytes;
use detector_common::{self as wire, hook, kind};

use super::{
    frame::{BLOCK_HEADER, BlockHeader, FILE_HEADER, checksum, file_header},
    info::Info,
    *,
};
use crate::{
    decode,
    record::{
        AuditLog, Body, BootNs, ChangeKind, ComponentKind, ContainerRole, DirState, ExecutedFile, HookState,
        ImageArrival, ImageNames, LogState, Loss, PauseConfig, ProcessKey, SecretKind, Start, WatchReason, Watched,
        WatchedDir,
    },
    testing::{self, Actor, DIR, FILE, Noise, POD, SECOND, Stream},
    testing_control as control,
};

/// A stream with every body and every kind of kernel record in it, regular and not.
pub fn every_record() -> Vec<Record> {
    let (shell, child) = (Actor::host(50, 10), Actor::host(60, 20));
    let inside = Actor { pid: 70, start: 30, cgroup: 9, mnt_ns: 77, pid_ns: 78 };
    let shared = wire::Shared { net: 79, ..wire::Shared::default() };
    let mut stream = Stream::new();
    stream.push(Body::Start(Box::new(Start {
        kernel: "6.12".to_owned(),
        hooks: vec![HookState {
            name: "exec".to_owned(),
            backend: None,
            reason: Some("no".to_owned()),
            verified: None,
            required: true,
        }],
        ..Start::default()
    })));
    stream.push(Body::Cgroup { id: 9, path: "/kubepods/x\u{fffd}".to_owned() });
    for round in 0..3 {
        stream.kernel(testing::fork(shell, child));
        stream.kernel(testing::exec(child, shell, "/usr/bin/env", &["env", "", "x=1"]));
        stream.kernel(testing::exec(child, shell, "/usr/bin/a-program-with-a-long-name", &[]));
        stream.kernel(testing::exec_in(inside, child, "/usr/bin/env", &["env", "", "x=1"], shared, 1 + round, ""));
        stream.kernel(testing::open(child, FILE, DIR, "/etc/kubernetes/manifests/a.yaml"));
        stream.kernel(testing::change(inside, FILE, 1));
        stream.kernel(testing::rename(child, Some(FILE), "a", "/b"));
        stream.kernel(testing::io_uring(child));
        stream.kernel(testing::entry(child, hook::INODE_RENAME, [FILE, DIR], ["a", "b"]));
        stream.kernel(testing::cgroup(child, 9, "/kubepods/x"));
        stream.kernel(testing::cgroup_gone(child, 9));
        stream.kernel(testing::cgroup_move(shell, child, 9));
        stream.kernel(testing::namespaces(inside, 77, 78, shared));
        let header = |kind, hook| child.header(kind, hook);
        let ptrace =
            wire::Ptrace { header: header(kind::PTRACE, hook::PTRACE), target_start_ns: 7, target_tgid: 8, mode: 9 };
        stream.kernel(testing::raw(&ptrace, &[]));
        let socket = wire::Socket {
            header: header(kind::SOCKET, hook::SOCKET_CONNECT),
            call: wire::socket::CONNECT,
            args: [0, 0, 16],
            address: [3; wire::ADDRESS_MAX],
            zero: 0,
        };
        stream.kernel(testing::raw(&socket, &[]));
        for kind in [kind::WRITE, kind::MAP] {
            let mut raw = testing::open(child, FILE, DIR, "/x").to_vec();
            raw[..2].copy_from_slice(&kind.to_le_bytes());
            stream.kernel(raw.into());
        }
        stream.kernel(control::read(child, FILE, "/run/token"));
        stream.kernel(control::connect(child, "10.0.0.1:443", wire::endpoint::API));
        stream.kernel(control::accept("[2001:db8::7]:5000", "10.0.0.5:6443"));
        stream.kernel_late(testing::exit(child), 5 * SECOND);
        // What no kernel program writes comes back too.
        stream.kernel(Bytes::from_static(b""));
        stream.kernel(Bytes::from_static(b"\x01\x00nonsense"));
        stream.kernel([&testing::exit(child)[..], &[0; 4]].concat().into());
        let mut unknown = testing::exit(child).to_vec();
        unknown[..2].copy_from_slice(&999_u16.to_le_bytes());
        stream.kernel(unknown.into());
        let mut lies = testing::exec(child, shell, "/bin/true", &["true"]).to_vec();
        lies[100..102].copy_from_slice(&u16::MAX.to_le_bytes());
        stream.kernel(lies.into());
    }
    let since = stream.now();
    let mut change = testing::manifest(ChangeKind::Added, Some(POD), since);
    stream.push(Body::Manifest(Box::new(change.clone())));
    change.before = change.after.clone();
    if let Some(file) = &mut change.before {
        file.content = Bytes::from_static(b"\xff\x00binary");
    }
    stream.push(Body::Manifest(Box::new(change)));
    stream.push(Body::Watched(Watched {
        dirs: vec![WatchedDir {
            path: "/m".to_owned(),
            reason: WatchReason::Default("kubeadm".to_owned()),
            kubelet_pid: Some(3),
            state: DirState::Present(DIR),
        }],
    }));
    stream.push(Body::Container(Box::new(testing::container("c", 9, ContainerRole::Member, "web"))));
    stream.push(Body::Image(Box::default()));
    stream.push(Body::Image(Box::new(ImageArrival { names: vec!["pause:3.9".to_owned()], ..ImageArrival::default() })));
    stream.push(Body::ImageNames(Box::new(ImageNames { pinned: true, ..ImageNames::default() })));
    stream.push(Body::Executed(Box::new(ExecutedFile {
        process: ProcessKey { pid: 1, start: 2 },
        sha256: None,
        size: 3,
        unreadable: None,
        acted: None,
    })));
    for before in [None, Some(None), Some(Some("pause:3.9".to_owned()))] {
        stream.push(Body::PauseConfig(Box::new(PauseConfig { before, ..PauseConfig::default() })));
    }
    stream.push(Body::Audit(Box::new(testing::audit("alice", "delete", "/api/v1/namespaces/shop/events/e"))));
    stream.push(Body::AuditLog(Box::new(AuditLog {
        path: "/a".to_owned(),
        state: LogState::Truncated { had: 9, has: 0 },
    })));
    stream.push(Body::Loss(Box::new(Loss {
        hook: "fork".to_owned(),
        cpu: Some(1),
        lost: 2,
        skipped: false,
        alerting: false,
    })));
    stream.push(control::secret(FILE, SecretKind::Token, "/run/token", Some("0a1b")));
    stream.push(control::components(vec![control::component(ComponentKind::Etcd, child)]));
    stream.push(Body::Tick);
    stream.records
}

/// Fork, exec and exit of many short processes, 20 ms apart.
pub fn busy(count: u32) -> Vec<Record> {
    let mut stream = Stream::new();
    for number in 0..count {
        let shell = Actor::host(50, 10);
        let child = Actor::host(1000 + number * 3, 100 + u64::from(number));
        stream.kernel(testing::fork(shell, child));
        stream.kernel(testing::exec(child, shell, "/bin/sleep", &["sleep", &format!("{}", number % 7)]));
        stream.wait(18_000_000);
        stream.kernel(testing::exit(child));
    }
    stream.records
}

pub fn trace(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    records.iter().for_each(|record| writer.push(record).unwrap());
    writer.finish().unwrap()
}

fn read(trace: &[u8]) -> Vec<Item> {
    Reader::new(trace).unwrap().map(Result::unwrap).collect()
}

/// Records and damages.
fn parts(items: Vec<Item>) -> (Vec<Record>, Vec<Damage>) {
    let (mut records, mut damages) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Record(record) | Item::Opening(record) => records.push(record),
            Item::Damage(damage) => damages.push(damage),
        }
    }
    (records, damages)
}

/// Where blocks begin, those of index and end too, and the trace's length.
fn bounds(trace: &[u8]) -> Vec<usize> {
    let mut bounds = vec![FILE_HEADER];
    while let Some(header) = BlockHeader::parse(&trace[*bounds.last().unwrap()..]) {
        bounds.push(bounds.last().unwrap() + header.len());
    }
    assert_eq!(bounds.last(), Some(&trace.len()));
    bounds
}

/// The same with another block in place of one of its blocks, whose checksums fit.
fn forged(trace: &[u8], number: usize, change: impl FnOnce(&mut BlockHeader, &mut Vec<u8>)) -> Vec<u8> {
    let bounds = bounds(trace);
    let block = &trace[bounds[number]..bounds[number + 1]];
    let (mut header, mut payload) = (BlockHeader::parse(block).unwrap(), block[BLOCK_HEADER..].to_vec());
    change(&mut header, &mut payload);
    header.checksum = checksum(&payload);
    [&trace[..bounds[number]], &header.bytes(), &payload, &trace[bounds[number + 1]..]].concat()
}

/// What comes back has to be the start and the end of the stream, and the damage has to say what lies between.
fn assert_said(records: &[Record], items: Vec<Item>, what: &str) -> Damage {
    let (found, damages) = parts(items);
    let [damage] = &damages[..] else { panic!("{what}: {damages:?}") };
    let mut rest = &found[..];
    let before = rest.iter().zip(records).take_while(|(found, record)| found == record).count();
    rest = &rest[before..];
    assert!(records.ends_with(rest), "{what}: {damage}");
    if before + rest.len() < records.len() {
        assert_eq!(damage.before, before.checked_sub(1).map(|last| records[last].seq), "{what}: {damage}");
        assert_eq!(damage.after, rest.first().map(|record| record.seq), "{what}: {damage}");
        if let Some(missing) = damage.records {
            assert!(missing as usize <= records.len() - found.len(), "{what}: {damage}");
        }
    }
    damage.clone()
}

#[test]
fn every_record_comes_back_as_it_was() {
    let records = every_record();
    let kinds: std::collections::BTreeSet<_> = records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Kernel { raw } => decode::event(raw).ok().map(|event| event.header().kind),
            _ => None,
        })
        .collect();
    assert_eq!(kinds.len(), 18, "a kind is missing: {kinds:?}");
    let items = read(&trace(&records));
    assert_eq!(parts(items), (records, vec![]));
}

#[test]
fn kernel_records_of_any_content_come_back_byte_for_byte() {
    let mut noise = Noise(5);
    let mut records = Vec::new();
    let regular = every_record();
    for round in 0_u64..20_000 {
        let pick = &regular[usize::try_from(noise.next()).unwrap() % regular.len()];
        let Body::Kernel { raw } = &pick.body else { continue };
        let mut raw = raw.to_vec();
        for _ in 0..round % 4 {
            let at = usize::try_from(noise.next()).unwrap() % raw.len().max(1);
            if let Some(byte) = raw.get_mut(at) {
                *byte = noise.next().to_le_bytes()[0];
            }
        }
        // Numbers and times jump too, to the ends of their range.
        let [seq, time] = match round % 50 {
            7 => [u64::MAX, 0],
            8 => [0, u64::MAX],
            9 => [noise.next() << 24, 1 << 63],
            _ => [round, noise.next()],
        };
        records.push(Record { seq, time: BootNs(time), body: Body::Kernel { raw: raw.into() } });
    }
    let (found, damages) = parts(read(&trace(&records)));
    assert_eq!(damages, []);
    assert_eq!(found.len(), records.len());
    for (found, record) in found.iter().zip(&records) {
        assert_eq!(found, record);
    }
}

#[test]
fn numbers_of_every_length_come_back() {
    let mut streams = streams::Streams::default();
    let mut bits = streams::Bits::default();
    let edges = (0..64).flat_map(|shift| [1_u64 << shift, (1 << shift) - 1, u64::MAX << shift]);
    let pairs: Vec<_> = edges.flat_map(|value| [(value, 0), (0, value), (value, 77), (u64::MAX, value)]).collect();
    let classes: Vec<_> =
        pairs.iter().map(|(value, before)| bits.put(streams.of(streams::Id::Bits), *value, *before)).collect();
    bits.finish(streams.of(streams::Id::Bits));
    let mut cursor = streams::BitCursor::new(streams.cursor(streams::Id::Bits));
    for ((value, before), class) in pairs.iter().zip(classes) {
        assert_eq!(cursor.get(class, *before), Ok(*value), "{value} after {before}");
    }
    assert!(cursor.is_empty());
}

#[test]
fn forks_execs_and_exits_take_few_bytes() {
    let records = busy(5_000);
    let each = trace(&records).len() as f64 / records.len() as f64;
    assert!(each < 10.0, "{each} bytes a record");
}

#[test]
fn blocks_are_cut_by_time_count_and_on_request() {
    let spans = |records: &[Record]| {
        let all = blocks(&mut Cursor::new(trace(records))).unwrap();
        assert!(all.iter().all(|block| block.max_time - block.min_time <= SECOND));
        all.iter().map(|block| block.records).collect::<Vec<_>>()
    };
    // A process lives for 21 ms; the last one's end is more than a second behind the first record.
    assert_eq!(spans(&busy(100))[0], 3 + 47 * 3 + 2);
    let still = Record { seq: 1, time: BootNs(1), body: Body::Tick };
    assert_eq!(spans(&vec![still.clone(); 20_000]), [16_384, 3_616]);
    let mut writer = Writer::new(Vec::new()).unwrap();
    let begin = writer.written();
    writer.push(&still).unwrap();
    assert_eq!((writer.written(), writer.pending()), (begin, 1));
    writer.flush().unwrap();
    assert_eq!(writer.written(), writer.get_ref().len() as u64);
    assert!(writer.written() > begin);
    writer.push(&still).unwrap();
    // As a killed agent leaves it: the block at hand is not there.
    let items = read(writer.get_ref());
    assert!(matches!(&items[..], [Item::Record(_), Item::Damage(Damage { why: Why::Unfinished, .. })]), "{items:?}");
}

#[test]
fn a_record_that_is_too_long_is_refused_and_the_trace_goes_on() {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let record = |path: String| Record { seq: 1, time: BootNs(1), body: Body::Cgroup { id: 1, path } };
    writer.push(&record("a".to_owned())).unwrap();
    let error = writer.push(&record("a".repeat(RECORD_MAX))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    writer.push(&record("b".to_owned())).unwrap();
    let (found, damages) = parts(read(&writer.finish().unwrap()));
    assert_eq!((found.len(), damages), (2, vec![]));
}

#[test]
fn opening_records_are_told_apart_from_the_stream() {
    let records = every_record();
    let (opening, stream) = records.split_at(4);
    let mut writer = Writer::new(Vec::new()).unwrap();
    opening.iter().for_each(|record| writer.opening(record).unwrap());
    stream.iter().for_each(|record| writer.push(record).unwrap());
    let trace = writer.finish().unwrap();
    let expected: Vec<_> =
        opening.iter().cloned().map(Item::Opening).chain(stream.iter().cloned().map(Item::Record)).collect();
    assert_eq!(read(&trace), expected);
    assert!(blocks(&mut Cursor::new(trace)).unwrap()[0].opening);
}

#[test]
fn a_block_needs_no_other() {
    let mut records = every_record();
    // The idle process, which looks like a place that nobody has.
    for raw in [testing::io_uring(Actor::host(0, 9)), testing::change(Actor::host(0, 9), FILE, 1)] {
        let seq = records.len() as u64 + 1;
        records.push(Record { seq, time: records[0].time, body: Body::Kernel { raw } });
    }
    let mut writer = Writer::new(Vec::new()).unwrap();
    for _ in 0..3 {
        records.iter().for_each(|record| writer.push(record).unwrap());
        writer.flush().unwrap();
    }
    let trace = writer.finish().unwrap();
    let bounds = bounds(&trace);
    let mut taken = 0;
    for block in bounds[..bounds.len() - 2].windows(2) {
        let alone = [&file_header()[..], &trace[block[0]..block[1]]].concat();
        let (found, _) = parts(read(&alone));
        assert_eq!(found, records[taken % records.len()..][..found.len()]);
        taken += found.len();
    }
    assert_eq!(taken, 3 * records.len());
}

#[test]
fn a_trace_cut_anywhere_gives_every_whole_block_and_says_that_there_is_more() {
    let records = busy(100);
    let trace = trace(&records);
    let bounds = bounds(&trace);
    assert!(bounds.len() > 5, "several blocks, an index and an end");
    for len in 0..trace.len() {
        let cut = &trace[..len];
        if len < FILE_HEADER {
            assert!(matches!(Reader::new(cut), Err(TraceError::NotATrace(_))), "{len}");
            continue;
        }
        let damage = assert_said(&records, read(cut), &format!("cut to {len}"));
        let whole = bounds.iter().filter(|bound| **bound <= len).max().unwrap();
        assert_eq!((damage.offset, damage.bytes), (*whole as u64, (len - whole) as u64), "{damage}");
    }
}

#[test]
fn a_byte_that_changed_costs_its_block_alone() {
    let records = busy(100);
    let trace = trace(&records);
    let bounds = bounds(&trace);
    for at in 0..trace.len() {
        let mut damaged = trace.clone();
        damaged[at] ^= 1 << (at % 8);
        let damage = assert_said(&records, read(&damaged), &format!("byte {at}"));
        let begin = bounds.iter().filter(|bound| **bound <= at).max().copied().unwrap_or(0);
        let end = bounds.iter().find(|bound| **bound > at).unwrap();
        assert_eq!((damage.offset, damage.bytes), (begin as u64, (end - begin) as u64), "byte {at}: {damage}");
    }
}

#[test]
fn bytes_that_are_gone_or_too_many_cost_what_they_touch() {
    let records = busy(150);
    let trace = trace(&records);
    let bounds = bounds(&trace);
    let mut noise = Noise(9);
    for round in 0..500 {
        let pick = |noise: &mut Noise, below: usize| usize::try_from(noise.next()).unwrap() % below;
        let at = FILE_HEADER + pick(&mut noise, trace.len() - FILE_HEADER);
        let len = 1 + pick(&mut noise, 200);
        let damaged = if round % 2 == 0 {
            [&trace[..at], &trace[(at + len).min(trace.len())..]].concat()
        } else {
            let more: Vec<u8> = (0..len).map(|_| noise.next().to_le_bytes()[0]).collect();
            [&trace[..at], &more, &trace[at..]].concat()
        };
        if bounds.contains(&at) && damaged.len() < trace.len() {
            continue;
        }
        assert_said(&records, read(&damaged), &format!("{len} bytes at {at}, round {round}"));
    }
    // A whole block is gone, and everything that is left is as it was.
    for number in 0..bounds.len() - 2 {
        let damaged = [&trace[..bounds[number]], &trace[bounds[number + 1]..]].concat();
        let damage = assert_said(&records, read(&damaged), &format!("without block {number}"));
        let (expected, found) = (number as u32, number as u32 + 1);
        assert_eq!(damage.why, Why::Missing { expected, found });
    }
}

#[test]
fn any_bytes_are_read_to_their_end_without_a_panic() {
    let records = every_record();
    let trace = trace(&records);
    let mut noise = Noise(11);
    for round in 0..1_000 {
        // Behind correct checksums, since without them nothing is looked at.
        let damaged = forged(&trace, 0, |header, payload| {
            for _ in 0..1 + round % 6 {
                let at = usize::try_from(noise.next()).unwrap() % payload.len();
                payload[at] = noise.next().to_le_bytes()[0];
            }
            match round % 7 {
                0 => header.records = u32::try_from(noise.next() % 100_000).unwrap(),
                1 => header.raw = u32::try_from(noise.next() % 100_000).unwrap(),
                _ => {}
            }
        });
        let (_, damages) = parts(read(&damaged));
        assert!(damages.len() <= records.len());
        // And streams that are not compressed, so that every byte of them is met.
        let mut unpacker = unpack::Unpacker::new().unwrap();
        let mut payload = Vec::new();
        for stream in 0..streams::COUNT {
            let bytes: Vec<u8> = (0..noise.next() % 200)
                .map(|_| noise.next().to_le_bytes()[0] & [0xff, 3, 0x0f][(round + stream) % 3])
                .collect();
            streams::varint(&mut payload, bytes.len() as u64);
            streams::varint(&mut payload, 0);
            payload.extend_from_slice(&bytes);
        }
        let header = BlockHeader { records: 200, raw: 1 << 20, ..BlockHeader::default() };
        let _ = unpacker.block(&header, &payload);
    }
}

#[test]
fn lengths_that_lie_allocate_nothing_and_cost_one_block() {
    let records = busy(150);
    let trace = trace(&records);
    for (change, why) in [
        (Box::new(|header: &mut BlockHeader| header.packed = u32::MAX) as Box<dyn Fn(&mut BlockHeader)>, Why::Lengths),
        (Box::new(|header| header.raw = u32::MAX), Why::Lengths),
        (Box::new(|header| header.records = u32::MAX), Why::Lengths),
        (Box::new(|header| header.packed = PACKED_MAX), Why::Cut),
    ] {
        let damage = assert_said(&records, read(&forged(&trace, 1, |header, _| change(header))), &why.to_string());
        assert_eq!(damage.why, why);
    }
    // A few bytes that say they are many.
    let bomb = forged(&trace, 1, |header, payload| {
        payload.clear();
        let zeros = zstd::bulk::compress(&vec![0; RAW_MAX as usize + 1], 1).unwrap();
        streams::varint(payload, u64::from(RAW_MAX) + 1);
        streams::varint(payload, zeros.len() as u64);
        payload.extend_from_slice(&zeros);
        header.packed = u32::try_from(payload.len()).unwrap();
    });
    let damage = assert_said(&records, read(&bomb), "bomb");
    assert_eq!(damage.why, Why::Malformed(streams::Malformed::TooLong.to_string()));
}

#[test]
fn a_block_that_lies_in_somebody_elses_text_is_not_read() {
    let foreign = trace(&busy(1));
    let mut stream = Stream::new();
    // Between bytes that do not compress it is stored as it is.
    let mut noise = Noise(13);
    let mut text: Vec<u8> = (0..60_000).map(|_| noise.next().to_le_bytes()[0]).collect();
    text.extend_from_slice(&foreign);
    stream.kernel(text.into());
    let records = stream.records;
    let trace = trace(&records);
    let copies = trace.windows(FILE_HEADER).filter(|bytes| *bytes == file_header()).count();
    assert_eq!(copies, 2, "the text is in the file as it is");
    let mut damaged = trace.clone();
    damaged[FILE_HEADER + BLOCK_HEADER] ^= 1;
    let (found, damages) = parts(read(&damaged));
    assert_eq!((found, damages.len()), (vec![], 1));
}

#[test]
fn traces_one_behind_the_other_are_read_as_one_after_the_other() {
    let records = busy(60);
    let (first, second) = records.split_at(90);
    let mut all = [trace(first), trace(second)].concat();
    assert_eq!(parts(read(&all)), (records.clone(), vec![]));
    let listed = blocks(&mut Cursor::new(&all)).unwrap();
    assert_eq!(listed.iter().map(|block| block.records).sum::<u32>() as usize, records.len());
    for block in listed {
        let header = BlockHeader::parse(&all[block.offset as usize..]).unwrap();
        assert_eq!((header.first_seq, header.records), (block.first_seq, block.records));
    }
    // The first one has no end: its recorder was killed.
    let end = bounds(&trace(first))[bounds(&trace(first)).len() - 3];
    all = [&trace(first)[..end], &trace(second)].concat();
    let (found, damages) = parts(read(&all));
    assert_eq!(found, records);
    assert!(matches!(&damages[..], [Damage { why: Why::Unfinished, .. }]), "{damages:?}");
}

#[test]
fn the_index_says_what_a_walk_through_the_headers_finds() {
    let records = busy(300);
    let trace = trace(&records);
    let bounds = bounds(&trace);
    let indexed = blocks(&mut Cursor::new(&trace)).unwrap();
    assert_eq!(indexed.len(), bounds.len() - 3);
    assert_eq!(indexed.iter().map(|block| block.offset as usize).collect::<Vec<_>>(), bounds[..indexed.len()]);
    // Without an end, with a damaged index, and behind rubbish it is put together.
    let end = bounds[bounds.len() - 2];
    assert_eq!(blocks(&mut Cursor::new(&trace[..end])).unwrap(), indexed);
    let mut damaged = trace.clone();
    damaged[bounds[bounds.len() - 3] + BLOCK_HEADER] ^= 1;
    assert_eq!(blocks(&mut Cursor::new(&damaged)).unwrap(), indexed);
    let mut damaged = trace.clone();
    damaged[bounds[1]] ^= 1;
    damaged.truncate(end);
    let rest: Vec<_> = indexed.iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, block)| *block).collect();
    assert_eq!(blocks(&mut Cursor::new(&damaged)).unwrap(), rest);
    for len in 0..trace.len() {
        let whole = bounds.iter().filter(|bound| **bound + BLOCK_HEADER <= len).count().min(indexed.len());
        assert_eq!(blocks(&mut Cursor::new(&trace[..len])).unwrap(), indexed[..whole], "cut to {len}");
    }
}

#[test]
fn an_index_that_lies_is_not_believed_and_makes_nothing_go_round() {
    let trace = trace(&busy(300));
    let indexed = blocks(&mut Cursor::new(&trace)).unwrap();
    let [index, end] = [bounds(&trace).len() - 3, bounds(&trace).len() - 2];
    let inside = |number: usize| indexed[number];
    let outside = Block { offset: trace.len() as u64 + 9, ..inside(0) };
    let header = Block { offset: 0, ..inside(0) };
    let many = vec![Block { min_time: 0, max_time: 0, ..inside(0) }; index::INDEX_EVERY + 1];
    for (list, believed) in
        [(vec![inside(1)], true), (vec![inside(0), outside], false), (vec![header], false), (many, false)]
    {
        let with = forged(&trace, index, |header, payload| {
            *payload = index::payload(0, &list);
            header.packed = u32::try_from(payload.len()).unwrap();
        });
        let with = forged(&with, end, |_, payload| payload[8..16].copy_from_slice(&(with.len() as u64).to_le_bytes()));
        let found = blocks(&mut Cursor::new(&with)).unwrap();
        assert_eq!(found, if believed { list } else { indexed.clone() });
    }
    // An end that says that it has no index, and that the next trace's beginning is its own.
    let empty = forged(&trace, end, |_, payload| payload[..16].fill(0));
    let two = [&empty[..], &trace].concat();
    assert_eq!(blocks(&mut Cursor::new(&two)).unwrap().len(), 2 * indexed.len());
}

#[test]
fn a_long_trace_has_several_indices() {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let count = index::INDEX_EVERY as u64 * 2 + 3;
    for seq in 1..=count {
        writer.push(&Record { seq, time: BootNs(seq), body: Body::Tick }).unwrap();
        writer.flush().unwrap();
    }
    let trace = writer.finish().unwrap();
    let listed = blocks(&mut Cursor::new(&trace)).unwrap();
    assert_eq!(listed.iter().map(|block| block.first_seq).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
    assert_eq!(listed, blocks(&mut Cursor::new(&trace[..trace.len() - 1])).unwrap());
    assert_eq!(parts(read(&trace)).1, []);
}

#[test]
fn a_compressed_trace_is_unwrapped_and_its_damage_is_said() {
    let records = busy(150);
    let trace = trace(&records);
    let (first, second) = trace.split_at(bounds(&trace)[2] + 7);
    let packed = [first, second].map(|part| zstd::stream::encode_all(part, 1).unwrap()).concat();
    assert_eq!(parts(read(&packed)), (records.clone(), vec![]));
    let damage = assert_said(&records, read(&packed[..packed.len() - 20]), "a part of a compressed trace");
    assert!(matches!(damage.why, Why::Compression(_)), "{damage}");
    assert!(damage.before.is_some());
    assert!(matches!(Reader::new(&packed[..20]), Err(TraceError::Compression(_))));
}

#[test]
fn what_is_no_trace_and_what_is_newer_is_said() {
    let error = |bytes: &[u8]| match Reader::new(bytes) {
        Ok(reader) => reader.filter_map(Result::err).next().expect("an error").to_string(),
        Err(error) => error.to_string(),
    };
    assert!(error(b"").contains("it is empty"));
    assert!(error(b"{\"seq\":1}\n").starts_with("not a trace: it begins with 7b 22 73"));
    // A transfer in text mode.
    let trace = trace(&busy(1));
    let mut newer = trace.clone();
    newer[8] = 2;
    let sum = checksum(&newer[..16]);
    newer[16..24].copy_from_slice(&sum.to_le_bytes());
    assert!(error(&newer).contains("version 2 of the format"), "{}", error(&newer));
    assert!(error(&forged(&trace, 0, |header, _| header.format = 3)).contains("version 3 of the format"));
    let items = read(&forged(&trace, 0, |header, _| header.kind = 77));
    assert!(matches!(&items[..], [Item::Damage(Damage { why: Why::UnknownKind(77), .. })]), "{items:?}");
}

#[test]
fn a_record_of_a_newer_agent_costs_itself_alone() {
    let records = vec![
        Record { seq: 1, time: BootNs(1), body: Body::Tick },
        Record { seq: 2, time: BootNs(1), body: Body::Cgroup { id: 5, path: "tick".to_owned() } },
        Record { seq: 3, time: BootNs(1), body: Body::Tick },
    ];
    // So short that the streams are stored as they are.
    let trace = forged(&trace(&records), 0, |_, payload| {
        let at = payload.windows(6).position(|bytes| bytes == b"cgroup").unwrap();
        payload[at..at + 6].copy_from_slice(b"future");
    });
    let (found, damages) = parts(read(&trace));
    assert_eq!(found, [records[0].clone(), records[2].clone()]);
    let [Damage { why: Why::Body(why), records: Some(1), before: Some(1), .. }] = &damages[..] else {
        panic!("{damages:?}")
    };
    assert!(why.contains("future"), "{why}");
}

#[test]
fn an_error_of_the_file_is_an_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let trace = trace(&busy(150));
    let mut items = Reader::new(trace[..trace.len() - 10].chain(Broken)).unwrap();
    assert!(matches!(items.find(Result::is_err), Some(Err(TraceError::Io(_)))));
    assert!(items.next().is_none());
}

fn info(trace: &[u8]) -> String {
    let mut info = Info::default();
    let mut reader = Reader::new(trace).unwrap();
    (&mut reader).for_each(|item| info.add(&item.unwrap()));
    let mut out = Vec::new();
    info.print(&mut out, &reader.progress()).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn info_says_whether_records_were_lost_and_where() {
    let mut records = busy(100);
    let whole = info(&trace(&records));
    assert!(whole.contains("host       node-1"), "{whole}");
    assert!(
        whole.contains("no record was lost between 2026-01-01T00:01:40.001000000Z and 2026-01-01T00:01:42.103000000Z"),
        "{whole}"
    );
    assert!(whole.contains("    fork           100\n"), "{whole}");
    let lost =
        Body::Loss(Box::new(Loss { hook: "fork".to_owned(), cpu: None, lost: 7, skipped: false, alerting: false }));
    records[50].body = lost;
    records.drain(60..70);
    let told = info(&trace(&records));
    assert!(!told.contains("no record was lost"), "{told}");
    assert!(told.contains("7 events of hook fork"), "{told}");
    assert!(told.contains("sequence number 71 follows 60"), "{told}");
    let cut = trace(&records);
    assert!(info(&cut[..cut.len() - 1]).contains("damaged at byte"));
}

#[test]
fn a_dump_shows_what_kernel_records_say_and_with_their_bytes_is_read_back() {
    let records = every_record();
    let line = |record: &Record, raw| serde_json::to_string(&dump::Line::new(record, Some(0), false, raw)).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for record in &records {
        let back: Record = serde_json::from_str(&line(record, true)).unwrap();
        assert_eq!(&back, record);
        let shown: serde_json::Value = serde_json::from_str(&line(record, false)).unwrap();
        if let Body::Kernel { raw } = &record.body {
            let body = &shown["body"];
            assert_eq!(body["event"].is_null(), decode::event(raw).is_err());
            assert_eq!(body["raw"].is_null(), decode::event(raw).is_ok());
            assert_eq!(body["error"].is_null(), decode::event(raw).is_ok());
            kinds.extend(body["event"]["kind"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(kinds.len(), 18, "{kinds:?}");
    let exec = testing::exec(Actor::host(60, 20), Actor::host(50, 10), "/usr/bin/env", &["env", "x=\u{1b}"]);
    let text = line(&Record { seq: 1, time: BootNs(SECOND), body: Body::Kernel { raw: exec } }, false);
    for part in
        [r#""kind":"exec","hook":"exec""#, r#""path":"/usr/bin/env""#, r#""argv":["env","x=\u001b"]"#, r#""pid":60"#]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.starts_with(r#"{"seq":1,"time":1000000000,"wall":"1970-01-01T00:00:01.000000000Z""#), "{text}");
}

#[test]
fn bytes_that_are_no_text_are_in_the_dump_as_well() {
    let mut raw = testing::exec(Actor::host(60, 20), Actor::host(50, 10), "/bin/x", &["x"]).to_vec();
    *raw.last_mut().unwrap() = 0xff;
    let record = Record { seq: 1, time: BootNs(1), body: Body::Kernel { raw: raw.into() } };
    let text = serde_json::to_string(&dump::Line::new(&record, None, false, false)).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

pub fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", name].iter().collect()
}

/// Traces of each version stay readable, to the same records.
#[test]
fn the_golden_trace_of_version_1_is_read() {
    let trace = std::fs::read(golden("v1.trace")).unwrap();
    let lines = std::fs::read_to_string(golden("v1.ndjson")).unwrap();
    let expected: Vec<Record> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(expected.len() > 100);
    let items = read(&trace);
    let opening = items.iter().filter(|item| matches!(item, Item::Opening(_))).count();
    assert_eq!(opening, 3);
    assert_eq!(parts(items), (expected, vec![]));
}

/// Makes it: `cargo test --package detector --lib write_the_golden_trace -- --ignored`. Only ever for a new version, under a
/// name of its own.
#[test]
#[ignore = "writes the file that other tests read"]
fn write_the_golden_trace() {
    let mut records = every_record();
    let last = records.last().unwrap().clone();
    records.extend(busy(50).into_iter().skip(3).map(|record| Record {
        seq: last.seq + record.seq - 3,
        time: BootNs(last.time.0 + record.time.0),
        body: record.body,
    }));
    let mut writer = Writer::new(Vec::new()).unwrap();
    let (opening, stream) = records.split_at(3);
    opening.iter().for_each(|record| writer.opening(record).unwrap());
    stream.iter().for_each(|record| writer.push(record).unwrap());
    let name = format!("v{FORMAT}");
    std::fs::write(golden(&format!("{name}.trace")), writer.finish().unwrap()).unwrap();
    let lines: String = records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
    std::fs::write(golden(&format!("{name}.ndjson")), lines).unwrap();
}
