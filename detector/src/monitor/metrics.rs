//! What is exported, and how it is read off a [`Snapshot`]. `docs/metrics.md` says what to do when one of them moves.
//!
//! Labels are bounded: names of hooks, kinds, techniques and severities are the agent's own, names of sinks and exceptions are the
//! configuration's. Nothing that a container, a file or a process is called becomes one.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Snapshot,
    exposition::{Kind, Metric, Text},
    process::Own,
    verdict,
};
use crate::{alert::Severity, detect::technique};

/// Of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal $labels:tt $help:literal;)+) => {
        $(static $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &$labels, help: $help };)+

        /// Every metric.
        pub static ALL: &[&Metric] = &[$(&$constant),+];
    };
}

metrics! {
    BUILD Gauge "detector_build_info" ["version", "arch"]
        "Always 1; the agent's version is a label.";
    HEALTHY Gauge "detector_healthy" []
        "1 when /healthz says that all is well.";
    READY Gauge "detector_ready" []
        "1 when hooks are attached and the first look is taken.";
    SILENT Gauge "detector_loop_silent_seconds" []
        "Since the loop made its last step.";
    ATTACH Gauge "detector_attach_seconds" []
        "From the start of the process until hooks were attached and the first look taken.";
    HOOK Gauge "detector_hook_attached" ["hook", "backend"]
        "1 when the hook is attached; backend is none where it never was.";
    LOST Counter "detector_kernel_lost_total" ["hook"]
        "Events that found no room in the ring buffer.";
    SKIPPED Counter "detector_kernel_skipped_total" ["hook"]
        "Runs of a hook that the kernel skipped.";
    RING Gauge "detector_ring_filled_bytes" ["ring"]
        "Most that was found in the ring buffer at once within the last second.";
    RING_SIZE Gauge "detector_ring_size_bytes" ["ring"]
        "Size of the ring buffer.";
    RECORDS Counter "detector_records_total" ["kind"]
        "Records of the stream.";
    UNDECODABLE Counter "detector_undecodable_total" []
        "Kernel records that could not be decoded.";
    FINDINGS Counter "detector_findings_total" ["technique", "severity"]
        "What was found, whether it was told or not.";
    ALERTS Counter "detector_alerts_total" ["technique", "severity"]
        "Alerts that were given to the sinks.";
    LATENCY Histogram "detector_alert_latency_seconds" []
        "From the record that completed a finding until its alert was given to the sinks.";
    GROUPED Counter "detector_findings_grouped_total" []
        "Findings that were told together with others like them.";
    HELD_BACK Counter "detector_findings_held_back_total" []
        "Findings beyond the rate limit, told as one.";
    SILENCED Counter "detector_findings_silenced_total" ["exception"]
        "Findings that an exception silenced.";
    EXCEPTIONS Gauge "detector_exceptions" ["state"]
        "Exceptions of the configuration, in force or expired.";
    SINK_ALERTS Counter "detector_sink_alerts_total" ["sink"]
        "Alerts that were meant for the sink.";
    SINK_DELIVERED Counter "detector_sink_delivered_total" ["sink"]
        "Alerts that the receiver has taken.";
    SINK_DROPPED Counter "detector_sink_dropped_total" ["sink"]
        "Alerts that are lost to the sink.";
    SINK_QUEUED Gauge "detector_sink_queued" ["sink"]
        "Alerts that the sink's thread has not taken yet.";
    SINK_QUEUE Gauge "detector_sink_queue_size" ["sink"]
        "Most alerts that the sink's queue holds.";
    SINK_WAITING Gauge "detector_sink_spooled" ["sink"]
        "Alerts that wait in the spool until the receiver has taken them.";
    SINK_BYTES Gauge "detector_sink_spool_bytes" ["sink"]
        "What the spool takes.";
    SINK_BOUND Gauge "detector_sink_spool_size_bytes" ["sink"]
        "Most that the spool may take.";
    SINK_UP Gauge "detector_sink_up" ["sink"]
        "1 while the sink's threads live; whether the receiver does is said by what waits.";
    RECORDER_RECORDS Counter "detector_recorder_records_total" []
        "Records that were written to traces.";
    RECORDER_BYTES Counter "detector_recorder_written_bytes_total" []
        "Bytes that were written to traces.";
    RECORDER_DROPPED Counter "detector_recorder_dropped_total" []
        "Records that are missing in traces.";
    RECORDER_WAITING Gauge "detector_recorder_waiting" []
        "Records that wait for the disk.";
    RECORDER_SEGMENTS Gauge "detector_recorder_segments" []
        "Traces in the directory, evidence included.";
    RECORDER_SIZE Gauge "detector_recorder_size_bytes" []
        "What the traces in the directory take.";
    PROCESSES Gauge "detector_processes" []
        "Processes in the table.";
    PROCESSES_DROPPED Counter "detector_processes_dropped_total" []
        "Processes that the table's bound dropped.";
    CONTAINERS Gauge "detector_containers" []
        "Containers that are known.";
    FIRST_EXECS Counter "detector_container_first_execs_total" ["known"]
        "First programs of containers, by what was known of the container then.";
    LOOKUPS Counter "detector_container_lookups_total" []
        "Containers that were looked up when their cgroup was made.";
    LOOKUP_SECONDS Counter "detector_container_lookup_seconds_total" []
        "Time that looking them up took.";
    CPU Counter "process_cpu_seconds_total" []
        "Processor time, user and system.";
    RESIDENT Gauge "process_resident_memory_bytes" []
        "Resident memory; ring buffers count as far as they were touched.";
    VIRTUAL Gauge "process_virtual_memory_bytes" []
        "Virtual memory.";
    FDS Gauge "process_open_fds" []
        "Open file descriptors.";
    START Gauge "process_start_time_seconds" []
        "Start of the process, in seconds since the epoch.";
}

