//! Files whose readers are of interest: token volumes of pods, kubeconfigs, private keys, what etcd stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use detector_common::SECRETS_MAX;
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::components::Found;
use crate::{
    record::{ComponentKind, InodeKey, Secret, SecretKind, bounded, sense::is_token},
    source::{
        kubelet,
        root::{Root, file_type, read_file},
    },
    yaml,
};

/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;
/// How deep directories of keys are followed: `pki/etcd/server.key`.
const DEPTH_MAX: usize = 3;
/// Longest kubeconfig that is read, in bytes.
const CONFIG_MAX: usize = 256 * 1024;
/// Most kubeconfigs whose content is remembered.
const CONFIGS_MAX: usize = 256;
/// Most servers that one kubeconfig names.
const SERVERS_MAX: usize = 16;

/// Kinds of volumes that may hold a token, each a file system of its own.
const VOLUMES: [&str; 2] = ["volumes/kubernetes.io~projected", "volumes/kubernetes.io~secret"];
/// Files, and directories of `*.conf`, that may be kubeconfigs.
const KUBECONFIGS: [&str; 5] = [
    "/etc/kubernetes",
    "/etc/rancher/k3s/k3s.yaml",
    "/etc/rancher/rke2/rke2.yaml",
    "/root/.kube/config",
    "/var/lib/kubelet/kubeconfig",
];
/// Directories of private keys.
const KEYS: [&str; 4] = [
    "/etc/kubernetes/pki",
    "/var/lib/kubelet/pki",
    "/var/lib/rancher/k3s/server/tls",
    "/var/lib/rancher/rke2/server/tls",
];

/// What kubeconfigs say, so that one is read again only when it changed.
#[derive(Debug, Default)]
pub struct Configs {
    known: BTreeMap<Version, Config>,
}

/// Inode, size and time of change.
type Version = (InodeKey, i64, i64, i64);

#[derive(Debug)]
struct Config {
    servers: Vec<SocketAddr>,
    /// In the last look.
    seen: bool,
}

impl Configs {
    /// Forgets those that are not there any more.
    pub fn forget(&mut self) {
        self.known.retain(|_, config| std::mem::take(&mut config.seen));
    }
}

/// One look.
pub struct Secrets<'a> {
    proc: &'a Path,
    configs: &'a mut Configs,
    pub found: BTreeMap<InodeKey, Secret>,
    /// Where kubeconfigs lead to.
    pub servers: BTreeSet<SocketAddr>,
}

impl<'a> Secrets<'a> {
    pub fn new(proc: &'a Path, configs: &'a mut Configs) -> Self {
        Self { proc, configs, found: BTreeMap::new(), servers: BTreeSet::new() }
    }

    pub fn look(&mut self, found: &Found) {
        let host = kubelet::host_root(self.proc);
        let mountinfo =
            if host.ends_with("root") { host.with_file_name("mountinfo") } else { "/proc/self/mountinfo".into() };
        if let Ok(root) = Root::open(&host, mountinfo) {
            self.pods(&root, Path::new("/var/lib/kubelet"));
            for path in KUBECONFIGS {
                self.kubeconfigs(&root, Path::new(path));
            }
            for path in KEYS {
                self.keys(&root, Path::new(path), 0);
            }
            self.etcd(&root, Path::new("/var/lib/etcd"));
        }
        let view = |pid: u32| {
            let process = self.proc.join(pid.to_string());
            Root::open(&process.join("root"), process.join("mountinfo")).ok()
        };
        let kubelets: Vec<_> = found.kubelets().filter_map(|p| Some((p, view(p.pid)?))).collect();
        let etcds: Vec<_> = found.called(ComponentKind::Etcd).filter_map(|p| Some((p, view(p.pid)?))).collect();
        for (process, root) in kubelets {
            let path = |flag: &str| process.flag(flag).map(|path| process.path(self.proc, path));
            let dir = path("root-dir").unwrap_or_else(|| PathBuf::from("/var/lib/kubelet"));
            let keys = path("cert-dir").unwrap_or_else(|| dir.join("pki"));
            let configs: Vec<_> = ["kubeconfig", "bootstrap-kubeconfig"].into_iter().filter_map(path).collect();
            self.pods(&root, &dir);
            self.keys(&root, &keys, 0);
            for config in configs {
                self.kubeconfigs(&root, &config);
            }
        }
        for (process, root) in etcds {
            if let Some(dir) = process.flag("data-dir") {
                let dir = process.path(self.proc, dir);
                self.etcd(&root, &dir);
            }
        }
    }

