//! Sinks against real receivers: rsyslog, an HTTP server, sockets. They drive the sinks, not the agent, and need no root.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

#[path = "sinks/otlp.rs"]
mod otlp;
mod receivers;

use std::{
    collections::HashSet,
    fs,
    net::TcpListener,
    ops::Range,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use detector::{
    alert::{Alert, Origin, Process, Severity, TraceRef},
    detect::technique,
    sink::{Sinks, Spec, State},
};
use receivers::{Demanding, Http, Rsyslog, certificates, wait_for};
use serde_json::Value;

/// What an attacker may choose, in every alert.
const HOSTILE: &str = "/tmp/\u{1b}[2J\n<13>1 - evil - - - - injected\r\n\"]\\ 7 <13>1 x\u{202e}\u{7f}";

fn alert(number: u64) -> Alert {
    Alert {
        count: 1,
        first_time: None,
        last_time: None,
        time: "2026-11-24T23:09:41.258471274Z".to_owned(),
        node: "node-1".to_owned(),
        severity: Severity::High,
        technique: technique::STATIC_POD.clone(),
        title: format!("alert {number}"),
        blocked: false,
        reasons: vec!["privileged".to_owned()],
        origin: Origin::Host,
        process: Some(Process {
            pid: 4711,
            start_time: None,
            exe: HOSTILE.to_owned(),
            sha256: None,
            argv: vec!["cp".to_owned(), HOSTILE.to_owned()],
            argv_truncated: false,
            uid: 0,
            login_uid: None,
            tty: None,
            cgroup: None,
            ancestors: Vec::new(),
        }),
        container: None,
        pod: None,
        file: None,
        manifest: None,
        request: None,
        evidence: Vec::new(),
        trace: TraceRef { sequence: number },
    }
}

fn start(specs: &[&str], spool: Option<&Path>) -> Sinks {
    let specs: Vec<Spec> = specs.iter().map(|text| text.parse().unwrap()).collect();
    Sinks::start(&specs, spool, false).unwrap()
}

fn send(sinks: &mut Sinks, numbers: Range<u64>) {
    for number in numbers {
        sinks.send(alert(number)).unwrap();
    }
}

/// Everything that went in is accounted for.
fn assert_whole(state: &State) {
    assert_eq!(state.alerts + state.found, state.delivered + state.dropped + state.waiting, "{state:?}");
}

fn number(alert: &Value) -> u64 {
    alert.pointer("/trace/sequence").and_then(Value::as_u64).unwrap_or_else(|| panic!("no alert: {alert}"))
}

/// Each of the numbers has come, first in order; how many came twice.
fn assert_all_in_order(received: &[u64], numbers: Range<u64>) -> usize {
    let mut seen = HashSet::new();
    let first: Vec<u64> = received.iter().copied().filter(|number| seen.insert(*number)).collect();
    assert_eq!(first, numbers.collect::<Vec<_>>());
    received.len() - first.len()
}

#[test]
fn rsyslog_gets_every_alert_once_and_in_order_by_every_way() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let rsyslog = Rsyslog::start(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (name, spec) in [
        ("unix", format!("syslog+unix://{}", at("socket"))),
        ("udp", format!("syslog+udp://127.0.0.1:{}", rsyslog.udp)),
        ("tcp", format!("syslog+tcp://127.0.0.1:{}", rsyslog.tcp)),
        (
            "tls",
            format!(
                "syslog+tls://localhost:{}?ca={}&cert={}&key={}",
                rsyslog.tls,
                at("ca.pem"),
                at("client.pem"),
                at("client.key")
            ),
        ),
    ] {
        let mut sinks = start(&[&spec], None);
        // Datagrams over UDP are lost when they come faster than the machine lets rsyslog read.
        for part in 0..10 {
            send(&mut sinks, part * 50..(part + 1) * 50);
            rsyslog.messages(name, usize::try_from(part + 1).unwrap() * 50);
        }
        let states = sinks.finish().unwrap();
        assert_whole(&states[0]);
        assert_eq!((states[0].delivered, states[0].dropped), (500, 0), "{name}: {states:?}");
        let messages = rsyslog.messages(name, 500);
        let numbers: Vec<u64> = messages.iter().map(|message| number(&message["alert"])).collect();
        assert_eq!(assert_all_in_order(&numbers, 0..500), 0, "{name}");
        for message in &messages {
            // rsyslog understood the header and the structured data, and nothing was injected.
            assert_eq!(message["app"], "detector", "{name}: {message}");
            assert_eq!(message["msgid"], "static-pod");
            assert_eq!(message["host"], "node-1");
            assert_eq!(message["pri"], "83");
            assert!(message["sd"].as_str().unwrap().contains("severity=\"high\""), "{message}");
            assert_eq!(message.pointer("/alert/process/exe").unwrap(), HOSTILE);
        }
    }
}

#[test]
fn a_tls_server_that_the_authority_did_not_sign_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let rsyslog = Rsyslog::start(dir.path());
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let ca = other.path().join("ca.pem");
    let mut sinks = start(&[&format!("syslog+tls://localhost:{}?ca={}", rsyslog.tls, ca.display())], None);
    send(&mut sinks, 0..3);
    thread::sleep(Duration::from_millis(500));
    let states = sinks.finish().unwrap();
    assert_eq!((states[0].delivered, states[0].dropped), (0, 3));
    assert!(rsyslog.messages("tls", 0).is_empty());
}

