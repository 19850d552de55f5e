//! A Kubernetes API server for the node: etcd, kube-apiserver and kube-controller-manager for real, beside a kubelet that
//! registers with it. It takes time and memory, so only scenarios that need it have it.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    daemons::{self, Node, SERVICES, curl, daemon, inside, place, text, wait},
    host::{self, NAME},
    pods::NAMESPACE,
};
use crate::{check, setup};

/// The node's address for kubelet and API server.
const NODE: &str = "10.99.0.1";
/// The address of the service `kubernetes`, which pods are told of. The API server listens there itself, so that no proxy is
/// needed.
pub const SERVICE: &str = "10.96.0.1";
/// The node's end of the cable to somebody outside of the cluster: addresses that belong to nobody (RFC 5737).
pub const EDGE: &str = "198.51.100.1";
/// Somebody outside of the cluster.
pub const OUTSIDER: &str = "198.51.100.77";
/// Requests of webhooks and events with what they carry, everything else by who did what.
const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "RequestResponse", "resources": [
      {"group": "admissionregistration.k8s.io"},
      {"group": "", "resources": ["events"]}, {"group": "events.k8s.io", "resources": ["events"]}
    ]},
    {"level": "Metadata"}
  ]
}"#;

/// Whoever speaks to the API server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum User {
    /// May do everything.
    Admin,
    /// May look at pods and events, and delete events.
    Alice,
}

/// Users by token: name and group, as in the file of tokens. Kubelet's name is the one that the node authorizer knows.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("alice", "alice", "staff"),
    ("kubelet", "system:node:detector-node", "system:nodes"),
    ("controller-manager", "system:kube-controller-manager", "controllers"),
];

/// Where the audit log is.
pub fn audit_log() -> PathBuf {
    place("audit/audit.log")
}

/// The network namespace of somebody outside of the cluster.
pub fn outside() -> PathBuf {
    place("outside")
}

impl Node {
    /// Brings an API server up, unless there is one, and has kubelet register with it.
    ///
    /// # Errors
    /// When a daemon does not start, with the end of what it said.
    pub fn bring_up_api(&mut self) -> anyhow::Result<()> {
        if self.has_api {
            return Ok(());
        }
        fs::DirBuilder::new().mode(0o700).create(place("api"))?;
        fs::create_dir(place("audit"))?;
        cables().context("the network to somebody outside")?;
        certificates().context("making certificates")?;
        users()?;
        fs::write(place("api/policy.json"), POLICY)?;

        let mut etcd = Command::new(self.tools.etcd("etcd"));
        etcd.arg("--data-dir").arg(place("etcd"));
        etcd.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
        etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
        etcd.arg("--initial-cluster=default=http://127.0.0.1:2380");
        self.bring_up("etcd", &etcd, "http://127.0.0.1:2379/health")?;
        self.bring_up("kube-apiserver", &self.api_server(), "https://127.0.0.1/readyz")?;
        let mut controllers = Command::new(self.tools.kubernetes("kube-controller-manager"));
        controllers.arg(format!("--kubeconfig={}", place("api/controller-manager.conf").display()));
        controllers.arg(format!("--service-account-private-key-file={}", place("api/sa.key").display()));
        controllers.arg(format!("--root-ca-file={}", place("api/ca.crt").display()));
        controllers.arg(format!("--cert-dir={}", place("api/controllers").display()));
        controllers.args(["--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1"]);
        controllers.args(["--port=0", BOUND_TOKENS]);
        self.bring_up("kube-controller-manager", &controllers, "https://127.0.0.1:10257/healthz")?;

        // The same kubelet, started again as one that belongs to a cluster.
        fs::write(place("kubelet.yaml"), serde_json::to_string_pretty(&daemons::kubelet_config("0.0.0.0"))?)?;
        self.restart_kubelet()?;
        self.has_api = true;
        self.grants()?;
        setup::say("the API server is up, and kubelet is registered with it");
        Ok(())
    }

