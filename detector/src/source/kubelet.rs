//! Which directories the kubelets of this node read static pods from.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;

use super::root::Root;
use crate::record::WatchReason;

mod config;

use config::Settings;

/// Longest configuration or command line that is read.
const MAX_CONFIG: usize = 1024 * 1024;

/// Most kubelets that are believed in; a node has one, a developer's kind cluster a few.
const MAX_KUBELETS: usize = 64;

/// Binaries that run kubelet as a part of themselves, and the subcommands that do.
///
/// k0s is not among them: it unpacks a `kubelet` and starts it.
const EMBEDDING: [(&str, &[&str]); 3] =
    [("hyperkube", &["kubelet"]), ("k3s", &["server", "agent"]), ("rke2", &["server", "agent"])];

/// Where to look.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// Directories that the user named (`--manifest-dir`), as the agent sees them.
    pub explicit: Vec<PathBuf>,
    /// Look for kubelets and for the defaults of distributions even though there are explicit directories.
    pub defaults: bool,
    /// `/proc`, with the pids of the host.
    pub proc: PathBuf,
}

/// A place that static pods are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Directory or file as kubelet names it, absolute inside `root`; empty for a kubelet that reads none now.
    pub path: PathBuf,
    pub reason: WatchReason,
    /// Pid of the kubelet whose view this is.
    pub kubelet: Option<u32>,
    /// `/proc/<pid>/root`, or `/`.
    pub root: PathBuf,
    /// Files, and the drop-in directory, whose change can change the answer; as kubelet names them, inside `root`.
    pub config_files: Vec<PathBuf>,
    /// Where this kubelet fetches pods from as well.
    pub url: Option<String>,
}

/// A process that is, or contains, a kubelet.
struct Kubelet {
    pid: u32,
    /// `kubelet`, or which of the binaries that embed it.
    flavour: &'static str,
    /// Arguments behind the program's name.
    args: Vec<String>,
}

impl Discovery {
    /// Every place, each mount view and path once. Explicit ones come first, then kubelets', then defaults.
    #[must_use]
    pub fn discover(&self) -> Vec<Candidate> {
        let mut found = Found { proc: &self.proc, seen: HashSet::new(), candidates: Vec::new() };
        for path in &self.explicit {
            found.add(Candidate {
                path: absolute(path, &std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))),
                reason: WatchReason::Flag,
                kubelet: None,
                root: PathBuf::from("/"),
                config_files: Vec::new(),
                url: None,
            });
        }
        if self.explicit.is_empty() || self.defaults {
            for kubelet in kubelets(&self.proc) {
                if let Some(candidate) = read_kubelet(&self.proc, &kubelet) {
                    found.add(candidate);
                }
            }
            self.add_defaults(&mut found);
        }
        found.candidates
    }

    fn add_defaults(&self, found: &mut Found<'_>) {
        let root = host_root(&self.proc);
        let mut add = |path: &str, name: &str| {
            found.add(Candidate {
                path: PathBuf::from(path),
                reason: WatchReason::Default(name.to_owned()),
                kubelet: None,
                root: root.clone(),
                config_files: Vec::new(),
                url: None,
            });
        };
        add("/etc/kubernetes/manifests", "kubeadm");
        for name in ["k3s", "rke2"] {
            if root.join("var/lib/rancher").join(name).is_dir() {
                add(&format!("/var/lib/rancher/{name}/agent/pod-manifests"), name);
            }
        }
    }
}

