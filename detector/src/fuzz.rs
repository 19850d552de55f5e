//! What must hold for any bytes. Each function is a target of `fuzz/`, and panics where something does not hold. The corpora there are
//! read by a test as well. None of it is in the agent.

use bytes::Bytes;

use crate::{
    alert::Alert,
    context::standing::Standing,
    decode, manifest,
    manifest::{MAX_ENTRIES, MAX_TEXT, Parsed},
    pipeline::Pipeline,
    record::{Body, BootNs, Record, Start},
    report::Report,
    sink,
    trace::{Item, Reader, Writer, fuzz::layout},
    yaml::{self, Node},
};

pub use crate::{
    source::{audit::fuzz::audit, bundle::fuzz::oci_config, cri::fuzz::cri},
    trace::fuzz::trace_reader,
};

/// Tags of [`records`] behind those of [`KINDS`].
const RAW: u8 = 29;
const JSON: u8 = 30;
const TAGS: u8 = 32;
/// Kinds of kernel records by their tag.
const KINDS: [u16; 16] = [1, 2, 3, 16, 17, 18, 19, 20, 21, 22, 23, 24, 32, 33, 34, 35];
/// A report of more records than these would be most of what the fuzzer does.
const REPORTED: usize = 64;

/// Kernel records by themselves, and a stream of records of every kind through everything behind the source.
pub fn record_decode(bytes: &[u8]) {
    decoded(bytes);
    let records = records(bytes);
    let mut errors = 0;
    for record in &records {
        if let Body::Kernel { raw } = &record.body {
            errors += u64::from(!decoded(raw));
        }
    }
    let mut standing = Standing::default();
    let mut report = (records.len() <= REPORTED).then(Report::new);
    let mut pipeline = Pipeline::new();
    let mut told = String::new();
    for record in &records {
        standing.observe(record);
        let alerts = pipeline.push(record);
        alerts.iter().for_each(|alert| told += &shown(alert));
        if let Some(report) = &mut report {
            report.observe(record, &alerts, &pipeline);
        }
    }
    assert_eq!(pipeline.stats().undecodable, errors);
    if let Some(report) = report {
        let mut page = Vec::new();
        report.finish(&mut page).expect("memory takes everything");
        assert!(String::from_utf8(page).is_ok());
    }
    assert_eq!(told_again(&records), told, "a replay tells something else");
    let last = records.last().map_or((0, BootNs(0)), |record| (record.seq, record.time));
    let opening = standing.records(pipeline.context(), last.0, last.1);
    let mut next = Pipeline::new();
    opening.iter().for_each(|record| drop(next.push(record)));
    assert_eq!(next.stats().undecodable, 0, "what stands cannot be decoded");
}

/// A kernel record is an event or an error, whatever follows it. True for an event.
fn decoded(raw: &[u8]) -> bool {
    let Ok(event) = decode::event(raw) else { return false };
    let header = event.header();
    let len = header.len as usize;
    assert_eq!(decode::header(raw).as_ref(), Ok(header));
    assert_eq!(decode::event(&raw[..len]).as_ref(), Ok(&event), "what follows a record changes it");
    assert_eq!(decode::event(&[raw, &[0xff; 8]].concat()).as_ref(), Ok(&event), "what follows a record changes it");
    assert!(decode::event(&raw[..len - 1]).is_err(), "a record that is cut is one");
    true
}

