//! The parts of the control plane among the processes of this node.
//!
//! A name proves nothing. What counts as a part of the control plane lives in the network namespace of the host, or of a kubelet that
//! shares the host's mounts, and itself owns a listening socket of the port that such a one has.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use super::sockets;
use crate::{
    argv::Argv,
    record::{Component, ComponentKind, Endpoint, EndpointRole, InodeKey, ProcessKey},
    source::root::Root,
};

/// Most processes that are believed in.
const COMPONENTS_MAX: usize = 64;
/// Longest command line that is read.
const ARGS_MAX: u64 = 64 * 1024;
/// Where kubelets serve: the API server's requests, read-only, health.
const KUBELET_PORTS: [u16; 3] = [10250, 10255, 10248];
/// Where etcd serves clients unless it is told otherwise.
const ETCD_PORT: u16 = 2379;
/// Where the controller manager and the scheduler tell of themselves unless they are told otherwise.
const MANAGER_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
/// Where containerd's shims listen, whatever its own directories are.
const SHIMS: [&str; 1] = ["/run/containerd/s"];
/// Where distributions that run everything in one process have their API server.
const API_PORTS: [u16; 2] = [6443, 16443];

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    start: u64,
    pub kinds: &'static [ComponentKind],
    pub args: Vec<String>,
    /// Of what kinds it has proven to be.
    proven: Vec<ComponentKind>,
    net_ns: u32,
    /// It has the host's mounts.
    on_host: bool,
    /// Paths that it listens on, as it named them.
    unix: Vec<PathBuf>,
}

/// What runs here.
#[derive(Debug, Default)]
pub struct Found {
    pub processes: Vec<Process>,
    pub endpoints: Vec<Endpoint>,
}

/// What a program of this name may be.
fn kinds(name: &str) -> &'static [ComponentKind] {
    use ComponentKind::{ApiServer, ControllerManager, Etcd, Kubelet, Runtime, Scheduler};
    match name {
        "kubelet" => &[Kubelet],
        "kube-apiserver" => &[ApiServer],
        "kube-controller-manager" => &[ControllerManager],
        "kube-scheduler" => &[Scheduler],
        "etcd" => &[Etcd],
        "containerd" | "crio" => &[Runtime],
        "k3s" | "kubelite" | "hyperkube" => &[Kubelet, ApiServer],
        _ => &[],
    }
}

/// Whether a program of this name may be a part of the control plane.
pub fn is_one(name: &str) -> bool {
    !kinds(name).is_empty()
}

impl Found {
    /// Looks at all processes of `proc`.
    pub fn look(proc: &Path) -> Self {
        let names = fs::read_dir(proc).into_iter().flatten().filter_map(Result::ok);
        let mut pids: Vec<u32> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let processes = pids.into_iter().filter_map(|pid| process(proc, pid)).take(COMPONENTS_MAX).collect();
        let mut found = Self { processes, endpoints: Vec::new() };
        let link = |pid: u32| fs::read_link(proc.join(pid.to_string()).join("ns/mnt")).ok();
        let host = link(1).or_else(|| link(2));
        let dir = |pid: u32| proc.join(pid.to_string());
        for process in &mut found.processes {
            process.on_host = host.is_some() && link(process.pid) == host;
        }
        let pids: Vec<u32> = [1, 2].into_iter().chain(found.kubelets().map(|process| process.pid)).collect();
        let namespaces: BTreeSet<u32> = pids.into_iter().filter_map(|pid| sockets::net_ns(&dir(pid))).collect();
        for process in &mut found.processes {
            let dir = dir(process.pid);
            let Some(net_ns) = sockets::net_ns(&dir).filter(|net_ns| namespaces.contains(net_ns)) else { continue };
            process.net_ns = net_ns;
            let listening = sockets::listening(&dir);
            for kind in process.kinds {
                let mut serving: Vec<_> = listening.iter().filter(|at| process.serves(*kind, at.port())).collect();
                if serving.is_empty() {
                    continue;
                }
                process.proven.push(*kind);
                let role = match kind {
                    ComponentKind::ControllerManager | ComponentKind::Scheduler => continue,
                    ComponentKind::Kubelet => EndpointRole::Kubelet,
                    ComponentKind::ApiServer => EndpointRole::ApiServer,
                    ComponentKind::Etcd => EndpointRole::Etcd,
                    ComponentKind::Runtime => EndpointRole::Stream,
                };
                if *kind == ComponentKind::Kubelet {
                    serving = listening.iter().filter(|at| process.takes_requests(at.port())).collect();
                }
                found.endpoints.extend(serving.into_iter().flat_map(|at| endpoints(role, *at, net_ns, &dir)));
            }
            if process.proven.contains(&ComponentKind::Runtime) {
                process.unix = sockets::listening_unix(&dir);
            }
        }
        found
    }