/// The host's root: `/` on the host. An agent in a container sees the host's through its first process; or, where that one may
/// not be looked at, through the first other one that is in kthreadd's mount namespace and not in a root of its own.
pub(crate) fn host_root(proc: &Path) -> PathBuf {
    let link = |process: &Path, name: &str| std::fs::read_link(process.join(name)).ok();
    let namespace = |process: &str| link(&proc.join(process), "ns/mnt");
    let (Some(host), Some(own)) = (namespace("1").or_else(|| namespace("2")), namespace("self")) else {
        return PathBuf::from("/");
    };
    if host == own {
        return PathBuf::from("/");
    }
    let mut processes = pids(proc).into_iter().map(|pid| proc.join(pid.to_string()));
    // A kernel thread has no executable, and a root that may be left over from the start of the system.
    let is_host = |process: &PathBuf| {
        link(process, "ns/mnt").as_ref() == Some(&host)
            && link(process, "exe").is_some()
            && (process.ends_with("1") || link(process, "root").as_deref() == Some(Path::new("/")))
            && process.join("root").is_dir()
    };
    processes.find(is_host).map_or_else(|| PathBuf::from("/"), |process| process.join("root"))
}

/// The container runtimes' sockets that running kubelets are told to use: pid of the kubelet, and the path inside its root.
pub(super) fn runtime_endpoints(proc: &Path) -> Vec<(u32, PathBuf)> {
    let found =
        kubelets(proc).into_iter().filter_map(|kubelet| Some((kubelet.pid, settings(proc, &kubelet)?.runtime?)));
    found.collect()
}

/// What was found, without duplicates.
struct Found<'a> {
    proc: &'a Path,
    seen: HashSet<(View, PathBuf)>,
    candidates: Vec<Candidate>,
}

/// A mount namespace and a root directory in it: the same paths lead to the same files.
type View = (Option<PathBuf>, u64, u64);

impl Found<'_> {
    fn add(&mut self, candidate: Candidate) {
        let view = self.view(&candidate.root);
        if self.seen.insert((view.clone(), candidate.path.clone())) {
            self.candidates.push(candidate);
            return;
        }
        // Known under another reason; what this one knows beyond that must not get lost.
        let views: Vec<View> = self.candidates.iter().map(|known| self.view(&known.root)).collect();
        let known = self.candidates.iter_mut().zip(views).find(|(c, v)| *v == view && c.path == candidate.path);
        if let Some((known, _)) = known {
            if known.url.is_none() {
                known.url = candidate.url;
            }
            for file in candidate.config_files {
                if !known.config_files.contains(&file) {
                    known.config_files.push(file);
                }
            }
        }
    }

    fn view(&self, root: &Path) -> View {
        let process = root.parent().map_or_else(|| self.proc.join("self"), Path::to_path_buf);
        let namespace = std::fs::read_link(process.join("ns/mnt")).ok();
        stat(root).map_or((namespace.clone(), 0, 0), |s| (namespace, s.st_dev, s.st_ino))
    }
}

/// Kubelets among the running processes, by pid. A thread is no process: `/proc` lists none.
fn kubelets(proc: &Path) -> Vec<Kubelet> {
    pids(proc).into_iter().filter_map(|pid| kubelet(proc, pid)).take(MAX_KUBELETS).collect()
}

/// The processes that run, in order.
pub(super) fn pids(proc: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn kubelet(proc: &Path, pid: u32) -> Option<Kubelet> {
    let dir = proc.join(pid.to_string());
    let exe = std::fs::read_link(dir.join("exe")).ok();
    // A binary replaced by an update shows as "/usr/bin/kubelet (deleted)".
    let exe = exe.as_deref().and_then(Path::file_name).map(|name| {
        let name = name.as_bytes();
        String::from_utf8_lossy(name.strip_suffix(b" (deleted)").unwrap_or(name)).into_owned()
    });
    let argv = bounded_cmdline(&dir.join("cmdline"))?;
    // k3s and rke2 write one string over their arguments: "/usr/local/bin/k3s server".
    let first = argv.first()?;
    let mut words = first.split(' ').filter(|w| !w.is_empty());
    let program = Path::new(words.next()?).file_name()?.to_str()?.to_owned();
    let retitled: Vec<String> = if argv.len() == 1 { words.map(str::to_owned).collect() } else { Vec::new() };
    let args: Vec<String> = retitled.into_iter().chain(argv.iter().skip(1).cloned()).collect();
    let is = |name: &str| exe.as_deref() == Some(name) || program == name;
    if is("kubelet") {
        return Some(Kubelet { pid, flavour: "kubelet", args });
    }
    if is("kubelite") {
        return Some(Kubelet { pid, flavour: "kubelite", args });
    }
    let (flavour, commands) = EMBEDDING.into_iter().find(|(name, _)| is(name))?;
    let command = args.first()?;
    commands.contains(&command.as_str()).then_some(Kubelet { pid, flavour, args })
}

pub(super) fn bounded_cmdline(path: &Path) -> Option<Vec<String>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_CONFIG).ok()?;
    std::fs::File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(crate::argv::Argv::from_kernel(&bytes).to_vec())
}