/// Everything in the text format. `silent` is how long the loop has not made a step.
#[must_use]
pub fn render(snapshot: &Snapshot, silent: Duration, own: &Own) -> String {
    let mut text = Text::default();
    let (healthy, _) = verdict::answer(verdict::Question::Health, snapshot, silent);
    text.family(&BUILD, [([env!("CARGO_PKG_VERSION"), std::env::consts::ARCH], true)]);
    text.one(&HEALTHY, healthy);
    text.one(&READY, snapshot.started && !snapshot.stopping);
    text.one(&SILENT, silent.as_secs_f64());
    text.one(&ATTACH, snapshot.attach_seconds);
    kernel(&mut text, snapshot);
    stream(&mut text, snapshot);
    sinks(&mut text, snapshot);
    recorder(&mut text, snapshot);
    context(&mut text, snapshot);
    process(&mut text, own);
    text.finish()
}

fn kernel(text: &mut Text, snapshot: &Snapshot) {
    let hooks = snapshot.hooks.iter();
    text.family(
        &HOOK,
        hooks.map(|hook| ([hook.name.as_str(), hook.backend.as_deref().unwrap_or("none")], hook.is_attached())),
    );
    // From zero: what is counted for the first time is an increase too.
    for (metric, counts) in [(&LOST, &snapshot.lost), (&SKIPPED, &snapshot.skipped)] {
        let attached = snapshot.hooks.iter().filter(|hook| hook.backend.is_some()).map(|hook| hook.name.as_str());
        let others = counts.keys().map(String::as_str);
        let names: std::collections::BTreeSet<_> = attached.chain(others).collect();
        text.family(metric, names.into_iter().map(|name| ([name], counts.get(name).copied().unwrap_or(0))));
    }
    text.family(&RING, snapshot.rings.iter().map(|ring| ([ring.name], ring.filled)));
    text.family(&RING_SIZE, snapshot.rings.iter().map(|ring| ([ring.name], ring.size)));
}

fn stream(text: &mut Text, snapshot: &Snapshot) {
    let counts = &snapshot.counts;
    let records: BTreeMap<_, _> = counts.records.iter().collect();
    text.family(&RECORDS, records.into_iter().map(|(kind, count)| ([*kind], *count)));
    text.one(&UNDECODABLE, snapshot.undecodable);
    for (metric, of) in [(&FINDINGS, &counts.findings), (&ALERTS, &counts.alerts)] {
        // From zero, as above.
        text.family(
            metric,
            technique::ALL.iter().flat_map(|technique| {
                SEVERITIES.map(|severity| {
                    let count = of.get(&(technique.id, severity)).copied().unwrap_or(0);
                    ([technique.id, severity.word()], count)
                })
            }),
        );
    }
    text.histogram(&LATENCY, &counts.latency);
    text.one(&GROUPED, snapshot.untold.grouped);
    text.one(&HELD_BACK, snapshot.untold.held_back);
    text.family(&SILENCED, snapshot.untold.silenced.iter().map(|(name, count)| ([name.as_str()], *count)));
    let (all, expired) = snapshot.exceptions;
    text.family(&EXCEPTIONS, [(["in force"], all - expired), (["expired"], expired)]);
}