    /// Ends the kubelet that runs, and starts one that is registered with the API server.
    ///
    /// # Errors
    /// When it does not get healthy.
    pub fn restart_kubelet(&mut self) -> anyhow::Result<()> {
        daemons::stop(&mut self.daemons, "kubelet")?;
        let mut kubelet = daemons::kubelet(&self.tools);
        kubelet.arg(format!("--kubeconfig={}", place("api/kubelet.conf").display()));
        kubelet.arg(format!("--node-ip={NODE}"));
        self.daemons.push(("kubelet", daemon(&self.tools, "kubelet", &kubelet)?));
        daemons::kubelet_is_healthy(&mut self.daemons)
    }

    fn bring_up(&mut self, name: &'static str, command: &Command, health: &str) -> anyhow::Result<()> {
        self.daemons.push((name, daemon(&self.tools, name, command)?));
        wait(name, &mut self.daemons, || text(curl(&[health]))).map(drop)
    }

    fn api_server(&self) -> Command {
        let file = |name: &str| place("api").join(name).display().to_string();
        let mut server = Command::new(self.tools.kubernetes("kube-apiserver"));
        server.args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=443"]);
        server.args([&format!("--advertise-address={NODE}"), &format!("--service-cluster-ip-range={SERVICES}")]);
        server.args(["--insecure-port=0", "--anonymous-auth=true", "--allow-privileged=true"]);
        server.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", BOUND_TOKENS]);
        server.args(["--kubelet-preferred-address-types=InternalIP", "--event-ttl=1h"]);
        server.arg(format!("--token-auth-file={}", file("tokens.csv")));
        server.arg(format!("--client-ca-file={}", file("ca.crt")));
        server.arg(format!("--tls-cert-file={}", file("apiserver.crt")));
        server.arg(format!("--tls-private-key-file={}", file("apiserver.key")));
        server.arg("--service-account-issuer=https://kubernetes.default.svc");
        server.arg(format!("--service-account-key-file={}", file("sa.pub")));
        server.arg(format!("--service-account-signing-key-file={}", file("sa.key")));
        server.arg(format!("--audit-policy-file={}", file("policy.json")));
        server.arg(format!("--audit-log-path={}", audit_log().display()));
        // So small that it is rotated while one looks.
        server.args(["--audit-log-maxsize=1", "--audit-log-maxbackup=4"]);
        server
    }

    /// The namespace of scenarios' pods, and who may do what in it.
    fn grants(&mut self) -> anyhow::Result<()> {
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        let verbs = "--verb=get,list,watch,delete,deletecollection";
        self.kubectl(&["create", "clusterrole", "janitor", verbs, "--resource=events,pods"])?;
        self.kubectl(&["create", "clusterrolebinding", "janitor", "--clusterrole=janitor", "--user=alice"])?;
        let tools = &self.tools;
        let known = |of: [&str; 4]| text(kubectl(tools, User::Admin, &of)).map(drop);
        wait("kubelet", &mut self.daemons, || known(["get", "node", NAME, "--output=name"]))?;
        wait("kube-controller-manager", &mut self.daemons, || {
            known(["--namespace", NAMESPACE, "get", "serviceaccount/default"])?;
            known(["--namespace", NAMESPACE, "get", "configmap/kube-root-ca.crt"])
        })
    }

    /// kubectl as the admin, to its end; what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl_as(User::Admin, args)
    }

    /// kubectl as a user, to its end; what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl_as(&self, user: User, args: &[&str]) -> anyhow::Result<String> {
        text(kubectl(&self.tools, user, args))
    }

    /// Makes an object, as the admin.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn create(&self, object: &Value) -> anyhow::Result<()> {
        let file = place("work/object.json");
        fs::write(&file, serde_json::to_vec(object)?)?;
        self.kubectl(&["create", "--filename", file.to_str().context("not UTF-8")?]).map(drop)
    }

    /// Makes a pod of this node through the API server, with the node's name at the end of its own, and waits until it runs.
    ///
    /// # Errors
    /// When the API server refuses, or it does not run in time.
    pub fn run_api_pod(&mut self, mut manifest: Value) -> anyhow::Result<super::pods::Pod> {
        let name = manifest["metadata"]["name"].as_str().context("a manifest without name")?.to_owned();
        manifest["metadata"]["name"] = format!("{name}-{NAME}").into();
        // There is no scheduler, and nothing to choose.
        manifest["spec"]["nodeName"] = NAME.into();
        self.create(&manifest)?;
        self.running(&name)
    }

    /// Deletes every pod of the scenarios' namespace, and what would make them again.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn remove_api_pods(&self) -> anyhow::Result<()> {
        let all = ["--namespace", NAMESPACE, "delete", "deployments,replicasets,pods", "--all", "--wait=false"];
        self.kubectl(&[&all[..], &["--grace-period=0", "--force"]].concat()).map(drop)
    }
}