    fn add(&mut self, inode: InodeKey, kind: SecretKind, path: &Path, pod_uid: Option<&str>) {
        if self.found.len() < SECRETS_MAX as usize {
            let path = bounded(&path.to_string_lossy());
            let pod_uid = pod_uid.map(bounded);
            self.found.entry(inode).or_insert(Secret { inode, kind, path, pod_uid, gone: false });
        }
    }

    /// The token volumes of the pods of one kubelet.
    fn pods(&mut self, root: &Root, kubelet: &Path) {
        let pods = kubelet.join("pods");
        let Some(around) = open(root, &pods).map(|(fd, stat)| root.inode(&fd, &stat).dev) else { return };
        for uid in names(root, &pods) {
            for volumes in VOLUMES.map(|volumes| pods.join(&uid).join(volumes)) {
                for volume in names(root, &volumes).map(|name| volumes.join(name)) {
                    self.volume(root, &volume, around, &uid.to_string_lossy());
                }
            }
        }
    }

    fn volume(&mut self, root: &Root, volume: &Path, around: u32, uid: &str) {
        let Some((fd, stat)) = open(root, volume) else { return };
        let tokens: Vec<OsString> = names(root, volume).filter(|name| is_token(&name.to_string_lossy())).collect();
        let whole = root.inode(&fd, &stat);
        if tokens.is_empty() {
            return;
        }
        if whole.dev != around {
            // Whatever kubelet puts there later, by its atomic swap, is on the same file system.
            self.add(InodeKey { dev: whole.dev, ino: 0 }, SecretKind::Token, volume, Some(uid));
            return;
        }
        for path in tokens.into_iter().map(|name| volume.join(name)) {
            if let Some((fd, stat)) = regular(root, &path) {
                self.add(root.inode(&fd, &stat), SecretKind::Token, &path, Some(uid));
            }
        }
    }

    /// A kubeconfig, or those in a directory.
    fn kubeconfigs(&mut self, root: &Root, path: &Path) {
        let Some((fd, stat)) = open(root, path) else { return };
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                for name in names(root, path) {
                    let path = path.join(name);
                    if path.extension().is_some_and(|extension| extension == "conf")
                        && let Some((fd, stat)) = regular(root, &path)
                    {
                        self.kubeconfig(root, &path, root.inode(&fd, &stat), &stat);
                    }
                }
            }
            SFlag::S_IFREG => self.kubeconfig(root, path, root.inode(&fd, &stat), &stat),
            _ => {}
        }
    }

    fn kubeconfig(&mut self, root: &Root, path: &Path, inode: InodeKey, stat: &FileStat) {
        self.add(inode, SecretKind::Kubeconfig, path, None);
        let key = (inode, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if self.configs.known.len() >= CONFIGS_MAX && !self.configs.known.contains_key(&key) {
            return;
        }
        let read = || read_file(root, path, CONFIG_MAX).map(|bytes| servers(&bytes)).unwrap_or_default();
        let config = self.configs.known.entry(key).or_insert_with(|| Config { servers: read(), seen: true });
        config.seen = true;
        self.servers.extend(config.servers.iter().copied());
    }

    /// Private keys in a directory and those below it.
    fn keys(&mut self, root: &Root, dir: &Path, depth: usize) {
        for path in names(root, dir).map(|name| dir.join(name)) {
            let is_key = path.extension().is_some_and(|extension| extension == "key" || extension == "pem");
            match open(root, &path) {
                Some((fd, stat)) if is_key && file_type(&stat) == SFlag::S_IFREG => {
                    self.add(root.inode(&fd, &stat), SecretKind::Key, &path, None);
                }
                Some((_, stat)) if depth < DEPTH_MAX && file_type(&stat) == SFlag::S_IFDIR => {
                    self.keys(root, &path, depth + 1);
                }
                _ => {}
            }
        }
    }

    /// What etcd stores: its database and its log.
    fn etcd(&mut self, root: &Root, dir: &Path) {
        let logs = dir.join("member/wal");
        let files =
            names(root, &logs).map(|name| logs.join(name)).filter(|path| path.extension().is_some_and(|e| e == "wal"));
        for path in std::iter::once(dir.join("member/snap/db")).chain(files) {
            if let Some((fd, stat)) = regular(root, &path) {
                self.add(root.inode(&fd, &stat), SecretKind::Etcd, &path, None);
            }
        }
    }
}

