use std::collections::{BTreeMap, BTreeSet};

use ::parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::Field,
};
use bytes::Bytes;
use detector_common::{self as wire, hook, kind};

use super::*;
use crate::{
    export::rows::COLUMNS,
    record::{
        AuditLog, BootNs, ChangeKind, ContainerRole, ExecutedFile, ImageArrival, ImageNames, LogState, Loss,
        ProcessKey, ProcessSeed, Watched,
    },
    testing::{self, Actor, DIR, FILE, POD, Stream},
};

pub const HOSTILE: &str = "=cmd|' /C calc'!A0,\"\r\n\u{1b}[31m\u{202e}\0ä";

/// A table as text: for each row, its cells that are not null, by column.
type Table = Vec<BTreeMap<String, String>>;

/// A process in the container `web` of the pod `shop/web-node-1`.
pub fn inside() -> Actor {
    Actor { cgroup: 9, mnt_ns: 77, pid_ns: 78, ..Actor::host(60, 90) }
}

/// A stream with a record of each kind.
pub fn every_kind() -> Stream {
    let mut stream = Stream::new();
    let (shell, actor, inside) = (Actor::host(50, 10), Actor::host(61, 91), inside());
    let login =
        ProcessSeed { login_uid: Some(1000), tty: Some("pts1".to_owned()), ..testing::seed(51, 11, 50, "/bin/su") };
    stream.push(Body::Process(Box::new(login)));
    stream.push(Body::Cgroup { id: 1, path: "/init.scope".to_owned() });
    stream.kernel(testing::cgroup(shell, 9, "/kubepods/podx/web"));
    stream.push(Body::Container(Box::new(testing::container("web", 9, ContainerRole::Member, "web"))));
    stream.kernel(testing::fork(shell, inside));
    stream.kernel(testing::cgroup_move(shell, inside, 9));
    stream.kernel(testing::exec_in(inside, shell, "/bin/sh", &["sh", "-c", HOSTILE], wire::Shared::default(), 1, ""));
    stream.kernel(testing::exec(actor, shell, HOSTILE, &[HOSTILE]));
    let since = stream.now();
    let open = testing::open(inside, FILE, DIR, "/manifests/web.yaml");
    for kind in [kind::OPEN, kind::WRITE, kind::MAP] {
        let mut raw = open.to_vec();
        raw[..2].copy_from_slice(&kind.to_ne_bytes());
        stream.kernel(raw.into());
    }
    stream.kernel(testing::change(inside, FILE, 3));
    stream.kernel(testing::rename(inside, Some(FILE), "-tmp", "@web.yaml"));
    stream.kernel(testing::entry(inside, hook::INODE_RENAME, [FILE, DIR], ["+a", "'b"]));
    let header = |kind, hook| inside.header(kind, hook);
    let (target_start_ns, target_tgid) = (10 * testing::SECOND, 50);
    let ptrace = wire::Ptrace { header: header(kind::PTRACE, hook::PTRACE), target_start_ns, target_tgid, mode: 2 };
    stream.kernel(testing::raw(&ptrace, &[]));
    let mut address = [0; wire::ADDRESS_MAX];
    address[..8].copy_from_slice(&[2, 0, 1, 187, 10, 1, 2, 3]);
    let socket = wire::Socket {
        header: header(kind::SOCKET, hook::SOCKET_CONNECT),
        call: wire::socket::CONNECT,
        args: [0, 0, 16],
        address,
        zero: 0,
    };
    stream.kernel(testing::raw(&socket, &[]));
    stream.kernel(testing::io_uring(inside));
    stream.kernel(testing::namespaces(actor, 77, 78, wire::Shared::default()));
    stream.push(Body::Manifest(Box::new(testing::manifest(ChangeKind::Modified, Some(POD), since))));
    stream.push(Body::Watched(Watched::default()));
    stream.push(Body::Image(Box::new(ImageArrival { digest: "sha256:00".to_owned(), ..ImageArrival::default() })));
    stream.push(Body::ImageNames(Box::new(ImageNames { tags: vec![HOSTILE.to_owned()], ..ImageNames::default() })));
    let process = ProcessKey { pid: 60, start: 9000 };
    stream.push(Body::Executed(Box::new(ExecutedFile {
        process,
        sha256: Some("ab".repeat(32)),
        size: 1,
        unreadable: None,
        acted: None,
    })));
    stream.push(Body::PauseConfig(Box::default()));
    stream.push(Body::Loss(Box::new(Loss {
        hook: "exec".to_owned(),
        cpu: None,
        lost: 7,
        skipped: false,
        alerting: true,
    })));
    stream.push(Body::Alive {
        processes: [(1, 0), (50, 1000), (51, 1100), (60, 9000)].map(|(pid, start)| ProcessKey { pid, start }).into(),
    });
    stream.push(Body::Audit(Box::new(testing::audit(HOSTILE, "get", "/version"))));
    stream.push(Body::AuditLog(Box::new(AuditLog { path: HOSTILE.to_owned(), state: LogState::Lost })));
    stream.push(Body::Tick);
    stream.kernel(Bytes::from_static(b"\x01\0nonsense"));
    stream.kernel(testing::exit(inside));
    stream.kernel(testing::exit(Actor::host(51, 11)));
    stream.kernel(testing::cgroup_gone(shell, 9));
    stream
}

