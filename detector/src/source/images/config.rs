//! Which pause image runtimes and kubelets are told to use: their files and command lines, looked at again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use detector_common::watch;

use super::{
    View,
    runtime::{self, Content, Kind, Runtime},
};
use crate::{
    record::{Body, BootNs, InodeKey, PauseConfig, bounded},
    source::root::read_file,
};

/// Longest file that is read.
const FILE_MAX: usize = 1 << 20;
/// Most files that are followed.
const FILES_MAX: usize = 256;
/// Most entries of a directory of imported files that are looked at.
const ENTRIES_MAX: usize = 1024;
/// How long what looks worse than before, as a file does that is just being written, has to last until it is told, in ns.
const DOUBT_NS: u64 = 1_000_000_000;

/// Where containerd and CRI-O are configured unless their command line says otherwise.
const CONTAINERD: &str = "/etc/containerd/config.toml";
const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_DIR: &str = "/etc/crio/crio.conf.d";
/// What a kubelet's command line is called in a record.
const KUBELET: &str = "kubelet";

/// What a file or command line names, or why that cannot be told.
type State = Result<Option<String>, String>;

/// All configurations, as last told.
#[derive(Debug, Default)]
pub struct Configs {
    told: BTreeMap<(PathBuf, String), Told>,
    /// Inodes of the files and of their directories.
    pub watch: BTreeMap<InodeKey, u32>,
    started: bool,
}

#[derive(Debug)]
struct Told {
    state: State,
    /// What was found instead, which may be half of something, and when first.
    doubt: Option<(State, BootNs)>,
}

/// What one look found.
#[derive(Default)]
struct Look {
    found: BTreeMap<(PathBuf, String), State>,
    watch: BTreeMap<InodeKey, u32>,
    roots: BTreeMap<u32, PathBuf>,
}

impl Configs {
    /// Reads everything again. Yields a record for each file that is seen for the first time or says something else, and where
    /// runtimes keep their stores, by pid, for those whose configuration says.
    pub fn look(&mut self, views: &[View], runtimes: &[Runtime], now: BootNs) -> (Vec<Body>, BTreeMap<u32, PathBuf>) {
        let mut look = Look::default();
        for view in views {
            let of_view = |runtime: &&Runtime| view.pids.contains(&runtime.pid) || (view.host && runtime.pid == 0);
            let mut containerd: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
            if view.host {
                containerd.entry(CONTAINERD.into()).or_default();
                look.crio(view);
            }
            for runtime in runtimes.iter().filter(of_view) {
                match runtime.kind {
                    Kind::Containerd => {
                        let path = runtime.flag(&["--config", "-c"]).unwrap_or(CONTAINERD);
                        containerd.entry(view.absolute(path, runtime.pid)).or_default().push(runtime.pid);
                    }
                    Kind::Crio if !view.host => look.crio(view),
                    Kind::Crio => {}
                    Kind::Kubelet => {
                        let image = runtime.flag(&["--pod-infra-container-image"]).map(bounded);
                        look.found.entry((view.root.clone(), KUBELET.to_owned())).or_insert(Ok(image));
                    }
                }
            }
            for (path, pids) in containerd {
                if let Some(root) = look.containerd(view, &path, 0) {
                    look.roots.extend(pids.into_iter().map(|pid| (pid, root.clone())));
                }
            }
        }
        self.watch = std::mem::take(&mut look.watch);
        let bodies = self.compare(look.found, now);
        self.started = true;
        (bodies, look.roots)
    }

    /// Whether something waits to be believed.
    #[must_use]
    pub fn doubts(&self) -> bool {
        self.told.values().any(|told| told.doubt.is_some())
    }

