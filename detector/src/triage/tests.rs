use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::{
    alert::{Container, Pod},
    context::standing::Standing,
    pipeline::Pipeline,
    record::ChangeKind,
    sink,
    testing::{self, Actor, DIR, FILE, Noise, POD, SECOND, Stream, manifest},
    trace::{Item, Reader, Writer},
};

/// Of `testing::start`.
const BOOT: u64 = 1_767_225_600 * SECOND;

fn rules() -> Rules {
    Rules { group_ns: 60 * SECOND, limit: 10, limit_ns: 60 * SECOND, ..Rules::default() }
}

/// A real alert, about this file.
fn found(name: &str) -> Alert {
    let mut stream = Stream::new();
    let actor = Actor::host(60, 90);
    stream.kernel(testing::exec(actor, Actor::host(50, 10), "/usr/bin/cp", &["cp", "x", name]));
    let since = stream.now();
    stream.kernel(testing::open(actor, FILE, DIR, &format!("/manifests/{name}")));
    let mut change = manifest(ChangeKind::Added, Some(POD), since);
    change.name = name.to_owned();
    stream.push(Body::Manifest(Box::new(change)));
    let mut alerts = stream.alerts();
    assert_eq!(alerts.len(), 1);
    Alert { severity: Severity::High, ..alerts.remove(0) }
}

struct Desk {
    triage: Triage,
    seq: u64,
    now: u64,
    told: Vec<Alert>,
    notes: Vec<String>,
}

impl Desk {
    fn new(rules: Rules) -> Self {
        let mut desk = Self { triage: Triage::new(), seq: 0, now: 100 * SECOND, told: Vec::new(), notes: Vec::new() };
        desk.push(testing::start(), Vec::new());
        desk.push(Body::Config(Box::new(rules)), Vec::new());
        desk
    }

    fn push(&mut self, body: Body, alerts: Vec<Alert>) -> Outcome {
        self.seq += 1;
        let record = Record { seq: self.seq, time: BootNs(self.now), body };
        let outcome = self.triage.push(&record, alerts);
        self.told.extend(outcome.told.iter().cloned());
        self.notes.extend(outcome.notes.iter().cloned());
        outcome
    }

    /// The alert is found, at this time.
    fn find(&mut self, alert: &Alert) -> Outcome {
        let time = format!("t{}", self.now / SECOND);
        // Not by a record that lets time pass.
        self.push(Body::Cgroup { id: 1, path: String::new() }, vec![Alert { time, ..alert.clone() }])
    }

    fn tick(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += SECOND;
            self.push(Body::Tick, Vec::new());
        }
    }

    fn told(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.told)
    }

    fn end(&mut self) -> Vec<Alert> {
        self.triage.finish()
    }
}

fn counts(alerts: &[Alert]) -> Vec<u64> {
    alerts.iter().map(|alert| alert.count).collect()
}

#[test]
fn without_rules_every_finding_is_told_as_it_is() {
    let mut desk = Desk { triage: Triage::new(), seq: 0, now: 0, told: Vec::new(), notes: Vec::new() };
    let alert = found("a.yaml");
    (0..100).for_each(|_| drop(desk.find(&alert)));
    assert_eq!(counts(&desk.told()), [1; 100]);
    assert!(desk.end().is_empty());
}

#[test]
fn the_first_is_told_at_once_and_those_like_it_as_one_when_the_window_closes() {
    let mut desk = Desk::new(rules());
    let alert = found("a.yaml");
    desk.find(&alert);
    assert_eq!(counts(&desk.told()), [1]);
    for _ in 0..5 {
        desk.tick(2);
        desk.find(&alert);
    }
    desk.tick(49);
    assert!(desk.told().is_empty());
    desk.tick(1);
    let told = desk.told();
    assert_eq!(counts(&told), [5]);
    assert_eq!((told[0].first_time.as_deref(), told[0].last_time.as_deref()), (Some("t102"), Some("t110")));
    assert_eq!(told[0].title, alert.title);
    // A storm that goes on is told once a window.
    desk.find(&alert);
    assert!(desk.told().is_empty());
    desk.tick(60);
    assert_eq!(counts(&desk.told()), [1]);
    // And one that has ended begins anew.
    desk.tick(60);
    desk.find(&alert);
    assert_eq!(counts(&desk.told()), [1]);
    assert!(desk.end().is_empty());
    assert_eq!(desk.triage.counts().grouped, 6);
}

