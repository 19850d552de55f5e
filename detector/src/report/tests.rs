use super::{
    story::{self, page},
    *,
};
use crate::{
    alert::Alert,
    record::{Body, BootNs, Loss, ProcessSeed, Record},
    testing::{self, Actor, SECOND, Stream},
};

/// Everything that a page could obey, and a terminal, and an eye.
const HOSTILE: &str = "</script><script>x()</script>\"'><img src=x onerror=x()>javascript:x()<!--{{7*7}}]]>&lt;\u{202e}\u{1b}[2J\0\u{200b}";

fn report(stream: &Stream) -> (Report, Pipeline) {
    let (mut pipeline, mut report) = (Pipeline::new(), Report::new());
    for record in &stream.records {
        let alerts = pipeline.push(record);
        report.observe(record, &alerts, &pipeline);
    }
    (report, pipeline)
}

fn finish(report: Report) -> String {
    let mut page = Vec::new();
    report.finish(&mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// The one finding whose title has these words.
fn finding<'a>(page: &'a str, title: &str) -> &'a str {
    let found: Vec<_> =
        page.split("<article").skip(1).filter(|part| part.split("</h3>").next().unwrap().contains(title)).collect();
    assert_eq!(found.len(), 1, "{title}");
    found[0].split("</article>").next().unwrap()
}

