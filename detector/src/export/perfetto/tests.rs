use std::collections::BTreeMap;

use prost::Message as _;

use super::{message::Trace, *};
use crate::{
    export::{
        Format,
        tests::{HOSTILE, every_kind, export, inside},
    },
    record::{ChangeKind, Record},
    testing::{self, Actor, DIR, FILE, POD, SECOND, Stream},
};

fn trace(records: &[Record]) -> Trace {
    Trace::decode(&export(Format::Perfetto, records)[..]).unwrap()
}

fn events(trace: &Trace) -> impl Iterator<Item = (u64, &TrackEvent)> {
    trace.packet.iter().filter_map(|packet| Some((packet.timestamp?, packet.track_event.as_ref()?)))
}

/// The tracks of the processes that had this pid.
fn tracks(trace: &Trace, pid: i32) -> Vec<u64> {
    let described = trace.packet.iter().filter_map(|packet| packet.track_descriptor.as_ref());
    let mut uuids: Vec<_> = described
        .filter(|track| track.process.as_ref().is_some_and(|process| process.pid == pid))
        .map(|track| track.uuid)
        .collect();
    uuids.dedup();
    uuids
}

fn named<'t>(trace: &'t Trace, name: &str) -> Vec<(u64, &'t TrackEvent)> {
    events(trace).filter(|(_, event)| event.name.as_deref() == Some(name)).collect()
}

fn arg_of<'t>(event: &'t TrackEvent, name: &str) -> Option<&'t Value> {
    event.debug_annotations.iter().find(|arg| arg.name == name)?.value.as_ref()
}

/// Begin and end of each slice, by track; those that are still open have no end.
fn slices(trace: &Trace, track: u64) -> Vec<(String, u64, Option<u64>)> {
    let (mut slices, mut open) = (Vec::new(), Vec::new());
    let mut last = 0;
    for (time, event) in events(trace).filter(|(_, event)| event.track_uuid == track && event.r#type != INSTANT) {
        assert!(time >= last, "a slice's edge before the one that came before it");
        last = time;
        if event.r#type == BEGIN {
            open.push(slices.len());
            slices.push((event.name.clone().unwrap(), time, None));
        } else {
            slices[open.pop().unwrap()].2 = Some(time);
        }
    }
    slices
}

#[test]
fn a_process_is_a_slice_from_fork_to_exit_around_those_of_its_programs() {
    let mut stream = Stream::new();
    let (shell, child) = (Actor::host(50, 10), Actor::host(60, 100));
    stream.kernel(testing::fork(shell, child));
    let forked = stream.now().0;
    stream.kernel(testing::exec(child, shell, "/usr/bin/env", &["env", "curl"]));
    stream.kernel(testing::exec(child, shell, "/usr/bin/curl", &["curl", HOSTILE]));
    // What one CPU's ring holds may be read after what is later.
    stream.kernel_late(testing::exit(child), 5_000_000);
    let trace = trace(&stream.records);
    let [track] = tracks(&trace, 60)[..] else { panic!("{trace:?}") };
    let ms = |n: u64| forked + n * 1_000_000;
    let expected = [
        ("process 60".to_owned(), ms(0), Some(ms(2))),
        ("env".to_owned(), ms(1), Some(ms(2))),
        ("curl".to_owned(), ms(2), Some(ms(2))),
    ];
    assert_eq!(slices(&trace, track), expected);
    let (_, curl) = named(&trace, "curl")[0];
    let argv = serde_json::to_string(&["curl", &HOSTILE[..HOSTILE.find('\0').unwrap()], "ä"]).unwrap();
    assert_eq!(arg_of(curl, "argv"), Some(&Value::String(argv)));
    // The shell lives on, and so does its slice.
    assert_eq!(slices(&trace, tracks(&trace, 50)[0])[0].2, None);
}

#[test]
fn a_process_is_called_what_it_ran_last_also_when_it_lives_still() {
    let mut stream = Stream::new();
    let (shell, child) = (Actor::host(50, 10), Actor::host(60, 100));
    stream.kernel(testing::fork(shell, child));
    stream.kernel(testing::exec(child, shell, "/usr/bin/curl", &["curl"]));
    stream.kernel(testing::exit(child));
    let trace = trace(&stream.records);
    let names: BTreeMap<_, _> = trace
        .packet
        .iter()
        .filter_map(|packet| packet.track_descriptor.as_ref()?.process.as_ref())
        .filter(|process| !process.process_name.is_empty())
        .map(|process| (process.pid, process.process_name.as_str()))
        .collect();
    assert_eq!(names, BTreeMap::from([(1, "init"), (50, "bash"), (60, "curl")]));
}

