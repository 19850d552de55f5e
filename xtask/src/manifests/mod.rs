//! `cargo xtask manifests`: what `deploy/` says to Kubernetes, rendered by kustomize and helm, and validated against the schemas
//! of Kubernetes' oldest and newest versions that are at hand. Needs no cluster. What the Prometheus operator takes is checked by [`monitoring`].

mod monitoring;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{
    check, root,
    setup::{self, Apt, output, say},
};

/// Helm's own code and the schemas, as Python packages: neither is in Debian.
const PYTHON: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
/// Kubernetes' versions whose schemas are tried.
const VERSIONS: [&str; 2] = ["1.25.0", "1.37.0"];
const OVERLAYS: [&str; 3] = ["kubeadm", "k3s", "crio"];
/// Below `deploy/kustomize`.
const COMPONENTS: [&str; 5] =
    ["components/seccomp", "components/kernel-5.10", OPERATOR, "components/metrics-policy", "../grafana"];
const OPERATOR: &str = "components/prometheus-operator";

/// Renders and validates everything.
///
/// # Errors
/// When something cannot be rendered or is not what Kubernetes takes, with the tool's words.
pub fn manifests() -> anyhow::Result<()> {
    let place = root().join("target/manifests");
    fs::create_dir_all(&place)?;
    let tools = Tools::get(&place)?;
    let deploy = root().join("deploy").canonicalize()?;
    let kustomize = deploy.join("kustomize");

    let mut rendered = Vec::new();
    let base = tools.kustomize(&kustomize.join("base"))?;
    for overlay in OVERLAYS {
        rendered.push((format!("kustomize-{overlay}"), tools.kustomize(&kustomize.join("overlays").join(overlay))?));
    }
    let mut with_operator = None;
    for component in COMPONENTS {
        let text = tools.kustomize(&with_component(&kustomize, component)?)?;
        if component == OPERATOR {
            with_operator = Some(monitoring::Operator::of(&text)?);
        }
        rendered.push((format!("kustomize-{}", base_name(component)), text));
    }
    let with_operator = with_operator.context("no component for the Prometheus operator")?;
    rendered.extend(tools.charts(&deploy.join("helm/detector"), &pod(&base)?)?);
    rendered.push(("kustomize-base".to_owned(), base));
    let with_chart = rendered.iter().find(|(name, _)| name == "helm-all").context("the chart is not rendered")?;
    let with_chart = monitoring::Operator::of(&with_chart.1)?;
    ensure!(with_chart.rules == with_operator.rules, "the chart's rules are not those of {OPERATOR}");
    let rules = monitoring::check(&place, &with_operator.rules, &deploy.join("grafana/detector.json"))?;
    let mut files = Vec::new();
    for (name, text) in &rendered {
        let file = place.join(format!("{name}.yaml"));
        // Of what is not Kubernetes' own it has no schemas.
        fs::write(&file, monitoring::without_operator(text)?)?;
        files.push(file);
    }
    for version in VERSIONS {
        let mut validate = Command::new(place.join("python/bin/kubernetes-validate"));
        validate.args(["--strict", "--quiet", "--kubernetes-version", version]).args(&files);
        check(&mut validate)
            .with_context(|| format!("not what Kubernetes {version} takes; see {}", place.display()))?;
    }
    say(&format!(
        "{} renderings are valid for Kubernetes {}: {}",
        files.len(),
        VERSIONS.join(" and "),
        rendered.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    ));
    say(&rules);
    Ok(())
}

/// kustomize, and Python with what it takes.
struct Tools {
    kustomize: PathBuf,
    python: PathBuf,
}