#[test]
fn what_differs_in_anything_that_people_act_on_is_told() {
    let base = found("a.yaml");
    let with = |change: &dyn Fn(&mut Alert)| {
        let mut alert = base.clone();
        change(&mut alert);
        alert
    };
    let file = |alert: &mut Alert, sha: &str| alert.file.as_mut().unwrap().sha256 = Some(sha.repeat(32));
    let others = [
        base.clone(),
        found("b.yaml"),
        with(&|alert| file(alert, "cd")),
        with(&|alert| alert.file.as_mut().unwrap().previous_sha256 = Some("ef".repeat(32))),
        with(&|alert| alert.file.as_mut().unwrap().change = "removed"),
        with(&|alert| alert.severity = Severity::Medium),
        with(&|alert| alert.blocked = true),
        with(&|alert| alert.reasons.push("more".to_owned())),
        with(&|alert| alert.process.as_mut().unwrap().exe.push('x')),
        with(&|alert| alert.process.as_mut().unwrap().argv.push("-f".to_owned())),
        // Other arguments that are the same when they are put together.
        with(&|alert| {
            alert.process.as_mut().unwrap().argv = vec!["c".to_owned(), "px".to_owned(), "a.yaml".to_owned()]
        }),
        with(&|alert| alert.process.as_mut().unwrap().uid = 7),
        with(&|alert| alert.process = None),
        with(&|alert| alert.container = Some(container("one"))),
        with(&|alert| alert.container = Some(container("two"))),
    ];
    let mut desk = Desk::new(Rules { limit: 0, ..rules() });
    others.iter().for_each(|alert| drop(desk.find(alert)));
    assert_eq!(desk.told().len(), others.len());
    // Another pid, another moment and other records are no other finding.
    desk.find(&with(&|alert| {
        alert.process.as_mut().unwrap().pid = 999;
        alert.process.as_mut().unwrap().start_time = None;
        alert.evidence.clear();
        alert.trace.sequence = 12;
    }));
    assert!(desk.told().is_empty());
}

fn container(id: &str) -> Container {
    Container { id: id.to_owned(), name: None, image: None, image_digest: None }
}

#[test]
fn of_lost_events_the_numbers_do_not_make_another_finding() {
    let lost = |lost: u64| {
        let mut alert = found("a.yaml");
        alert.technique = crate::detect::technique::DETECTOR_TAMPERING.clone();
        (alert.process, alert.file) = (None, None);
        alert.title = format!("{lost} events were lost in the kernel");
        alert.reasons = vec![format!("ring buffer full at fork ({lost})")];
        alert
    };
    let mut desk = Desk::new(rules());
    (1..20).for_each(|n| drop(desk.find(&lost(n * 7))));
    assert_eq!(counts(&desk.told()), [1]);
    assert_eq!(counts(&desk.end()), [18]);
}

