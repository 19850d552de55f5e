//! journald's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): fields, each value behind its length.

use super::{PRODUCT, bounded, json_within, syslog_severity, uid, word};
use crate::alert::Alert;

/// What all alerts have in common, and no other entry: `journalctl MESSAGE_ID=...` shows them alone.
const MESSAGE_ID: &str = "1e2f4bc8bf2546589719f9ab6746921b";
/// Most bytes of the whole alert in `DETECTOR_ALERT`: with the other fields it is no longer than what a spool takes.
const ALERT: usize = 768 * 1024;
/// Most bytes of any other value.
const VALUE: usize = 4096;

/// One entry.
#[must_use]
pub fn render(alert: &Alert) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |name: &str, value: &str| field(&mut out, name, value);
    let short = |text: &str| bounded(text, VALUE, |out, c| out.push(c));
    put("MESSAGE", &short(&alert.title));
    put("MESSAGE_ID", MESSAGE_ID);
    put("PRIORITY", &syslog_severity(alert.severity).to_string());
    put("SYSLOG_IDENTIFIER", PRODUCT);
    put("DETECTOR_UID", &short(&uid(alert)));
    put("DETECTOR_SEVERITY", word(alert.severity));
    put("DETECTOR_TECHNIQUE", alert.technique.id);
    put("DETECTOR_NODE", &short(&alert.node));
    put("DETECTOR_BLOCKED", if alert.blocked { "1" } else { "0" });
    if let Some(process) = &alert.process {
        put("DETECTOR_PID", &process.pid.to_string());
        put("DETECTOR_EXE", &short(&process.exe));
    }
    if let Some(container) = &alert.container {
        put("DETECTOR_CONTAINER", &short(&container.id));
    }
    if let Some(pod) = &alert.pod {
        put("DETECTOR_NAMESPACE", &short(&pod.namespace));
        put("DETECTOR_POD", &short(&pod.name));
    }
    if let Some(file) = &alert.file {
        put("DETECTOR_FILE", &short(&file.path));
    }
    if let Some(request) = &alert.request {
        put("DETECTOR_USER", &short(&request.user));
        put("DETECTOR_SOURCE", request.source_ips.last().map_or("", String::as_str));
        put("DETECTOR_AUDIT_ID", &short(&request.audit_id));
    }
    put("DETECTOR_ALERT", &json_within(alert, ALERT));
    out
}

/// The form with a length, for every value: no value can begin a field then.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::format::tests::alert;

    fn parse(mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n').unwrap();
            let name = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let (len, rest) = bytes[end + 1..].split_first_chunk().unwrap();
            let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
            assert_eq!(rest[0], b'\n');
            fields.push((name, String::from_utf8(value.to_vec()).unwrap()));
            bytes = &rest[1..];
        }
        fields
    }

    #[test]
    fn an_entry_has_only_fields_of_ours_whatever_the_values_hold() {
        let mut alert = alert();
        alert.title = "x\nPRIORITY=0\n_UID=0".to_owned();
        let fields = parse(&render(&alert));
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.iter().filter(|name| **name == "PRIORITY").count(), 1);
        assert!(names.iter().all(|name| ["MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER"].contains(name)
            || name.starts_with("DETECTOR_")));
        assert_eq!(fields[0].1, "x\\u{a}PRIORITY=0\\u{a}_UID=0");
        let whole: serde_json::Value = serde_json::from_str(&fields.last().unwrap().1).unwrap();
        assert_eq!(whole, serde_json::to_value(&alert).unwrap());
    }

    #[test]
    fn an_entry_is_no_longer_than_what_a_spool_takes() {
        let mut alert = alert();
        alert.process.as_mut().unwrap().argv.push("\u{1b}".repeat(128 * 1024));
        let fields = parse(&render(&alert));
        let last = &fields.last().unwrap().1;
        assert!(last.len() < ALERT && last.contains("left_out"), "{}", last.len());
        alert.title = "\u{1b}".repeat(1 << 20);
        assert!(render(&alert).len() < 1 << 20);
    }

    #[test]
    fn where_alerts_are_looked_for_is_what_all_of_them_are_called() {
        for page in [
            include_str!("../../../../deploy/detector.service"),
            include_str!("../../../../deploy/debian/config.yaml"),
            include_str!("../../../../docs/sinks.md"),
        ] {
            assert!(page.contains(&format!("MESSAGE_ID={MESSAGE_ID}")), "{page}");
        }
    }
}