/// What one kubelet reads, by its command line and configuration. `None` when it is gone, or reads nothing and has no
/// configuration that could change that.
fn read_kubelet(proc: &Path, kubelet: &Kubelet) -> Option<Candidate> {
    let settings = settings(proc, kubelet)?;
    if settings.path.is_none() && settings.url.is_none() && settings.config_files.is_empty() {
        return None;
    }
    let (path, reason) = settings.path.unwrap_or_else(|| {
        let reason = settings.url_reason.unwrap_or(WatchReason::KubeletFlag);
        (PathBuf::new(), reason)
    });
    Some(Candidate {
        path,
        reason,
        kubelet: Some(kubelet.pid),
        root: proc.join(kubelet.pid.to_string()).join("root"),
        config_files: settings.config_files,
        url: settings.url,
    })
}

/// What a kubelet's command line and configuration say. `None` when it is gone.
fn settings(proc: &Path, kubelet: &Kubelet) -> Option<Settings> {
    let dir = proc.join(kubelet.pid.to_string());
    let root = Root::open(&dir.join("root"), dir.join("mountinfo")).ok()?;
    let cwd = std::fs::read_link(dir.join("cwd")).unwrap_or_else(|_| PathBuf::from("/"));
    let mut settings = Settings::new(cwd);
    settings.read(&root, kubelet.flavour, &kubelet.args);
    Some(settings)
}

/// `path` made absolute and free of `.` and repeated slashes; `..` stays, for it may follow a link.
fn absolute(path: &Path, base: &Path) -> PathBuf {
    Path::new("/").join(base).join(path).components().collect()
}