pub fn export(format: Format, records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut export = Export::new(format, &mut out).unwrap();
    records.iter().for_each(|record| export.push(record).unwrap());
    export.finish().unwrap();
    out
}

fn csv_table(records: &[Record]) -> Table {
    let out = export(Format::Csv, records);
    let mut reader = ::csv::Reader::from_reader(&out[..]);
    let names: Vec<_> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    reader
        .records()
        .map(|row| {
            let row = row.unwrap();
            let exact = |cell: &str| cell.strip_prefix('\'').unwrap_or(cell).to_owned();
            let cells = names.iter().cloned().zip(row.iter().map(exact));
            cells.filter(|(_, cell)| !cell.is_empty()).collect()
        })
        .collect()
}

fn parquet_table(records: &[Record]) -> Table {
    let reader = SerializedFileReader::new(Bytes::from(export(Format::Parquet, records))).unwrap();
    reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let cells = row.get_column_iter().filter_map(|(name, field)| {
                let cell = match field {
                    Field::Null => return None,
                    Field::Str(text) => text.clone(),
                    // This reader has no nanoseconds, and shows the number.
                    Field::Long(ns) => {
                        jiff::Timestamp::from_nanosecond((*ns).into()).map(|t| format!("{t:.9}")).unwrap()
                    }
                    other => other.to_string(),
                };
                Some((name.clone(), cell))
            });
            cells.filter(|(_, cell)| !cell.is_empty()).collect()
        })
        .collect()
}

#[test]
fn every_kind_of_record_has_a_row() {
    let stream = every_kind();
    let table = csv_table(&stream.records);
    assert_eq!(table.len(), stream.records.len());
    let kinds: BTreeSet<_> = table.iter().map(|row| row["kind"].as_str()).collect();
    let expected = BTreeSet::from([
        "start",
        "process",
        "cgroup",
        "container",
        "exec",
        "fork",
        "exit",
        "open",
        "write",
        "map",
        "change",
        "path",
        "entry",
        "ptrace",
        "socket",
        "io_uring",
        "cgroup_move",
        "cgroup_gone",
        "namespaces",
        "manifest",
        "watched",
        "image",
        "image_names",
        "executed",
        "pause_config",
        "audit",
        "audit_log",
        "loss",
        "alive",
        "tick",
        "undecodable",
    ]);
    assert_eq!(kinds, expected);
    let seqs: Vec<_> = table.iter().map(|row| row["seq"].parse::<u64>().unwrap()).collect();
    assert_eq!(seqs, stream.records.iter().map(|record| record.seq).collect::<Vec<_>>());
}

