//! `detector replay`: a recorded stream through the pipeline once more, anywhere.

mod progress;

use std::{
    fs::File,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    alert::{Alert, Severity},
    escape::escape,
    pipeline::Pipeline,
    record::{Body, BootNs, Policy, Record, Rules},
    report::Report,
    run::say_outcome,
    sink::Stdout,
    trace::{
        Item, Joiner, Next, Reader,
        command::{Input, open},
    },
    triage::Triage,
};
use progress::Progress;

/// Exit code when `--fail-on` found something.
const FOUND: u8 = 3;

/// What to replay, and what to tell of it.
pub struct Options {
    /// In the order of time; `-` is standard input.
    pub files: Vec<PathBuf>,
    pub filter: Filter,
    /// How many seconds of the recording pass in one; `None` for as fast as it goes.
    pub speed: Option<f64>,
    pub fail_on: Option<Severity>,
    pub report: Option<PathBuf>,
    /// Its pause images and programs are taken instead of the recorded ones.
    pub policy: Option<Policy>,
    /// Taken instead of the recorded ones; `policy` goes before.
    pub rules: Option<Rules>,
    /// Say which exception silenced what.
    pub explain: bool,
}

/// Which alerts are wanted. Everything is replayed whatever it says: an alert needs what came before.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// `namespace/name` or `name`.
    pub pod: Option<String>,
    /// A technique's id.
    pub technique: Option<String>,
    /// The process itself or one that it descends from.
    pub pid: Option<u32>,
}

impl Filter {
    fn takes(&self, alert: &Alert) -> bool {
        let time = alert.time.parse::<Timestamp>().ok();
        let pod = |wanted: &String| {
            alert.pod.as_ref().is_some_and(|pod| match wanted.split_once('/') {
                Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
                None => pod.name == *wanted,
            })
        };
        let pid = |wanted: u32| {
            alert.process.as_ref().is_some_and(|process| {
                process.pid == wanted || process.ancestors.iter().any(|ancestor| ancestor.pid == wanted)
            })
        };
        self.from.is_none_or(|from| time.is_some_and(|time| time >= from))
            && self.to.is_none_or(|to| time.is_some_and(|time| time <= to))
            && self.pod.as_ref().is_none_or(pod)
            && self.technique.as_ref().is_none_or(|technique| alert.technique.id == technique)
            && self.pid.is_none_or(pid)
    }
}

