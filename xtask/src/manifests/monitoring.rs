//! What Prometheus is told of the agent: its operator's objects, the rules and the dashboard, checked by promtool. That every metric they
//! name is exported is a unit test of the agent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    check as run,
    setup::{Apt, output, say},
};

const GROUP: &str = "monitoring.coreos.com/v1";
/// What each rule makes of made-up samples.
const TESTS: &str = include_str!("rules.test.yaml");

/// What the operator takes.
pub struct Operator {
    /// `groups:`, as Prometheus' own files of rules have them.
    pub rules: Value,
}

impl Operator {
    /// Of a rendering. Its PodMonitor must find the DaemonSet's pods and their port.
    pub fn of(rendered: &str) -> anyhow::Result<Self> {
        let objects = objects(rendered)?;
        let one = |kind: &str| {
            let mut found = objects.iter().filter(|object| object["kind"] == kind);
            let object = found.next().with_context(|| format!("there is no {kind}"))?;
            ensure!(found.next().is_none(), "there is more than one {kind}");
            Ok(object)
        };
        let (set, monitor, rules) = (one("DaemonSet")?, one("PodMonitor")?, one("PrometheusRule")?);
        for object in [monitor, rules] {
            ensure!(object["apiVersion"] == GROUP, "{}: {}", object["kind"], object["apiVersion"]);
            ensure!(
                object["metadata"]["namespace"] == set["metadata"]["namespace"],
                "{}: its namespace",
                object["kind"]
            );
        }
        let template = &set["spec"]["template"];
        let wanted =
            monitor["spec"]["selector"]["matchLabels"].as_object().context("a PodMonitor that selects nothing")?;
        for (label, value) in wanted {
            ensure!(template["metadata"]["labels"][label] == *value, "the PodMonitor wants the label {label}: {value}");
        }
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        let ports = template["spec"]["containers"][0]["ports"].as_array().context("the pod has no ports")?;
        ensure!(ports.iter().any(|port| port["name"] == endpoint["port"]), "the pod has no port {}", endpoint["port"]);
        ensure!(endpoint["path"] == "/metrics", "the path {}", endpoint["path"]);
        Ok(Self { rules: rules["spec"].clone() })
    }
}

/// The rendering without what the operator takes.
pub fn without_operator(rendered: &str) -> anyhow::Result<String> {
    if !rendered.contains(GROUP) {
        return Ok(rendered.to_owned());
    }
    let others = objects(rendered)?.into_iter().filter(|object| object["apiVersion"] != GROUP);
    // JSON is YAML.
    let texts = others.map(|object| serde_json::to_string_pretty(&object)).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n---\n"))
}

fn objects(rendered: &str) -> anyhow::Result<Vec<Value>> {
    serde_saphyr::from_multiple(rendered).context("a manifest is not YAML")
}

/// Tries the rules, and takes the dashboard's expressions as if they were rules; yields what was found well, in words.
pub fn check(place: &Path, rules: &Value, dashboard: &Path) -> anyhow::Result<String> {
    let promtool = promtool(place)?;
    let write = |name: &str, value: &Value| -> anyhow::Result<PathBuf> {
        let file = place.join(name);
        fs::write(&file, serde_json::to_string_pretty(value)?)?;
        Ok(file)
    };
    let file = write("rules.json", rules)?;
    run(Command::new(&promtool).args(["check", "rules", "--lint-fatal"]).arg(&file))?;
    let tests = place.join("rules.test.yaml");
    fs::write(&tests, TESTS)?;
    run(Command::new(&promtool).args(["test", "rules"]).arg(&tests).current_dir(place))?;
    let names = alerts(rules);
    let untested: Vec<_> = names.iter().filter(|name| !TESTS.contains(&format!("alertname=\"{name}\""))).collect();
    ensure!(untested.is_empty(), "rules that rules.test.yaml does not try: {untested:?}");

    let panels: Value = serde_json::from_str(&fs::read_to_string(dashboard)?).context("the dashboard is not JSON")?;
    let expressions = expressions(&panels);
    ensure!(expressions.len() > 20, "the dashboard has {} expressions", expressions.len());
    let records: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(number, expression)| json!({"record": format!("dashboard:{number}"), "expr": expression}))
        .collect();
    let file = write("dashboard.json", &json!({"groups": [{"name": "dashboard", "rules": records}]}))?;
    run(Command::new(&promtool).args(["check", "rules", "--lint=none"]).arg(&file))?;
    Ok(format!(
        "promtool takes {} rules, each tried, and the dashboard's {} expressions",
        names.len(),
        expressions.len()
    ))
}

fn promtool(place: &Path) -> anyhow::Result<PathBuf> {
    let promtool = place.join("promtool");
    if !promtool.exists() {
        say("fetching promtool (Debian 12's; unpacked, not installed)");
        let apt = Apt::new(&[("http://deb.debian.org/debian", "bookworm")], None)
            .context("Debian's package index (a network is needed, once)")?;
        let partial = place.join("promtool.partial");
        fs::copy(apt.unpack("prometheus")?.join("usr/bin/promtool"), &partial)?;
        output(Command::new(&partial).arg("--version"))?;
        fs::rename(partial, &promtool)?;
    }
    Ok(promtool)
}

fn alerts(rules: &Value) -> BTreeSet<String> {
    let groups = rules["groups"].as_array().into_iter().flatten();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    rules.filter_map(|rule| rule["alert"].as_str().map(str::to_owned)).collect()
}

/// What the dashboard asks, with what Grafana would put in for its variables.
fn expressions(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value.as_str()) {
                ("expr", Some(text)) => {
                    let filled = [("$__rate_interval", "5m"), ("$__range", "6h"), ("$node", ".*")];
                    vec![filled.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))]
                }
                _ => expressions(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}
