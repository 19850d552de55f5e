//! What containers do that their images do not have, and what they may do that others may not.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Options,
        api::{EDGE, OUTSIDER, outside},
        daemons::{Node, curl_of, place, text},
        images::BUSYBOX,
        pods::{self, Pod},
        watch::{LOW, Watch, is, names, names_pod, severity},
    },
    Checks, control_plane,
};

/// A pod that waits for a word, and then does what belongs to it.
pub struct Prompter {
    work: PathBuf,
}

impl Prompter {
    /// A directory to tell a pod by, which is `/work` in there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let work = place("work").join(name);
        fs::create_dir_all(&work)?;
        Ok(Self { work })
    }

    /// The manifest of a pod that does these acts (a word, and a script for each), in their order.
    ///
    /// # Errors
    /// When the directory's name is not UTF-8.
    pub fn manifest(&self, name: &str, acts: &[(&str, &str)], mounts: &[(&str, &str)]) -> anyhow::Result<Value> {
        let script: String = acts
            .iter()
            .map(|(word, act)| {
                format!("until test -e /work/{word}; do sleep 0.1; done; {act}; touch /work/{word}-done; ")
            })
            .collect();
        let own = [("/work", self.work.to_str().context("not UTF-8")?)];
        let manifest = pods::manifest(name, &format!("{script} exec sleep 3600"));
        Ok(pods::with_host_paths(manifest, &[&own[..], mounts].concat()))
    }

    /// Has the pod do an act, and waits until it is done.
    ///
    /// # Errors
    /// When it is not done in time.
    pub fn prompt(&self, node: &mut Node, word: &str) -> anyhow::Result<()> {
        fs::write(self.work.join(word), "")?;
        let done = self.work.join(format!("{word}-done"));
        node.until(&format!("the pod does {word}"), || done.exists())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }
}

/// Programs that were not in the image, executed from wherever one can put them.
pub fn dropped(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    const TECHNIQUE: &str = "supply-chain-compromise";
    let prompter = Prompter::new("dropped")?;
    fs::write(prompter.file("script"), "#!/bin/sh\n/bin/id\n")?;
    let acts = [
        ("twin", "/bin/id; sh /work/script; cp /bin/busybox /tmp/never-run"),
        ("upper", "cp /bin/busybox /tmp/id; /tmp/id"),
        ("tmpfs", "cp /bin/busybox /scratch/id; /scratch/id"),
        ("memfd", "/bin/memfd /bin/busybox id"),
    ];
    let mut manifest = prompter.manifest("dropped", &acts, &[])?;
    let volumes = manifest["spec"]["volumes"].as_array_mut().context("no volumes")?;
    volumes.push(json!({"name": "scratch", "emptyDir": {"medium": "Memory"}}));
    let places = manifest["spec"]["containers"][0]["volumeMounts"].as_array_mut().context("no mounts")?;
    places.push(json!({"name": "scratch", "mountPath": "/scratch"}));
    let pod = node.run_pod(&manifest)?;
    let mut watch = Watch::start(node, &[])?;

    prompter.prompt(node, "twin")?;
    let silent = control_plane::quiet(&mut watch, TECHNIQUE);
    checks.check("twin: the image's programs, a script for one, a program that is written and never run", silent);
    for (word, exe, what) in [
        ("upper", "/tmp/id", "a program written into the container and executed"),
        ("tmpfs", "/scratch/id", "a program in a volume of memory"),
        ("memfd", "memfd:id", "a program that is in no file system"),
    ] {
        prompter.prompt(node, word)?;
        let alert = watch.find(&format!("{TECHNIQUE} above low, with {exe}"), |alert| {
            is(alert, TECHNIQUE) && severity(alert) > LOW && alert.to_string().contains(exe)
        });
        let named = alert.and_then(|alert| names(&alert, &pod, "app", BUSYBOX));
        checks.check(&format!("{what}: an alert with the pod"), named);
    }
    Ok(())
}