fn open(root: &Root, path: &Path) -> Option<(OwnedFd, FileStat)> {
    let fd = root.find(path).ok()?;
    let stat = fstat(&fd).ok()?;
    Some((fd, stat))
}

fn regular(root: &Root, path: &Path) -> Option<(OwnedFd, FileStat)> {
    open(root, path).filter(|(_, stat)| file_type(stat) == SFlag::S_IFREG)
}

/// Names in a directory; none where it is not one.
fn names(root: &Root, dir: &Path) -> impl Iterator<Item = OsString> + use<> {
    let fd = root.find(dir).ok();
    let entries = fd.and_then(|fd| fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok());
    entries.into_iter().flatten().filter_map(Result::ok).take(ENTRIES_MAX).map(|entry| entry.file_name())
}

/// The addresses that a kubeconfig leads to. A host's name is not looked up: that would be a question to somebody else.
fn servers(bytes: &[u8]) -> Vec<SocketAddr> {
    let Ok(Some(document)) = yaml::first_document(bytes) else { return Vec::new() };
    let clusters = document.get("clusters").items().iter();
    let servers = clusters.filter_map(|cluster| server(cluster.get("cluster").get("server").text()?));
    servers.take(SERVERS_MAX).collect()
}

/// `https://10.0.0.1:6443/`.
fn server(url: &str) -> Option<SocketAddr> {
    let (scheme, rest) = url.trim().split_once("://")?;
    let authority = rest.split('/').next()?;
    let port = if scheme == "http" { 80 } else { 443 };
    let address = || authority.trim_matches(['[', ']']).parse().ok();
    authority.parse().ok().or_else(|| Some(SocketAddr::new(address()?, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_kubeconfig_is_an_address_and_no_name_is_looked_up() {
        let text = |server: &str| format!("kind: Config\nclusters:\n- name: a\n  cluster: {{server: \"{server}\"}}\n");
        let read = |server: &str| servers(text(server).as_bytes());
        assert_eq!(read("https://10.0.0.1:6443"), ["10.0.0.1:6443".parse().unwrap()]);
        assert_eq!(read("https://10.0.0.1/"), ["10.0.0.1:443".parse().unwrap()]);
        assert_eq!(read("https://[fd00::1]:6443"), ["[fd00::1]:6443".parse().unwrap()]);
        assert_eq!(read("https://[fd00::1]"), ["[fd00::1]:443".parse().unwrap()]);
        for nothing in ["https://api.example:6443", "10.0.0.1:6443", "", "https://"] {
            assert_eq!(read(nothing), [], "{nothing}");
        }
        assert_eq!(servers(b"clusters: {}"), []);
        assert_eq!(servers(b"\xff: ["), []);
    }

    #[test]
    fn a_token_is_known_by_its_name() {
        for token in ["token", "vault-token", "aws.token"] {
            assert!(is_token(token), "{token}");
        }
        for other in ["ca.crt", "namespace", "tokens", "..data", "tokenizer"] {
            assert!(!is_token(other), "{other}");
        }
    }
}