#[test]
fn beyond_the_limit_alerts_are_added_up_and_critical_ones_are_told_each() {
    let mut desk = Desk::new(rules());
    let files: Vec<_> = (0..30).map(|n| found(&format!("{n}.yaml"))).collect();
    for (n, alert) in files.iter().enumerate() {
        let severity = if n % 3 == 0 { Severity::Critical } else { Severity::Medium };
        let outcome = desk.find(&Alert { severity, ..alert.clone() });
        assert_eq!(outcome.worst, Some(severity), "told or not, something was found");
    }
    let told = desk.told();
    assert_eq!(told.iter().filter(|alert| alert.severity == Severity::Critical).count(), 10);
    assert_eq!(told.len(), 20);
    // Another pod has a limit of its own.
    let pod = Some(Pod { namespace: "shop".to_owned(), name: "web".to_owned(), uid: "1".to_owned() });
    desk.find(&Alert { pod, ..found("other.yaml") });
    assert_eq!(desk.told().len(), 1);
    desk.tick(60);
    let told = desk.told();
    let [summary] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!((summary.count, summary.severity), (10, Severity::Medium));
    assert_eq!(summary.title, "10 alerts of static-pod were held back by the rate limit");
    assert!(summary.reasons[0].contains("held back: 10 medium"), "{:?}", summary.reasons);
    assert!(summary.reasons[1].contains("for example: "), "{:?}", summary.reasons);
    assert_eq!(summary.process, None);
    // And then some may be told again.
    desk.find(&found("later.yaml"));
    assert_eq!(counts(&desk.told()), [1]);
    assert_eq!(desk.triage.counts().held_back, 10);
}

#[test]
fn what_gives_way_to_newer_things_is_told_and_tables_stay_small() {
    let mut desk = Desk::new(Rules { limit: 1, ..rules() });
    let base = found("a.yaml");
    let mut told = 0;
    for n in 0..3_000 {
        let mut alert = base.clone();
        alert.title = format!("number {n}");
        alert.pod = Some(Pod { namespace: "shop".to_owned(), name: format!("web-{n}"), uid: String::new() });
        // One that is told, one like it, one that is held back.
        desk.find(&alert);
        desk.find(&alert);
        desk.find(&Alert { title: "another".to_owned(), ..alert });
        told += desk.told().iter().map(|alert| alert.count).sum::<u64>();
        let (groups, limits) = desk.triage.sizes();
        assert!(groups <= 1024 && limits <= 1024, "{groups} groups, {limits} limits");
    }
    told += desk.end().iter().map(|alert| alert.count).sum::<u64>();
    assert_eq!(told, 9_000);
}

fn exception(change: impl FnOnce(&mut Exception)) -> Exception {
    let mut exception = Exception {
        name: "one".to_owned(),
        reason: "because".to_owned(),
        expires: "2026-01-01T00:10:00Z".to_owned(),
        ..Exception::default()
    };
    change(&mut exception);
    exception
}

fn silences(exception: Exception, alert: &Alert) -> bool {
    let mut desk = Desk::new(Rules { exceptions: vec![exception], ..rules() });
    let outcome = desk.find(alert);
    assert_eq!(outcome.told.len() + outcome.silenced.len(), 1);
    assert_eq!(outcome.silenced.is_empty(), outcome.worst.is_some());
    !outcome.silenced.is_empty()
}

