//! Which sockets the node's container runtimes listen on.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use nix::sys::stat::{SFlag, stat};

use crate::source::{
    kubelet,
    root::{Root, file_type},
};

/// Where runtimes listen by default: containerd, CRI-O, cri-dockerd, and distributions that bring a containerd.
const USUAL: [&str; 8] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
    "/var/run/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

/// Most sockets that are asked.
const SOCKETS_MAX: usize = 16;

/// A runtime's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// As the user or a kubelet names it; absolute inside `root`.
    pub path: PathBuf,
    /// Where `path` leads from: `/`, or `/proc/<pid>/root` of who named it.
    pub root: PathBuf,
    /// The user named it: whoever serves it is believed. One that was found must be served by root.
    pub explicit: bool,
}

impl Socket {
    /// A socket that the user names.
    #[must_use]
    pub fn explicit(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Self { path, root: PathBuf::from("/"), explicit: true }
    }

    /// The path under which this process can reach it, as long as no link on the way is absolute.
    #[must_use]
    pub fn shown(&self) -> String {
        self.root.join(self.path.strip_prefix("/").unwrap_or(&self.path)).to_string_lossy().into_owned()
    }

    /// Device and inode of the socket; `None` when there is none.
    fn identity(&self) -> Option<(u64, u64)> {
        let stat = Root::open(&self.root, PathBuf::new()).ok()?.stat(&self.path).ok()?;
        (file_type(&stat) == SFlag::S_IFSOCK).then_some((stat.st_dev, stat.st_ino))
    }
}

/// The sockets to ask: those that the user names; without any, those that running kubelets are told to use, whether they
/// exist or not, and the usual ones that exist. Each socket once. `proc` is `/proc`, with the pids of the host.
#[must_use]
pub fn sockets(explicit: &[PathBuf], proc: &Path) -> Vec<Socket> {
    if !explicit.is_empty() {
        return explicit.iter().take(SOCKETS_MAX).map(|path| Socket::explicit(path)).collect();
    }
    let mut found = Vec::new();
    for (pid, path) in kubelet::runtime_endpoints(proc) {
        found.push(Socket { path, root: view(proc, pid), explicit: false });
    }
    let host = kubelet::host_root(proc);
    let usual = USUAL.map(|path| Socket { path: PathBuf::from(path), root: host.clone(), explicit: false });
    found.extend(usual.into_iter().filter(|socket| socket.identity().is_some()));
    let (mut identities, mut names) = (HashSet::new(), HashSet::new());
    found.retain(|socket| {
        names.insert(socket.shown()) && socket.identity().is_none_or(|identity| identities.insert(identity))
    });
    found.truncate(SOCKETS_MAX);
    found
}

/// The root from which this process reaches what `pid` sees. One that outlives that process, where there is one.
fn view(proc: &Path, pid: u32) -> PathBuf {
    let sees = |process: &str| {
        let root = stat(&proc.join(process).join("root")).ok()?;
        let namespace = std::fs::read_link(proc.join(process).join("ns/mnt")).ok()?;
        Some((namespace, root.st_dev, root.st_ino))
    };
    let pid = pid.to_string();
    let wanted = sees(&pid);
    if wanted.is_some() && wanted == sees("self") {
        return PathBuf::from("/");
    }
    let process = if wanted.is_some() && wanted == sees("1") { "1" } else { &pid };
    proc.join(process).join("root")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, os::unix::net::UnixListener};

    use super::super::super::kubelet::tests::Node;
    use super::*;

    #[test]
    fn the_users_sockets_are_the_only_ones() {
        let node = Node::new();
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--container-runtime-endpoint=unix:///run/k.sock"]);
        let found = sockets(&[PathBuf::from("/run/mine.sock")], &node.discovery().proc);
        assert_eq!(found, [Socket::explicit(Path::new("/run/mine.sock"))]);
        assert!(found[0].explicit);
    }

    #[test]
    fn a_kubelets_socket_is_meant_in_its_own_view_and_need_not_exist() {
        let node = Node::new();
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--container-runtime-endpoint=unix:///run/k.sock"]);
        let proc = node.discovery().proc;
        let found: Vec<_> = sockets(&[], &proc).into_iter().filter(|socket| socket.root != Path::new("/")).collect();
        let want = Socket { path: "/run/k.sock".into(), root: proc.join("7/root"), explicit: false };
        assert_eq!(found, [want]);
        assert_eq!(found[0].shown(), proc.join("7/root/run/k.sock").to_string_lossy());
    }

    #[test]
    fn one_socket_under_two_names_is_asked_once() {
        let node = Node::new();
        fs::create_dir_all(node.root().join("run")).unwrap();
        fs::create_dir_all(node.root().join("var")).unwrap();
        // Absolute, as on most nodes: it leads inside the kubelet's root, not inside this process's.
        symlink("/run", node.root().join("var/run")).unwrap();
        let _listener = UnixListener::bind(node.root().join("run/k.sock")).unwrap();
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--container-runtime-endpoint=unix:///var/run/k.sock"]);
        node.process(8, "/usr/bin/kubelet", &["kubelet", "--container-runtime-endpoint=/run/k.sock"]);
        let paths: Vec<_> = sockets(&[], &node.discovery().proc)
            .into_iter()
            .filter(|socket| socket.root != Path::new("/"))
            .map(|socket| socket.path)
            .collect();
        assert_eq!(paths, [PathBuf::from("/var/run/k.sock")]);
    }
}
