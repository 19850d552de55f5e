//! Falco's JSON output, as falcosidekick takes it (`types.FalcoPayload`).

use serde_json::{Map, Value, json};

use super::uid;
use crate::{
    alert::{Alert, Severity},
    escape::escape,
};

/// One event. falcosidekick passes `output_fields` on as they are, flat and named as Falco names them.
#[must_use]
pub fn render(alert: &Alert) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
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
    put("evt.blocked", json!(alert.blocked));
    let priority = match alert.severity {
        Severity::Info => "Informational",
        Severity::Low => "Notice",
        Severity::Medium => "Warning",
        Severity::High => "Error",
        Severity::Critical => "Critical",
    };
    let ids = alert.technique.attack.iter().chain(alert.technique.microsoft);
    let tags: Vec<_> = ["kubernetes", alert.technique.id].into_iter().chain(ids.copied()).collect();
    json!({
        // Chats show this as it is.
        "output": escape(&alert.title),
        "priority": priority,
        "rule": alert.technique.name,
        "time": alert.time,
        "source": super::PRODUCT,
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
    use crate::sink::format::tests::{HOSTILE, alert, bare};

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

    /// Outputs make labels and templates of the values: they are scalars.
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(u64),
        Truth(bool),
    }

    #[test]
    fn falcosidekick_reads_every_field() {
        let payload: Payload = serde_json::from_value(render(&alert())).unwrap();
        assert_eq!((payload.priority, payload.rule.as_str()), (Priority::Error, "Static Pod"));
        // Go's time.Time takes RFC 3339 with any fraction.
        assert!(payload.time.parse::<Timestamp>().is_ok() && payload.time == alert().time);
        assert_eq!((payload.source.as_str(), payload.hostname.as_str()), ("detector", "node-1"));
        assert!(
            payload.output.starts_with("Static pod manifest added: ") && !payload.output.contains(['\n', '\u{1b}'])
        );
        assert_eq!(payload.tags, ["kubernetes", "static-pod", "T1543.005", "MS-TA9017"]);
        let text = |name: &str| &payload.output_fields[name];
        assert_eq!(*text("k8s.pod.name"), Scalar::Text("web".to_owned()));
        assert_eq!(*text("fd.name"), Scalar::Text(HOSTILE.to_owned()));
        assert_eq!(*text("proc.pid"), Scalar::Number(4711));
        assert_eq!(*text("evt.blocked"), Scalar::Truth(false));
    }

    #[test]
    fn every_severity_is_a_priority_that_falco_has() {
        for severity in [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
            let alert = Alert { severity, ..bare() };
            let payload: Payload = serde_json::from_value(render(&alert)).unwrap();
            assert!(!payload.output_fields.contains_key("proc.pid"));
        }
    }
}