    fn compare(&mut self, mut found: BTreeMap<(PathBuf, String), State>, now: BootNs) -> Vec<Body> {
        let mut bodies = Vec::new();
        // What is gone names nothing any more. A kubelet that is gone was stopped.
        let keys: BTreeSet<_> = self.told.keys().filter(|key| key.1 != KUBELET).chain(found.keys()).cloned().collect();
        let present: BTreeSet<_> = found.keys().cloned().collect();
        for key in keys {
            let state = found.remove(&key).unwrap_or(Ok(None));
            if !self.told.contains_key(&key) {
                if !self.started || key.1 == KUBELET {
                    bodies.push(record(&key.1, &state, None));
                    self.told.insert(key, Told { state, doubt: None });
                    continue;
                }
                // A file that appears later than the agent says something that was not said before.
                self.told.insert(key.clone(), Told { state: Ok(None), doubt: None });
            }
            let Some(told) = self.told.get_mut(&key) else { continue };
            if state == told.state {
                told.doubt = None;
                continue;
            }
            if !matches!(state, Ok(Some(_))) {
                let since = match &told.doubt {
                    Some((doubted, since)) if *doubted == state => *since,
                    _ => now,
                };
                if now.0.saturating_sub(since.0) < DOUBT_NS {
                    told.doubt = Some((state, since));
                    continue;
                }
            }
            let before = told.state.clone().unwrap_or(None);
            bodies.push(record(&key.1, &state, Some(before)));
            *told = Told { state, doubt: None };
        }
        self.told.retain(|key, told| present.contains(key) || told.state != Ok(None) || told.doubt.is_some());
        bodies
    }
}

fn record(path: &str, state: &State, before: Option<Option<String>>) -> Body {
    Body::PauseConfig(Box::new(PauseConfig {
        path: bounded(path),
        image: state.clone().unwrap_or(None),
        before,
        unreadable: state.clone().err(),
    }))
}

impl Look {
    /// A configuration of containerd and what it imports; yields the root directory that it names.
    fn containerd(&mut self, view: &View, path: &Path, depth: usize) -> Option<PathBuf> {
        const DEPTH_MAX: usize = 4;
        let content = self.file(view, path, Kind::Containerd)?;
        let mut root = content.root.clone();
        if depth < DEPTH_MAX {
            for pattern in &content.imports {
                let pattern = path.parent().unwrap_or(Path::new("/")).join(pattern);
                for import in self.matching(view, &pattern) {
                    // containerd takes the same file twice for an error.
                    if import != path && !self.found.contains_key(&key(view, &import)) {
                        root = self.containerd(view, &import, depth + 1).or(root);
                    }
                }
            }
        }
        root
    }

    fn crio(&mut self, view: &View) {
        self.file(view, Path::new(CRIO), Kind::Crio);
        for file in self.matching(view, &Path::new(CRIO_DIR).join("*")) {
            self.file(view, &file, Kind::Crio);
        }
    }

    /// Reads one file; `None` when there is none, or it says nothing that can be understood.
    fn file(&mut self, view: &View, path: &Path, kind: Kind) -> Option<Content> {
        if self.found.len() >= FILES_MAX {
            return None;
        }
        let root = view.open()?;
        let walk = root.walk(path);
        // The directory of the file: whoever replaces it renames something there.
        if let Some(dir) = walk.dirs.last() {
            self.watch.insert(*dir, watch::STORE);
        }
        let (fd, stat) = walk.target.ok()?;
        self.watch.insert(root.inode(&fd, &stat), watch::STORE);
        let parsed = read_file(&root, path, FILE_MAX)
            .map_err(|error| bounded(&error.to_string()))
            .and_then(|bytes| runtime::parse(kind, &bytes));
        let state = parsed.as_ref().map(|content| content.pause.clone()).map_err(Clone::clone);
        self.found.insert(key(view, path), state);
        parsed.ok()
    }

    /// Files that a pattern names, by name; a `*` may stand in the last component.
    fn matching(&mut self, view: &View, pattern: &Path) -> Vec<PathBuf> {
        let (Some(dir), Some(last)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
            return Vec::new();
        };
        if !last.contains('*') {
            return vec![pattern.to_owned()];
        }
        let Some(root) = view.open() else { return Vec::new() };
        let Ok((fd, stat)) = root.walk(dir).target else { return Vec::new() };
        self.watch.insert(root.inode(&fd, &stat), watch::STORE);
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())).into_iter().flatten();
        let mut names: Vec<_> = entries
            .filter_map(Result::ok)
            .take(ENTRIES_MAX)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.') && runtime::fits(last, name))
            .collect();
        names.sort();
        names.into_iter().map(|name| dir.join(name)).collect()
    }
}