    /// Those that have proven to be what they are called, in order.
    pub fn components(&self) -> Vec<Component> {
        let each = self.processes.iter().flat_map(|process| {
            let key = ProcessKey { pid: process.pid, start: process.start };
            process.proven.iter().map(move |kind| Component { kind: *kind, process: key, net_ns: process.net_ns })
        });
        each.collect()
    }

    /// Sockets by which container runtimes are asked, and the directory where their shims have theirs.
    pub fn asked(&self, proc: &Path) -> BTreeSet<InodeKey> {
        let mut asked = BTreeSet::new();
        for process in self.processes.iter().filter(|process| !process.unix.is_empty()) {
            let dir = proc.join(process.pid.to_string());
            let Ok(root) = Root::open(&dir.join("root"), dir.join("mountinfo")) else { continue };
            let paths = process.unix.iter().map(PathBuf::as_path);
            for path in paths.chain(SHIMS.iter().map(Path::new)) {
                if let Ok((fd, stat)) = root.walk(path).target {
                    asked.insert(root.inode(&fd, &stat));
                }
            }
        }
        asked
    }

    /// Kubelets that have the host's mounts: others' pods (a cluster in a container, on a developer's machine) are a node of their own.
    pub fn kubelets(&self) -> impl Iterator<Item = &Process> {
        self.called(ComponentKind::Kubelet).filter(|process| process.on_host)
    }

    /// Processes that may be of a kind.
    pub fn called(&self, kind: ComponentKind) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.kinds.contains(&kind))
    }
}