/// A pod that may do anything on the node.
pub fn privileged(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    const TECHNIQUE: &str = "malicious-operator";
    let mut watch = Watch::start(node, &[])?;
    node.run_pod(&pods::manifest("modest", pods::IDLE))?;
    checks.check("twin: a pod that asks for nothing is no alert", control_plane::quiet(&mut watch, TECHNIQUE));
    let mut manifest = pods::with_host_paths(pods::manifest("mighty", pods::IDLE), &[("/host", "/")]);
    manifest["spec"]["hostPID"] = true.into();
    manifest["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let pod = node.run_pod(&manifest)?;
    let alert = watch.find(&format!("{TECHNIQUE} above low, with the pod"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW && alert["pod"]["name"] == pod.name.as_str()
    });
    checks.check(
        "privileged, with the node's processes and files: an alert with the pod",
        alert.and_then(|alert| names_pod(&alert, &pod)),
    );
    Ok(())
}

/// A pod with the node's processes stops the agent.
pub fn agent_attacked(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    const TECHNIQUE: &str = "detector-tampering";
    let prompter = Prompter::new("attacker")?;
    let acts = [
        ("twin", "kill -0 $(cat /work/pid)"),
        ("stop", "kill -STOP $(cat /work/pid); sleep 1; kill -CONT $(cat /work/pid)"),
    ];
    let mut manifest = prompter.manifest("attacker", &acts, &[])?;
    manifest["spec"]["hostPID"] = true.into();
    let pod = node.run_pod(&manifest)?;
    let mut watch = Watch::start(node, &[])?;
    // As the pod sees it: where this runs in a container, its kubelet's pods do too.
    fs::write(prompter.file("pid"), watch.pid()?.to_string())?;
    prompter.prompt(node, "twin")?;
    checks.check("twin: asking whether the agent lives is no alert", control_plane::quiet(&mut watch, TECHNIQUE));
    prompter.prompt(node, "stop")?;
    let alert = watch.find(&format!("{TECHNIQUE} above low, with the pod"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW && alert["pod"]["name"] == pod.name.as_str()
    });
    checks
        .check("stopped for a second: an alert with the pod, once it goes on", alert.and_then(|a| names_pod(&a, &pod)));
    Ok(())
}

/// A service account's token, read by others than the workload it belongs to.
pub fn token(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    const TECHNIQUE: &str = "container-service-account";
    const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let ask = format!(
        "wget -q -O - --no-check-certificate --header \"Authorization: Bearer $(cat {TOKEN})\" \
         https://$KUBERNETES_SERVICE_HOST/api/v1/namespaces/{}/pods",
        pods::NAMESPACE
    );
    let (namespace, bind) = (pods::NAMESPACE, "--clusterrole=janitor");
    let account = format!("--serviceaccount={namespace}:default");
    node.kubectl(&["create", "rolebinding", "looks", "--namespace", namespace, bind, &account])?;
    let prompter = Prompter::new("token")?;
    let owner = prompter.manifest("owner", &[("twin", &format!("{ask} > /work/pods"))], &[])?;
    let owner = node.run_api_pod(owner)?;
    let kubelets = place("kubelet/pods");
    let mounts = [("/kubelet", kubelets.to_str().context("not UTF-8")?)];
    let thief = Prompter::new("thief")?;
    let steal = format!("cat /kubelet/{}/volumes/*/*/token > /work/stolen", owner.uid);
    let borrow = ask.replace(TOKEN, "/work/stolen");
    let acts = [("steal", steal.as_str()), ("borrow", &format!("{borrow} > /work/pods"))];
    let manifest = thief.manifest("thief", &acts, &mounts)?;
    let other = node.run_api_pod(manifest)?;
    let mut watch = control_plane::watch(node)?;

    prompter.prompt(node, "twin")?;
    let pods = fs::read_to_string(prompter.file("pods"))?;
    ensure!(pods.contains("PodList"), "the workload asked the API server for pods, and was told {pods:?}");
    let silent = control_plane::quiet(&mut watch, TECHNIQUE);
    checks.check("twin: a workload that reads its own token and uses it is no alert", silent);

    let about = |watch: &mut Watch, pod: &Pod, words: &str| {
        let alert = watch.find(&format!("{TECHNIQUE} above low, with {words}"), |alert| {
            is(alert, TECHNIQUE) && severity(alert) > LOW && alert.to_string().contains(words)
        })?;
        names_pod(&alert, pod)
    };
    let exec = ["--namespace", namespace, "exec", &owner.name, "--"];
    node.kubectl(&[&exec[..], &["cat", TOKEN]].concat())?;
    checks.check("read by kubectl exec: an alert with the pod", about(&mut watch, &owner, "cat"));
    watch.rest()?;
    let listed = node.kubectl(&[&exec[..], &["sh", "-c", &ask]].concat())?;
    ensure!(listed.contains("PodList"), "the exec session asked for pods, and was told {listed:?}");
    let alert = watch.find(&format!("{TECHNIQUE} high, with wget"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW + 1 && alert.to_string().contains("wget")
    });
    checks.check("read and used in an exec session: high, with the pod", alert.and_then(|a| names_pod(&a, &owner)));
    watch.rest()?;

    thief.prompt(node, "steal")?;
    ensure!(fs::metadata(thief.file("stolen"))?.len() > 100, "the other pod has read no token");
    checks.check("read by another pod: an alert with that pod", about(&mut watch, &other, "cat"));
    watch.rest()?;
    thief.prompt(node, "borrow")?;
    let pods = fs::read_to_string(thief.file("pods"))?;
    ensure!(pods.contains("PodList"), "the thief asked the API server for pods, and was told {pods:?}");
    let alert = watch.find(&format!("{TECHNIQUE} above low, by whose token it is"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW && alert["request"]["pod"] == owner.name.as_str()
    });
    let named = alert.and_then(|alert| {
        names_pod(&alert, &other)?;
        control_plane::connected(&alert, "wget")
    });
    checks.check("used by another pod: an alert with that pod, and the process by its connection", named);
    watch.rest()?;
    let on_host = format!("cat {}/{}/volumes/*/*/token > /dev/null", kubelets.display(), owner.uid);
    crate::check(std::process::Command::new("sh").args(["-c", &on_host]))?;
    let alert = watch.find(&format!("{TECHNIQUE} above low, from the host"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW && alert["origin"] == "host"
    });
    checks.check("read on the host by somebody who is not kubelet: an alert", alert.map(drop));

    let stolen = fs::read_to_string(thief.file("stolen"))?;
    let bearer = format!("Authorization: Bearer {}", stolen.trim());
    let url = format!("https://{EDGE}/api/v1/namespaces/{namespace}/pods");
    let listed = text(curl_of(&outside(), &["--header", &bearer, &url]))?;
    ensure!(listed.contains("PodList"), "with the token from outside the API server said {listed:?}");
    let account = format!("system:serviceaccount:{namespace}:default");
    let alert = watch.find(&format!("above low, with {account} and {OUTSIDER}"), |alert| {
        let said = alert.to_string();
        severity(alert) > LOW && said.contains(&account) && said.contains(OUTSIDER)
    });
    checks.check("used from outside of the cluster: an alert with the account and the address", alert.map(drop));
    Ok(())
}

/// A workload that uses the API server, and then runs a program that it brought.
pub fn turned(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    const TECHNIQUE: &str = "malicious-operator";
    let ask = "wget -q -O /dev/null --no-check-certificate https://$KUBERNETES_SERVICE_HOST/version";
    let prompter = Prompter::new("turned")?;
    let acts = [("twin", &*format!("{ask}; id; date")), ("turn", "cp /bin/busybox /tmp/id; /tmp/id")];
    let manifest = prompter.manifest("operator", &acts, &[])?;
    let pod = node.run_api_pod(manifest)?;
    let mut watch = Watch::start(node, &[])?;
    prompter.prompt(node, "twin")?;
    let silent = control_plane::quiet(&mut watch, TECHNIQUE);
    checks.check("twin: it uses the API server, and runs its image's programs", silent);
    prompter.prompt(node, "turn")?;
    let alert = watch.find(&format!("{TECHNIQUE} above low, with /tmp/id"), |alert| {
        is(alert, TECHNIQUE) && severity(alert) > LOW && alert.to_string().contains("/tmp/id")
    });
    let named = alert.and_then(|alert| {
        names(&alert, &pod, "app", BUSYBOX)?;
        control_plane::connected(&alert, "/tmp/id")
    });
    checks.check("then it runs a program that it wrote: an alert with the pod, and the connection before", named);
    Ok(())
}
