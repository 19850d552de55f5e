//! OCSF 1.3 (<https://schema.ocsf.io/1.3.0/classes/detection_finding>): Detection Finding, class 2004.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{PRODUCT, VERSION, time, uid};
use crate::{
    alert::{Alert, Process, Severity},
    detect::base,
};

const SCHEMA: &str = "1.3.0";
const CLASS: u32 = 2004;
/// A finding was made.
const CREATE: u32 = 1;

/// One finding.
#[must_use]
pub fn render(alert: &Alert) -> Value {
    let (severity_id, severity) = match alert.severity {
        Severity::Info => (1, "Informational"),
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    let (action_id, disposition_id, disposition) = if alert.blocked { (2, 2, "Blocked") } else { (1, 15, "Detected") };
    let when = time(alert).as_millisecond();
    let attacks: Vec<_> = alert
        .technique
        .attack
        .iter()
        .map(|id| {
            json!({
                "technique": {"uid": id, "name": alert.technique.name},
                "tactic": {"name": alert.technique.tactic},
            })
        })
        .collect();
    let mut finding = json!({
        "activity_id": CREATE,
        "activity_name": "Create",
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "type_uid": CLASS * 100 + CREATE,
        "type_name": "Detection Finding: Create",
        "severity_id": severity_id,
        "severity": severity,
        "status_id": 1,
        "status": "New",
        "time": when,
        "message": alert.title,
        "action_id": action_id,
        "disposition_id": disposition_id,
        "disposition": disposition,
        "is_alert": true,
        "metadata": {
            "version": SCHEMA,
            "product": {"name": PRODUCT, "vendor_name": PRODUCT, "version": VERSION},
            "profiles": ["host", "security_control"],
            "uid": uid(alert),
            "sequence": alert.trace.sequence,
            "original_time": alert.time,
        },
        "device": {"type_id": 1, "type": "Server", "hostname": alert.node, "name": alert.node},
        "finding_info": {
            "uid": uid(alert),
            "title": alert.title,
            "desc": alert.reasons.join("; "),
            "created_time": when,
            "types": [alert.technique.id],
            "analytic": {"type_id": 1, "type": "Rule", "uid": alert.technique.id, "name": alert.technique.name},
            "attacks": attacks,
        },
        "attacks": attacks,
    });
    let mut put = |name: &str, value: Vec<Value>| {
        if !value.is_empty() {
            finding[name] = Value::Array(value);
        }
    };
    put("evidences", evidences(alert));
    put("resources", resources(alert));
    finding
}

/// The act, and what it was done to.
fn evidences(alert: &Alert) -> Vec<Value> {
    let mut evidence = Map::new();
    if let Some(acting) = &alert.process {
        evidence.insert("process".to_owned(), process(acting));
    }
    if let Some(file) = &alert.file {
        let mut shown = json!({"name": base(&file.path), "path": file.path, "type_id": 1, "type": "Regular File"});
        if let Some(size) = file.size {
            shown["size"] = json!(size);
        }
        if let Some(sha256) = &file.sha256 {
            shown["hashes"] = json!([{"algorithm_id": 3, "algorithm": "SHA-256", "value": sha256}]);
        }
        evidence.insert("file".to_owned(), shown);
    }
    if let Some(request) = &alert.request {
        evidence.insert(
            "api".to_owned(),
            json!({
                "operation": request.verb,
                "request": {"uid": request.audit_id},
                "response": {"code": request.code},
                "service": {"name": "kube-apiserver"},
            }),
        );
        evidence.insert("actor".to_owned(), json!({"user": {"name": request.user, "groups": request.groups.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}}));
        if let Some(source) = request.source_ips.last() {
            evidence.insert("src_endpoint".to_owned(), json!({"ip": source}));
        }
    }
    if evidence.is_empty() {
        return Vec::new();
    }
    if let Ok(records) = serde_json::to_value(&alert.evidence) {
        evidence.insert("data".to_owned(), json!({"records": records}));
    }
    vec![Value::Object(evidence)]
}

fn process(process: &Process) -> Value {
    let file = |path: &str| json!({"name": base(path), "path": path, "type_id": 1});
    let mut shown = json!({
        "pid": process.pid,
        "name": base(&process.exe),
        "cmd_line": process.argv.join(" "),
        "file": file(&process.exe),
        "user": {"uid": process.uid.to_string(), "type_id": if process.uid == 0 { 2 } else { 1 }},
    });
    if let Some(start) = process.start_time.as_deref().and_then(|start| start.parse::<Timestamp>().ok()) {
        shown["created_time"] = json!(start.as_millisecond());
    }
    if let Some(sha256) = &process.sha256 {
        shown["file"]["hashes"] = json!([{"algorithm_id": 3, "algorithm": "SHA-256", "value": sha256}]);
    }
    if let Some(parent) = process.ancestors.first() {
        shown["parent_process"] = json!({"pid": parent.pid, "name": base(&parent.exe), "file": file(&parent.exe)});
    }
    shown
}

/// Where it happened.
fn resources(alert: &Alert) -> Vec<Value> {
    let mut resources = Vec::new();
    if let Some(pod) = &alert.pod {
        resources.push(json!({"type": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}));
    }
    if let Some(container) = &alert.container {
        let labels = [&container.image, &container.image_digest].into_iter().flatten();
        resources.push(json!({
            "type": "Container",
            "uid": container.id,
            "name": container.name.as_deref().unwrap_or(&container.id),
            "labels": labels.collect::<Vec<_>>(),
        }));
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::format::tests::{HOSTILE, alert, bare};

    #[test]
    fn every_attribute_that_the_class_requires_is_there_and_of_its_type() {
        for alert in [alert(), bare()] {
            let finding = render(&alert);
            for name in ["activity_id", "category_uid", "class_uid", "severity_id", "time", "type_uid"] {
                assert!(finding[name].is_u64() || finding[name].is_i64(), "{name}: {finding}");
            }
            assert_eq!(finding["class_uid"], 2004);
            assert_eq!(finding["type_uid"], 200_401);
            for required in
                ["/metadata/version", "/metadata/product/vendor_name", "/finding_info/uid", "/finding_info/title"]
            {
                assert!(finding.pointer(required).is_some_and(Value::is_string), "{required}: {finding}");
            }
            assert_eq!(finding.pointer("/device/type_id"), Some(&json!(1)));
            // Times are milliseconds since the epoch.
            assert_eq!(finding["time"], 1_795_561_781_258_u64);
        }
        assert!(render(&bare()).get("evidences").is_none());
    }

    #[test]
    fn a_finding_says_who_did_what_to_which_file_in_which_pod() {
        let finding = render(&alert());
        for (field, value) in [
            ("/evidences/0/process/pid", json!(4711)),
            ("/evidences/0/process/user/uid", json!("0")),
            ("/evidences/0/process/file/hashes/0/value", json!("cd".repeat(32))),
            ("/evidences/0/process/parent_process/name", json!("init")),
            ("/evidences/0/file/path", json!(HOSTILE)),
            ("/evidences/0/file/hashes/0/algorithm_id", json!(3)),
            ("/resources/0/namespace", json!("shop")),
            ("/resources/1/name", json!("app")),
            ("/attacks/0/technique/uid", json!("T1543.005")),
            ("/disposition_id", json!(15)),
        ] {
            assert_eq!(finding.pointer(field), Some(&value), "{field}: {finding}");
        }
        assert_eq!(render(&Alert { blocked: true, ..alert() })["disposition"], "Blocked");
    }
}