#[test]
fn an_exception_silences_what_is_as_it_says_in_everything_and_nothing_else() {
    let mut alert = found("web.yaml");
    let image = Some("registry.example/team/app:1".to_owned());
    let image_digest = Some(format!("sha256:{}", "12".repeat(32)));
    alert.container = Some(Container { id: "c".to_owned(), name: None, image, image_digest });
    alert.pod = Some(Pod { namespace: "shop".to_owned(), name: "web".to_owned(), uid: String::new() });
    alert.process.as_mut().unwrap().sha256 = Some("cd".repeat(32));
    let all = exception(|e| {
        e.technique = Some("static-pod".to_owned());
        e.namespace = Some("shop".to_owned());
        e.image = Some("registry.example/team/*".to_owned());
        e.digest = Some(format!("sha256:{}", "12".repeat(32)));
        e.binary = Some("cd".repeat(32));
        e.path = Some("/manifests/*.yaml".to_owned());
        e.when = Some("alert.process.exe == '/usr/bin/cp' && 'x' in alert.process.argv".to_owned());
    });
    assert!(silences(all.clone(), &alert));
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Exception));
    let wrong: [Change<'_>; 10] = [
        ("technique", &|e| e.technique = Some("container-exec".to_owned())),
        ("namespace", &|e| e.namespace = Some("sho".to_owned())),
        ("image", &|e| e.image = Some("registry.example/*".to_owned())),
        ("digest", &|e| e.digest = Some(format!("sha256:{}", "13".repeat(32)))),
        ("binary", &|e| e.binary = Some("ce".repeat(32))),
        ("path", &|e| e.path = Some("/*.yaml".to_owned())),
        ("when", &|e| e.when = Some("alert.process.exe == '/usr/bin/mv'".to_owned())),
        ("when without a value", &|e| e.when = Some("alert.evidence[99].detail == ''".to_owned())),
        ("when of another type", &|e| e.when = Some("alert.process.argv[0]".to_owned())),
        ("no time", &|e| e.expires = "tomorrow".to_owned()),
    ];
    for (what, change) in wrong {
        let mut exception = all.clone();
        change(&mut exception);
        assert!(!silences(exception, &alert), "{what}");
    }
    // The file's digest counts too; what an alert does not have is not as an exception says.
    assert!(silences(exception(|e| e.digest = Some(format!("sha256:{}", "ab".repeat(32)))), &alert));
    let bare = found("web.yaml");
    assert!(!silences(exception(|e| e.namespace = Some("shop".to_owned())), &bare));
    assert!(!silences(exception(|e| e.binary = Some("cd".repeat(32))), &bare));
    assert!(!silences(exception(|e| e.when = Some("alert.pod.namespace != 'shop'".to_owned())), &bare));
    assert!(silences(exception(|e| e.path = Some("/**/web.yaml".to_owned())), &bare));
}

#[test]
fn an_exception_ends_at_its_time_and_that_is_said_once() {
    assert_eq!(
        "2026-01-01T00:10:00Z".parse::<jiff::Timestamp>().unwrap().as_nanosecond(),
        i128::from(BOOT + 600 * SECOND)
    );
    let all = exception(|e| e.technique = Some("static-pod".to_owned()));
    let mut desk = Desk::new(Rules { exceptions: vec![all.clone()], ..rules() });
    desk.tick(499);
    assert_eq!(desk.find(&found("a.yaml")).silenced.len(), 1);
    assert!(desk.notes.is_empty());
    desk.tick(1);
    assert_eq!(desk.find(&found("a.yaml")).silenced.len(), 0);
    desk.tick(100);
    let said = "exception \"one\" expired at 2026-01-01T00:10:00Z and does not apply any more";
    assert_eq!(desk.notes, [said]);
    assert_eq!(desk.triage.counts().silenced, BTreeMap::from([("one".to_owned(), 1)]));
    // One that had expired before never applies.
    let mut desk =
        Desk::new(Rules { exceptions: vec![exception(|e| e.expires = "2020-01-01T00:00:00Z".to_owned())], ..rules() });
    assert_eq!(desk.find(&found("a.yaml")).silenced.len(), 0);
    assert_eq!(desk.notes.len(), 1);
}

#[test]
fn an_exception_that_cannot_be_used_is_said_and_silences_nothing() {
    for (change, says) in [
        (("when", "alert.nothing == 1"), "an alert has no `alert.nothing`"),
        (("when", "1 +"), "no CEL expression"),
        (("path", "/a[b"), "no pattern"),
        (("expires", "never"), "no time"),
    ] {
        let mut value = serde_json::to_value(exception(|_| {})).unwrap();
        value[change.0] = json!(change.1);
        let mut desk = Desk::new(Rules { exceptions: vec![serde_json::from_value(value).unwrap()], ..rules() });
        assert!(desk.find(&found("a.yaml")).silenced.is_empty());
        assert!(desk.notes.len() == 1 && desk.notes[0].contains(says), "{:?}", desk.notes);
    }
    // A condition that is not known must not be ignored.
    let newer = json!({"name": "a", "reason": "b", "expires": "2027-01-01T00:00:00Z", "weekday": "Sunday"});
    assert!(serde_json::from_value::<Exception>(newer).is_err());
}