impl Tools {
    fn get(place: &Path) -> anyhow::Result<Self> {
        let kustomize = place.join("kustomize");
        if !kustomize.exists() {
            say("fetching kustomize (Debian 13's; unpacked, not installed)");
            let apt = Apt::new(&[("http://deb.debian.org/debian", "trixie")], None)
                .context("Debian's package index (a network is needed, once)")?;
            let partial = place.join("kustomize.partial");
            fs::copy(apt.unpack("kustomize")?.join("usr/bin/kustomize"), &partial)?;
            fs::rename(partial, &kustomize)?;
        }
        let python = place.join("python");
        if !python.join("complete").exists() {
            say(&format!("fetching {}", PYTHON.join(" and ")));
            let venv = || check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python));
            if venv().is_err() {
                setup::apt_install(&["python3-venv"])?;
                venv()?;
            }
            check(Command::new(python.join("bin/pip")).args(["install", "--quiet"]).args(PYTHON))
                .context("(a network is needed, once)")?;
            fs::write(python.join("complete"), "")?;
        }
        Ok(Self { kustomize, python: python.join("bin/python") })
    }

    fn kustomize(&self, dir: &Path) -> anyhow::Result<String> {
        output(Command::new(&self.kustomize).arg("build").arg(dir))
    }

    /// The chart with its defaults, and with everything that can be set; it must be the pod of the base, and refuse what it
    /// does not know.
    fn charts(&self, chart: &Path, of_base: &Value) -> anyhow::Result<Vec<(String, String)>> {
        let all = json!({
            "image": {"repository": "registry.example/detector", "digest": format!("sha256:{}", "0".repeat(64))},
            "imagePullSecrets": [{"name": "registry"}],
            "namespace": {"create": true},
            "extraArgs": ["--no-cri"],
            "seccompProfile": "detector.json",
            "seLinuxOptions": {"type": "spc_t"},
            "oldKernels": true,
            "maxUnavailable": "10%",
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}
            ]}}},
            "podAnnotations": {"a.example/b": "c"},
            "podLabels": {"team": "security"},
            "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": true},
            "networkPolicy": {"enabled": true, "namespace": "observability"},
        });
        let unheard = json!({"config": {"metrics": {"listen": null}}});
        let refused = [
            json!({"nothing": 1}),
            json!({"image": {"digest": "latest"}}),
            json!({"maxUnavailable": 0}),
            json!({"seccompProfile": ""}),
            json!({"podMonitor": {"enabled": true, "interval": "often"}}),
            json!({"prometheusRule": {"enable": true}}),
        ];
        let values = [json!({}), all, unheard];
        let lines: String = values.iter().chain(&refused).map(|one| format!("{one}\n")).collect();
        let mut helm = Command::new(&self.python)
            .args(["-c", include_str!("helm.py")])
            .arg(chart)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It tells of every symbolic link in the chart.
            .stderr(Stdio::piped())
            .spawn()?;
        helm.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
        let said = helm.wait_with_output()?;
        let errors = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "helm ended with {}: {errors}", said.status);
        let said = String::from_utf8(said.stdout)?;
        let mut said = said.lines().map(serde_json::from_str::<Value>);
        let lint = said.next().context("helm said nothing")??;
        ensure!(lint == json!([]), "helm lint: {lint}");
        let mut rendered = Vec::new();
        for name in ["helm-defaults", "helm-all", "helm-unheard"] {
            let one = said.next().context("a rendering is missing")??;
            let Some(files) = one["rendered"].as_object() else { bail!("{name}: {}", one["refused"]) };
            let yaml: Vec<_> = files
                .iter()
                .filter(|(file, _)| file.ends_with(".yaml"))
                .filter_map(|(_, text)| text.as_str())
                .filter(|text| !text.trim().is_empty())
                .collect();
            rendered.push((name.to_owned(), yaml.join("\n---\n")));
        }
        for values in &refused {
            let one = said.next().context("an answer is missing")??;
            ensure!(one["refused"].is_string(), "the chart takes {values}");
        }
        let of_chart = pod(&rendered[0].1)?;
        ensure!(of_chart == *of_base, "the chart's pod is not that of kustomize/base:\n{of_chart:#}\nnot\n{of_base:#}");
        // An agent that listens nowhere cannot be probed.
        let unheard = pod(&rendered[2].1)?;
        for key in ["ports", "livenessProbe", "readinessProbe"] {
            ensure!(unheard["containers"][0].get(key).is_none(), "the chart has {key} though nothing listens");
        }
        Ok(rendered)
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A kustomization of the base with a component.
fn with_component(kustomize: &Path, component: &str) -> anyhow::Result<PathBuf> {
    // kustomize takes no absolute paths.
    let dir = root().join("target/manifests").join(format!("with-{}", base_name(component)));
    fs::create_dir_all(&dir)?;
    let up = "../../../deploy/kustomize";
    ensure!(dir.join(up).canonicalize()? == kustomize, "{} is not below the workspace", dir.display());
    fs::write(dir.join("kustomization.yaml"), format!("resources: [{up}/base]\ncomponents: [{up}/{component}]\n"))?;
    Ok(dir)
}

/// The pod's specification of the only DaemonSet in rendered manifests.
///
/// # Errors
/// When there is none, or it is not YAML.
pub fn pod(rendered: &str) -> anyhow::Result<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(rendered).context("a manifest is not YAML")?;
    let mut sets = objects.into_iter().filter(|object| object["kind"] == "DaemonSet");
    let mut set = sets.next().context("there is no DaemonSet")?;
    ensure!(sets.next().is_none(), "there is more than one DaemonSet");
    Ok(set["spec"]["template"]["spec"].take())
}

/// The agent's configuration as `deploy/kustomize/base` has it.
///
/// # Errors
/// When it cannot be read.
pub fn config() -> anyhow::Result<String> {
    let file = root().join("deploy/kustomize/base/configmap.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let map: Value = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
    Ok(map["data"]["config.yaml"].as_str().context("the ConfigMap has no config.yaml")?.to_owned())
}

/// The pod's specification as `deploy/kustomize/base` has it: what runs on the private node.
///
/// # Errors
/// When it cannot be read.
pub fn base() -> anyhow::Result<Value> {
    let file = root().join("deploy/kustomize/base/daemonset.yaml");
    pod(&fs::read_to_string(&file).with_context(|| file.display().to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deployed_is_the_image_of_this_version_and_mounts_nothing_of_the_node() {
        let pod = base().unwrap();
        assert_eq!(pod["containers"][0]["image"], crate::image::NAME);
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod.get("hostNetwork"), None);
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume["configMap"].is_object(), "{volume}");
        }
        assert_eq!(pod["containers"][0]["securityContext"]["privileged"], false);
    }
}
