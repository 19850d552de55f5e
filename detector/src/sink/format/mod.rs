//! Alerts as others want them: pure, an alert in and bytes out.

pub mod cef;
pub mod falco;
pub mod journal;
pub mod ocsf;
pub mod otlp;
pub mod syslog;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    alert::{Alert, Severity},
    escape::is_hidden,
};

/// What is on every alert in every format.
pub(super) const PRODUCT: &str = "detector";
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// When it happened; the epoch where the alert's own time is none, which only an alert made by hand has.
pub(super) fn time(alert: &Alert) -> Timestamp {
    alert.time.parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Severity as syslog and journald number it: 2 (critical) to 6 (informational).
pub(super) fn syslog_severity(severity: Severity) -> u8 {
    match severity {
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
        Severity::Info => 6,
    }
}

pub(super) fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

/// An alert's name among all of all nodes: the same when it is delivered twice.
pub(super) fn uid(alert: &Alert) -> String {
    format!("{}/{}/{}/{}", alert.node, alert.time, alert.technique.id, alert.trace.sequence)
}

/// Text of at most `max` bytes after `put` has written each character; a mark shows that something is missing.
///
/// Characters that do not show themselves become visible before `put` sees them, so that no value ends a line.
pub(super) fn bounded(text: &str, max: usize, put: impl Fn(&mut String, char)) -> String {
    const MARK: char = '…';
    let mut out = String::new();
    // How much stays when a mark must follow.
    let mut whole = 0;
    for c in text.chars() {
        if is_hidden(c) {
            format!("\\u{{{:x}}}", u32::from(c)).chars().for_each(|c| put(&mut out, c));
        } else {
            put(&mut out, c);
        }
        if out.len() > max {
            out.truncate(whole);
            out.push(MARK);
            break;
        }
        if out.len() + MARK.len_utf8() <= max {
            whole = out.len();
        }
    }
    out
}

/// JSON in which every hidden character is an escape, also those that JSON lets stand (C1 controls, bidirectional overrides).
pub(super) fn visible(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        // Outside of its strings JSON of ours has no such character, and inside an escape means the same.
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The alert as one line of JSON of at most `max` bytes, without a newline. What does not fit is left out, the least telling
/// first, and named in `left_out`.
pub(super) fn json_within(alert: &Alert, max: usize) -> String {
    const LEAST_TELLING: [(&str, &str); 6] = [
        ("", "evidence"),
        ("", "manifest"),
        ("/process", "ancestors"),
        ("/request", "groups"),
        ("/process", "argv"),
        ("", "request"),
    ];
    let Ok(mut value) = serde_json::to_value(alert) else { return String::new() };
    let mut text = visible(&value.to_string());
    let mut left_out = Vec::new();
    for (parent, field) in LEAST_TELLING {
        if text.len() <= max {
            return text;
        }
        let removed = value.pointer_mut(parent).and_then(Value::as_object_mut).and_then(|parent| parent.remove(field));
        if removed.is_some_and(|removed| !removed.is_null()) {
            left_out.push(format!("{parent}/{field}").trim_start_matches('/').to_owned());
            value["left_out"] = json!(left_out);
            text = visible(&value.to_string());
        }
    }
    if text.len() <= max {
        return text;
    }
    let short = |text: &str, max| bounded(text, max, |out, c| out.push(c));
    let least = json!({
        "time": short(&alert.time, 40),
        "node": short(&alert.node, 100),
        "severity": alert.severity,
        "technique": {"id": alert.technique.id},
        "title": short(&alert.title, 300),
        "blocked": alert.blocked,
        "trace": alert.trace,
        "left_out": ["everything else"],
    });
    visible(&least.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::alert::{Alert, Ancestor, Container, Evidence, File, Origin, Pod, Process, TraceRef};

    pub const HOSTILE: &str = "/tmp/\u{1b}[2J\n<13>1 - - - - - - x\r\\\"]|=\u{202e}\u{9b}\u{e0001}\0end";

    /// An alert whose every field is there, and hostile where an attacker chooses it.
    pub fn alert() -> Alert {
        Alert {
            count: 1,
            first_time: None,
            last_time: None,
            time: "2026-11-24T23:09:41.258471274Z".to_owned(),
            node: "node-1".to_owned(),
            severity: Severity::High,
            technique: crate::detect::technique::STATIC_POD.clone(),
            title: format!("Static pod manifest added: {HOSTILE}"),
            blocked: false,
            reasons: vec!["privileged containers: web".to_owned()],
            origin: Origin::Container,
            process: Some(Process {
                pid: 4711,
                start_time: Some("2026-11-24T23:09:40Z".to_owned()),
                exe: format!("/usr/bin/{HOSTILE}"),
                sha256: Some("cd".repeat(32)),
                argv: vec!["cp".to_owned(), HOSTILE.to_owned()],
                argv_truncated: false,
                uid: 0,
                login_uid: Some(1000),
                tty: Some("pts3".to_owned()),
                cgroup: Some("/kubepods".to_owned()),
                ancestors: vec![Ancestor { pid: 1, exe: "/sbin/init".to_owned() }],
            }),
            container: Some(Container {
                id: "0123456789abcdef".repeat(4),
                name: Some("app".to_owned()),
                image: Some("registry.example/app:1".to_owned()),
                image_digest: Some(format!("sha256:{}", "cd".repeat(32))),
            }),
            pod: Some(Pod { namespace: "shop".to_owned(), name: "web".to_owned(), uid: "0a1b".to_owned() }),
            file: Some(File {
                path: HOSTILE.to_owned(),
                sha256: Some("ab".repeat(32)),
                size: Some(100),
                change: "added",
                previous_sha256: None,
                symlink: None,
            }),
            manifest: None,
            request: None,
            evidence: vec![Evidence { kind: "open", hook: Some("open"), sequence: 4, detail: "openat".to_owned() }],
            trace: TraceRef { sequence: 95 },
        }
    }

    /// The same, and nothing but what every alert has.
    pub fn bare() -> Alert {
        Alert { process: None, container: None, pod: None, file: None, origin: Origin::Unknown, ..alert() }
    }

    /// Nothing in it ends a line or commands a terminal.
    pub fn assert_one_line(text: &str) {
        assert!(!text.chars().any(is_hidden), "{text:?}");
    }

    #[test]
    fn json_that_fits_says_what_the_alert_says_in_visible_characters() {
        let text = json_within(&alert(), 8192);
        assert_one_line(&text);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), serde_json::to_value(alert()).unwrap());
    }

    #[test]
    fn json_that_is_too_long_says_what_was_left_out_and_stays_json() {
        let mut alert = alert();
        alert.process.as_mut().unwrap().argv.push("a".repeat(128 * 1024));
        let text = json_within(&alert, 8192);
        assert!(text.len() <= 8192);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["left_out"], json!(["evidence", "process/ancestors", "process/argv"]));
        assert_eq!(value["file"]["path"], HOSTILE);
        alert.title = "\u{202e}".repeat(100_000);
        let text = json_within(&alert, 1024);
        assert!(text.len() <= 1024, "{}", text.len());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["left_out"], json!(["everything else"]));
        assert!(value["title"].as_str().unwrap().ends_with('…'));
    }

    #[test]
    fn bounded_text_is_cut_between_characters_with_a_mark() {
        let plain = |out: &mut String, c: char| out.push(c);
        assert_eq!(bounded("abcdefghi", 8, plain), "abcde…");
        assert_eq!(bounded("abcdefgh", 8, plain), "abcdefgh");
        assert_eq!(bounded("a\nbcdefgh", 8, plain), "a…");
        assert_eq!(bounded("a\nb", 16, plain), "a\\u{a}b");
    }
}
