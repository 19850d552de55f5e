//! Programs that are called like those of a node, and listen, store and log like them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::Context as _;
use detector::source::hex;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Addresses of the node's network namespace: its API server's and etcd's, a webhook's, a stranger's (RFC 5737).
pub const NODE: &str = "203.0.113.1";
pub const WEBHOOK: &str = "192.0.2.7";
pub const STRANGER: &str = "198.51.100.9";
/// Of the pod whose token lies in the volume.
const UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

/// A program of the node, driven by its standard input.
pub struct Part {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Part {
    /// Copies `reach` to where a program of that name would be, and starts it.
    fn start(dir: &Path, reach: &Path, name: &str, args: &[String]) -> anyhow::Result<Self> {
        let program = dir.join("bin").join(name);
        fs::copy(reach, &program)?;
        let mut command = Command::new(&program);
        let mut child = command.arg("listen").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let mut part = Self { child, out };
        part.says("listening").with_context(|| name.to_owned())?;
        Ok(part)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do a line of `reach`.
    pub fn does(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.child.stdin.as_mut().context("no input")?, "{line}")?;
        self.says("done").with_context(|| line.to_owned())
    }

    fn says(&mut self, wanted: &str) -> anyhow::Result<()> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        anyhow::ensure!(line.trim_end() == wanted, "it said {line:?}");
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A container runtime's store and configuration.
pub struct Runtime {
    _containerd: Part,
    pub config: PathBuf,
    /// Where its images' blobs lie.
    pub blobs: PathBuf,
}

impl Runtime {
    pub fn start(dir: &Path, reach: &Path) -> anyhow::Result<Self> {
        let root = dir.join("containerd");
        let blobs = root.join("io.containerd.content.v1.content/blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let config = dir.join("config.toml");
        fs::write(&config, Self::configuration("registry.k8s.io/pause:3.9"))?;
        let flags = ["--".to_owned(), format!("--root={}", root.display()), format!("--config={}", config.display())];
        Ok(Self { _containerd: Part::start(dir, reach, "containerd", &flags)?, config, blobs })
    }

    /// A configuration that names a pause image.
    pub fn configuration(pause: &str) -> String {
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{pause}\"\n")
    }
}

/// An image's manifest, and its digest in hex.
pub fn manifest(name: &str) -> (String, String) {
    let digest = |of: &str| format!("sha256:{}", hex(&Sha256::digest(of)));
    let text = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(name), "size": 100},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest("layer"), "size": 100}],
        "annotations": {"io.containerd.image.name": name},
    });
    let text = text.to_string();
    let digest = hex(&Sha256::digest(&text));
    (text, digest)
}

/// kubelet with a pod's token, kube-apiserver with its audit log, and etcd, in a network namespace of their own.
pub struct ControlPlane {
    pub kubelet: Part,
    pub server: Part,
    pub etcd: Part,
    /// A token volume.
    pub volume: PathBuf,
    pub kubeconfig: PathBuf,
    pub log: AuditLog,
    network: Network,
    reach: PathBuf,
}

impl ControlPlane {
    pub fn start(dir: &Path, reach: &Path) -> anyhow::Result<Self> {
        let root = dir.join("kubelet-root");
        let volume = root.join(format!("pods/{UID}/volumes/kubernetes.io~projected/kube-api-access"));
        fs::create_dir_all(&volume)?;
        mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
        let kubeconfig = dir.join("kubelet.conf");
        fs::write(&kubeconfig, "apiVersion: v1\nkind: Config\nclusters: []\n")?;
        let log = AuditLog { path: dir.join("audit.log"), written: 0 };
        fs::write(&log.path, "")?;
        let network = Network::new()?;
        let part = |name: &str, args: &[&str]| {
            let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
            network.within(|| Part::start(dir, reach, name, &args))
        };
        let (root_dir, config) =
            (format!("--root-dir={}", root.display()), format!("--kubeconfig={}", kubeconfig.display()));
        let kubelet = part("kubelet", &["127.0.0.1:10250", "--", &root_dir, &config])?;
        let (server, audit) = (format!("{NODE}:6443"), format!("--audit-log-path={}", log.path.display()));
        let server = part("kube-apiserver", &[&server, "127.0.0.1:6443", "--", &audit])?;
        let client = format!("{NODE}:2379");
        let urls = format!("--listen-client-urls=http://127.0.0.1:2379,http://[::1]:2379,http://{client}");
        let etcd = part("etcd", &["127.0.0.1:2379", "[::1]:2379", &client, "127.0.0.1:2381", "--", &urls])?;
        let plane = Self { kubelet, server, etcd, volume, kubeconfig, log, network, reach: reach.to_owned() };
        plane.rotate_token("one")?;
        Ok(plane)
    }

