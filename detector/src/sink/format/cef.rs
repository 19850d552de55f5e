//! ArcSight's Common Event Format, version 0 (CEF implementation standard, revision 25).

use std::fmt::Write as _;

use super::{PRODUCT, VERSION, bounded, time, uid};
use crate::alert::{Alert, Severity};

/// Longest value, in bytes after escaping.
const VALUE: usize = 512;

/// `CEF:0|detector|detector|0.1.0|static-pod|title|8|rt=... dvchost=...`.
#[must_use]
pub fn render(alert: &Alert) -> String {
    let severity = match alert.severity {
        Severity::Info => 1,
        Severity::Low => 3,
        Severity::Medium => 5,
        Severity::High => 8,
        Severity::Critical => 10,
    };
    let mut out = format!(
        "CEF:0|{PRODUCT}|{PRODUCT}|{VERSION}|{}|{}|{severity}|",
        alert.technique.id,
        bounded(&alert.title, VALUE, header)
    );
    let mut first = true;
    let mut put = |key: &str, value: &str| {
        let space = if first { "" } else { " " };
        first = false;
        // Writing to a string cannot fail.
        let _ = write!(out, "{space}{key}={}", bounded(value, VALUE, extension));
    };
    put("rt", &time(alert).as_millisecond().to_string());
    put("externalId", &uid(alert));
    put("dvchost", &alert.node);
    put("cat", alert.technique.tactic);
    put("act", if alert.blocked { "blocked" } else { "detected" });
    if let Some(process) = &alert.process {
        put("spid", &process.pid.to_string());
        put("sproc", &process.exe);
        put("suid", &process.uid.to_string());
    }
    if let Some(file) = &alert.file {
        put("filePath", &file.path);
        if let Some(sha256) = &file.sha256 {
            put("fileHash", sha256);
        }
    }
    if let Some(request) = &alert.request {
        put("suser", &request.user);
        if let Some(source) = request.source_ips.last() {
            // IPv6 has a field of its own in CEF.
            put(if source.contains(':') { "c6a2" } else { "src" }, source);
            if source.contains(':') {
                put("c6a2Label", "Source IPv6 Address");
            }
        }
        put("request", &request.uri);
        put("requestMethod", &request.verb);
        put("requestClientApplication", &request.user_agent);
    }
    put("cs1Label", "attack");
    put("cs1", &alert.technique.attack.join(","));
    if let Some(container) = &alert.container {
        put("cs2Label", "container");
        put("cs2", &container.id);
    }
    if let Some(pod) = &alert.pod {
        put("cs3Label", "pod");
        put("cs3", &format!("{}/{}", pod.namespace, pod.name));
    }
    if !alert.reasons.is_empty() {
        put("msg", &alert.reasons.join("; "));
    }
    out
}

/// In the header `|` and `\` are escaped.
fn header(out: &mut String, c: char) {
    if matches!(c, '|' | '\\') {
        out.push('\\');
    }
    out.push(c);
}

/// In the extension `=` and `\` are escaped.
fn extension(out: &mut String, c: char) {
    if matches!(c, '=' | '\\') {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::format::tests::{alert, assert_one_line, bare};

    /// As a collector reads it: seven fields of the header, then keys and values.
    fn parse(text: &str) -> (Vec<String>, Vec<(String, String)>) {
        let mut fields = vec![String::new()];
        let mut chars = text.chars();
        while fields.len() < 8 {
            match chars.next().unwrap() {
                '\\' => fields.last_mut().unwrap().push(chars.next().unwrap()),
                '|' => fields.push(String::new()),
                c => fields.last_mut().unwrap().push(c),
            }
        }
        let rest: String = chars.collect();
        // A key is the word before a `=` that no backslash escapes.
        let (mut pairs, mut last, mut escaped) = (Vec::<(String, String)>::new(), String::new(), false);
        for c in rest.chars() {
            match c {
                _ if escaped => {
                    last.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '=' => {
                    let (value, key) = last.rsplit_once(' ').unwrap_or(("", &last));
                    if let Some(pair) = pairs.last_mut() {
                        pair.1 = value.to_owned();
                    }
                    pairs.push((key.to_owned(), String::new()));
                    last = String::new();
                }
                c => last.push(c),
            }
        }
        pairs.last_mut().unwrap().1 = last;
        (fields, pairs)
    }

    #[test]
    fn hostile_values_stay_in_their_fields() {
        let text = render(&alert());
        assert_one_line(&text);
        let (fields, pairs) = parse(&text);
        assert_eq!(fields[..5], ["CEF:0", "detector", "detector", VERSION, "static-pod"]);
        let shown = "/tmp/\\u{1b}[2J\\u{a}<13>1 - - - - - - x\\u{d}\\\"]|=\\u{202e}\\u{9b}\\u{e0001}\\u{0}end";
        assert_eq!(fields[5], format!("Static pod manifest added: {shown}"));
        assert_eq!(fields[6], "8");
        let keys: Vec<_> = pairs.iter().map(|(key, _)| key.as_str()).collect();
        let expected = "rt externalId dvchost cat act spid sproc suid filePath fileHash cs1Label cs1 cs2Label cs2 cs3Label cs3 msg";
        assert_eq!(keys.join(" "), expected);
        let value = |key: &str| &pairs.iter().find(|(found, _)| found == key).unwrap().1;
        assert_eq!(value("rt"), "1795561781258");
        assert_eq!(value("filePath"), shown);
        assert_eq!(value("cs3"), "shop/web");
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let (_, pairs) = parse(&render(&bare()));
        assert!(
            pairs
                .iter()
                .all(|(key, value)| !["spid", "filePath", "cs2", "cs3"].contains(&key.as_str()) && !value.is_empty())
        );
    }
}