/// Replays. The exit code is 3 when `fail_on` found something, 1 when a trace was damaged: what was readable is told all the same.
///
/// # Errors
/// When a trace or standard output fails.
pub fn replay(options: &Options, mut sink: Stdout) -> anyhow::Result<ExitCode> {
    let mut player = Player {
        options,
        pipeline: Pipeline::new(),
        triage: triage(options),
        report: options.report.is_some().then(Report::new),
        pace: None,
        found: false,
        last: None,
    };
    let mut joiner = Joiner::default();
    let mut damaged = false;
    for path in &options.files {
        let Input { name, bytes, read } = open(path)?;
        let name = escape(&name);
        let shown = if options.files.len() > 1 { name.as_str() } else { "" };
        let bar = Progress::new(shown, bytes, options.speed);
        let mut reader = Reader::new(read).with_context(|| name.clone())?;
        while let Some(item) = reader.next() {
            match item.with_context(|| name.clone())? {
                Item::Opening(record) => joiner.opening(record),
                Item::Record(record) => {
                    if record.seq % 4096 == 0 {
                        bar.read(reader.progress().bytes);
                    }
                    match joiner.next(&record) {
                        Next::Skip => continue,
                        Next::Push => {}
                        Next::Restart(opening) => {
                            player.finish(&mut sink, Some(&bar))?;
                            player.restart(opening);
                        }
                    }
                    player.push(record, &mut sink, &bar)?;
                }
                Item::Damage(damage) => {
                    damaged |= damage.is_loss();
                    let word = if damage.is_loss() { "error" } else { "note" };
                    bar.aside(|| eprintln!("{word}: {name}: {damage}"));
                    if let Some(report) = &mut player.report {
                        report.incomplete(&damage.to_string());
                    }
                }
            }
        }
        bar.clear();
    }
    player.finish(&mut sink, None)?;
    let undecodable = player.pipeline.stats().undecodable;
    if undecodable > 0 {
        eprintln!("error: {undecodable} kernel records could not be decoded: `detector trace dump` shows them");
        damaged = true;
    }
    if let (Some(report), Some(path)) = (player.report, &options.report) {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        report.finish(file).with_context(|| path.display().to_string())?;
        eprintln!("report: {}", path.display());
    }
    Ok(if player.found {
        ExitCode::from(FOUND)
    } else if damaged {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

struct Player<'a> {
    options: &'a Options,
    pipeline: Pipeline,
    triage: Triage,
    report: Option<Report>,
    /// When what moment of the recording was replayed.
    pace: Option<(Instant, BootNs)>,
    found: bool,
    /// The last record, where there is a report to say what came behind it.
    last: Option<Record>,
}

/// By the recorded rules, or by those that are given.
fn triage(options: &Options) -> Triage {
    options.rules.as_ref().map_or_else(Triage::new, Triage::fixed)
}

impl Player<'_> {
    /// Begins anew with the records that a segment opens with. What they would tell was told when it happened.
    fn restart(&mut self, opening: Vec<Record>) {
        self.pipeline = Pipeline::new();
        self.triage = triage(self.options);
        self.pace = None;
        for mut record in opening {
            self.adapt(&mut record);
            drop(self.pipeline.push(&record));
            say_outcome(&self.triage.push(&record, Vec::new()), false);
            if let Some(report) = &mut self.report {
                report.observe(&record, &[], &self.pipeline);
            }
        }
    }

    fn push(&mut self, mut record: Record, sink: &mut Stdout, bar: &Progress) -> anyhow::Result<()> {
        self.adapt(&mut record);
        self.wait(record.time, bar);
        let alerts = self.pipeline.push(&record);
        // Nearly every record.
        if self.report.is_none() && Triage::passes_over(&record, &alerts) {
            return Ok(());
        }
        let outcome = self.triage.push(&record, alerts);
        if outcome.says(self.options.explain) {
            bar.aside(|| say_outcome(&outcome, self.options.explain));
        }
        let alerts: Vec<_> = outcome.told.into_iter().filter(|alert| self.options.filter.takes(alert)).collect();
        if let Some(report) = &mut self.report {
            report.observe(&record, &alerts, &self.pipeline);
            self.last = Some(record);
        }
        self.tell(&alerts, sink, Some(bar))
    }

    /// Tells what was counted until now: the stream has ended.
    fn finish(&mut self, sink: &mut Stdout, bar: Option<&Progress>) -> anyhow::Result<()> {
        let alerts: Vec<_> =
            self.triage.finish().into_iter().filter(|alert| self.options.filter.takes(alert)).collect();
        if let (Some(report), Some(last)) = (&mut self.report, &self.last) {
            report.told(last, &alerts, &self.pipeline);
        }
        self.tell(&alerts, sink, bar)
    }

    fn tell(&mut self, alerts: &[Alert], sink: &mut Stdout, bar: Option<&Progress>) -> anyhow::Result<()> {
        for alert in alerts {
            self.found |= self.options.fail_on.is_some_and(|worst| alert.severity >= worst);
            match bar {
                Some(bar) => bar.aside(|| sink.send(alert))?,
                None => sink.send(alert)?,
            }
        }
        Ok(())
    }

    fn adapt(&self, record: &mut Record) {
        let policy = match &mut record.body {
            Body::Start(start) => &mut start.policy,
            Body::Config(rules) => &mut rules.policy,
            _ => return,
        };
        if let Some(rules) = &self.options.rules {
            policy.clone_from(&rules.policy);
        }
        if let Some(pauses) = &self.options.policy {
            policy.pause_digests.clone_from(&pauses.pause_digests);
            policy.pause_binaries.clone_from(&pauses.pause_binaries);
        }
    }

    /// Lets as much time pass as did between the first record and this one.
    fn wait(&mut self, time: BootNs, bar: &Progress) {
        let Some(speed) = self.options.speed else { return };
        let (began, first) = *self.pace.get_or_insert_with(|| (Instant::now(), time));
        let due = Duration::from_nanos(time.0.saturating_sub(first.0)).div_f64(speed);
        let Some(until) = began.checked_add(due) else { return };
        let context = self.pipeline.context();
        bar.wait(until, |left| {
            let ahead = u64::try_from(left.mul_f64(speed).as_nanos()).unwrap_or(u64::MAX);
            let wall = context.wall(BootNs(time.0.saturating_sub(ahead)));
            // Down to the second.
            wall.split('.').next().map_or_else(String::new, |second| format!("{second}Z"))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{ChangeKind, ContainerRole},
        testing::{self, Actor, DIR, FILE, POD, Stream, manifest},
    };

    /// A static pod planted by a process of a container that a shell of the container made.
    fn alert() -> Alert {
        let mut stream = Stream::new();
        let writer = Actor { pid: 61, start: 91, cgroup: 7, mnt_ns: 70, pid_ns: 71 };
        let shell = Actor { pid: 60, start: 90, ..writer };
        stream.kernel(testing::cgroup(Actor::host(50, 10), 7, "/kubepods/pod1/c1"));
        stream.push(Body::Container(Box::new(testing::container("c1", 7, ContainerRole::Member, "app"))));
        stream.kernel(testing::fork(Actor::host(50, 10), shell));
        stream.kernel(testing::fork(shell, writer));
        let since = stream.now();
        stream.kernel(testing::open(writer, FILE, DIR, "/manifests/web.yaml"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        stream.alerts().remove(0)
    }

    #[test]
    fn filters_choose_by_time_pod_technique_and_who_did_it_or_was_behind_it() {
        let alert = alert();
        let time: Timestamp = alert.time.parse().unwrap();
        let takes = |set: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            set(&mut filter);
            filter.takes(&alert)
        };
        let a_while = jiff::SignedDuration::from_millis(1);
        assert!(takes(&|_| {}));
        assert!(takes(&|filter| (filter.from, filter.to) = (Some(time), Some(time))));
        assert!(!takes(&|filter| filter.from = Some(time + a_while)));
        assert!(!takes(&|filter| filter.to = Some(time - a_while)));
        for (pod, wanted) in
            [("web-node-1", true), ("shop/web-node-1", true), ("other/web-node-1", false), ("web", false)]
        {
            assert_eq!(takes(&|filter| filter.pod = Some(pod.to_owned())), wanted, "{pod}");
        }
        assert!(takes(&|filter| filter.technique = Some("static-pod".to_owned())));
        assert!(!takes(&|filter| filter.technique = Some("container-exec".to_owned())));
        for (pid, wanted) in [(61, true), (60, true), (50, true), (99, false)] {
            assert_eq!(takes(&|filter| filter.pid = Some(pid)), wanted, "{pid}");
        }
    }
}