    /// Writes the volume as kubelet's atomic writer does: another directory, and a link swapped to it.
    pub fn rotate_token(&self, generation: &str) -> anyhow::Result<()> {
        let data = self.volume.join(format!("..{generation}"));
        fs::create_dir(&data)?;
        for name in ["token", "ca.crt"] {
            fs::write(data.join(name), generation)?;
            if !self.volume.join(name).is_symlink() {
                symlink(format!("..data/{name}"), self.volume.join(name))?;
            }
        }
        symlink(format!("..{generation}"), self.volume.join("..data_tmp"))?;
        fs::rename(self.volume.join("..data_tmp"), self.volume.join("..data"))?;
        Ok(())
    }

    /// Another program in the node's network namespace, called like this.
    pub fn other(&self, dir: &Path, name: &str) -> anyhow::Result<Part> {
        self.network.within(|| Part::start(dir, &self.reach, name, &[]))
    }

    pub fn token(&self) -> String {
        self.volume.join("token").display().to_string()
    }

    /// Runs `reach` in the node's network namespace. Yields its pid.
    pub fn reach(&self, args: &[&str]) -> anyhow::Result<u32> {
        self.runs(&self.reach, args)
    }

    /// The same by a copy of it.
    pub fn runs(&self, program: &Path, args: &[&str]) -> anyhow::Result<u32> {
        let mut child = self.network.within(|| Ok(Command::new(program).args(args).spawn()?))?;
        let pid = child.id();
        anyhow::ensure!(child.wait()?.success(), "{args:?} failed");
        Ok(pid)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Nothing more can be done about it.
        let _ = umount2(&self.volume, MntFlags::MNT_DETACH);
    }
}

/// A network namespace with the node's addresses.
struct Network {
    own: File,
    node: File,
}

impl Network {
    fn new() -> anyhow::Result<Self> {
        let now = || File::open("/proc/thread-self/ns/net");
        let own = now()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let network = Self { own, node: now()? };
        setns(&network.own, CloneFlags::CLONE_NEWNET)?;
        let ip = |args: &[&str]| -> anyhow::Result<()> {
            let status = Command::new("ip").args(args).status().context("starting ip")?;
            anyhow::ensure!(status.success(), "ip {} failed", args.join(" "));
            Ok(())
        };
        network.within(|| {
            ip(&["link", "set", "lo", "up"])?;
            [NODE, WEBHOOK, STRANGER]
                .iter()
                .try_for_each(|address| ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]))
        })?;
        Ok(network)
    }

    /// Lets this thread start something in there.
    fn within<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        setns(&self.node, CloneFlags::CLONE_NEWNET)?;
        let started = start();
        setns(&self.own, CloneFlags::CLONE_NEWNET)?;
        started
    }
}

/// The log that the API server says it writes.
pub struct AuditLog {
    pub path: PathBuf,
    written: u32,
}

/// Who asks, from where.
#[derive(Clone, Copy)]
pub struct Asker {
    pub user: &'static str,
    pub groups: &'static [&'static str],
    pub from: &'static str,
    pub agent: &'static str,
}

impl AuditLog {
    /// Appends a request as kube-apiserver logs it. `object` is its `objectRef`, and `more` what else the event has.
    pub fn request(
        &mut self,
        who: Asker,
        verb: &str,
        uri: &str,
        object: Option<Value>,
        more: &Value,
    ) -> anyhow::Result<()> {
        self.written += 1;
        let now = format!("{:.6}", jiff::Timestamp::now());
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": format!("00000000-0000-4000-8000-{:012}", self.written),
            "stage": "ResponseComplete",
            "requestURI": uri,
            "verb": verb,
            "user": {"username": who.user, "groups": who.groups},
            "sourceIPs": [who.from],
            "userAgent": who.agent,
            "responseStatus": {"metadata": {}, "code": 200},
            "requestReceivedTimestamp": now,
            "stageTimestamp": now,
            "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
        });
        if let Some(object) = object {
            event["objectRef"] = object;
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            event[key] = value.clone();
        }
        let mut log = File::options().append(true).create(true).open(&self.path)?;
        log.write_all(format!("{event}\n").as_bytes())?;
        Ok(())
    }

    /// As kube-apiserver does at a size.
    pub fn rotate(&self) -> anyhow::Result<()> {
        fs::rename(&self.path, self.path.with_file_name("audit-2026-01-01T00-00-00.000.log"))?;
        File::create_new(&self.path)?;
        Ok(())
    }
}