/// Tokens that kubelet projects into pods and renews, as all clusters have them since 1.21.
const BOUND_TOKENS: &str = "--feature-gates=BoundServiceAccountTokenVolume=true";

/// kubectl of the cluster's version, on the node.
pub fn kubectl(tools: &super::tools::Tools, user: User, args: &[&str]) -> Command {
    let name = match user {
        User::Admin => "admin",
        User::Alice => "alice",
    };
    let mut kubectl = inside(tools.kubernetes("kubectl"));
    kubectl.arg(format!("--kubeconfig={}", place("api").join(format!("{name}.conf")).display()));
    kubectl.arg(format!("--cache-dir={}", place("api/cache").display())).args(args);
    kubectl.stdin(Stdio::null());
    kubectl
}

/// The addresses that a node of a cluster has, and a cable to somebody outside of it.
fn cables() -> anyhow::Result<()> {
    let (inside, outside) = (host::network(), outside());
    fs::write(&outside, "")?;
    check(Command::new("unshare").arg(format!("--net={}", outside.display())).args(["ip", "link", "set", "lo", "up"]))?;
    let peer = outside.display().to_string();
    let [node, service] = [NODE, SERVICE].map(|address| format!("{address}/32"));
    let [edge, outsider] = [EDGE, OUTSIDER].map(|address| format!("{address}/24"));
    let steps: [(&PathBuf, &[&str]); 7] = [
        (&inside, &["address", "add", &node, "dev", "lo"]),
        (&inside, &["address", "add", &service, "dev", "lo"]),
        (&inside, &["link", "add", "edge", "type", "veth", "peer", "name", "edge", "netns", &peer]),
        (&inside, &["address", "add", &edge, "dev", "edge"]),
        (&inside, &["link", "set", "edge", "up"]),
        (&outside, &["address", "add", &outsider, "dev", "edge"]),
        (&outside, &["link", "set", "edge", "up"]),
    ];
    for (network, step) in steps {
        text({
            let mut ip = daemons::inside_of(network, "ip");
            ip.args(step);
            ip
        })?;
    }
    Ok(())
}

/// An authority, the API server's certificate and one for somebody outside, and the key that signs service accounts' tokens.
fn certificates() -> anyhow::Result<()> {
    let openssl = |args: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(args).current_dir(place("api"));
        text(openssl)
    };
    let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    let make = |name: &str, more: &[&str]| {
        let (key, certificate, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
        openssl(&[&new[..], &["-keyout", &key, "-out", &certificate, "-subj", &subject], more].concat())
    };
    make("ca", &[])?;
    let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext"];
    let names = format!(
        "subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
         IP:127.0.0.1,IP:{NODE},IP:{SERVICE},IP:{EDGE}"
    );
    make("apiserver", &[&signed[..], &[&names]].concat())?;
    make("outsider", &[&signed[..], &[&format!("subjectAltName=IP:{OUTSIDER}")]].concat())?;
    openssl(&["genrsa", "-out", "sa.key", "2048"])?;
    openssl(&["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]).map(drop)
}

/// A token for each user, and the file by which a program is that user.
fn users() -> anyhow::Result<()> {
    let mut tokens = String::new();
    for (file, name, group) in USERS {
        let mut random = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        tokens += &format!("{token},{name},{file},{group}\n");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "node",
            "clusters": [{
                "name": "node",
                "cluster": {"server": format!("https://{NODE}:443"), "certificate-authority": place("api/ca.crt")},
            }],
            "users": [{"name": file, "user": {"token": token}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": file}}],
        });
        fs::write(place("api").join(format!("{file}.conf")), serde_json::to_vec(&config)?)?;
    }
    Ok(fs::write(place("api/tokens.csv"), tokens)?)
}