#[test]
fn csv_and_parquet_say_the_same() {
    let stream = every_kind();
    let (csv, parquet) = (csv_table(&stream.records), parquet_table(&stream.records));
    assert_eq!(csv, parquet);
    let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
    let header = export(Format::Csv, &[]);
    assert_eq!(String::from_utf8(header).unwrap().trim_end(), names.join(","));
    // Each column is used by some record.
    let used: BTreeSet<_> = csv.iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let unused: Vec<_> = names.iter().filter(|name| !used.contains(**name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn the_documentation_has_each_column() {
    let page = include_str!("../../../docs/queries.md");
    for column in COLUMNS {
        let (name, says) = (column.name, column.says);
        let line = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(line.is_some_and(|line| line.ends_with(&format!("| {says} |"))), "{name}: {says}");
    }
}

#[test]
fn a_row_says_who_did_it_and_in_which_pod() {
    let table = csv_table(&every_kind().records);
    let open = table.iter().find(|row| row["kind"] == "open").unwrap();
    for (column, is) in [
        ("time", "2026-01-01T00:01:40.012000000Z"),
        ("node", "node-1"),
        ("hook", "syscall"),
        ("syscall", "openat"),
        ("origin", "container"),
        ("pod_namespace", "shop"),
        ("pod_name", "web-node-1"),
        ("container_id", "web"),
        ("image", "registry.example/app:1"),
        ("pid", "60"),
        ("start", "9000"),
        ("start_time", "2026-01-01T00:01:30.000000000Z"),
        ("exe", "/bin/sh"),
        ("parent_pid", "50"),
        ("parent_start", "1000"),
        ("parent_exe", "/bin/bash"),
        ("cgroup", "/kubepods/podx/web"),
        ("path", "/manifests/web.yaml"),
        ("dev", "0:8"),
        ("ino", "101"),
        ("dir_ino", "100"),
        ("denied", "false"),
    ] {
        assert_eq!(open[column], is, "{column}");
    }
    let argv: Vec<String> = serde_json::from_str(&open["argv"]).unwrap();
    assert_eq!(argv, ["sh", "-c", &HOSTILE[..HOSTILE.find('\0').unwrap()], "ä"]);
    let manifest = table.iter().find(|row| row["kind"] == "manifest").unwrap();
    assert_eq!((manifest["path"].as_str(), manifest["content"].as_str()), ("/manifests/web.yaml", POD));
    assert!(manifest["alerts"].contains("\"technique\":\"static-pod\""), "{manifest:?}");
    let exit = table.iter().find(|row| row["kind"] == "exit").unwrap();
    assert_eq!(exit["pod_name"], "web-node-1");
    // The kernel leaves that out of the records of exits.
    let exit = table.iter().rfind(|row| row["kind"] == "exit").unwrap();
    assert_eq!((exit["pid"].as_str(), exit["login_uid"].as_str()), ("51", "1000"));
}

#[test]
fn a_manifest_that_is_no_text_is_kept_too_and_what_was_before_as_well() {
    let mut stream = Stream::new();
    let mut change = testing::manifest(ChangeKind::Modified, Some(POD), BootNs(0));
    change.after.as_mut().unwrap().content = Bytes::from_static(b"\xff\0");
    change.before.as_mut().unwrap().content = Bytes::from_static(POD.as_bytes());
    stream.push(Body::Manifest(Box::new(change)));
    let table = csv_table(&stream.records);
    let row = table.last().unwrap();
    assert!(!row.contains_key("content"));
    let detail: serde_json::Value = serde_json::from_str(&row["detail"]).unwrap();
    assert_eq!(detail["after"]["content"]["hex"], "ff00");
    assert_eq!(detail["before"]["content"], POD);
}

#[test]
fn no_cell_of_text_is_a_formula_and_its_text_can_be_had_back() {
    let out = export(Format::Csv, &every_kind().records);
    let mut reader = ::csv::Reader::from_reader(&out[..]);
    let mut escaped = BTreeSet::new();
    for row in reader.records() {
        for (column, cell) in COLUMNS.iter().zip(&row.unwrap()) {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']), "{}: {cell:?}", column.name);
            if let Some(exact) = cell.strip_prefix('\'') {
                escaped.insert(exact.to_owned());
            }
        }
    }
    let hostile = |path: &str| escaped.contains(path);
    assert!(hostile("-tmp") && hostile("@web.yaml") && hostile("+a") && hostile("'b"), "{escaped:?}");
    assert!(hostile(HOSTILE), "{escaped:?}");
}

#[test]
fn numbers_beyond_signed_ones_and_times_beyond_any_calendar_survive() {
    let mut stream = Stream::new();
    let far = Actor { cgroup: u64::MAX, pid: u32::MAX, ..Actor::host(1, u64::MAX / testing::SECOND) };
    stream.kernel(testing::change(far, crate::record::InodeKey { dev: u32::MAX, ino: u64::MAX }, u32::MAX));
    stream.records.last_mut().unwrap().time = BootNs(u64::MAX);
    let table = csv_table(&stream.records);
    assert_eq!(table, parquet_table(&stream.records));
    let row = table.last().unwrap();
    assert_eq!((row["ino"].as_str(), row["pid"].as_str()), ("18446744073709551615", "4294967295"));
    assert_eq!((row["dev"].as_str(), row["cgroup_id"].as_str()), ("4095:1048575", "18446744073709551615"));
    assert!(!row.contains_key("time"));
}

#[test]
fn another_host_after_the_first_is_not_mixed_up_with_it() {
    let mut stream = every_kind();
    let first = stream.records.len();
    stream.push(testing::start());
    stream.kernel(testing::change(inside(), FILE, 1));
    let table = csv_table(&stream.records);
    assert!(table[..first].iter().any(|row| row.contains_key("pod_name")));
    assert!(!table.last().unwrap().contains_key("pod_name"), "{:?}", table.last());
}

#[test]
fn row_groups_are_cut_where_texts_or_rows_are_many() {
    let groups = |records: &[Record]| {
        let reader = SerializedFileReader::new(Bytes::from(export(Format::Parquet, records))).unwrap();
        reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect::<Vec<_>>()
    };
    let mut stream = Stream::new();
    for id in 0..200 {
        stream.push(Body::Cgroup { id, path: format!("/{id}{}", "x".repeat(200 * 1024)) });
    }
    let [first, second] = groups(&stream.records)[..] else { panic!("not two groups") };
    assert!(first > 150 && first + second == 203, "{first} and {second}");
    let table = parquet_table(&stream.records);
    assert!((0..200).all(|id| table[3 + id]["path"].starts_with(&format!("/{id}x"))));
    let tick = Record { seq: 1, time: BootNs(0), body: Body::Tick };
    assert_eq!(groups(&vec![tick; 128 * 1024 + 1]), [128 * 1024, 1]);
}

#[test]
fn damage_is_counted_and_what_follows_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.csv");
    std::fs::write(&out, "older").unwrap();
    let records = every_kind().records;
    let (first, rest) = records.split_at(5);
    let records = first
        .iter()
        .map(|record| Ok(record.clone()))
        .chain([Err(anyhow::anyhow!("block at byte 9"))])
        .chain(rest.iter().map(|record| Ok(record.clone())));
    let summary = run(Format::Csv, records, &out).unwrap();
    assert_eq!(summary, Summary { records: (first.len() + rest.len()) as u64, damage: 1 });
    assert_eq!(std::fs::read(&out).unwrap(), export(Format::Csv, &every_kind().records));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_output() {
    let records = || every_kind().records.into_iter().cycle().take(2000).map(Ok);
    for format in [Format::Csv, Format::Parquet, Format::Perfetto] {
        let error = run(format, records(), Path::new("/dev/full")).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains("/dev/full") && said.contains("No space left"), "{said}");
    }
    let error = run(Format::Csv, records(), Path::new("/nonexistent/a\u{1b}")).unwrap_err();
    assert_eq!(format!("{error:#}"), "/nonexistent/a\\u{1b}: No such file or directory (os error 2)");
}
