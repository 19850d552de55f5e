//! Syslog messages: RFC 5424, and the octet counting of RFC 6587 and RFC 5425 for streams.

use std::fmt::Write as _;

use super::{PRODUCT, bounded, cef, json_within, syslog_severity, time, uid, word};
use crate::alert::Alert;

/// The structured data's id. 32473 is the enterprise number that RFC 5612 reserves for examples.
const SD_ID: &str = "detector@32473";
/// Longest value of structured data, in bytes after escaping.
const VALUE: usize = 160;

/// What a message holds behind its structured data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    Json,
    Cef,
}

/// Facilities by name, with their numbers (RFC 5424, table 1; names as in syslog.conf).
pub const FACILITIES: [(&str, u8); 13] = [
    ("user", 1),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("authpriv", 10),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// One message, unframed, of about `max` bytes at most. `pid` is the agent's.
#[must_use]
pub fn render(alert: &Alert, facility: u8, payload: Payload, max: usize, pid: u32) -> String {
    let mut out = format!(
        "<{}>1 {:.6} {} {PRODUCT} {pid} {} [{SD_ID}",
        u16::from(facility) * 8 + u16::from(syslog_severity(alert.severity)),
        time(alert),
        host(&alert.node),
        alert.technique.id,
    );
    let mut put = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = write!(out, " {name}=\"{}\"", bounded(value, VALUE, parameter));
    };
    put("uid", &uid(alert));
    put("severity", word(alert.severity));
    put("blocked", if alert.blocked { "true" } else { "false" });
    if let Some(pod) = &alert.pod {
        put("namespace", &pod.namespace);
        put("pod", &pod.name);
    }
    if let Some(container) = &alert.container {
        put("container", &container.id);
    }
    if let Some(process) = &alert.process {
        put("pid", &process.pid.to_string());
        put("exe", &process.exe);
    }
    if let Some(file) = &alert.file {
        put("file", &file.path);
    }
    if let Some(request) = &alert.request {
        put("user", &request.user);
        put("source", request.source_ips.last().map_or("", String::as_str));
    }
    out.push_str("] ");
    match payload {
        Payload::Json => out.push_str(&json_within(alert, max.saturating_sub(out.len()))),
        Payload::Cef => out.push_str(&cef::render(alert)),
    }
    out
}

/// Behind its length, so that nothing in a message ends it.
pub fn frame(message: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{} ", message.len()).as_bytes());
    out.extend_from_slice(message);
}

/// HOSTNAME: visible ASCII, up to 255 of it.
fn host(node: &str) -> String {
    let host: String = node.chars().take(255).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    if host.is_empty() { "-".to_owned() } else { host }
}

/// In PARAM-VALUE `"`, `\` and `]` are escaped.
fn parameter(out: &mut String, c: char) {
    if matches!(c, '"' | '\\' | ']') {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::format::tests::{alert, assert_one_line, bare};

    /// Header words, structured data as names and values, and the message, as RFC 5424's grammar has them.
    fn parse(text: &str) -> (Vec<&str>, Vec<(String, String)>, &str) {
        let mut words: Vec<&str> = text.splitn(7, ' ').collect();
        let rest = words.pop().unwrap();
        let mut chars = rest.strip_prefix("[detector@32473").unwrap().char_indices();
        let mut data = Vec::new();
        loop {
            match chars.next().unwrap().1 {
                ']' => break,
                ' ' => {}
                other => panic!("{other:?} in {rest}"),
            }
            let name: String = chars.by_ref().map(|(_, c)| c).take_while(|c| *c != '=').collect();
            assert_eq!(chars.next().unwrap().1, '"');
            let mut value = String::new();
            loop {
                match chars.next().unwrap().1 {
                    '"' => break,
                    '\\' => value.push(chars.next().unwrap().1),
                    ']' => panic!("a bare ] in a value: {rest}"),
                    c => value.push(c),
                }
            }
            data.push((name, value));
        }
        (words, data, chars.as_str().strip_prefix(' ').unwrap())
    }

    #[test]
    fn a_message_has_the_grammar_of_rfc_5424_whatever_the_alert_holds() {
        let text = render(&alert(), 10, Payload::Json, 8192, 77);
        assert_one_line(&text);
        let (words, data, message) = parse(&text);
        assert_eq!(words, ["<83>1", "2026-11-24T23:09:41.258471Z", "node-1", "detector", "77", "static-pod"]);
        let names: Vec<_> = data.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["uid", "severity", "blocked", "namespace", "pod", "container", "pid", "exe", "file"]);
        let shown = "/tmp/\\u{1b}[2J\\u{a}<13>1 - - - - - - x\\u{d}\\\"]|=\\u{202e}\\u{9b}\\u{e0001}\\u{0}end";
        assert_eq!(data.last().unwrap().1, shown);
        assert_eq!(serde_json::from_str::<serde_json::Value>(message).unwrap(), serde_json::to_value(alert()).unwrap());
        let (_, data, _) = parse(&render(&bare(), 10, Payload::Json, 8192, 77)).clone();
        assert_eq!(data.len(), 3);
    }

    #[test]
    fn a_message_keeps_to_its_bound_and_is_whole_json_in_it() {
        let mut alert = alert();
        alert.process.as_mut().unwrap().argv.push("x".repeat(128 * 1024));
        alert.process.as_mut().unwrap().exe = "]".repeat(4096);
        let text = render(&alert, 10, Payload::Json, 4096, 77);
        assert!(text.len() <= 4096, "{}", text.len());
        let (_, data, message) = parse(&text);
        assert!(data.iter().any(|(name, value)| name == "exe" && value.ends_with('…')));
        assert!(serde_json::from_str::<serde_json::Value>(message).unwrap()["left_out"].is_array());
    }

    #[test]
    fn a_node_name_is_one_word() {
        assert_eq!(host("no de\n\u{e9}"), "no_de__");
        assert_eq!(host(""), "-");
    }

    #[test]
    fn cef_is_the_message_where_it_is_asked_for() {
        let text = render(&alert(), 16, Payload::Cef, 8192, 1);
        assert_one_line(&text);
        assert!(parse(&text).2.starts_with("CEF:0|"));
        assert!(text.starts_with("<131>1 "));
    }

    #[test]
    fn frames_are_counted_in_bytes() {
        let mut out = Vec::new();
        frame("ä\n".as_bytes(), &mut out);
        frame(b"b", &mut out);
        assert_eq!(out, "3 ä\n1 b".as_bytes());
    }
}