/// The alerts of the records, once they were written and read.
fn told_again(records: &[Record]) -> String {
    let mut writer = Writer::new(Vec::new()).expect("memory takes everything");
    records.iter().for_each(|record| writer.push(record).expect("no record is that long"));
    let trace = writer.finish().expect("memory takes everything");
    let mut pipeline = Pipeline::new();
    let mut told = String::new();
    let mut read = records.iter();
    for item in Reader::new(&trace[..]).expect("it was written just now") {
        match item.expect("it was written just now") {
            Item::Record(record) => {
                assert_eq!(Some(&record), read.next());
                pipeline.push(&record).iter().for_each(|alert| told += &shown(alert));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read.next(), None);
    told
}

/// An alert as JSON. In neither form can what it says leave its line.
fn shown(alert: &Alert) -> String {
    let line = sink::json(alert).expect("alerts are JSON");
    assert_eq!(line.find(|c| c < ' '), Some(line.len() - 1), "{line}");
    let text = sink::pretty::render(alert, false);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
    line
}

/// A stream: four bytes for each record (what it is, how much later it is, the length of the rest), then the rest.
fn records(bytes: &[u8]) -> Vec<Record> {
    let start = Start { boot_time_ns: 1_767_225_600_000_000_000, host_mnt_ns: 1, host_pid_ns: 2, ..Start::default() };
    let mut time = 100_000_000_000_u64;
    let mut records = vec![Record { seq: 1, time: BootNs(time), body: Body::Start(Box::new(start)) }];
    let mut rest = bytes;
    while let Some(([tag, later, low, high], more)) = rest.split_first_chunk() {
        let body;
        (body, rest) = more.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(more.len()));
        let step = 1_u64.unbounded_shl(u32::from(later & 0x7f));
        // Records come late too.
        time = if later & 0x80 == 0 { time.wrapping_add(step) } else { time.wrapping_sub(step) };
        let tag = tag % TAGS;
        let body = match KINDS.get(usize::from(tag)) {
            Some(kind) => Body::Kernel { raw: kernel(*kind, time, body) },
            None if tag == RAW => Body::Kernel { raw: Bytes::copy_from_slice(body) },
            None if tag == JSON => serde_json::from_slice(body).unwrap_or(Body::Tick),
            None => Body::Tick,
        };
        records.push(Record { seq: records.len() as u64 + 1, time: BootNs(time), body });
    }
    records
}

/// A kernel record that is long enough, and says its own length, kind and time.
fn kernel(kind: u16, time: u64, content: &[u8]) -> Bytes {
    let fixed = layout(kind).unwrap_or(72);
    let mut raw = content.to_vec();
    raw.resize(raw.len().max(fixed), 0);
    raw[..2].copy_from_slice(&kind.to_le_bytes());
    let len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
    raw[4..8].copy_from_slice(&len.to_le_bytes());
    raw[8..16].copy_from_slice(&time.to_le_bytes());
    raw.into()
}

/// Manifests. What is JSON to kubelet is read as JSON.
pub fn manifest(bytes: &[u8]) {
    let parsed = manifest::parse(bytes);
    let short = |text: &String| text.chars().count() <= MAX_TEXT;
    match &parsed {
        Parsed::Empty => {}
        Parsed::Pods(pods) => {
            let [pod] = &pods[..] else { panic!("{} pods in one file", pods.len()) };
            assert!(!pod.name.is_empty() && !pod.namespace.is_empty() && !pod.images.is_empty());
            assert!(short(&pod.name) && short(&pod.namespace));
            for list in [&pod.images, &pod.privileged, &pod.host_paths, &pod.capabilities] {
                assert!(list.len() <= MAX_ENTRIES && list.iter().all(short));
            }
            assert!(pod.execs.len() <= MAX_ENTRIES);
            for exec in &pod.execs {
                assert!(short(&exec.container) && exec.command.len() <= MAX_ENTRIES && exec.command.iter().all(short));
            }
        }
        Parsed::NotAPod { kind, why } => assert!(short(kind) && !why.is_empty()),
        Parsed::Invalid { message, line, .. } => {
            let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).count();
            assert!(!message.is_empty() && short(message));
            assert!(line.is_none_or(|line| (1..=lines + 1).contains(&line)), "line {line:?} of {lines}: {message}");
        }
    }
    let object = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if object && let Ok(json) = serde_json::from_slice::<Node>(bytes) {
        assert_eq!(yaml::first_document(bytes), Ok(Some(json)), "JSON is read as something else");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::testing::{self, Actor, DIR, FILE, Noise, POD, Stream};

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 6] = [
        ("trace_reader", trace_reader),
        ("record_decode", record_decode),
        ("manifest", manifest),
        ("oci_config", oci_config),
        ("cri", cri),
        ("audit", audit),
    ];

    fn seeds(target: &str) -> std::path::PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds")).join(target)
    }

    /// Each target's seeds, and whatever the fuzzer found once.
    #[test]
    fn what_the_fuzzer_begins_with_and_what_it_found_holds() {
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(seeds(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 3, "{name}");
            for file in files {
                eprintln!("{}", file.display());
                target(&fs::read(file).unwrap());
            }
        }
    }

    /// Fuzzing in short, wherever the tests run: the same inputs each time. `cargo xtask fuzz` looks for others, guided by what they reach.
    #[test]
    fn what_comes_of_the_seeds_by_chance_holds() {
        const EACH: usize = 400;
        for (name, target) in TARGETS {
            let mut files: Vec<_> = fs::read_dir(seeds(name)).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort();
            let seeds: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
            let mut noise = Noise(1);
            for round in 0..EACH {
                let input = changed(&seeds, &mut noise);
                if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                    let file = std::env::temp_dir().join(format!("{name}-{round}"));
                    fs::write(&file, &input).unwrap();
                    eprintln!("{name}: the input is {}; add it to the seeds", file.display());
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    /// One seed, changed in a few places: bytes, numbers at their limits, cut, repeated, spliced with another one.
    fn changed(seeds: &[Vec<u8>], noise: &mut Noise) -> Vec<u8> {
        let mut pick = |below: usize| usize::try_from(noise.next()).unwrap() % below.max(1);
        let mut bytes = seeds[pick(seeds.len())].clone();
        bytes.truncate(16 << 10);
        for _ in 0..=pick(6) {
            let (at, len) = (pick(bytes.len()), 1 + pick(32));
            let end = (at + len).min(bytes.len());
            match pick(7) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                3 => {
                    let other = &seeds[pick(seeds.len())];
                    let from = pick(other.len());
                    bytes.splice(at..end, other[from..(from + len).min(other.len())].iter().copied());
                }
                4 => bytes[at..end].fill([0, 0x7f, 0x80, 0xff][pick(4)]),
                _ if at < bytes.len() => bytes[at] ^= 1 << pick(8),
                _ => {}
            }
        }
        bytes
    }

    /// The streams of the seeds lead somewhere: each kind of record is in them, and alerts come of them.
    #[test]
    fn seeds_of_records_make_alerts() {
        let mut kinds = std::collections::BTreeSet::new();
        let mut alerts = 0;
        for file in fs::read_dir(seeds("record_decode")).unwrap() {
            let mut pipeline = Pipeline::new();
            for record in records(&fs::read(file.unwrap().path()).unwrap()) {
                if let Body::Kernel { raw } = &record.body {
                    kinds.extend(decode::header(raw).map(|header| header.kind));
                }
                alerts += pipeline.push(&record).len();
            }
        }
        assert!(KINDS.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
        assert!(alerts > 3, "{alerts}");
    }

    /// Makes the seeds: `cargo test --package detector --lib write_the_seeds -- --ignored`.
    #[test]
    #[ignore = "writes the files that the fuzzer begins with"]
    fn write_the_seeds() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            fs::create_dir_all(seeds(target)).unwrap();
            fs::write(seeds(target).join(name), bytes).unwrap();
        };
        for (name, bytes) in crate::trace::fuzz::seeds() {
            write("trace_reader", &name, &bytes);
        }
        for (name, records) in streams() {
            let mut bytes = Vec::new();
            let mut time = 100_000_000_000;
            for record in records.iter().filter(|record| !matches!(record.body, Body::Start(_))) {
                let (tag, content) = match &record.body {
                    Body::Kernel { raw } => {
                        let kind = decode::header(raw).map_or(0, |header| header.kind);
                        match KINDS.iter().position(|known| *known == kind) {
                            Some(tag) => (u8::try_from(tag).unwrap(), raw.to_vec()),
                            None => (RAW, raw.to_vec()),
                        }
                    }
                    Body::Tick => (TAGS - 1, vec![]),
                    body => (JSON, serde_json::to_vec(body).unwrap()),
                };
                let late = record.time.0 < time;
                let step = record.time.0.abs_diff(time).max(1).ilog2();
                time = if late { time - (1 << step) } else { time + (1 << step) };
                bytes.extend([tag, u8::try_from(step).unwrap() | u8::from(late) << 7]);
                bytes.extend(u16::try_from(content.len()).unwrap().to_le_bytes());
                bytes.extend(content);
            }
            write("record_decode", name, &bytes);
        }
        for (name, text) in MANIFESTS {
            write("manifest", name, text.as_bytes());
        }
        for (name, text) in crate::source::bundle::fuzz::SEEDS {
            write("oci_config", name, text.as_bytes());
        }
        for (name, bytes) in crate::source::cri::fuzz::seeds() {
            write("cri", name, &bytes);
        }
        for (name, bytes) in crate::source::audit::fuzz::seeds() {
            write("audit", name, &bytes);
        }
    }

    const MANIFESTS: [(&str, &str); 6] = [
        ("pod.yaml", POD),
        (
            "everything.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  hostPID: true\n  hostIPC: true\n  hostNetwork: true\n  initContainers:\n  - name: first\n    image: one\n    securityContext: {privileged: true, capabilities: {add: [SYS_ADMIN]}}\n  containers:\n  - name: second\n    image: two\n    livenessProbe: {exec: {command: [sh, -c, x]}}\n    lifecycle: {preStop: {exec: {command: [y]}}}\n  volumes:\n  - {name: a, hostPath: {path: /}}\n",
        ),
        (
            "anchors.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - &a\n    image: \"\\u0078\"\n    securityContext: {privileged: yes}\n  - <<: *a\n    name: |\n      b\n---\nkind: Secret\n",
        ),
        (
            "tabs.json",
            "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"\\ud83d\\ude00\"},\n\t\"spec\": {\"containers\": [{\"image\": \"x\", \"n\": -1.5e3}, null, true]}\n}",
        ),
        ("list.yaml", "%YAML 1.2\n---\n? kind\n: PodList\n...\n# end\n"),
        ("not.yaml", "a: b\nc: [1, 2\nd: !!binary e\n"),
    ];

    /// Streams with something to find in them.
    fn streams() -> Vec<(&'static str, Vec<Record>)> {
        let (shell, child) = (Actor::host(50, 10), Actor::host(60, 20));
        let mut planted = Stream::new();
        planted.kernel(testing::fork(shell, child));
        planted.kernel(testing::exec(child, shell, "/bin/cp", &["cp", "a", "b"]));
        let since = planted.now();
        planted.kernel(testing::open(child, FILE, DIR, "/manifests/web.yaml"));
        let change = testing::manifest(crate::record::ChangeKind::Added, Some(POD), since);
        planted.push(Body::Manifest(Box::new(change)));
        planted.kernel(testing::exit(child));
        planted.push(Body::Tick);
        let every = crate::trace::fuzz::every_record();
        let (kernel, other): (Vec<_>, Vec<_>) =
            every.into_iter().partition(|record| matches!(record.body, Body::Kernel { .. }));
        let third = kernel.len() / 3;
        vec![
            ("planted", planted.records),
            ("kernel", kernel[..third].to_vec()),
            ("bodies", other),
            ("entered", crate::detect::container_exec::tests::entered()),
        ]
    }
}