fn sinks(text: &mut Text, snapshot: &Snapshot) {
    type Of = fn(&crate::sink::State) -> u64;
    let families: [(&Metric, Of); 9] = [
        (&SINK_ALERTS, |sink| sink.alerts),
        (&SINK_DELIVERED, |sink| sink.delivered),
        (&SINK_DROPPED, |sink| sink.dropped),
        (&SINK_QUEUED, |sink| sink.queued),
        (&SINK_QUEUE, |sink| sink.queue_size),
        (&SINK_WAITING, |sink| sink.waiting - sink.queued),
        (&SINK_BYTES, |sink| sink.spool_bytes),
        (&SINK_BOUND, |sink| sink.spool_size),
        (&SINK_UP, |sink| u64::from(!sink.ended)),
    ];
    for (metric, of) in families {
        text.family(metric, snapshot.sinks.iter().map(|sink| ([sink.sink.as_str()], of(sink))));
    }
}

fn recorder(text: &mut Text, snapshot: &Snapshot) {
    let recorder = snapshot.recorder;
    for (metric, value) in [
        (&RECORDER_RECORDS, recorder.map(|recorder| recorder.recorded.records)),
        (&RECORDER_BYTES, recorder.map(|recorder| recorder.recorded.bytes)),
        (&RECORDER_DROPPED, recorder.map(|recorder| recorder.recorded.dropped)),
        (&RECORDER_WAITING, recorder.map(|recorder| recorder.waiting)),
        (&RECORDER_SEGMENTS, recorder.map(|recorder| recorder.segments)),
        (&RECORDER_SIZE, recorder.map(|recorder| recorder.size)),
    ] {
        text.family(metric, value.map(|value| ([], value)));
    }
}

fn context(text: &mut Text, snapshot: &Snapshot) {
    text.one(&PROCESSES, snapshot.processes);
    text.one(&PROCESSES_DROPPED, snapshot.processes_dropped);
    text.one(&CONTAINERS, snapshot.containers);
    let first = snapshot.first_execs;
    text.family(&FIRST_EXECS, [(["pod"], first.with_pod), (["container"], first.plain), (["nothing"], first.unknown)]);
    text.one(&LOOKUPS, snapshot.identity.containers);
    text.one(&LOOKUP_SECONDS, snapshot.identity.seconds());
}

/// What `/proc` says of the agent; where it says nothing, there is nothing to be told.
fn process(text: &mut Text, own: &Own) {
    text.family(&CPU, own.cpu_seconds.map(|value| ([], value)));
    text.family(&RESIDENT, own.resident.map(|value| ([], value)));
    text.family(&VIRTUAL, own.virtual_size.map(|value| ([], value)));
    text.family(&FDS, own.fds.map(|value| ([], value)));
    text.family(&START, own.start_seconds.map(|value| ([], value)));
}