#[test]
fn what_is_found_as_it_was_when_it_is_looked_at_again_goes_on_and_what_is_gone_ends() {
    let mut stream = Stream::new();
    let (shell, child, gone) = (Actor::host(50, 10), Actor::host(60, 90), Actor::host(61, 91));
    for actor in [child, gone] {
        stream.kernel(testing::fork(shell, actor));
    }
    stream.kernel(testing::exec(gone, shell, "/usr/bin/curl", &["curl"]));
    for (pid, start, parent, exe) in [(1, 0, 0, "/sbin/init"), (50, 10, 1, "/bin/bash"), (60, 90, 50, "/bin/cp")] {
        let seed = crate::record::ProcessSeed { again: true, ..testing::seed(pid, start, parent, exe) };
        stream.push(Body::Process(Box::new(seed)));
    }
    let alive = [(1, 0), (50, 1000), (60, 9000)].map(|(pid, start)| ProcessKey { pid, start });
    stream.push(Body::Alive { processes: alive.to_vec() });
    let trace = trace(&stream.records);
    let of = |pid| -> Vec<_> {
        let slices = slices(&trace, tracks(&trace, pid)[0]).into_iter();
        slices.map(|(name, _, end)| (name, end.is_some())).collect()
    };
    let called = |name: &str, ended| (name.to_owned(), ended);
    assert_eq!(of(50), [called("process 50", false), called("bash", false)]);
    assert_eq!(of(60), [called("process 60", false), called("cp", false)]);
    assert_eq!(of(61), [called("process 61", true), called("curl", true)]);
}

#[test]
fn a_reused_pid_is_another_track() {
    let mut stream = Stream::new();
    let shell = Actor::host(50, 10);
    for start in [100, 101] {
        stream.kernel(testing::fork(shell, Actor::host(60, start)));
        stream.kernel(testing::exit(Actor::host(60, start)));
    }
    let trace = trace(&stream.records);
    let tracks = tracks(&trace, 60);
    assert_eq!(tracks.len(), 2);
    tracks.iter().for_each(|track| assert_eq!(slices(&trace, *track).len(), 1));
}

