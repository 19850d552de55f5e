//! What a kubelet's command line and configuration say about static pods and the container runtime.

use std::path::{Path, PathBuf};

use super::{MAX_CONFIG, absolute, is_drop_in};
use crate::record::WatchReason;
use crate::source::root::{Root, file_type, read_file};
use crate::yaml::{self, Node};
use nix::sys::stat::SFlag;
use std::os::fd::AsRawFd;

/// Most drop-ins, and how deep kubelet's walk of their directory is followed.
const MAX_DROP_INS: usize = 256;
const MAX_DROP_IN_DEPTH: usize = 4;

/// Longest URL that is kept, in characters.
const MAX_URL: usize = 1024;

/// The answer as it comes together: configuration file, drop-ins over it, command line over those.
pub(super) struct Settings {
    cwd: PathBuf,
    pub path: Option<(PathBuf, WatchReason)>,
    pub url: Option<String>,
    pub url_reason: Option<WatchReason>,
    pub config_files: Vec<PathBuf>,
    /// The container runtime's unix socket.
    pub runtime: Option<PathBuf>,
}

/// The flags that matter; the last one of each counts.
#[derive(Default)]
struct Flags {
    manifest_path: Option<String>,
    manifest_url: Option<String>,
    config: Option<String>,
    config_dir: Option<String>,
    /// microk8s: a file with one flag per line.
    args_file: Option<String>,
    /// k3s, rke2: where everything lives.
    data_dir: Option<String>,
    runtime: Option<String>,
}

impl Settings {
    /// `cwd` is the kubelet's working directory, inside its root.
    pub fn new(cwd: PathBuf) -> Self {
        Self { cwd, path: None, url: None, url_reason: None, config_files: Vec::new(), runtime: None }
    }

    /// Reads everything there is for a kubelet of that flavour.
    pub fn read(&mut self, root: &Root, flavour: &str, args: &[String]) {
        let flags = match flavour {
            "k3s" | "rke2" => self.distribution(flavour, args),
            "kubelite" => self.kubelite(root, args),
            _ => flags(args),
        };
        if let Some(file) = flags.config.as_deref().filter(|f| !f.is_empty()) {
            let file = absolute(Path::new(file), &self.cwd);
            self.config_files.push(file.clone());
            // kubelet takes relative paths of its configuration file to be relative to that file.
            let base = file.parent().unwrap_or(Path::new("/")).to_path_buf();
            self.apply_config(root, &file, &base);
        }
        if let Some(dir) = flags.config_dir.as_deref().filter(|d| !d.is_empty()) {
            let dir = absolute(Path::new(dir), &self.cwd);
            self.config_files.push(dir.clone());
            let mut files = Vec::new();
            drop_ins(root, &dir, 0, &mut files);
            let base = self.cwd.clone();
            for file in files {
                self.apply_config(root, &file, &base);
                self.config_files.push(file);
            }
        }
        if let Some(path) = flags.manifest_path {
            self.path = non_empty(&path).map(|p| (absolute(Path::new(p), &self.cwd), WatchReason::KubeletFlag));
        }
        if let Some(url) = flags.manifest_url {
            self.set_url(&url, WatchReason::KubeletFlag);
        }
        if let Some(endpoint) = flags.runtime {
            self.runtime = unix_socket(&endpoint);
        }
    }

    /// k3s and rke2 give their kubelet a directory below the data directory; `--kubelet-arg` overrides.
    fn distribution(&mut self, flavour: &str, args: &[String]) -> Flags {
        let outer = flags(args);
        let data = outer.data_dir.unwrap_or_else(|| format!("/var/lib/rancher/{flavour}"));
        let agent = absolute(Path::new(&data), &self.cwd).join("agent");
        self.path = Some((agent.join("pod-manifests"), WatchReason::Default(flavour.to_owned())));
        // They run a containerd of their own, and tell kubelet where it is, unless they are given another runtime.
        self.runtime = Some(PathBuf::from("/run/k3s/containerd/containerd.sock"));
        let kubelet_args: Vec<String> = values(args, "kubelet-arg").map(|arg| format!("--{arg}")).collect();
        let mut inner = flags(&kubelet_args);
        inner.runtime = inner.runtime.or(outer.runtime);
        if inner.config_dir.is_none() {
            // Since 1.32 they configure kubelet through drop-ins.
            inner.config_dir = agent.join("etc/kubelet.conf.d").to_str().map(str::to_owned);
        }
        inner
    }

