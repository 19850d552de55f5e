//! OpenTelemetry's logs as OTLP/HTTP with JSON (opentelemetry-proto 1.x, `logs.v1`).

use serde_json::{Value, json};

use super::{PRODUCT, VERSION, time, uid, word};
use crate::alert::{Alert, Severity};

/// One element of `resourceLogs`: elements of many alerts, with commas between them, make one request of [`OPEN`] and [`CLOSE`].
#[must_use]
pub fn render(alert: &Alert) -> Value {
    // Numbers of 64 bits are strings in protobuf's JSON.
    let when = time(alert).as_nanosecond().to_string();
    let number = match alert.severity {
        Severity::Info => 9,
        Severity::Low => 10,
        Severity::Medium => 13,
        Severity::High => 17,
        Severity::Critical => 21,
    };
    let mut attributes = vec![
        text("event.name", "detector.alert"),
        text("detector.uid", &uid(alert)),
        text("detector.technique", alert.technique.id),
        text("detector.attack", &alert.technique.attack.join(",")),
        json!({"key": "detector.blocked", "value": {"boolValue": alert.blocked}}),
    ];
    if let Some(process) = &alert.process {
        attributes.push(json!({"key": "process.pid", "value": {"intValue": process.pid.to_string()}}));
        attributes.push(text("process.executable.path", &process.exe));
        attributes.push(json!({"key": "process.command_args", "value": {"arrayValue": {"values":
            process.argv.iter().map(|arg| json!({"stringValue": arg})).collect::<Vec<_>>()}}}));
    }
    if let Some(container) = &alert.container {
        attributes.push(text("container.id", &container.id));
        attributes.extend(container.name.as_deref().map(|name| text("k8s.container.name", name)));
        attributes.extend(container.image.as_deref().map(|image| text("container.image.name", image)));
    }
    if let Some(pod) = &alert.pod {
        attributes.push(text("k8s.namespace.name", &pod.namespace));
        attributes.push(text("k8s.pod.name", &pod.name));
        attributes.push(text("k8s.pod.uid", &pod.uid));
    }
    if let Some(file) = &alert.file {
        attributes.push(text("file.path", &file.path));
    }
    if let Some(request) = &alert.request {
        attributes.push(text("user.name", &request.user));
        attributes.extend(request.source_ips.last().map(|source| text("client.address", source)));
        attributes.push(text("user_agent.original", &request.user_agent));
        attributes.push(text("url.path", request.uri.split('?').next().unwrap_or_default()));
    }
    // The whole of it, for who wants more than attributes.
    attributes.push(text("detector.alert", &serde_json::to_string(alert).unwrap_or_default()));
    json!({
        "resource": {"attributes": [
            text("service.name", PRODUCT),
            text("service.version", VERSION),
            text("host.name", &alert.node),
            text("k8s.node.name", &alert.node),
        ]},
        "scopeLogs": [{
            "scope": {"name": PRODUCT, "version": VERSION},
            "logRecords": [{
                "timeUnixNano": when,
                "observedTimeUnixNano": when,
                "severityNumber": number,
                "severityText": word(alert.severity),
                "body": {"stringValue": alert.title},
                "attributes": attributes,
            }],
        }],
    })
}

pub const OPEN: &str = "{\"resourceLogs\":[";
pub const CLOSE: &str = "]}";

/// How many of a request's records the receiver refused, and why, although it took the request (`partialSuccess`).
#[must_use]
pub fn refused(response: &[u8]) -> Option<(u64, String)> {
    let response: Value = serde_json::from_slice(response).ok()?;
    let partial = response.get("partialSuccess")?;
    let count = partial.get("rejectedLogRecords")?;
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    let why = partial.get("errorMessage").and_then(Value::as_str).unwrap_or("no reason given");
    (count > 0).then(|| (count, why.to_owned()))
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::format::tests::{HOSTILE, alert, bare};

    #[test]
    fn a_log_record_has_time_severity_body_and_attributes_as_protobuf_json_has_them() {
        let request: Value =
            serde_json::from_str(&format!("{OPEN}{},{}{CLOSE}", render(&alert()), render(&bare()))).unwrap();
        assert_eq!(request["resourceLogs"].as_array().unwrap().len(), 2);
        let record = request.pointer("/resourceLogs/0/scopeLogs/0/logRecords/0").unwrap();
        assert_eq!(record["timeUnixNano"], "1795561781258471274");
        assert_eq!(record["severityNumber"], 17);
        assert!(record["body"]["stringValue"].as_str().unwrap().starts_with("Static pod"));
        let value = |key: &str| {
            let attributes = record["attributes"].as_array().unwrap();
            attributes.iter().find(|attribute| attribute["key"] == key).map(|attribute| attribute["value"].clone())
        };
        assert_eq!(value("process.pid"), Some(json!({"intValue": "4711"})));
        assert_eq!(value("file.path"), Some(json!({"stringValue": HOSTILE})));
        assert_eq!(value("k8s.pod.name"), Some(json!({"stringValue": "web"})));
        let whole = value("detector.alert").unwrap();
        let whole: Value = serde_json::from_str(whole["stringValue"].as_str().unwrap()).unwrap();
        assert_eq!(whole, serde_json::to_value(alert()).unwrap());
    }

    #[test]
    fn what_a_receiver_refused_of_a_request_is_read_in_both_spellings() {
        let said = br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#;
        assert_eq!(refused(said), Some((3, "too old".to_owned())));
        assert_eq!(refused(br#"{"partialSuccess":{"rejectedLogRecords":2}}"#), Some((2, "no reason given".to_owned())));
        for none in [&b"{}"[..], b"", br#"{"partialSuccess":{"rejectedLogRecords":0}}"#, b"<html>"] {
            assert_eq!(refused(none), None);
        }
    }
}
