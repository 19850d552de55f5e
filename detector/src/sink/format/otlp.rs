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
                "eventName": "detector.alert",
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
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest,
        common::v1::{AnyValue, KeyValue, any_value::Value as Any},
        logs::v1::{LogRecord, SeverityNumber},
    };

    use super::*;
    use crate::sink::format::tests::{HOSTILE, alert, bare};

    /// A request as OpenTelemetry's own types read it.
    fn request(alerts: &[Alert]) -> ExportLogsServiceRequest {
        let elements: Vec<_> = alerts.iter().map(|alert| render(alert).to_string()).collect();
        let sent = format!("{OPEN}{}{CLOSE}", elements.join(","));
        let request: ExportLogsServiceRequest = serde_json::from_str(&sent).unwrap();
        // They pass over what they do not know: nothing of ours is.
        assert_contains(&serde_json::to_value(&request).unwrap(), &serde_json::from_str(&sent).unwrap(), "");
        request
    }

    /// Whatever was sent is in what was read, under the same name.
    fn assert_contains(read: &Value, sent: &Value, at: &str) {
        match (read, sent) {
            (Value::Object(read), Value::Object(sent)) => sent.iter().for_each(|(name, sent)| {
                let at = format!("{at}/{name}");
                assert_contains(read.get(name).unwrap_or_else(|| panic!("{at} is not known")), sent, &at);
            }),
            (Value::Array(read), Value::Array(sent)) => {
                assert_eq!(read.len(), sent.len(), "{at}");
                read.iter().zip(sent).for_each(|(read, sent)| assert_contains(read, sent, at));
            }
            _ => assert_eq!(read, sent, "{at}"),
        }
    }

    fn record(request: &ExportLogsServiceRequest, at: usize) -> &LogRecord {
        let [scope] = &request.resource_logs[at].scope_logs[..] else { panic!("{request:?}") };
        let [record] = &scope.log_records[..] else { panic!("{scope:?}") };
        record
    }

    fn of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
        attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn opentelemetrys_own_types_read_resource_scope_and_record() {
        let request = request(&[alert(), bare()]);
        assert_eq!(request.resource_logs.len(), 2);
        let text = |text: &str| Any::StringValue(text.to_owned());
        let resource = &request.resource_logs[0].resource.as_ref().unwrap().attributes;
        for (key, value) in [
            ("service.name", PRODUCT),
            ("service.version", VERSION),
            ("host.name", "node-1"),
            ("k8s.node.name", "node-1"),
        ] {
            assert_eq!(of(resource, key), Some(&text(value)), "{key}");
        }
        let scope = request.resource_logs[0].scope_logs[0].scope.as_ref().unwrap();
        assert_eq!((scope.name.as_str(), scope.version.as_str()), (PRODUCT, VERSION));
        let record = record(&request, 0);
        assert_eq!(record.time_unix_nano, 1_795_561_781_258_471_274);
        assert_eq!(record.observed_time_unix_nano, record.time_unix_nano);
        assert_eq!((record.severity_number(), record.severity_text.as_str()), (SeverityNumber::Error, "high"));
        assert_eq!(record.event_name, "detector.alert");
        let Some(AnyValue { value: Some(Any::StringValue(body)), .. }) = &record.body else { panic!("{record:?}") };
        assert_eq!(*body, alert().title);
        let of = |key: &str| of(&record.attributes, key);
        assert_eq!(of("process.pid"), Some(&Any::IntValue(4711)));
        assert_eq!(of("detector.blocked"), Some(&Any::BoolValue(false)));
        assert_eq!(of("file.path"), Some(&text(HOSTILE)));
        assert_eq!(of("k8s.pod.name"), Some(&text("web")));
        let Some(Any::ArrayValue(args)) = of("process.command_args") else { panic!("{record:?}") };
        let args: Vec<_> = args.values.iter().filter_map(|arg| arg.value.clone()).collect();
        assert_eq!(args, alert().process.unwrap().argv.iter().map(|arg| text(arg)).collect::<Vec<_>>());
        let Some(Any::StringValue(whole)) = of("detector.alert") else { panic!("{record:?}") };
        let whole: Value = serde_json::from_str(whole).unwrap();
        assert_eq!(whole, serde_json::to_value(alert()).unwrap());
        let mut keys: Vec<_> = record.attributes.iter().map(|attribute| &attribute.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), record.attributes.len(), "a key is given once");
    }

    #[test]
    fn severities_are_in_the_ranges_that_opentelemetry_has_for_them() {
        for (severity, number) in [
            (Severity::Info, SeverityNumber::Info),
            (Severity::Low, SeverityNumber::Info2),
            (Severity::Medium, SeverityNumber::Warn),
            (Severity::High, SeverityNumber::Error),
            (Severity::Critical, SeverityNumber::Fatal),
        ] {
            assert_eq!(record(&request(&[Alert { severity, ..bare() }]), 0).severity_number(), number);
        }
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