#[test]
fn expressions_that_could_never_hold_or_take_long_are_refused() {
    let found = found("a.yaml");
    for (text, says) in [
        ("alert.proces.exe == 'x'", "an alert has no `alert.proces`; did you mean process?"),
        ("alert.process.argc == 1", "an alert has no `alert.process.argc`"),
        ("has(alert.pod.labels)", "an alert has no `alert.pod.labels`"),
        ("process.exe == 'x'", "nothing is called `process`"),
        ("alert.title.startswith('x')", "there is no function `startswith`; did you mean startsWith?"),
        ("alert.title", "whose value is of type string"),
        ("alert.title == ", "no CEL expression"),
        ("", "no CEL expression"),
        ("alert.process.argv.all(a, alert.process.argv.all(b, a == b))", "a loop within a loop"),
        ("Alert{title: 'x'} == 1", "there is no type"),
    ] {
        let error = expression::compile(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
    let deep = |n: usize| {
        [
            format!("{}true{}", "(".repeat(n), ")".repeat(n)),
            "[".repeat(n),
            format!("1{} > 0", "+1".repeat(n)),
            format!("alert.evidence{} == 1", "[0]".repeat(n)),
            format!("alert.evidence{}.size() == 1", ".map(x, x)".repeat(n)),
            format!("alert{}", ".title".repeat(n)),
            format!("true{}", " && true".repeat(n)),
            format!("{}true", "!".repeat(n)),
            format!("{}true", "true ? true : ".repeat(n)),
        ]
    };
    // Whatever they are, they are an expression or an error: nothing runs out of stack.
    for text in (0..40).chain([100, 200, 400]).flat_map(deep) {
        if let Ok(program) = expression::compile(&text) {
            let _ = expression::holds(&program, &expression::context(&found));
        }
    }
    assert!(deep(200)[..6].iter().all(|text| expression::compile(text).is_err()));
    for text in [&deep(8)[0], &deep(20)[2], &deep(100)[6]] {
        assert!(expression::holds(&expression::compile(text).unwrap(), &expression::context(&found)), "{text}");
    }
    let fine = "alert.evidence.exists(e, e.kind == 'manifest') && alert.process.argv.filter(a, a != 'x').size() == 2";
    assert!(expression::holds(&expression::compile(fine).unwrap(), &expression::context(&found)));
}

/// What was found, told, silenced and is still held, by any sequence of findings, times and rules.
#[test]
fn whatever_comes_and_however_often_rules_change_nothing_is_lost() {
    let kinds: Vec<_> = (0..20).map(|n| found(&format!("{n}.yaml"))).collect();
    for seed in 0..30 {
        let run = || {
            let mut noise = Noise(seed);
            let mut draw = |below: u64| noise.next() % below;
            let mut desk = Desk::new(rules());
            let (mut all, mut silenced) = (0, 0);
            for _ in 0..2_000 {
                match draw(20) {
                    0 => desk.tick(1 + draw(40)),
                    1 => {
                        let rule = exception(|e| {
                            e.path = Some(format!("/manifests/{}*.yaml", draw(3)));
                            e.expires = "2030-01-01T00:00:00Z".to_owned();
                        });
                        let exceptions = (0..draw(2)).map(|_| rule.clone()).collect();
                        let (group_ns, limit) = (draw(3) * 30 * SECOND, draw(4) * 3);
                        desk.push(Body::Config(Box::new(Rules { group_ns, limit, exceptions, ..rules() })), Vec::new());
                    }
                    _ => {
                        all += 1;
                        let severity =
                            [Severity::Low, Severity::High, Severity::Critical][usize::try_from(draw(3)).unwrap()];
                        let kind = &kinds[usize::try_from(draw(20)).unwrap()];
                        silenced += desk.find(&Alert { severity, ..kind.clone() }).silenced.len() as u64;
                    }
                }
            }
            let last = desk.end();
            desk.told.extend(last);
            let told: u64 = desk.told.iter().map(|alert| alert.count).sum();
            assert_eq!(told + silenced, all, "seed {seed}");
            assert_eq!(desk.triage.counts().silenced.values().sum::<u64>(), silenced);
            assert!(desk.told.len() < 1_900, "something was grouped");
            desk.told.iter().map(|alert| sink::json(alert).unwrap()).collect::<String>()
        };
        assert_eq!(run(), run(), "the same again");
    }
}

/// Alerts of records through pipeline and triage, as lines.
fn tell(records: &[Record]) -> Vec<String> {
    let (mut pipeline, mut triage) = (Pipeline::new(), Triage::new());
    tell_on(records, &mut pipeline, &mut triage)
}

fn tell_on(records: &[Record], pipeline: &mut Pipeline, triage: &mut Triage) -> Vec<String> {
    let mut told: Vec<_> = records.iter().flat_map(|record| triage.push(record, pipeline.push(record)).told).collect();
    told.extend(triage.finish());
    told.iter().map(|alert| sink::json(alert).unwrap()).collect()
}

/// A manifest that comes and goes again and again, while the configuration changes: an exception comes, and goes.
fn story() -> Stream {
    let mut stream = Stream::new();
    let change = |stream: &mut Stream, rules: Rules| stream.push(Body::Config(Box::new(rules)));
    change(&mut stream, rules());
    let actor = Actor::host(60, 90);
    stream.kernel(testing::fork(Actor::host(50, 10), actor));
    let planted = |stream: &mut Stream| {
        for kind in [ChangeKind::Added, ChangeKind::Removed] {
            let since = stream.now();
            stream.kernel(testing::open(actor, FILE, DIR, "/manifests/web.yaml"));
            let text = (kind == ChangeKind::Added).then_some(POD);
            stream.push(Body::Manifest(Box::new(manifest(kind, text, since))));
        }
        stream.wait(SECOND);
        stream.push(Body::Tick);
    };
    (0..5).for_each(|_| planted(&mut stream));
    let quiet = exception(|e| e.path = Some("/manifests/*".to_owned()));
    change(&mut stream, Rules { exceptions: vec![quiet], ..rules() });
    (0..3).for_each(|_| planted(&mut stream));
    change(&mut stream, rules());
    (0..70).for_each(|_| planted(&mut stream));
    stream
}

#[test]
fn a_trace_tells_the_same_again_also_what_its_rules_silenced_and_grouped() {
    let stream = story();
    let live = tell(&stream.records);
    let counted = |lines: &[String]| -> u64 {
        let count = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["count"].as_u64().unwrap();
        lines.iter().map(count).sum()
    };
    assert_eq!(counted(&live), 2 * 75, "three rounds were silenced");
    assert!(live.len() < 12, "{live:#?}");
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    stream.records.iter().for_each(|record| writer.push(record).unwrap());
    writer.finish().unwrap();
    let items = Reader::new(bytes.as_slice()).unwrap().map(|item| match item.unwrap() {
        Item::Record(record) => record,
        other => panic!("{other:?}"),
    });
    let read: Vec<_> = items.collect();
    assert_eq!(tell(&read), live);
    // By other rules it tells otherwise.
    let each = tell_on(&read, &mut Pipeline::new(), &mut Triage::fixed(&Rules::default()));
    assert_eq!(each.len(), 2 * 78);
}

#[test]
fn a_later_segment_opens_with_the_rules_in_force() {
    let stream = story();
    let at = stream.records.iter().rposition(|record| matches!(record.body, Body::Config(_))).unwrap();
    for (split, exceptions) in [(at, 1), (at + 1, 0)] {
        let (mut pipeline, mut standing) = (Pipeline::new(), Standing::default());
        for record in &stream.records[..split] {
            pipeline.push(record);
            standing.observe(record);
        }
        let last = &stream.records[split - 1];
        let opening = standing.records(pipeline.context(), last.seq, last.time);
        let rules: Vec<_> = opening
            .iter()
            .filter_map(|record| match &record.body {
                Body::Config(rules) => Some(rules.exceptions.len()),
                _ => None,
            })
            .collect();
        assert_eq!(rules, [exceptions]);
        assert!(matches!(opening[0].body, Body::Start(_)));
    }
}