impl Process {
    /// The last value of a flag, `--name=value` or `--name value`.
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut found = None;
        let mut args = self.args.iter().skip(1).map(String::as_str).peekable();
        while let Some(arg) = args.next() {
            let Some(rest) = arg.strip_prefix("--").and_then(|arg| arg.strip_prefix(name)) else { continue };
            match rest.strip_prefix('=') {
                Some(value) => found = Some(value),
                None if rest.is_empty() => found = args.peek().copied().or(found),
                None => {}
            }
        }
        found
    }

    /// Whether a port is the one by which this kind of program is known.
    fn serves(&self, kind: ComponentKind, port: u16) -> bool {
        let alone = self.kinds.len() == 1;
        match kind {
            ComponentKind::Kubelet => KUBELET_PORTS.contains(&port) || self.flag("port") == Some(&port.to_string()),
            ComponentKind::ApiServer => alone || API_PORTS.contains(&port),
            ComponentKind::Runtime => true,
            ComponentKind::Etcd => match self.flag("listen-client-urls") {
                Some(urls) => urls.split(',').any(|url| url_port(url) == Some(port)),
                None => port == ETCD_PORT,
            },
            ComponentKind::ControllerManager | ComponentKind::Scheduler => {
                let usual = if kind == ComponentKind::Scheduler { SCHEDULER_PORT } else { MANAGER_PORT };
                self.flag("secure-port").map_or(port == usual, |told| told == port.to_string())
            }
        }
    }

    /// Whether a kubelet may be asked to execute something at this port: not at those that only tell, and in a process that is more than
    /// a kubelet at the usual one.
    fn takes_requests(&self, port: u16) -> bool {
        let [usual, only_tell @ ..] = KUBELET_PORTS;
        if self.kinds.len() == 1 { !only_tell.contains(&port) } else { port == usual }
    }

    /// A path on its command line, which may be relative to where it was started.
    pub fn path(&self, proc: &Path, path: &str) -> PathBuf {
        let cwd = || fs::read_link(proc.join(self.pid.to_string()).join("cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        if path.starts_with('/') { PathBuf::from(path) } else { cwd().join(path) }
    }
}

fn process(proc: &Path, pid: u32) -> Option<Process> {
    use std::io::Read as _;
    let dir = proc.join(pid.to_string());
    let exe = fs::read_link(dir.join("exe")).ok()?;
    let name = exe.file_name()?.to_str()?.trim_end_matches(" (deleted)");
    if kinds(name).is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(dir.join("cmdline")).ok()?.take(ARGS_MAX).read_to_end(&mut bytes).ok()?;
    let args = Argv::from_kernel(&bytes).to_vec();
    // k3s is the runtime too where it is called like it.
    let called = args.first().and_then(|first| first.rsplit('/').next()).unwrap_or_default();
    let kinds = if called == "containerd" { kinds(called) } else { kinds(name) };
    Some(Process {
        pid,
        start: start(&dir)?,
        kinds,
        args,
        proven: Vec::new(),
        net_ns: 0,
        on_host: false,
        unix: Vec::new(),
    })
}

/// When a process began, in clock ticks since boot.
pub fn start(process: &Path) -> Option<u64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // Behind the name in parentheses, which may hold anything: field 22 is the 20th from there.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Port of `https://127.0.0.1:2379`.
fn url_port(url: &str) -> Option<u16> {
    let authority = url.trim().split_once("://")?.1.split('/').next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

/// Each address by which a listening socket is reached.
fn endpoints(role: EndpointRole, at: SocketAddr, net_ns: u32, process: &Path) -> Vec<Endpoint> {
    let of = |address: IpAddr| {
        let net_ns = if address.is_loopback() { net_ns } else { 0 };
        Endpoint { role, address, port: at.port(), net_ns }
    };
    if at.ip().is_unspecified() {
        // One of IPv6 serves IPv4 too, as Go's do.
        let all = sockets::addresses(process).into_iter();
        all.filter(|address| at.is_ipv6() || address.is_ipv4()).map(of).collect()
    } else {
        vec![of(at.ip())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(args: &[&str], kinds: &'static [ComponentKind]) -> Process {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Process { pid: 1, start: 0, kinds, args, proven: Vec::new(), net_ns: 0, on_host: false, unix: Vec::new() }
    }

    #[test]
    fn flags_count_in_both_forms_and_the_last_one_wins() {
        let process = called(&["etcd", "--data-dir", "/a", "--data-directory=/x", "--data-dir=/b"], &[]);
        assert_eq!(process.flag("data-dir"), Some("/b"));
        assert_eq!(process.flag("port"), None);
        assert_eq!(called(&["etcd", "--data-dir"], &[]).flag("data-dir"), None);
    }

    #[test]
    fn the_controller_manager_and_the_scheduler_serve_where_they_are_told_to() {
        use ComponentKind::{ControllerManager, Scheduler};
        for (kind, kinds, usual) in
            [(ControllerManager, &[ControllerManager][..], 10257), (Scheduler, &[Scheduler], 10259)]
        {
            assert!(called(&["x"], kinds).serves(kind, usual) && !called(&["x"], kinds).serves(kind, 443));
            let told = called(&["x", "--secure-port=8443"], kinds);
            assert!(told.serves(kind, 8443) && !told.serves(kind, usual));
        }
    }

    #[test]
    fn etcds_client_port_is_what_it_is_told_and_no_peers_or_metrics_port() {
        use ComponentKind::Etcd;
        let told = called(&["etcd", "--listen-client-urls=https://127.0.0.1:12379,https://10.0.0.5:22379"], &[Etcd]);
        let ports = [2379, 2380, 2381, 12379, 22379].map(|port| told.serves(Etcd, port));
        assert_eq!(ports, [false, false, false, true, true]);
        let untold = called(&["etcd"], &[Etcd]);
        assert_eq!([2379, 2380, 2381].map(|port| untold.serves(Etcd, port)), [true, false, false]);
    }
}