/// Under TLS 1.3 the refusal comes after our side of the handshake is over and alerts were sent.
#[test]
fn a_tls_server_that_refuses_our_certificate_is_away_until_we_show_one_that_it_takes() {
    const CHILD: &str = "DETECTOR_TEST_REFUSED";
    if let Ok(spec) = std::env::var(CHILD) {
        let mut sinks = start(&[&spec], None);
        send(&mut sinks, 0..3);
        let _ = std::io::read_to_string(std::io::stdin());
        assert_eq!(sinks.states()[0].delivered, 0);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let server = Demanding::start(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let spec = format!("syslog+tls://localhost:{}?ca={}&spool={}", server.port, at("ca.pem"), at("spool"));
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_tls_server_that_refuses_our_certificate_is_away_until_we_show_one_that_it_takes"])
        .arg("--nocapture")
        .env(CHILD, &spec)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("refusals", || server.refused() == 4);
    drop(test.stdin.take());
    let output = test.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // It was away all the time, and was asked after longer and longer times: only a receiver that is back begins them anew.
    assert_eq!((said.matches("degraded: sink").count(), said.matches("delivers again").count()), (1, 0), "{said}");
    assert!(said.contains("CertificateRequired"), "{said}");
    assert_eq!(server.text(), "");
    let sinks = start(&[&format!("{spec}&cert={}&key={}", at("client.pem"), at("client.key"))], None);
    assert_eq!(sinks.states()[0].found, 3);
    wait_for("delivery", || sinks.states()[0].delivered == 3);
    assert!((0..3).all(|number| server.text().contains(&format!("\"title\":\"alert {number}\""))));
}

#[test]
fn ten_thousand_alerts_in_a_second_reach_a_local_rsyslog() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let rsyslog = Rsyslog::start(dir.path());
    for (name, spec) in [
        ("tcp", format!("syslog+tcp://127.0.0.1:{}", rsyslog.tcp)),
        ("unix", format!("syslog+unix://{}", dir.path().join("socket").display())),
    ] {
        let spool = tempfile::tempdir().unwrap();
        let mut sinks = start(&[&spec], Some(spool.path()));
        let began = Instant::now();
        for tick in 0..100 {
            send(&mut sinks, tick * 100..(tick + 1) * 100);
            thread::sleep(
                (Duration::from_millis(10) * u32::try_from(tick + 1).unwrap()).saturating_sub(began.elapsed()),
            );
        }
        let sent = began.elapsed();
        let states = sinks.finish().unwrap();
        assert_eq!((states[0].delivered, states[0].dropped), (10_000, 0), "{states:?}");
        let numbers: Vec<u64> =
            rsyslog.messages(name, 10_000).iter().map(|message| number(&message["alert"])).collect();
        assert_eq!(assert_all_in_order(&numbers, 0..10_000), 0);
        eprintln!(
            "{name}: 10,000 alerts given in {:.2} s, delivered after {:.2} s",
            sent.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn a_dead_syslog_server_gets_everything_once_it_is_back_across_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let mut rsyslog = Rsyslog::start(dir.path());
    let (spool, spec) = (dir.path().join("spool"), format!("syslog+tcp://127.0.0.1:{}", rsyslog.tcp));
    let mut sinks = start(&[&spec], Some(&spool));
    send(&mut sinks, 0..100);
    rsyslog.messages("tcp", 100);
    rsyslog.kill();
    for part in 1..5 {
        send(&mut sinks, part * 100..(part + 1) * 100);
        thread::sleep(Duration::from_millis(50));
    }
    let first = sinks.finish().unwrap();
    assert_whole(&first[0]);
    assert_eq!(first[0].dropped, 0);
    assert!(first[0].waiting >= 400, "{first:?}");
    let mut sinks = start(&[&spec], Some(&spool));
    send(&mut sinks, 500..1000);
    assert_eq!(sinks.states()[0].found, first[0].waiting);
    rsyslog.again();
    wait_for("delivery", || sinks.states()[0].waiting == 0);
    let second = sinks.finish().unwrap();
    assert_whole(&second[0]);
    assert_eq!(second[0].dropped, 0);
    let numbers: Vec<u64> = rsyslog.messages("tcp", 1000).iter().map(|message| number(&message["alert"])).collect();
    let twice = assert_all_in_order(&numbers, 0..1000);
    eprintln!("1,000 alerts, each delivered, {twice} of them twice");
    assert!(twice <= 100, "{twice} came twice");
}

/// The agent dies without a word: what was in the spool is delivered by the next.
#[test]
fn a_killed_agent_leaves_its_alerts_to_the_next() {
    const CHILD: &str = "DETECTOR_TEST_SPOOL";
    let spec = |port: u16| format!("webhook+http://127.0.0.1:{port}/");
    if let Ok(given) = std::env::var(CHILD) {
        let (port, spool) = given.split_once(' ').unwrap();
        let mut sinks = start(&[&spec(port.parse().unwrap())], Some(Path::new(spool)));
        send(&mut sinks, 0..1000);
        wait_for("spooling", || sinks.states()[0].waiting == 1000);
        // The queue's thread has handed over its last batch when the figure includes it.
        thread::sleep(Duration::from_millis(300));
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let port = receivers::free_port();
    let test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_agent_leaves_its_alerts_to_the_next"])
        .env(CHILD, format!("{port} {}", dir.path().display()))
        .output()
        .unwrap();
    assert!(!test.status.success(), "it was to die: {test:?}");
    let server = Http::start(port);
    let sinks = start(&[&spec(port)], Some(dir.path()));
    assert_eq!(sinks.states()[0].found, 1000);
    wait_for("delivery", || sinks.states()[0].waiting == 0);
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    let numbers: Vec<u64> = server.bodies().iter().map(number).collect();
    assert_eq!(assert_all_in_order(&numbers, 0..1000), 0);
}

#[test]
fn a_webhook_and_an_otlp_receiver_get_json_with_the_headers_that_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("headers");
    fs::write(&token, "Authorization: Bearer s3cret\n").unwrap();
    let server = Http::start(0);
    let port = server.port;
    let mut sinks = start(
        &[
            &format!("webhook+http://127.0.0.1:{port}/one?header=X-Cluster:%20a%2Bb&header_file={}", token.display()),
            &format!("webhook+http://127.0.0.1:{port}/many?batch=100&format=ocsf&query=a%3Db"),
            &format!("otlp+http://127.0.0.1:{port}"),
        ],
        None,
    );
    send(&mut sinks, 0..300);
    let states = sinks.finish().unwrap();
    for state in &states {
        assert_whole(state);
        assert_eq!(state.delivered, 300, "{states:?}");
    }
    let requests = server.requests();
    let of = |path: &str| requests.iter().filter(|request| request.path == path).collect::<Vec<_>>();
    let one = of("/one");
    assert_eq!(one.iter().map(|request| number(&request.body)).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
    assert_eq!(one[0].headers["x-cluster"], "a+b");
    assert_eq!(one[0].headers["authorization"], "Bearer s3cret");
    assert_eq!(one[0].headers["content-type"], "application/json");
    let many: Vec<_> = of("/many?a=b").iter().flat_map(|request| request.body.as_array().unwrap().clone()).collect();
    let title = |event: &Value| event.pointer("/finding_info/title").and_then(Value::as_str).unwrap().to_owned();
    let outputs: Vec<_> = many.iter().map(title).collect();
    assert_eq!(outputs, (0..300).map(|number| format!("alert {number}")).collect::<Vec<_>>());
    assert!(of("/many?a=b").len() < 300);
    let logs: Vec<_> =
        of("/v1/logs").iter().flat_map(|request| request.body["resourceLogs"].as_array().unwrap().clone()).collect();
    assert_eq!(logs.len(), 300);
    assert_eq!(logs[7].pointer("/scopeLogs/0/logRecords/0/body/stringValue").unwrap(), "alert 7");
}

#[test]
fn an_http_server_that_fails_for_now_is_asked_again_and_one_that_refuses_is_believed() {
    let server = Http::start(0);
    // Two answers of 503, and 400 to whatever holds alert 7.
    server.fail(2, Some(7));
    let mut sinks = start(&[&format!("webhook+http://127.0.0.1:{}/?batch=10", server.port)], None);
    send(&mut sinks, 0..30);
    wait_for("delivery", || sinks.states()[0].waiting == 0);
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    assert_eq!((states[0].delivered, states[0].dropped), (29, 1));
    let taken: Vec<u64> = server
        .bodies()
        .iter()
        .flat_map(|body| body.as_array().unwrap().iter().map(number).collect::<Vec<_>>())
        .collect();
    assert_eq!(taken, (0..30).filter(|number| *number != 7).collect::<Vec<_>>());
}

#[test]
fn an_https_server_is_trusted_by_its_authority_alone() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let server = receivers::Https::start(dir.path());
    let url = format!("webhook+https://localhost:{}/x", server.port);
    let mut sinks = start(&[&url], None);
    send(&mut sinks, 0..1);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(sinks.finish().unwrap()[0].delivered, 0);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let trusting = format!("{url}?ca={}&cert={}&key={}", at("ca.pem"), at("client.pem"), at("client.key"));
    let mut sinks = start(&[&trusting], None);
    send(&mut sinks, 0..1);
    assert_eq!(sinks.finish().unwrap()[0].delivered, 1);
}

#[test]
fn a_receiver_that_never_reads_holds_no_other_sink_back() {
    let dir = tempfile::tempdir().unwrap();
    let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = dir.path().join("alerts.jsonl");
    let mut sinks =
        start(&[&format!("syslog+tcp://{}", stuck.local_addr().unwrap()), &format!("file://{}", path.display())], None);
    // 20,000 alerts are more than the sockets and the spool in memory hold. They come as fast as the file takes them.
    let mut longest = Duration::ZERO;
    for number in 0..20_000 {
        let before = Instant::now();
        sinks.send(alert(number)).unwrap();
        longest = longest.max(before.elapsed());
        if number % 1000 == 999 {
            wait_for("the file", || sinks.states()[1].delivered == number + 1);
        }
    }
    let states = sinks.states();
    assert_eq!((states[1].delivered, states[1].dropped), (20_000, 0));
    assert!(states[0].dropped > 0, "{states:?}");
    // A wait for the receiver would be one of seconds.
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let text = fs::read_to_string(&path).unwrap();
    let numbers: Vec<u64> = text.lines().map(|line| number(&serde_json::from_str(line).unwrap())).collect();
    assert_eq!(numbers, (0..20_000).collect::<Vec<_>>());
    let began = Instant::now();
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    assert!(began.elapsed() < Duration::from_secs(15));
    eprintln!("longest wait of the pipeline {longest:?}; {states:?}");
}

#[test]
fn journald_gets_fields_and_nothing_is_lost_while_it_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut sinks = start(&[&format!("journald://{}", socket.display())], None);
    send(&mut sinks, 0..5);
    thread::sleep(Duration::from_millis(100));
    let journald = UnixDatagram::bind(&socket).unwrap();
    journald.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = vec![0; 256 << 10];
    for number in 0..5 {
        let length = journald.recv(&mut buffer).unwrap();
        let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(entry.starts_with("MESSAGE\n"), "{entry:?}");
        assert!(entry.contains(&format!("alert {number}\n")) && entry.contains("PRIORITY\n"), "{entry:?}");
    }
    assert_eq!(sinks.finish().unwrap()[0].delivered, 5);
}

#[test]
fn a_receiver_that_dies_with_unread_alerts_is_sent_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let dying = UnixDatagram::bind(&socket).unwrap();
    let mut sinks = start(&[&format!("syslog+unix://{}", socket.display())], None);
    send(&mut sinks, 0..3);
    thread::sleep(Duration::from_millis(200));
    // It has them, and has not read them.
    drop(dying);
    fs::remove_file(&socket).unwrap();
    let next = UnixDatagram::bind(&socket).unwrap();
    next.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = vec![0; 256 << 10];
    for number in 0..3 {
        let length = next.recv(&mut buffer).unwrap();
        assert!(String::from_utf8_lossy(&buffer[..length]).contains(&format!("\"title\":\"alert {number}\"")));
    }
    assert_eq!(sinks.finish().unwrap()[0].delivered, 3);
}

#[test]
fn what_cannot_be_used_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    let empty = dir.path().join("empty").display().to_string();
    for (specs, part) in [
        (vec!["syslog+tls://h?ca=/nonexistent".to_owned()], "/nonexistent: No such file"),
        (vec![format!("syslog+tls://h?ca={empty}")], "no certificate in it"),
        (vec![format!("webhook+https://h/?ca={empty}")], "no certificate in it"),
        (vec!["webhook+http://h/?header_file=/nonexistent".to_owned()], "/nonexistent: No such file"),
        (vec!["stdout:json".to_owned(), "stdout:pretty".to_owned()], "given twice"),
        (vec![format!("syslog:?spool={empty}")], "spool"),
    ] {
        let specs: Vec<Spec> = specs.iter().map(|text| text.parse().unwrap()).collect();
        let error = Sinks::start(&specs, None, false).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}
