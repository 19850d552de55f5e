//! What is done to a cluster through its API server, and behind its back.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Options,
        api::{EDGE, OUTSIDER, User, audit_log, outside},
        daemons::{Node, curl, curl_of, inside, place, text},
        pods::NAMESPACE,
        watch::{LOW, Watch, is, severity, titles},
        webhook::Receiver,
    },
    Checks,
};

const EVENTS: &str = "delete-kubernetes-events";
const WEBHOOK: &str = "malicious-admission-controller";
const PUBLIC: &str = "public-api-endpoint";

/// The agent, which reads the audit log.
pub fn watch(node: &Node) -> anyhow::Result<Watch> {
    Watch::start(node, &["--audit-log", audit_log().to_str().context("not UTF-8")?])
}

/// The first alert of a technique, above low, that says all these words somewhere.
fn says(watch: &mut Watch, technique: &str, words: &[&str]) -> anyhow::Result<Value> {
    watch.find(&format!("{technique} above low, with {words:?}"), |alert| {
        let text = alert.to_string();
        is(alert, technique) && severity(alert) > LOW && words.iter().all(|word| text.contains(word))
    })
}

/// That a twin made no alert of a technique above low.
pub fn quiet(watch: &mut Watch, technique: &str) -> anyhow::Result<()> {
    let mut loud = watch.rest_of(technique)?;
    loud.retain(|alert| severity(alert) > LOW);
    ensure!(loud.is_empty(), "above low: {}", titles(&loud));
    Ok(())
}

/// Some events in a namespace.
///
/// # Errors
/// When the API server refuses.
pub fn events(node: &Node, namespace: &str, count: u32) -> anyhow::Result<()> {
    let events: Vec<_> = (0..count)
        .map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"name": format!("seen-{number}"), "namespace": namespace},
                "involvedObject": {"kind": "Pod", "name": "web", "namespace": namespace},
                "reason": "Started", "message": "Started container web", "type": "Normal",
            })
        })
        .collect();
    node.create(&json!({"apiVersion": "v1", "kind": "List", "items": events}))
}

fn events_are_gone(node: &Node) -> anyhow::Result<()> {
    let left = node.kubectl(&["--namespace", NAMESPACE, "get", "events", "--output=name"])?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("/seen-")).collect();
    ensure!(left.is_empty(), "{} are left", left.len());
    Ok(())
}

/// That an alert names the process with this argument by the connection that the request came over.
pub fn connected(alert: &Value, argument: &str) -> anyhow::Result<()> {
    let argv = &alert["process"]["argv"];
    ensure!(argv.to_string().contains(argument), "process.argv is {argv}, reasons are {}", alert["reasons"]);
    let evidence = alert["evidence"].as_array().context("no evidence")?;
    ensure!(evidence.iter().any(|part| part["kind"] == "connection"), "evidence is {}", alert["evidence"]);
    Ok(())
}

/// A user deletes events, in one request and one after the other.
pub fn events_deleted(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    events(node, NAMESPACE, 12)?;
    node.kubectl(&["create", "namespace", "short-lived"])?;
    events(node, "short-lived", 12)?;
    let mut watch = watch(node)?;

    node.kubectl_as(User::Alice, &["--namespace", NAMESPACE, "get", "events"])?;
    checks.check("twin: events that are read are no alert", quiet(&mut watch, EVENTS));
    // The namespace controller deletes what is in it, events too.
    node.kubectl(&["delete", "namespace", "short-lived"])?;
    checks.check("twin: events that go with their namespace are at most low", quiet(&mut watch, EVENTS));

    let collection = format!("/api/v1/namespaces/{NAMESPACE}/events");
    node.kubectl_as(User::Alice, &["delete", "--raw", &collection])?;
    let alert = says(&mut watch, EVENTS, &["alice", NAMESPACE]);
    checks.check(
        "all events deleted in one request: an alert that names the user, and the process by its connection",
        alert.and_then(|alert| connected(&alert, &collection)),
    );
    checks.check("they are gone", events_are_gone(node));
    watch.rest()?;

    events(node, NAMESPACE, 12)?;
    node.kubectl_as(User::Alice, &["--namespace", NAMESPACE, "delete", "events", "--all"])?;
    let alert = says(&mut watch, EVENTS, &["alice", NAMESPACE]);
    checks.check("deleted one after the other by kubectl: an alert that names the user", alert.map(drop));
    checks.check("they are gone", events_are_gone(node));
    Ok(())
}

/// Events deleted behind the API server's back.
pub fn etcd_client(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut watch = watch(node)?;
    events(node, NAMESPACE, 3)?;
    checks.check("twin: the API server writing events to etcd is no alert", quiet(&mut watch, EVENTS));
    let mut etcdctl = inside(node.tools.etcd("etcdctl"));
    etcdctl.args(["--endpoints=http://127.0.0.1:2379", "del", "--prefix", "/registry/events/"]).env("ETCDCTL_API", "3");
    let deleted = text(etcdctl)?;
    let count: u32 = deleted.trim().parse().with_context(|| format!("etcdctl said {deleted:?}"))?;
    ensure!(count >= 3, "etcdctl deleted {count}");
    let alert = says(&mut watch, EVENTS, &["etcdctl"]);
    let named = |alert: Value| {
        let argv = &alert["process"]["argv"];
        ensure!(argv.to_string().contains("/registry/events/"), "process.argv is {argv}");
        Ok(())
    };
    checks.check("etcdctl deletes them in etcd: an alert that names the process", alert.and_then(named));
    checks.check("they are gone", events_are_gone(node));
    Ok(())
}