/// The words are there, in this order.
#[track_caller]
fn in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let at = rest.find(word).unwrap_or_else(|| panic!("{word} is not there, or not in its place, in {text}"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn a_planted_pod_is_told_with_everything_that_is_known_of_it() {
    let page = page(&story::attack(""));
    let planted = finding(&page, "node-exporter");
    in_order(
        planted,
        &[
            "critical",
            "2026-01-01 00:02:21.021",
            "a process in a container did it",
            "T1543.005",
            "MS-TA9017",
            "shop/web-7c9f",
            "registry.example/shop/server:4.2",
            "c3c3c3",
            "/usr/bin/cp",
            "<code>/tmp/pod one.yaml</code>",
            "<i>empty</i>",
            "not set",
            "pts0",
            "/etc/kubernetes/manifests/node-exporter.yaml",
            "sha256 afaf",
            "image docker.io/lib-metrics/exporter:2",
            "privileged: exporter",
            "hostPath /",
        ],
    );
    in_order(planted, &["Process tree", "/sbin/init", "containerd-shim", "/opt/shop/server", "/bin/sh", "/usr/bin/cp"]);
    in_order(planted, &["The manifest", "kind: Pod", "/dev/tcp/203.0.113.7/4444"]);
    in_order(planted, &["Evidence", "inode-create", "pid 7302 uid 0", "openat for writing", "manifest"]);
    assert!(!planted.contains("too long ago"));
}

#[test]
fn a_changed_pod_is_told_with_the_difference() {
    let page = page(&story::attack(""));
    let changed = finding(&page, "kube-proxy");
    in_order(
        changed,
        &[
            "before: sha256 b4b4",
            "What changed",
            "@@ ",
            "<span class=\"line add\"><b>+</b>  hostPID: true",
            "<span class=\"line del\"><b>-</b>    image: registry.k8s.io/kube-proxy:v1.34.1<",
            "<span class=\"line add\"><b>+</b>    image: registry.k8s.io/kube-proxy:v1.34.1-fix<",
        ],
    );
    assert!(!changed.contains("kind: Pod"), "lines far from the change are left out");
}

#[test]
fn the_manifest_is_also_shown_where_the_alert_only_names_its_file() {
    let stream = story::attack("");
    let mut alerts = stream.alerts();
    let alert = alerts.iter_mut().find(|alert| alert.title.contains("node-exporter")).unwrap();
    alert.evidence.clear();
    let (mut report, pipeline) = report(&stream);
    report.observe(stream.records.last().unwrap(), std::slice::from_ref(alert), &pipeline);
    assert_eq!(finish(report).matches("203.0.113.7/4444").count(), 2);
}

#[test]
fn nothing_from_a_trace_is_markup_and_nothing_hidden_stays_hidden() {
    let page = page(&story::attack(HOSTILE));
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    assert_eq!(page.matches("</script").count(), 1);
    for markup in ["<img", "<!--", "onerror=x()>\"", "&lt;"] {
        assert!(!page.contains(markup), "{markup}");
    }
    assert!(page.chars().all(|c| c == '\n' || !crate::escape::is_hidden(c)));
    for shown in
        ["<i>\\u{202e}</i>", "<i>\\u{1b}</i>[2J", "<i>\\u{200b}</i>", "&#60;img src=x onerror=x()&#62;", "{{7*7}}"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    // No attribute has any of it.
    let mut tags = page.split('<').skip(1).filter_map(|part| part.split('>').next());
    assert!(tags.all(|tag| !tag.contains("x()")));
}

#[test]
fn the_page_allows_its_own_style_and_script_and_nothing_else() {
    let page = page(&story::attack(""));
    let between = |open: &str, close: &str| page.split(open).nth(1).unwrap().split(close).next().unwrap();
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = between("Content-Security-Policy\" content=\"", "\"");
    let expected = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(between("<style>", "</style>")),
        hash(between("<script>", "</script>"))
    );
    assert_eq!(policy, expected);
    // An address of any other kind than a place in the page would be a way out.
    for attribute in ["href=\"", "src=\"", "action=\"", "style=\""] {
        let values = page.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap());
        assert!(values.clone().all(|value| value.starts_with('#')), "{attribute}{:?}", values.collect::<Vec<_>>());
    }
}

#[test]
fn hundreds_of_findings_are_each_on_the_timeline_and_in_the_list() {
    let page = page(&story::busy(220));
    let count = page.matches("<article").count();
    assert!(count >= 200, "{count}");
    for n in 1..=count {
        assert_eq!(page.matches(&format!("href=\"#f{n}\"")).count(), 1, "{n}");
        assert_eq!(page.matches(&format!("id=\"f{n}\"")).count(), 1, "{n}");
    }
}

#[test]
fn the_same_records_give_the_same_page() {
    assert_eq!(page(&story::attack("")), page(&story::attack("")));
}

#[test]
fn a_recording_without_findings_says_so_and_what_that_is_worth() {
    let quiet = page(&story::node(""));
    assert!(quiet.contains("No findings.") && quiet.contains("Complete.") && !quiet.contains("<svg"));
    assert!(!quiet.contains("no proof"));
    let mut stream = story::node("");
    let loss = Loss { hook: "fork".to_owned(), cpu: None, lost: 3, skipped: true, alerting: false };
    stream.push(Body::Loss(Box::new(loss)));
    let (mut report, _) = report(&stream);
    report.findings.clear();
    let lossy = finish(report);
    assert!(lossy.contains("Not complete.") && lossy.contains("no proof"));
    // No record at all.
    let nothing = finish(Report::new());
    assert!(nothing.contains("an unknown node") && nothing.contains("Not complete."));
    assert!(nothing.contains("does not say which host"));
}

#[test]
fn what_the_recording_lacks_is_told_one_by_one() {
    let mut stream = story::node("");
    stream.push(Body::Loss(Box::new(Loss {
        hook: "syscall".to_owned(),
        cpu: Some(0),
        lost: 5,
        skipped: false,
        alerting: true,
    })));
    stream.push(Body::Loss(Box::new(Loss {
        hook: "syscall".to_owned(),
        cpu: Some(1),
        lost: 6,
        skipped: false,
        alerting: true,
    })));
    stream.kernel(bytes::Bytes::from_static(b"nonsense"));
    for _ in 0..10 {
        stream.push(Body::Tick);
    }
    let at = stream.records.len() - 5;
    stream.records.drain(at..at + 3);
    let (mut report, _) = report(&stream);
    report.incomplete("chunk 7 at byte 4096 is damaged");
    let page = finish(report);
    let recording = page.split("id=\"recording\"").nth(1).unwrap();
    in_order(
        recording,
        &[
            "of which 1 could not be decoded",
            "chunk 7 at byte 4096 is damaged",
            "Missing records",
            ">3<",
            &format!("{at} and {}", at + 4),
            "Lost in the kernel",
            "syscall",
            ">11<",
            "7 of 8 attached",
            "this kernel has no function of that name",
            "/etc/kubernetes/manifests",
        ],
    );
}

#[test]
fn a_second_file_begins_anew_and_is_no_gap() {
    let (first, second) = (story::attack(""), story::node(""));
    let (mut pipeline, mut report) = (Pipeline::new(), Report::new());
    let numbered = second.records.iter().cloned().map(|record| Record { seq: record.seq + 1000, ..record });
    for record in first.records.iter().cloned().chain(second.records.clone()).chain(numbered) {
        report.observe(&record, &pipeline.push(&record), &pipeline);
    }
    assert!(report.coverage.gaps.is_empty());
    assert_eq!(report.coverage.starts.len(), 1, "it is the same agent");
}

#[test]
fn a_flood_of_findings_hides_none_that_is_worse_and_is_said() {
    let (mut report, pipeline) = report(&story::attack(""));
    let alert = |severity| Alert { severity, ..story::attack("").alerts().remove(1) };
    let record = Record { seq: 5000, time: BootNs(200 * SECOND), body: Body::Tick };
    let (low, high) = (alert(Severity::Low), alert(Severity::High));
    for n in 0..3000 {
        report.observe(&record, std::slice::from_ref(if n == 2900 { &high } else { &low }), &pipeline);
    }
    assert_eq!(report.findings.len(), FINDINGS_MAX);
    let page = finish(report);
    assert!(page.contains("2006 of 3006 findings are not shown"));
    assert!(page.contains("node-exporter") && page.contains("Finding 2907 of 3006"));
    assert!(page.contains("Finding 7 of 3006") && !page.contains("Finding 3006 of 3006"), "the earliest are kept");
}

#[test]
fn texts_of_any_length_leave_the_memory_and_the_page_bounded() {
    let mut stream = story::node("");
    let long = "\u{202e}<".repeat(1 << 14);
    let huge = long.repeat(16);
    let actor = Actor::host(900, 50);
    let argv = vec![huge.clone(); 2];
    let seed = ProcessSeed { argv, ..testing::seed(900, 50, 50, &long) };
    stream.push(Body::Process(Box::new(seed)));
    let mut alert = story::attack("").alerts().remove(0);
    let (mut report, mut pipeline) = report(&stream);
    let record = Record { seq: 100, time: stream.now(), body: Body::Kernel { raw: testing::exit(actor) } };
    pipeline.push(&record);
    alert.process = pipeline.context().describe(crate::record::ProcessKey::from_ns(actor.pid, actor.start * SECOND));
    assert_eq!(alert.process.as_ref().unwrap().argv[0].len(), 1 << 20);
    alert.title = long.clone();
    alert.reasons = vec![long; 20];
    for _ in 0..300 {
        report.observe(&record, std::slice::from_ref(&alert), &pipeline);
    }
    assert!(report.bytes <= BYTES_MAX && report.findings.len() > 5 && report.findings.len() < 300);
    // A few of them are enough to see how they are written.
    while report.findings.len() > 3 {
        report.findings.pop_last();
    }
    let kept: usize = report.findings.values().map(Finding::bytes).sum();
    let page = finish(report);
    assert!(page.contains("(1048576 bytes in all)") && page.contains("(65536 bytes in all)"));
    assert!(page.len() < 10 * kept, "{} for {kept}", page.len());
}

#[test]
fn evidence_from_too_long_ago_is_still_listed() {
    let stream = story::attack("");
    let (mut report, pipeline) = report(&Stream::default());
    let alert = stream.alerts().remove(0);
    report.observe(&stream.records[0], &[alert], &pipeline);
    let page = finish(report);
    in_order(&page, &["Evidence", "too long ago", "openat for writing"]);
}
