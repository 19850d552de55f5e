//! OCI bundles: what a runtime was told about a container before its first instruction.
//!
//! A bundle is found by who makes the cgroup (an OCI runtime names it on its command line), or below a directory in which
//! bundles of other containers were found, or where the known runtimes keep theirs.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, OpenOptions},
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use crate::{
    context::cgroup,
    record::{ContainerInfo, ContainerRole, bounded},
    source::kubelet,
};

mod config;
mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use config::Config;

/// Largest `config.json` that is read: as large as a message to the runtime may be.
const CONFIG_MAX: usize = 16 << 20;
/// Bytes that are read at once, and kept for the next one: several times what most have.
const CONFIG_USUAL: usize = 64 << 10;
/// Most directories of bundles that are remembered beside the usual ones.
const ROOTS_MAX: usize = 32;
/// Most parts of a command line that are looked at.
const ARGS_MAX: usize = 64;

/// Where bundles are, `*` standing for any name (containerd's namespace) and the container's id coming next.
const USUAL: [&str; 7] = [
    "/run/containerd/io.containerd.runtime.v2.task/*",
    "/run/k3s/containerd/io.containerd.runtime.v2.task/*",
    "/run/k0s/containerd/io.containerd.runtime.v2.task/*",
    "/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/*",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/*",
    "/run/containers/storage/overlay-containers",
    "/var/lib/containers/storage/overlay-containers",
];

/// Most namespaces of a containerd that are looked into.
const NAMESPACES_MAX: usize = 16;

/// A place to look for bundles in, the cheapest first.
#[derive(Clone, Copy)]
enum Place {
    Learned,
    Named,
    Usual,
}

/// Where bundles are looked for.
#[derive(Debug)]
pub struct Bundles {
    /// What the host's paths are below: `/`, or the root of the host's first process where the agent has another.
    root: PathBuf,
    /// Directories in which bundles were found, by container id.
    learned: BTreeSet<PathBuf>,
    /// Directories that some program's command line named, which anybody can write: the latest ones.
    hinted: VecDeque<PathBuf>,
    /// Where the container that was read last is told that the API server is.
    api: Option<SocketAddr>,
    /// What the latest configuration was read into.
    buffer: Vec<u8>,
}

/// Why a bundle tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: larger than {} MiB", .0.display(), CONFIG_MAX >> 20)]
    Large(PathBuf),
    #[error("{}: not an OCI configuration: {error}", path.display())]
    Parse { path: PathBuf, error: serde_json::Error },
}

impl Default for Bundles {
    fn default() -> Self {
        Self::new(kubelet::host_root(Path::new("/proc")))
    }
}

impl Bundles {
    /// Bundles below a root directory.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, learned: BTreeSet::new(), hinted: VecDeque::new(), api: None, buffer: Vec::new() }
    }

    /// Where the container that was found last is told that the cluster's API server is; once.
    pub fn api(&mut self) -> Option<SocketAddr> {
        self.api.take()
    }

    /// Learns from the command line of a program that names a bundle, as runtimes and their monitors do.
    ///
    /// `runc create --bundle DIR ID`, `conmon -b DIR`.
    pub fn learn<'a>(&mut self, argv: impl Iterator<Item = &'a str>) -> Option<PathBuf> {
        let bundle = bundle_argument(argv)?;
        let bundle = if bundle.ends_with("userdata") { bundle.parent()?.to_owned() } else { bundle };
        if let Some(above) = bundle.parent()
            && !self.learned.contains(above)
            && !self.hinted.iter().any(|hinted| hinted == above)
        {
            if self.hinted.len() >= ROOTS_MAX {
                self.hinted.pop_front();
            }
            self.hinted.push_back(above.to_owned());
        }
        Some(bundle)
    }

    /// Learns from the monitors (shims) that run: a shim's working directory is its container's bundle.
    pub fn learn_from_shims(&mut self) {
        for process in procfs::process::all_processes().into_iter().flatten().filter_map(Result::ok) {
            let is_monitor = process
                .exe()
                .ok()
                .and_then(|exe| Some(exe.file_name()?.to_string_lossy().into_owned()))
                .is_some_and(|name| name.starts_with("containerd-shim") || name.starts_with("conmon"));
            if !is_monitor {
                continue;
            }
            let bundle = self.learn(process.cmdline().unwrap_or_default().iter().map(String::as_str));
            self.remember(bundle.as_deref().and_then(Path::parent));
            self.remember(process.cwd().ok().as_deref().and_then(Path::parent));
        }
    }

    /// What is known of the container whose cgroup has this path. `None` when the cgroup is no container's.
    ///
    /// `maker` is the process that made the cgroup, if it may still be asked.
    pub fn container(&mut self, cgroup_id: u64, path: &str, maker: Option<u32>) -> Option<ContainerInfo> {
        let leaf = cgroup::leaf(path)?;
        let looks_like_one = cgroup::container_id(path) == Some(leaf);
        let mut unreadable = None;
        // Where others were first: one look is all that most containers cost.
        for place in [Place::Learned, Place::Named, Place::Usual] {
            for dir in self.candidates(place, leaf, maker) {
                match self.read(&dir, cgroup_id, path, leaf) {
                    Ok(Some(info)) => {
                        self.remember(dir.parent());
                        return Some(info);
                    }
                    Ok(None) => {
                        let other = format!("{}: the bundle is of another cgroup", dir.display());
                        unreadable = unreadable.or(Some(other));
                    }
                    Err(BundleError::Read { error, .. })
                        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                    Err(error) => unreadable = Some(error.to_string()),
                }
            }
        }
        if !looks_like_one && unreadable.is_none() {
            return None;
        }
        Some(ContainerInfo {
            id: leaf.to_owned(),
            cgroup_id: Some(cgroup_id),
            unreadable: Some(bounded(&unreadable.unwrap_or_else(|| "no bundle was found".to_owned()))),
            ..ContainerInfo::default()
        })
    }

    /// The bundle that the maker of a cgroup names on its command line for this container.
    fn named_by(&mut self, pid: u32, leaf: &str) -> Option<PathBuf> {
        let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
        let argv = process.cmdline().ok()?;
        if !argv.iter().rev().take(ARGS_MAX).any(|arg| arg == leaf) {
            return None;
        }
        match self.learn(argv.iter().map(String::as_str)) {
            Some(bundle) => Some(bundle),
            // Without one on the command line it is the working directory.
            None => process.cwd().ok(),
        }
    }

    /// Directories in which the bundle of this container may be.
    fn candidates(&mut self, place: Place, id: &str, maker: Option<u32>) -> Vec<PathBuf> {
        match place {
            Place::Learned => self.learned.iter().map(|root| root.join(id)).collect(),
            Place::Named => maker.and_then(|pid| self.named_by(pid, id)).into_iter().collect(),
            Place::Usual => {
                let mut found: Vec<_> = self.hinted.iter().map(|root| root.join(id)).collect();
                for usual in USUAL {
                    match usual.strip_suffix("/*") {
                        Some(above) => {
                            let names = fs::read_dir(self.at(Path::new(above))).into_iter().flatten();
                            let names = names.filter_map(Result::ok).take(NAMESPACES_MAX);
                            found.extend(names.map(|name| Path::new(above).join(name.file_name()).join(id)));
                        }
                        None => found.push(Path::new(usual).join(id)),
                    }
                }
                found
            }
        }
    }

    /// Other bundles may be beside one that was found.
    fn remember(&mut self, dir: Option<&Path>) {
        if let Some(dir) = dir.filter(|dir| dir.components().count() > 1)
            && self.learned.len() < ROOTS_MAX
        {
            self.learned.insert(dir.to_owned());
        }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a bundle; `None` when it describes another cgroup.
    fn read(&mut self, dir: &Path, cgroup_id: u64, path: &str, id: &str) -> Result<Option<ContainerInfo>, BundleError> {
        let file = self.at(&dir.join("config.json"));
        let config = match read(&file, &mut self.buffer, Config::parse) {
            // CRI-O and podman keep it one level down.
            Err(BundleError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.at(&dir.join("userdata/config.json"));
                read(&file, &mut self.buffer, Config::parse)?
            }
            config => config?,
        };
        if !config.is_of(path) {
            return Ok(None);
        }
        self.api = config.api();
        let mut info = config.info(id, cgroup_id, path, dir);
        if info.role == ContainerRole::Plain && info.name.is_none() {
            self.name(dir, config.hostname(), &mut info);
        }
        Ok(Some(info))
    }

    /// Adds what the container's engine calls it. What it did not write, or not like this, stays unsaid: the container is known without.
    fn name(&mut self, dir: &Path, hostname: Option<&Path>, info: &mut ContainerInfo) {
        for (engine, file) in engine::files(&info.id, dir, hostname) {
            let file = self.at(&file);
            if read(&file, &mut self.buffer, |bytes| engine::name(engine, bytes, info)).is_ok_and(|known| known) {
                return;
            }
        }
    }
}

/// The value of `--bundle` or `-b`.
fn bundle_argument<'a>(argv: impl Iterator<Item = &'a str>) -> Option<PathBuf> {
    let mut args = argv.take(ARGS_MAX);
    while let Some(arg) = args.next() {
        let value = match arg {
            "--bundle" | "-bundle" | "-b" => args.next(),
            _ => arg.strip_prefix("--bundle=").or_else(|| arg.strip_prefix("-bundle=")),
        };
        if let Some(value) = value.filter(|value| value.starts_with('/')) {
            return Some(PathBuf::from(value));
        }
    }
    None
}

/// Reads a file by way of a buffer that is kept.
fn read<T>(
    path: &Path,
    buffer: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<T, BundleError> {
    let parsed = read_file(path, buffer)
        .and_then(|len| parse(&buffer[..len]).map_err(|error| BundleError::Parse { path: path.to_owned(), error }));
    buffer.truncate(CONFIG_USUAL);
    buffer.shrink_to_fit();
    parsed
}

/// Reads a file to the front of a buffer; returns how much that is. Anybody may name a directory of bundles: what lies there may be no
/// file, and is not waited for.
fn read_file(path: &Path, buffer: &mut Vec<u8>) -> Result<usize, BundleError> {
    let error = |error| BundleError::Read { path: path.to_owned(), error };
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(error)?;
    let mut len = 0;
    loop {
        if len > CONFIG_MAX {
            return Err(BundleError::Large(path.to_owned()));
        }
        if len == buffer.len() {
            buffer.resize((2 * len).clamp(CONFIG_USUAL, CONFIG_MAX + 1), 0);
        }
        len += file.read(&mut buffer[len..]).map_err(error)?;
        // A call that does not fill the buffer has read a file to its end; runtimes write it before they begin.
        if len < buffer.len() {
            return Ok(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{InfoFrom, TEXT_MAX};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const TASKS: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";

    /// A host with one bundle of this content in containerd's usual place.
    fn host(id: &str, config: &[u8]) -> (tempfile::TempDir, Bundles) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(TASKS).join(id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), config).unwrap();
        let bundles = Bundles::new(root.path().to_owned());
        (root, bundles)
    }

    fn config(annotations: &str, cgroups_path: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.0.2","process":{{"args":["x"],"capabilities":{{"bounding":["CAP_CHOWN"]}}}},"annotations":{{{annotations}}},"linux":{{"cgroupsPath":"{cgroups_path}","namespaces":[{{"type":"pid"}},{{"type":"network","path":"/proc/9/ns/net"}}]}}}}"#
        )
    }

    const MEMBER: &str = r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-name":"app","io.kubernetes.cri.image-name":"r.example/app:1","io.kubernetes.cri.sandbox-id":"sb","io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"0a1b""#;

    #[test]
    fn a_containerd_bundle_names_the_pod_with_either_cgroup_driver() {
        for (cgroups_path, path) in [
            (format!("/kubepods/besteffort/pod0a1b/{ID}"), format!("/kubepods/besteffort/pod0a1b/{ID}")),
            (format!("/kubepods/pod0a1b/{ID}"), format!("/outer/kubepods/pod0a1b/{ID}")),
            (
                format!("kubepods-pod0a1b.slice:cri-containerd:{ID}"),
                format!("/kubepods.slice/kubepods-pod0a1b.slice/cri-containerd-{ID}.scope"),
            ),
        ] {
            let (_root, mut bundles) = host(ID, config(MEMBER, &cgroups_path).as_bytes());
            let info = bundles.container(7, &path, None).unwrap();
            assert_eq!((info.id.as_str(), info.cgroup_id, info.role), (ID, Some(7), ContainerRole::Member), "{path}");
            let pod = info.pod.unwrap();
            assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web", "0a1b"));
            assert_eq!((info.name.as_deref(), info.image.as_deref()), (Some("app"), Some("r.example/app:1")));
            assert!(!info.host_pid && !info.privileged && info.unreadable.is_none());
        }
    }

    #[test]
    fn an_old_sandbox_is_known_by_where_its_logs_are() {
        let annotations = r#""io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-log-directory":"/var/log/pods/shop_web-node-1_0a1b""#;
        let (_root, mut bundles) = host(ID, config(annotations, &format!("/k/{ID}")).as_bytes());
        let info = bundles.container(7, &format!("/k/{ID}"), None).unwrap();
        assert_eq!(info.role, ContainerRole::Sandbox);
        assert_eq!(info.sandbox_id.as_deref(), Some(ID));
        let pod = info.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web-node-1", "0a1b"));
    }

    #[test]
    fn cri_o_keeps_its_bundles_elsewhere_and_says_the_same_in_other_words() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/containers/storage/overlay-containers").join(ID).join("userdata");
        fs::create_dir_all(&dir).unwrap();
        let annotations = r#""io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.container.name":"app","io.kubernetes.pod.name":"web","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"0a1b","io.kubernetes.cri-o.ImageName":"r.example/app:1""#;
        fs::write(dir.join("config.json"), config(annotations, &format!("kubepods.slice:crio:{ID}"))).unwrap();
        let path = format!("/kubepods.slice/crio-{ID}.scope");
        let info = Bundles::new(root.path().to_owned()).container(7, &path, None).unwrap();
        assert_eq!((info.role, info.name.as_deref()), (ContainerRole::Member, Some("app")));
        assert_eq!(info.pod.unwrap().name, "web");
    }

    /// As Docker 28 writes it, but for what is of no interest.
    const DOCKERS: &str = r#"{"State":{"Running":true},"ID":"0123","Config":{"Hostname":"79368d6fb890","Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":2000000000},"Image":"app:1","Labels":{}},"Image":"sha256:c129","Name":"/web","Driver":"overlay2"}"#;
    /// As podman 5 does.
    const PODMANS: &str = r#"[{"id":"other","names":["no"],"image":"00"},{"id":"ID","names":["web"],"image":"f46a","layer":"9b3b","metadata":"{\"image-name\":\"localhost/app:1\",\"name\":\"web\"}","flags":{"MountLabel":""}}]"#;

    #[test]
    fn docker_says_what_it_calls_a_container_beside_the_containers_hostname() {
        let (root, mut bundles) = host("other", b"{}");
        let data = format!("/srv/docker/containers/{ID}");
        let mounts = format!(
            r#"{{"destination":"/etc/hostname","type":"bind","source":"{data}/hostname"}},{{"destination":"/x","type":"bind","source":"/var/lib/kubelet/{ID}/x"}}"#
        );
        let text =
            format!(r#"{{"ociVersion":"1","mounts":[{mounts}],"linux":{{"cgroupsPath":"system.slice:docker:{ID}"}}}}"#);
        let dir = root.path().join("run/containerd/io.containerd.runtime.v2.task/moby").join(ID);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), text).unwrap();
        let path = format!("/system.slice/docker-{ID}.scope");
        let info = bundles.container(7, &path, None).unwrap();
        assert_eq!((info.name, info.role, info.unreadable), (None, ContainerRole::Plain, None));
        let data = root.path().join(&data[1..]);
        fs::create_dir_all(&data).unwrap();
        for (content, name) in [(DOCKERS, Some("web")), ("{", None), ("{}", None)] {
            fs::write(data.join("config.v2.json"), content).unwrap();
            let info = bundles.container(7, &path, None).unwrap();
            assert_eq!(info.name.as_deref(), name);
            assert_eq!(info.image.as_deref(), name.map(|_| "app:1"));
            assert_eq!(info.image_digest.as_deref(), name.map(|_| "sha256:c129"));
            assert_eq!(info.expected_execs, name.map(|_| ["/bin/sh", "-c", "curl x"]).as_slice());
            assert_eq!(engine::files("other", Path::new("/b"), Some(Path::new(&format!("/{ID}/hostname")))), []);
            // What the engine keeps of this container is nobody's place.
            assert_eq!(info.privileges.unwrap().mounts, []);
        }
    }

    #[test]
    fn podman_says_what_it_calls_containers_beside_their_bundles() {
        let root = "/var/lib/containers/storage/overlay-containers";
        let user = "/home/u/.local/share/containers/storage/vfs-containers";
        for (place, file) in [(root, "containers.json"), (root, "volatile-containers.json"), (user, "containers.json")]
        {
            let host = tempfile::tempdir().unwrap();
            let storage = host.path().join(&place[1..]);
            let dir = storage.join(ID).join("userdata");
            fs::create_dir_all(&dir).unwrap();
            fs::write(storage.join("containers.json"), "[]").unwrap();
            fs::write(storage.join(file), PODMANS.replace("ID", ID)).unwrap();
            fs::write(dir.join("config.json"), config("", &format!("machine.slice:libpod:{ID}"))).unwrap();
            let path = format!("/machine.slice/libpod-{ID}.scope/container");
            let mut bundles = Bundles::new(host.path().to_owned());
            bundles.learn(["conmon", "-b", &format!("{place}/{ID}/userdata")].into_iter());
            let info = bundles.container(7, &path, None).unwrap();
            assert_eq!((info.name.as_deref(), info.image.as_deref()), (Some("web"), Some("localhost/app:1")));
            assert_eq!(info.image_digest.as_deref(), Some("sha256:f46a"));
        }
    }

    #[test]
    fn a_bundle_of_another_cgroup_lends_its_pod_to_nobody() {
        let (_root, mut bundles) = host(ID, config(MEMBER, &format!("/kubepods/pod0a1b/{ID}")).as_bytes());
        let info = bundles.container(7, &format!("/evil/{ID}"), None).unwrap();
        assert_eq!((info.pod, info.from), (None, InfoFrom::Nothing));
        assert!(info.unreadable.unwrap().contains("of another cgroup"));
    }

    #[test]
    fn a_cgroup_called_like_a_container_without_a_bundle_is_unknown_and_any_other_is_none() {
        let (_root, mut bundles) = host("other", b"{}");
        let info = bundles.container(7, &format!("/evil/{ID}"), None).unwrap();
        assert_eq!((info.from, info.unreadable.as_deref()), (InfoFrom::Nothing, Some("no bundle was found")));
        for path in ["/", "", "/system.slice/ssh.service", "/..", "/a/.hidden", "/x/na me", "/\n"] {
            assert_eq!(bundles.container(7, path, None), None, "{path:?}");
        }
    }

    #[test]
    fn an_id_that_is_not_hexadecimal_is_found_by_its_bundle() {
        let (_root, mut bundles) = host("my-container_1", config("", "/default/my-container_1").as_bytes());
        let info = bundles.container(7, "/default/my-container_1", None).unwrap();
        assert_eq!((info.id.as_str(), info.role), ("my-container_1", ContainerRole::Plain));
    }

    #[test]
    fn broken_bundles_say_what_is_wrong_and_where() {
        let path = format!("/k/{ID}");
        for (content, word) in [
            (&b"{\"annotations\": {"[..], "line 1 column"),
            (b"", "line 1 column 0"),
            (b"\xff\xfe", "not an OCI configuration"),
            (b"[]", "not an OCI configuration"),
            (b"{\"annotations\": 7}", "a map of annotations"),
            (b"{\"annotations\": {\"io.kubernetes.cri.container-name\": []}}", "line 1 column"),
        ] {
            let (_root, mut bundles) = host(ID, content);
            let info = bundles.container(7, &path, None).unwrap();
            let why = info.unreadable.unwrap();
            assert!(why.contains(word) && why.contains("config.json"), "{why}");
        }
        let (root, mut bundles) = host(ID, b"");
        let file = root.path().join(TASKS).join(ID).join("config.json");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(bundles.container(7, &path, None).unwrap().unreadable.unwrap().contains("Is a directory"));
        fs::remove_dir(&file).unwrap();
        fs::File::create(&file).unwrap().set_len(CONFIG_MAX as u64 + 1).unwrap();
        assert!(bundles.container(7, &path, None).unwrap().unreadable.unwrap().contains("larger than 16 MiB"));
        assert_eq!(bundles.buffer.capacity(), CONFIG_USUAL);
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(bundles.container(7, &path, None).unwrap().unreadable.unwrap().contains("line 1 column 0"));
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(bundles.container(7, &path, None).unwrap().unreadable.unwrap().contains("symbolic link"));
    }

    #[test]
    fn a_bundle_of_ten_mebibytes_is_read_and_what_is_kept_of_it_is_small() {
        let newline = r"\n";
        let huge = "v".repeat(1 << 20);
        let others: String = (0..9).map(|n| format!(r#","other-{n}":"{huge}""#)).collect();
        let annotations = format!(
            r#""io.kubernetes.cri.container-name":"a{newline}b","io.kubernetes.cri.image-name":"{huge}","io.kubernetes.cri.container-type":"container"{others}"#
        );
        let (_root, mut bundles) = host(ID, config(&annotations, &format!("/k/{ID}")).as_bytes());
        let info = bundles.container(7, &format!("/k/{ID}"), None).unwrap();
        assert_eq!(info.name.as_deref(), Some("a\nb"));
        assert_eq!(info.image.unwrap().len(), TEXT_MAX);
    }

    #[test]
    fn runtimes_and_monitors_name_bundles_on_their_command_lines() {
        let mut bundles = Bundles::new(PathBuf::from("/nowhere"));
        for line in [
            "runc --root /run/runc create --bundle /run/own/tasks/k8s.io/abc --pid-file x abc",
            "crun create --bundle=/run/own/tasks/k8s.io/abc abc",
            "conmon -b /run/own/tasks/k8s.io/abc/userdata -c abc",
        ] {
            assert_eq!(bundles.learn(line.split(' ')), Some(PathBuf::from("/run/own/tasks/k8s.io/abc")), "{line}");
            assert_eq!(bundles.hinted, [PathBuf::from("/run/own/tasks/k8s.io")]);
        }
        for line in ["sort -b file", "x --bundle", "x --bundle relative", ""] {
            assert_eq!(bundles.learn(line.split(' ')), None, "{line}");
        }
        for n in 0..2 * ROOTS_MAX {
            bundles.learn(["x", "--bundle", &format!("/evil/{n}/id")].into_iter());
        }
        assert!(bundles.hinted.len() <= ROOTS_MAX && bundles.learned.is_empty());
    }
}