/// The audit log rotated by the API server, then truncated and removed by somebody else.
pub fn audit_log_cleared(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    // An API server that has not been asked anything since the last rotation has not made it yet.
    node.kubectl(&["get", "--raw", "/version"])?;
    let mut watch = watch(node)?;
    rotate()?;
    checks.check("twin: the API server rotating its audit log is no alert", quiet(&mut watch, EVENTS));
    events(node, NAMESPACE, 12)?;
    node.kubectl_as(User::Alice, &["delete", "--raw", &format!("/api/v1/namespaces/{NAMESPACE}/events")])?;
    let alert = says(&mut watch, EVENTS, &["alice"]);
    checks.check("what is in the log after it was rotated is read", alert.map(drop));
    watch.rest()?;

    let log = audit_log();
    let log = log.to_str().context("not UTF-8")?;
    for (program, arguments, what) in [("truncate", &["--size=0"][..], "emptied"), ("rm", &[], "removed")] {
        crate::check(Command::new(program).args(arguments).arg(log))?;
        let by = |alert: Value| {
            // Who did it is not always seen: then nobody is named, and never somebody else.
            let exe = alert["process"]["exe"].as_str();
            ensure!(exe.is_none_or(|exe| exe.ends_with(program)), "process.exe is {exe:?}");
            Ok(())
        };
        let alert = says(&mut watch, EVENTS, &["audit.log", what]);
        checks.check(&format!("{what} by hand: an alert that names the log"), alert.and_then(by));
    }
    // It writes on into the file that is removed, until it opens it anew for its size.
    rotate()?;
    Ok(())
}

/// How many audit logs there are, and the inode of the one that is written.
fn logs() -> anyhow::Result<(usize, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let log = audit_log();
    let count = fs::read_dir(log.parent().unwrap_or(Path::new("/")))?.count();
    Ok((count, fs::metadata(&log).map_or(0, |meta| meta.ino())))
}

/// Asks the API server until its audit log has been rotated.
///
/// # Errors
/// When it is not, after several times its size.
pub fn rotate() -> anyhow::Result<()> {
    let before = logs()?.1;
    for _ in 0..20 {
        // Each is a line of some 700 bytes.
        text(curl(&["--output", "/dev/null", "https://127.0.0.1/readyz?n=[1-400]"]))?;
        let now = logs()?.1;
        if now != before && now != 0 {
            return Ok(());
        }
    }
    anyhow::bail!("the API server does not rotate {}", audit_log().display())
}

/// A webhook outside of the cluster is told of every secret.
pub fn webhook(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let receiver = Receiver::start(node)?;
    let mut watch = watch(node)?;
    node.kubectl(&["get", "mutatingwebhookconfigurations,validatingwebhookconfigurations"])?;
    let secret = ["--namespace", NAMESPACE, "create", "secret", "generic"];
    node.kubectl(&[&secret[..], &["unseen", "--from-literal=password=swordfish"]].concat())?;
    checks.check("twin: configurations that are read, and a secret made, are no alert", quiet(&mut watch, WEBHOOK));

    let mut bundle = Command::new("openssl");
    bundle.args(["base64", "-A", "-in"]).arg(place("api/ca.crt"));
    node.create(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "sidecar-injector"},
        "webhooks": [{
            "name": "inject.sidecar.example",
            "clientConfig": {"url": Receiver::url(), "caBundle": text(bundle)?.trim()},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"]}],
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore", "timeoutSeconds": 5,
        }],
    }))?;
    let alert = says(&mut watch, WEBHOOK, &["admin", OUTSIDER]);
    checks.check(
        "a webhook configured: an alert that names the user and the address, and the process by its connection",
        alert.and_then(|alert| connected(&alert, "create")),
    );
    let told = || {
        // Until the API server has heard of the configuration.
        for number in 0..50 {
            let name = format!("stolen-{number}");
            node.kubectl(&[&secret[..], &[&name, "--from-literal=password=swordfish"]].concat())?;
            if receiver.was_told("stolen") {
                return Ok(());
            }
        }
        anyhow::bail!("it was not told of 50 secrets")
    };
    let told = told();
    checks.check("the webhook is told of secrets", told);
    let alert = watch.find(&format!("{WEBHOOK} by kube-apiserver's connection"), |alert| {
        is(alert, WEBHOOK)
            && alert["process"]["exe"].as_str().is_some_and(|exe| exe.ends_with("/kube-apiserver"))
            && alert.to_string().contains(OUTSIDER)
    });
    checks.check("the API server connects to it: an alert with the address", alert.map(drop));
    node.kubectl(&["delete", "mutatingwebhookconfiguration", "sidecar-injector"])?;
    node.kubectl(&["--namespace", NAMESPACE, "delete", "secrets", "--all", "--wait=false"])?;
    Ok(())
}

/// Somebody outside of the cluster asks the API server without saying who they are.
pub fn anonymous(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut watch = watch(node)?;
    node.kubectl(&["version"])?;
    text(curl(&["https://127.0.0.1/livez"]))?;
    text(curl_of(&outside(), &[&format!("https://{EDGE}/healthz")]))?;
    checks.check(
        "twin: a user who asks for the version, and health checks from inside and outside, are at most low",
        quiet(&mut watch, PUBLIC),
    );
    let version = text(curl_of(&outside(), &[&format!("https://{EDGE}/version")]))?;
    ensure!(version.contains("gitVersion"), "the API server said {version}");
    let alert = says(&mut watch, PUBLIC, &[OUTSIDER]);
    checks.check("the version asked for from outside, without a name: an alert with the address", alert.map(drop));
    // Refused, and only the attempt is seen.
    let refused =
        curl_of(&outside(), &["--write-out", "%{http_code}", &format!("https://{EDGE}/api/v1/secrets")]).output()?;
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(said.contains("403"), "asked for secrets, the API server said {said:?}");
    Ok(())
}
