//! Falco's JSON output, as falcosidekick takes it (`types.FalcoPayload`).

use serde_json::{Map, Value, json};

use super::{time, uid};
use crate::{
    alert::{Alert, Origin, Severity},
    escape::escape,
};

/// One event. falcosidekick passes `output_fields` on as they are, flat and named as Falco names them: text or number, for most of its
/// outputs show nothing else. The names of namespace and pod must be text, or it breaks the connection.
#[must_use]
pub fn render(alert: &Alert) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        let value = match value {
            Value::Null => return,
            // Some outputs are lines, and most are shown to people as they are.
            Value::String(text) => Value::String(escape(&text)),
            other => other,
        };
        fields.insert(name.to_owned(), value);
    };
    put("evt.time", json!(u64::try_from(time(alert).as_nanosecond()).unwrap_or(0)));
    put("evt.hostname", json!(alert.node));
    if alert.origin == Origin::Host {
        // What Falco calls it.
        put("container.id", json!("host"));
        put("container.name", json!("host"));
    }
    if let Some(process) = &alert.process {
        put("proc.pid", json!(process.pid));
        put("proc.exepath", json!(process.exe));
        put("proc.name", json!(process.exe.rsplit('/').next()));
        put("proc.cmdline", json!(process.argv.join(" ")));
        put("proc.pname", json!(process.ancestors.first().map(|parent| parent.exe.rsplit('/').next())));
        put("user.uid", json!(process.uid));
        put("user.loginuid", json!(process.login_uid));
    }
    if let Some(container) = &alert.container {
        put("container.id", json!(container.id.get(..12).unwrap_or(&container.id)));
        put("container.full_id", json!(container.id));
        put("container.name", json!(container.name));
        put("container.image", json!(container.image));
        put("container.image.digest", json!(container.image_digest));
    }
    if let Some(pod) = &alert.pod {
        put("k8s.ns.name", json!(pod.namespace));
        put("k8s.pod.name", json!(pod.name));
        put("k8s.pod.uid", json!(pod.uid));
    }
    if let Some(file) = &alert.file {
        put("fd.name", json!(file.path));
        put("file.sha256", json!(file.sha256));
        put("file.change", json!(file.change));
    }
    // As Falco's audit events name them.
    if let Some(request) = &alert.request {
        put("ka.auditid", json!(request.audit_id));
        put("ka.user.name", json!(request.user));
        put("ka.user.groups", json!(request.groups.join(",")));
        put("ka.sourceips", json!(request.source_ips.join(",")));
        put("ka.useragent", json!(request.user_agent));
        put("ka.verb", json!(request.verb));
        put("ka.uri", json!(request.uri));
        put("ka.target.resource", json!(request.resource));
        put("ka.target.namespace", json!(request.namespace));
        put("ka.target.name", json!(request.name));
        put("ka.response.code", json!(request.code));
    }
    put("evt.uid", json!(uid(alert)));
    put("evt.reasons", json!(alert.reasons.join("; ")));
    put("evt.blocked", json!(alert.blocked.to_string()));
    let priority = match alert.severity {
        Severity::Info => "Informational",
        Severity::Low => "Notice",
        Severity::Medium => "Warning",
        Severity::High => "Error",
        Severity::Critical => "Critical",
    };
    let ids = alert.technique.attack.iter().chain(alert.technique.microsoft);
    let tags: Vec<_> = [super::PRODUCT, "kubernetes", alert.technique.id].into_iter().chain(ids.copied()).collect();
    // Falco's own names: some outputs of falcosidekick take no others.
    let source = if alert.request.is_some() && alert.process.is_none() { "k8s_audit" } else { "syscall" };
    json!({
        // Chats show this as it is.
        "output": escape(&alert.title),
        "priority": priority,
        "rule": alert.technique.name,
        "time": alert.time,
        "source": source,
        "output_fields": fields,
        "hostname": alert.node,
        "tags": tags,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use serde::Deserialize;

    use super::*;
    use crate::{
        alert::{Container, Pod, Request},
        sink::format::tests::{HOSTILE, alert, assert_one_line, bare},
    };

    /// falcosidekick's `types.FalcoPayload`, and nothing else.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Payload {
        output: String,
        priority: Priority,
        rule: String,
        time: String,
        source: String,
        output_fields: BTreeMap<String, Scalar>,
        hostname: String,
        tags: Vec<String>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Priority {
        Emergency,
        Alert,
        Critical,
        Error,
        Warning,
        Notice,
        Informational,
        Debug,
    }

    /// Most outputs show text, some numbers, and none anything else.
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(u64),
    }

    /// What `newFalcoPayload` and `FalcoPayload.Check` ask for.
    fn taken(alert: &Alert) -> Payload {
        let payload: Payload = serde_json::from_value(render(alert)).unwrap();
        assert!(!payload.rule.is_empty() && !payload.output_fields.is_empty());
        // Go's time.Time takes RFC 3339 with any fraction, and the year 1 is none.
        assert!(payload.time.parse::<Timestamp>().unwrap() > Timestamp::UNIX_EPOCH);
        // It takes these two for text without looking.
        for name in ["k8s.ns.name", "k8s.pod.name"] {
            assert!(!matches!(payload.output_fields.get(name), Some(Scalar::Number(_))), "{name}");
        }
        // Its output for Spyderbat takes these for numbers, the one for traces groups by the other.
        assert!(matches!(payload.output_fields["evt.time"], Scalar::Number(_)));
        assert_eq!(payload.output_fields["evt.hostname"], Scalar::Text(payload.hostname.clone()));
        for value in payload.output_fields.values() {
            if let Scalar::Text(text) = value {
                assert_one_line(text);
            }
        }
        payload
    }

    #[test]
    fn falcosidekick_reads_every_field() {
        let payload = taken(&alert());
        assert_eq!((payload.priority, payload.rule.as_str()), (Priority::Error, "Static Pod"));
        assert_eq!(payload.time, alert().time);
        assert_eq!((payload.source.as_str(), payload.hostname.as_str()), ("syscall", "node-1"));
        assert!(
            payload.output.starts_with("Static pod manifest added: ") && !payload.output.contains(['\n', '\u{1b}'])
        );
        assert_eq!(payload.tags, ["detector", "kubernetes", "static-pod", "T1543.005", "MS-TA9017"]);
        let text = |text: &str| Scalar::Text(text.to_owned());
        assert_eq!(payload.output_fields["k8s.pod.name"], text("web"));
        assert_eq!(payload.output_fields["fd.name"], text(&escape(HOSTILE)));
        assert_eq!(payload.output_fields["proc.pid"], Scalar::Number(4711));
        assert_eq!(payload.output_fields["evt.blocked"], text("false"));
        assert_eq!(payload.output_fields["evt.time"], Scalar::Number(1_795_561_781_258_471_274));
    }

    #[test]
    fn every_severity_is_a_priority_that_falco_has() {
        for severity in [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
            let payload = taken(&Alert { severity, ..bare() });
            assert!(!payload.output_fields.contains_key("proc.pid"));
        }
    }

    #[test]
    fn host_container_and_unknown_are_told_apart_as_falco_does() {
        let id = |alert: &Alert| match taken(alert).output_fields.remove("container.id") {
            Some(Scalar::Text(id)) => id,
            other => format!("{other:?}"),
        };
        assert_eq!(id(&Alert { origin: Origin::Host, ..bare() }), "host");
        assert_eq!(id(&bare()), "None");
        let container = Container { id: "0123456789abcdef".repeat(4), name: None, image: None, image_digest: None };
        let pod = Pod { namespace: "a\nb".to_owned(), name: "web".to_owned(), uid: String::new() };
        let inside = Alert { origin: Origin::Container, container: Some(container), pod: Some(pod), ..bare() };
        assert_eq!(id(&inside), "0123456789ab");
    }

    #[test]
    fn what_was_asked_of_the_api_server_has_the_source_of_falcos_audit_events() {
        let request = Request {
            user: "alice".to_owned(),
            groups: vec!["system:masters".to_owned(), "x".to_owned()],
            impersonated_user: None,
            source_ips: vec!["203.0.113.7".to_owned()],
            user_agent: HOSTILE.to_owned(),
            verb: "delete".to_owned(),
            uri: "/api/v1/namespaces/shop/events".to_owned(),
            resource: Some("events".to_owned()),
            namespace: Some("shop".to_owned()),
            name: None,
            code: 200,
            audit_id: "a".to_owned(),
            time: "2026-11-24T23:09:41Z".to_owned(),
            pod: None,
        };
        let payload = taken(&Alert { request: Some(request), ..bare() });
        assert_eq!(payload.source, "k8s_audit");
        assert_eq!(payload.output_fields["ka.response.code"], Scalar::Number(200));
        assert!(!payload.output_fields.contains_key("ka.target.name"));
    }
}
