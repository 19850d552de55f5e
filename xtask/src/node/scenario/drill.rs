//! `detector drill` against the real API server, with kubeconfigs of every form.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Options,
        api::audit_log,
        daemons::{Node, confined, place, text},
    },
    Checks,
};

/// Every drill that asks an API server, as users of kubeconfigs of every form, and what must be refused.
pub fn drills(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    certificate()?;
    let token = fs::read_to_string(place("api/admin.conf"))?;
    let token: Value = serde_json::from_str(&token)?;
    let token = token["users"][0]["user"]["token"].as_str().context("the admin has no token")?.to_owned();
    fs::write(place("api/drill.token"), format!("{token}\n"))?;
    let embedded = |name: &str| {
        let mut base64 = Command::new("openssl");
        base64.args(["base64", "-A", "-in"]).arg(place("api").join(name));
        anyhow::Ok(text(base64)?.trim().to_owned())
    };
    let file = || json!({"certificate-authority": "ca.crt"});
    let data = json!({"certificate-authority-data": embedded("ca.crt")?});
    let client = json!({"client-certificate": "drill.crt", "client-key": "drill.key"});
    let client_data =
        json!({"client-certificate-data": embedded("drill.crt")?, "client-key-data": embedded("drill.key")?});
    let unverified = json!({"insecure-skip-tls-verify": true});
    for (what, drill, cluster, user, find) in [
        ("a token", "delete-kubernetes-events", file(), json!({"token": token}), false),
        ("a token's file", "public-api-endpoint", data.clone(), json!({"tokenFile": "drill.token"}), false),
        ("a certificate's files", "malicious-admission-controller", file(), client, false),
        ("an embedded certificate", "delete-kubernetes-events", data.clone(), client_data, true),
        ("no authority", "public-api-endpoint", unverified, json!({"token": token}), false),
    ] {
        let said = run(node, drill, &cluster, &user, find);
        let passed = said.and_then(|(fine, said)| {
            ensure!(fine && said.contains("drill: PASSED"), "it said {said}");
            // Nobody's requests may be probes, which kubelet makes from the same address.
            let named = said.contains("by the drill's own connection");
            ensure!(named == (drill != "public-api-endpoint"), "it said {said}");
            Ok(())
        });
        let how = if find { ", with a log that is looked for" } else { "" };
        checks.check(
            &format!("{drill} with {what}{how}: the alert comes, and names the drill where it can be told"),
            passed,
        );
    }
    for (what, cluster, user, says) in [
        ("a plugin", file(), json!({"exec": {"command": "/bin/true"}}), "plugins are not run"),
        ("a token that is none", file(), json!({"token": "nonsense"}), "answered 401"),
        (
            "a key of another certificate",
            file(),
            json!({"client-certificate": "drill.crt", "client-key": "ca.key"}),
            "fit",
        ),
        ("another authority", json!({"certificate-authority": "outsider.crt"}), json!({"token": token}), "certificate"),
        ("a user without the right", file(), json!({"token": alice()?}), "needs the right to create"),
    ] {
        let said = run(node, "malicious-admission-controller", &cluster, &user, false);
        let refused = said.and_then(|(fine, said)| {
            ensure!(!fine && said.contains("error: ") && said.contains(says), "it said {said}");
            Ok(())
        });
        checks.check(&format!("{what}: an error that says so"), refused);
    }
    let left = node.kubectl(&["get", "mutatingwebhookconfigurations", "--output=name"])?;
    ensure!(left.trim().is_empty(), "a drill left {left}");
    Ok(())
}

/// A certificate of the cluster's authority for somebody who may do everything.
fn certificate() -> anyhow::Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "drill.key"]);
    openssl.args(["-out", "drill.crt", "-subj", "/O=system:masters/CN=driller", "-CA", "ca.crt", "-CAkey", "ca.key"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=clientAuth"]);
    openssl.current_dir(place("api"));
    text(openssl).map(drop)
}

fn alice() -> anyhow::Result<String> {
    let config: Value = serde_json::from_str(&fs::read_to_string(place("api/alice.conf"))?)?;
    Ok(config["users"][0]["user"]["token"].as_str().context("alice has no token")?.to_owned())
}

/// A drill with a kubeconfig of this cluster and user: whether it passed, and what it said.
fn run(node: &Node, drill: &str, cluster: &Value, user: &Value, find: bool) -> anyhow::Result<(bool, String)> {
    let admin: Value = serde_json::from_str(&fs::read_to_string(place("api/admin.conf"))?)?;
    let mut cluster = cluster.clone();
    cluster["server"] = admin["clusters"][0]["cluster"]["server"].clone();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "drill",
        "clusters": [{"name": "node", "cluster": cluster}],
        "users": [{"name": "driller", "user": user}],
        "contexts": [{"name": "drill", "context": {"cluster": "node", "user": "driller"}}],
    });
    let path: PathBuf = place("api/drill.conf");
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    let mut detector = Command::new(&node.detector);
    detector.args(["drill", drill, "--kubeconfig"]).arg(path);
    if !find {
        detector.arg("--audit-log").arg(audit_log());
    }
    let output = confined(&node.tools, &detector)?.output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