    fn kubelite(&mut self, root: &Root, args: &[String]) -> Flags {
        let Some(file) = flags(args).args_file else {
            return Flags::default();
        };
        let file = absolute(Path::new(&file), &self.cwd);
        let bytes = read_file(root, &file, MAX_CONFIG).unwrap_or_default();
        self.config_files.push(file);
        let words: Vec<String> =
            String::from_utf8_lossy(&bytes).split_ascii_whitespace().map(|w| w.trim_matches('"').to_owned()).collect();
        flags(&words)
    }

    /// One `KubeletConfiguration` over what is known so far: a key that is there counts even when it is empty.
    fn apply_config(&mut self, root: &Root, file: &Path, base: &Path) {
        let Ok(bytes) = read_file(root, file, MAX_CONFIG) else {
            return;
        };
        let Ok(Some(document)) = yaml::first_document(&bytes) else {
            return;
        };
        let reason = || WatchReason::KubeletConfig(file.to_string_lossy().into_owned());
        if let Some(path) = setting(&document, "staticPodPath") {
            self.path = non_empty(path).map(|p| (absolute(Path::new(p), base), reason()));
        }
        if let Some(url) = setting(&document, "staticPodURL") {
            self.set_url(url, reason());
        }
        if let Some(endpoint) = setting(&document, "containerRuntimeEndpoint") {
            self.runtime = unix_socket(endpoint);
        }
    }

    fn set_url(&mut self, url: &str, reason: WatchReason) {
        self.url = non_empty(url).map(|u| u.chars().take(MAX_URL).collect());
        self.url_reason = self.url.is_some().then_some(reason);
    }
}

/// The text of a key that is there; an explicit null unsets it.
fn setting<'a>(document: &'a Node, key: &str) -> Option<&'a str> {
    let Node::Map(entries) = document else {
        return None;
    };
    match &entries.iter().rev().find(|(k, _)| k == key)?.1 {
        Node::Text(text) => Some(text),
        Node::Null => Some(""),
        _ => None,
    }
}

/// `unix:///run/x.sock`, or the path alone; other endpoints (`tcp://`, a path with a variable) are not asked.
fn unix_socket(endpoint: &str) -> Option<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    (path.is_absolute() && endpoint.len() <= MAX_URL).then(|| path.to_path_buf())
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// `*.conf` files below `dir`, in the order of kubelet's `filepath.WalkDir`: by name, directories where their name is.
fn drop_ins(root: &Root, dir: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok((fd, stat)) = root.walk(dir).target else {
        return;
    };
    if file_type(&stat) != SFlag::S_IFDIR {
        return;
    }
    let Ok(entries) = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
        return;
    };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .take(4 * MAX_DROP_INS)
        .map(|entry| (entry.file_name(), entry.file_type().is_ok_and(|t| t.is_dir())))
        .collect();
    names.sort();
    for (name, is_dir) in names {
        if files.len() >= MAX_DROP_INS {
            return;
        }
        if is_dir {
            if depth < MAX_DROP_IN_DEPTH {
                drop_ins(root, &dir.join(name), depth + 1, files);
            }
        } else if is_drop_in(&name) {
            files.push(dir.join(name));
        }
    }
}

fn flags(args: &[String]) -> Flags {
    let last = |name: &str| values(args, name).last().map(str::to_owned);
    Flags {
        manifest_path: last("pod-manifest-path"),
        manifest_url: last("manifest-url"),
        config: last("config"),
        config_dir: last("config-dir"),
        args_file: last("kubelet-args-file"),
        data_dir: last("data-dir").or_else(|| short(args, "-d")),
        runtime: last("container-runtime-endpoint"),
    }
}

/// Values of `--name=value` and `--name value`; kubelet takes `_` for `-` in names.
fn values<'a>(args: &'a [String], name: &'a str) -> impl Iterator<Item = &'a str> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    args[..end].iter().enumerate().filter_map(move |(i, arg)| {
        let (flag, value) = match arg.strip_prefix("--")?.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.strip_prefix("--")?, None),
        };
        if flag.replace('_', "-") != name {
            return None;
        }
        value.or_else(|| args.get(i + 1).map(String::as_str))
    })
}

fn short(args: &[String], name: &str) -> Option<String> {
    let at = args.iter().rposition(|arg| arg == name)?;
    args.get(at + 1).cloned()
}