/// Whether a drop-in directory's entry counts.
fn is_drop_in(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new("conf"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A `/proc` with one process whose root is a directory of its own. Its mount namespace is this process's.
    pub struct Node(tempfile::TempDir);

    impl Node {
        pub fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            fs::create_dir(node.root()).unwrap();
            node
        }

        pub fn root(&self) -> PathBuf {
            self.0.path().join("host")
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.root().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub fn process(&self, pid: u32, exe: &str, args: &[&str]) {
            let dir = self.0.path().join("proc").join(pid.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            symlink(exe, dir.join("exe")).unwrap();
            symlink(self.root(), dir.join("root")).unwrap();
            symlink("/srv", dir.join("cwd")).unwrap();
            symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
            fs::copy("/proc/self/mountinfo", dir.join("mountinfo")).unwrap();
            fs::write(dir.join("cmdline"), args.join("\0") + "\0").unwrap();
        }

        pub fn discovery(&self) -> Discovery {
            Discovery { explicit: Vec::new(), defaults: true, proc: self.0.path().join("proc") }
        }

        fn kubelets(&self) -> Vec<Candidate> {
            self.discovery().discover().into_iter().filter(|one| one.kubelet.is_some()).collect()
        }

        /// Path and reason of the only kubelet's directory.
        fn only(&self) -> (String, WatchReason) {
            let found = self.kubelets();
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].path.to_string_lossy().into_owned(), found[0].reason.clone())
        }
    }

    fn config(file: &str) -> WatchReason {
        WatchReason::KubeletConfig(file.to_owned())
    }

    #[test]
    fn the_configuration_file_and_drop_ins_over_it_and_the_command_line_over_all() {
        let node = Node::new();
        node.file("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nstaticPodPath: /one\n");
        node.process(7, "/usr/bin/kubelet", &["/usr/bin/kubelet", "--config=/var/lib/kubelet/config.yaml"]);
        assert_eq!(node.only(), ("/one".to_owned(), config("/var/lib/kubelet/config.yaml")));

        let node = Node::new();
        node.file("/etc/k/config.yaml", "staticPodPath: relative\nstaticPodURL: http://pods.example/\n");
        node.file("/etc/k/d/10-a.conf", "staticPodPath: /two");
        node.file("/etc/k/d/20-b.conf", "staticPodPath: /three");
        node.file("/etc/k/d/30-c.yaml", "staticPodPath: /not-a-drop-in");
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--config", "/etc/k/config.yaml"]);
        assert_eq!(node.only().0, "/etc/k/relative");
        assert_eq!(node.kubelets()[0].url.as_deref(), Some("http://pods.example/"));
        node.process(8, "/usr/bin/kubelet", &["kubelet", "--config=/etc/k/config.yaml", "--config-dir=/etc/k/d"]);
        let second = &node.kubelets()[1];
        assert_eq!((second.path.as_path(), &second.reason), (Path::new("/three"), &config("/etc/k/d/20-b.conf")));
        assert!(second.config_files.contains(&PathBuf::from("/etc/k/d")), "new drop-ins must be noticed");

        let node = Node::new();
        node.file("/c", "staticPodPath: /one");
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--pod_manifest_path", "four", "--config=/c"]);
        assert_eq!(node.only(), ("/srv/four".to_owned(), WatchReason::KubeletFlag));
    }

    #[test]
    fn the_hosts_root_is_seen_through_the_first_process_that_may_be_looked_at() {
        let node = Node::new();
        let proc = node.discovery().proc;
        let process = |pid: &str, namespace: &str, root: Option<&Path>| {
            let dir = proc.join(pid);
            fs::create_dir_all(dir.join("ns")).unwrap();
            let _ = fs::remove_file(dir.join("ns/mnt"));
            symlink(namespace, dir.join("ns/mnt")).unwrap();
            if let Some(root) = root {
                symlink("/bin/x", dir.join("exe")).unwrap();
                symlink(root, dir.join("root")).unwrap();
            }
        };
        assert_eq!(host_root(&proc), Path::new("/"), "nothing can be looked at");
        process("2", "mnt:[1]", None);
        process("self", "mnt:[1]", None);
        assert_eq!(host_root(&proc), Path::new("/"), "on the host");
        process("self", "mnt:[9]", None);
        assert_eq!(host_root(&proc), Path::new("/"), "in a container, where nobody of the host can be looked at");
        process("30", "mnt:[9]", Some(Path::new("/")));
        process("40", "mnt:[1]", Some(&node.root()));
        process("50", "mnt:[1]", Some(Path::new("/")));
        process("200", "mnt:[1]", Some(Path::new("/")));
        assert_eq!(host_root(&proc), proc.join("50/root"), "neither the container's nor one in a root of its own");
        process("1", "mnt:[1]", Some(&node.root()));
        assert_eq!(host_root(&proc), proc.join("1/root"), "the first one, whatever its root");
    }

    #[test]
    fn distributions_that_embed_kubelet() {
        let cases: [(&str, &[&str], &str); 5] = [
            ("/usr/local/bin/k3s", &["/usr/local/bin/k3s server"], "/var/lib/rancher/k3s/agent/pod-manifests"),
            ("/usr/local/bin/k3s", &["k3s", "agent", "--data-dir", "/data"], "/data/agent/pod-manifests"),
            ("/x/rke2", &["/x/rke2", "server", "--kubelet-arg=pod-manifest-path=/mine"], "/mine"),
            ("/usr/bin/hyperkube (deleted)", &["hyperkube", "kubelet", "--pod-manifest-path=/h"], "/h"),
            // A copy under another name still says who it is.
            ("/tmp/x", &["kubelet", "--pod-manifest-path=/renamed"], "/renamed"),
        ];
        for (exe, args, path) in cases {
            let node = Node::new();
            node.process(7, exe, args);
            assert_eq!(node.only().0, path, "{args:?}");
        }
    }

    #[test]
    fn what_is_no_kubelet_and_what_reads_nothing() {
        let cases: [(&str, &[&str]); 5] = [
            ("/usr/bin/kubectl", &["kubectl", "kubelet"]),
            ("/usr/local/bin/k3s", &["k3s", "kubectl", "get", "pods"]),
            ("/usr/bin/vim", &["vim", "kubelet"]),
            ("/usr/bin/kubelet", &["kubelet"]),
            ("", &[]),
        ];
        for (exe, args) in cases {
            let node = Node::new();
            if exe.is_empty() {
                fs::create_dir_all(node.0.path().join("proc/7")).unwrap();
            } else {
                node.process(7, exe, args);
            }
            assert_eq!(node.kubelets(), [], "{args:?}");
        }
    }

    #[test]
    fn configuration_that_is_broken_or_a_trap_is_passed_over() {
        let node = Node::new();
        node.file("/garbage", "\u{0}\u{1}: [");
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--config=/garbage", "--pod-manifest-path=/p"]);
        assert_eq!(node.only().0, "/p");
        let node = Node::new();
        nix::unistd::mkfifo(&node.root().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("loop", node.root().join("loop")).unwrap();
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--config=/fifo", "--config-dir=/loop"]);
        let found = node.kubelets();
        assert_eq!(found.len(), 1, "its configuration can change: {found:?}");
        assert_eq!(found[0].path, Path::new(""));
    }

    #[test]
    fn explicit_directories_alone_unless_defaults_are_wanted_too() {
        let node = Node::new();
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--pod-manifest-path=/p"]);
        let proc = node.0.path().join("proc");
        let discovery = Discovery { explicit: vec![PathBuf::from("/mine")], defaults: false, proc };
        let reasons = |discovery: &Discovery| -> Vec<_> {
            discovery.discover().into_iter().map(|one| (one.path, one.reason)).collect()
        };
        assert_eq!(reasons(&discovery), [(PathBuf::from("/mine"), WatchReason::Flag)]);
        let both = Discovery { defaults: true, ..discovery };
        let found = reasons(&both);
        assert_eq!(
            found[..2],
            [(PathBuf::from("/mine"), WatchReason::Flag), (PathBuf::from("/p"), WatchReason::KubeletFlag)]
        );
        assert!(
            found.contains(&(PathBuf::from("/etc/kubernetes/manifests"), WatchReason::Default("kubeadm".to_owned())))
        );
    }

    #[test]
    fn the_runtimes_socket_by_flag_over_configuration() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("kubelet", &["kubelet", "--container-runtime-endpoint=unix:///run/a.sock"], &["/run/a.sock"]),
            ("kubelet", &["kubelet", "--container_runtime_endpoint", "/run/b.sock"], &["/run/b.sock"]),
            ("kubelet", &["kubelet", "--config=/config"], &["/run/config.sock"]),
            (
                "kubelet",
                &["kubelet", "--config=/config", "--container-runtime-endpoint=unix:///run/a.sock"],
                &["/run/a.sock"],
            ),
            ("kubelet", &["kubelet", "--container-runtime-endpoint=tcp://127.0.0.1:1"], &[]),
            ("kubelet", &["kubelet", "--container-runtime-endpoint=${SNAP}/x.sock"], &[]),
            ("kubelet", &["kubelet"], &[]),
            ("k3s", &["k3s", "server"], &["/run/k3s/containerd/containerd.sock"]),
            ("k3s", &["k3s", "server", "--container-runtime-endpoint=unix:///run/a.sock"], &["/run/a.sock"]),
        ];
        for (exe, args, want) in cases {
            let node = Node::new();
            node.file("/config", "containerRuntimeEndpoint: unix:///run/config.sock");
            node.process(7, &format!("/usr/bin/{exe}"), args);
            let found = runtime_endpoints(&node.discovery().proc);
            let want: Vec<_> = want.iter().map(|path| (7, PathBuf::from(path))).collect();
            assert_eq!(found, want, "{args:?}");
        }
    }
}