const SEVERITIES: [Severity; 5] = [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{monitor::HookShown, recorder::Progress, sink, source::kernel::Ring};

    fn full() -> Snapshot {
        let text = |text: &str| text.to_owned();
        let mut snapshot = Snapshot {
            started: true,
            hooks: vec![
                HookShown { name: text("exec"), backend: Some(text("tracepoint")), ..HookShown::default() },
                HookShown { name: text("ptrace"), ..HookShown::default() },
            ],
            lost: BTreeMap::from([(text("open"), 7)]),
            rings: vec![Ring { name: "alerting", filled: 5, size: 9 }],
            sinks: vec![sink::State {
                sink: text("syslog+tcp://\"[::1]\":1\n#2"),
                queued: 2,
                waiting: 5,
                ..sink::State::default()
            }],
            recorder: Some(Progress::default()),
            exceptions: (3, 1),
            ..Snapshot::default()
        };
        snapshot.untold.silenced.insert(text("a\\b"), 2);
        snapshot.counts.records.insert("cgroup seen", 3);
        snapshot.counts.findings.insert(("static-pod", Severity::High), 2);
        snapshot
    }

    /// The samples by name and labels, read by a parser that is not ours.
    fn samples(text: &str) -> BTreeMap<String, f64> {
        let scrape = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let mut found = BTreeMap::new();
        for sample in scrape.samples {
            let mut labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            labels.sort();
            let value = match sample.value {
                prometheus_parse::Value::Counter(value)
                | prometheus_parse::Value::Gauge(value)
                | prometheus_parse::Value::Untyped(value) => value,
                prometheus_parse::Value::Histogram(buckets) => buckets.last().unwrap().count,
                prometheus_parse::Value::Summary(_) => panic!("{}", sample.metric),
            };
            let before = found.insert(format!("{} {}", sample.metric, labels.join(",")), value);
            assert_eq!(before, None, "{} {labels:?} twice", sample.metric);
        }
        found
    }

    #[test]
    fn every_metric_is_written_once_and_read_by_a_parser_of_others() {
        let text = render(&full(), Duration::ZERO, &crate::monitor::process::Files::open().read());
        let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let expected: Vec<_> = ALL.iter().map(|metric| format!("{} {}", metric.name, metric.kind.word())).collect();
        assert_eq!(families, expected);
        let samples = samples(&text);
        for (sample, value) in [
            ("detector_hook_attached backend=tracepoint,hook=exec", 1.0),
            ("detector_hook_attached backend=none,hook=ptrace", 0.0),
            ("detector_kernel_lost_total hook=open", 7.0),
            ("detector_kernel_lost_total hook=exec", 0.0),
            ("detector_ring_filled_bytes ring=alerting", 5.0),
            ("detector_records_total kind=cgroup seen", 3.0),
            ("detector_findings_total severity=high,technique=static-pod", 2.0),
            ("detector_alerts_total severity=critical,technique=container-exec", 0.0),
            ("detector_exceptions state=in force", 2.0),
            ("detector_healthy ", 1.0),
            ("detector_alert_latency_seconds ", 0.0),
        ] {
            assert_eq!(samples.get(sample), Some(&value), "{sample} in {samples:#?}");
        }
        assert!(samples.keys().any(|sample| sample.starts_with("process_resident_memory_bytes")));
        let spooled = samples.iter().find(|(sample, _)| sample.starts_with("detector_sink_spooled sink=syslog+tcp"));
        assert_eq!(spooled.map(|(_, value)| *value), Some(3.0));
    }

    #[test]
    fn names_are_as_prometheus_wants_them_and_each_is_one_metrics() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help } = metric;
            assert!(names.insert(*name), "{name} twice");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(name.starts_with("detector_") || name.starts_with("process_"), "{name}");
            assert!(name.chars().chain(labels.concat().chars()).all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
        }
    }

    /// What rules, the dashboard and the documentation name is exported, and the documentation names all of it.
    #[test]
    fn what_deploy_and_docs_name_is_exported() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let exported: BTreeSet<String> = ALL
            .iter()
            .flat_map(|metric| {
                let suffixes: &[&str] =
                    if metric.kind == Kind::Histogram { &["", "_bucket", "_sum", "_count"] } else { &[""] };
                suffixes.iter().map(|suffix| format!("{}{suffix}", metric.name))
            })
            .collect();
        let documentation = "docs/metrics.md";
        for file in [
            documentation,
            "deploy/grafana/detector.json",
            "deploy/kustomize/components/prometheus-operator/rules.yaml",
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let named: BTreeSet<_> = words.filter(|word| word.starts_with("detector_")).collect();
            assert!(named.len() > 10, "{file}");
            for name in &named {
                assert!(exported.contains(*name), "{file} names {name}, which is not exported");
            }
            if file == documentation {
                for metric in ALL {
                    let row = format!("| `{}` | {} | {} |", metric.name, metric.kind.word(), labels(metric));
                    assert!(text.contains(&row), "{file} lacks {row}");
                }
            }
        }
    }

    fn labels(metric: &Metric) -> String {
        metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
    }
}