fn key(view: &View, path: &Path) -> (PathBuf, String) {
    (view.root.clone(), path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    struct Node {
        dir: tempfile::TempDir,
        configs: Configs,
        now: u64,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("etc/containerd/conf.d")).unwrap();
            fs::create_dir_all(dir.path().join("etc/crio/crio.conf.d")).unwrap();
            Self { dir, configs: Configs::default(), now: 0 }
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.dir.path().join(path), text).unwrap();
        }

        fn look(&mut self, runtimes: &[Runtime]) -> Vec<PauseConfig> {
            self.now += 100_000_000;
            let pids = runtimes.iter().map(|runtime| runtime.pid).collect();
            let view =
                View { root: self.dir.path().to_owned(), mountinfo: "/proc/self/mountinfo".into(), host: true, pids };
            let (bodies, _) = self.configs.look(&[view], runtimes, BootNs(self.now));
            let config = |body| match body {
                Body::PauseConfig(config) => *config,
                other => panic!("{other:?}"),
            };
            bodies.into_iter().map(config).collect()
        }
    }

    fn v2(image: &str) -> String {
        format!("imports = [\"conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{image}\"\n")
    }

    #[test]
    fn a_file_is_told_once_and_again_when_it_names_another_image() {
        let mut node = Node::new();
        node.write("etc/containerd/config.toml", &v2("pause:1"));
        let first = node.look(&[]);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].image.as_deref(), &first[0].before), (Some("pause:1"), &None));
        assert_eq!(node.look(&[]), []);
        node.write("etc/containerd/config.toml", &v2("evil:1"));
        let changed = node.look(&[]);
        assert_eq!(changed[0].image.as_deref(), Some("evil:1"));
        assert_eq!(changed[0].before, Some(Some("pause:1".to_owned())));
        assert!(!node.configs.watch.is_empty());
    }

    #[test]
    fn an_imported_file_that_appears_is_a_change_and_names_itself() {
        let mut node = Node::new();
        node.write("etc/containerd/config.toml", &v2("pause:1"));
        node.look(&[]);
        node.write("etc/containerd/conf.d/99.toml", &v2("evil:1"));
        node.write("etc/containerd/conf.d/ignored.txt", &v2("evil:2"));
        node.write("etc/crio/crio.conf.d/10-x", "[crio.image]\npause_image = \"evil:3\"\n");
        let changed = node.look(&[]);
        let told: Vec<_> =
            changed.iter().map(|one| (one.path.as_str(), one.image.as_deref(), one.before.clone())).collect();
        assert_eq!(
            told,
            [
                ("/etc/containerd/conf.d/99.toml", Some("evil:1"), Some(None)),
                ("/etc/crio/crio.conf.d/10-x", Some("evil:3"), Some(None)),
            ]
        );
    }

    #[test]
    fn a_file_that_is_being_written_is_not_told_half_way() {
        let mut node = Node::new();
        node.write("etc/containerd/config.toml", &v2("pause:1"));
        node.look(&[]);
        for half in ["", "[plugins", "version = 2\n"] {
            node.write("etc/containerd/config.toml", half);
            assert_eq!(node.look(&[]), [], "{half}");
            assert!(node.configs.doubts());
        }
        node.write("etc/containerd/config.toml", &v2("pause:1"));
        assert_eq!(node.look(&[]), []);
        assert!(!node.configs.doubts());
        node.write("etc/containerd/config.toml", "\n[plugins\n");
        node.look(&[]);
        node.now += SECOND;
        let broken = node.look(&[]);
        assert_eq!(broken[0].before, Some(Some("pause:1".to_owned())));
        assert!(broken[0].unreadable.as_deref().unwrap().starts_with("line 2: "), "{broken:?}");
    }

    #[test]
    fn a_kubelet_that_is_started_anew_with_another_image_is_a_change_and_one_that_stops_is_none() {
        let kubelet = |pid, image: &str| Runtime {
            kind: Kind::Kubelet,
            pid,
            args: vec!["kubelet".to_owned(), format!("--pod-infra-container-image={image}")],
        };
        let mut node = Node::new();
        let first = node.look(&[kubelet(5, "pause:1")]);
        assert_eq!((first[0].path.as_str(), &first[0].before), ("kubelet", &None));
        assert_eq!(node.look(&[]), []);
        let changed = node.look(&[kubelet(6, "evil:1")]);
        assert_eq!(changed[0].before, Some(Some("pause:1".to_owned())));
    }
}