#[test]
fn an_alert_is_on_its_process_and_on_the_track_of_alerts_when_the_act_was() {
    let mut stream = Stream::new();
    let actor = Actor::host(60, 90);
    stream.kernel(testing::fork(Actor::host(50, 10), actor));
    let since = stream.now();
    stream.kernel(testing::open(actor, FILE, DIR, "/manifests/web.yaml"));
    let act = stream.now();
    stream.wait(SECOND / 10);
    stream.push(Body::Manifest(Box::new(testing::manifest(ChangeKind::Added, Some(POD), since))));
    let alerts = stream.alerts();
    let [alert] = &alerts[..] else { panic!("{alerts:?}") };
    let trace = trace(&stream.records);
    let shown = named(&trace, &format!("{}: {}", severity(alert), alert.title));
    let at: Vec<_> = shown.iter().map(|(time, event)| (*time, event.track_uuid, event.r#type)).collect();
    assert_eq!(at, [(act.0, ALERTS, INSTANT), (act.0, tracks(&trace, 60)[0], INSTANT)]);
    assert_eq!(shown[0].1.categories, ["static-pod"]);
    let evidence = shown[0].1.debug_annotations.iter().find(|arg| arg.name == "evidence").unwrap();
    assert_eq!(evidence.array_values.len(), alert.evidence.len());
    let (_, open) = named(&trace, "openat /manifests/web.yaml")[0];
    assert_eq!(open.track_uuid, tracks(&trace, 60)[0]);
}

#[test]
fn a_slice_says_the_pod_and_every_kind_of_record_has_its_place() {
    let stream = every_kind();
    let trace = trace(&stream.records);
    let (_, sh) = named(&trace, "sh")[0];
    assert_eq!(sh.track_uuid, tracks(&trace, i32::try_from(inside().pid).unwrap())[0]);
    for (name, is) in [("pod_name", "web-node-1"), ("pod_namespace", "shop"), ("container_id", "web")] {
        assert_eq!(arg_of(sh, name), Some(&Value::String(is.to_owned())), "{name}");
    }
    for name in [
        "start node-1",
        "manifest modified /manifests/web.yaml",
        "container web",
        "image sha256:00",
        "executed",
        "pause image",
        "7 lost: exec",
        "undecodable",
        "watched",
        "ptrace",
        "connect",
        "inode-rename +a",
        "rename -tmp",
    ] {
        assert_eq!(named(&trace, name).len(), 1, "{name}");
    }
    assert!(trace.packet.iter().all(|packet| packet.trusted_packet_sequence_id == 1));
}

/// What trace_processor counts as an error, or shows in the wrong place.
#[test]
fn every_event_has_a_track_that_was_described_before_and_every_end_a_begin() {
    let mut stream = every_kind();
    // Read late, and told again.
    let (shell, actor) = (Actor::host(50, 10), Actor::host(61, 91));
    stream.kernel(testing::exit(actor));
    stream.kernel(testing::exec(actor, shell, "/bin/late", &["late"]));
    stream.kernel(testing::exit(actor));
    let once = stream.records.clone();
    stream.records.extend(once);
    let trace = trace(&stream.records);
    assert!(trace.packet[0].clock_snapshot.is_some(), "times mean nothing before the clocks");
    let (mut described, mut pids, mut depth) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::<_, i32>::new());
    for packet in &trace.packet {
        if let Some(track) = &packet.track_descriptor {
            // Told again for its name alone.
            let process = track.process.as_ref().map(|process| (process.pid, process.start_timestamp_ns));
            assert_eq!(*described.entry(track.uuid).or_insert(process), process);
            if let Some((pid, _)) = process {
                pids.entry(pid).or_insert_with(Vec::new).push(track.uuid);
            }
        }
        let Some(event) = &packet.track_event else { continue };
        assert!(packet.timestamp.is_some() && described.contains_key(&event.track_uuid), "{event:?}");
        let depth = depth.entry(event.track_uuid).or_default();
        *depth += match event.r#type {
            BEGIN => 1,
            END => -1,
            _ => 0,
        };
        assert!(*depth >= 0, "{event:?}");
    }
    assert!(named(&trace, "late").iter().all(|(_, event)| event.r#type == INSTANT));
    // Another stream's process is another track, also where pid and start are the same: it may be another host's.
    assert!(pids.values().all(|uuids| uuids.iter().collect::<std::collections::BTreeSet<_>>().len() == 2), "{pids:?}");
}

#[test]
fn names_are_one_visible_line_and_kernel_threads_keep_theirs() {
    let mut stream = every_kind();
    stream.push(Body::Process(Box::new(testing::seed(70, 12, 2, "[kworker/R-rcu_gp]"))));
    let trace = trace(&stream.records);
    assert_eq!(named(&trace, "[kworker/R-rcu_gp]").len(), 1);
    let processes = trace.packet.iter().filter_map(|packet| packet.track_descriptor.as_ref()?.process.as_ref());
    let processes: Vec<_> = processes.map(|process| process.process_name.as_str()).collect();
    assert!(processes.contains(&"[kworker/R-rcu_gp]"), "{processes:?}");
    let names = events(&trace).filter_map(|(_, event)| event.name.as_deref());
    assert!(names.chain(processes).all(|name| !name.chars().any(crate::escape::is_hidden)));
}

#[test]
fn times_of_another_host_are_moved_to_the_first_ones_clock() {
    let mut stream = Stream::new();
    stream.push(testing::start());
    let Body::Start(start) = &mut stream.records.last_mut().unwrap().body else { panic!() };
    start.boot_time_ns += 5 * SECOND;
    let now = stream.now().0;
    let trace = trace(&stream.records);
    assert_eq!(named(&trace, "start node-1")[1].0, now + 5 * SECOND);
    let clocks: Vec<_> = trace.packet.iter().filter_map(|packet| packet.clock_snapshot.as_ref()).collect();
    let [snapshot] = &clocks[..] else { panic!("{clocks:?}") };
    let wall = snapshot.clocks[1].timestamp - snapshot.clocks[0].timestamp;
    assert_eq!(wall, 1_767_225_600 * SECOND);
}

#[test]
fn tracks_are_bounded_and_the_ended_go_first() {
    let mut out = Perfetto::new(std::io::sink());
    let mut context = Context::default();
    let shell = Actor::host(50, 10);
    let mut push = |raw: bytes::Bytes| {
        let event = crate::decode::event(&raw).unwrap();
        let record = Record { seq: 1, time: BootNs(0), body: Body::Kernel { raw: raw.clone() } };
        context.learn(record.time, &record.body, Some(&event));
        let row = Row::default();
        let seen = Seen { record: &record, event: Some(&event), row, alerts: &[], context: &context };
        out.push(&seen).unwrap();
        (out.tracks.len(), out.ended.len())
    };
    push(testing::exec(shell, shell, "/bin/bash", &["bash"]));
    let bound = u32::try_from(MAX).unwrap();
    for n in 0..2 * bound {
        let child = Actor::host(1000 + n, 20);
        push(testing::fork(shell, child));
        let (tracks, ended) = push(testing::exit(child));
        assert!(tracks <= MAX && ended <= MAX);
    }
    assert!(out.tracks.contains_key(&ProcessKey { pid: 50, start: 1000 }));
}
