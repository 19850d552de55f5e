use std::{fs, os::unix::fs::symlink};

use super::*;

const SECOND: u64 = 1_000_000_000;
const POD: &str = "shop_web-node-1_0a1b";

struct Node {
    dir: tempfile::TempDir,
    logs: Logs,
    now: u64,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(POD).join("app")).unwrap();
        let logs = Logs::new(Path::new("/proc"), false, &[dir.path().to_owned()]);
        Self { dir, logs, now: 100 * SECOND }
    }

    /// With one log of so many bytes, which is known to be there.
    fn with(bytes: usize) -> Self {
        let mut node = Self::new();
        fs::write(node.log("0.log"), vec![b'x'; bytes]).unwrap();
        assert_eq!(node.poll(0).len(), 1);
        assert_eq!(node.poll(SECOND).len(), 0);
        node
    }

    fn container(&self) -> PathBuf {
        self.dir.path().join(POD).join("app")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.container().join(name)
    }

    fn inode(&self, path: &Path) -> InodeKey {
        place(&Root::open(Path::new("/"), "/proc/self/mountinfo".into()).unwrap(), path).unwrap().1.unwrap()
    }

    /// Lets time pass, and looks.
    fn poll(&mut self, ns: u64) -> Vec<NodeLogs> {
        self.now += ns;
        let bodies = self.logs.poll(BootNs(self.now), &[]).bodies;
        let logs = bodies.into_iter().map(|body| match body {
            Body::NodeLogs(logs) => *logs,
            other => panic!("{other:?}"),
        });
        logs.collect()
    }

    /// Somebody acted in the container's directory: what the look at once, and the two after it find.
    fn acted(&mut self) -> Vec<LogsChange> {
        let dir = self.inode(&self.container());
        self.logs.acted(&[dir], BootNs(self.now));
        (0..3).flat_map(|_| self.poll(SECOND / 4)).map(|logs| logs.change).collect()
    }
}

#[test]
fn a_containers_logs_are_watched_with_their_pod_and_growth_is_no_change() {
    let mut node = Node::new();
    fs::write(node.log("0.log"), "one\n").unwrap();
    fs::write(node.log("0.log.20261125-101112"), "old\n").unwrap();
    fs::create_dir(node.dir.path().join("not-a-pods")).unwrap();
    let found = node.poll(0);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].change, LogsChange::Watched { file: None });
    let pod = found[0].pod.as_ref().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web-node-1", "0a1b"));
    assert_eq!(found[0].container.as_deref(), Some("app"));
    let watched: Vec<_> = node.logs.watch_set().keys().copied().collect();
    for path in [node.dir.path(), &node.dir.path().join(POD), &node.container(), &node.log("0.log")] {
        assert!(watched.contains(&node.inode(path)), "{path:?}");
    }
    // What rotation left is not written any more.
    assert_eq!(watched.len(), 4);
    fs::write(node.log("0.log"), "one\ntwo\n").unwrap();
    assert_eq!(node.acted(), []);
    // A new container of a known pod.
    fs::create_dir(node.dir.path().join(POD).join("side")).unwrap();
    let dir = node.inode(&node.dir.path().join(POD));
    node.logs.acted(&[dir], BootNs(node.now));
    assert_eq!(node.poll(0)[0].container.as_deref(), Some("side"));
}

#[test]
fn a_log_that_is_emptied_or_removed_is_told_and_one_that_is_renamed_beside_is_not() {
    let mut node = Node::with(1000);
    let inode = node.inode(&node.log("0.log"));
    fs::rename(node.log("0.log"), node.log("0.log.20261125-101112")).unwrap();
    fs::write(node.log("0.log"), "new\n").unwrap();
    assert_eq!(node.acted(), []);
    let new = node.inode(&node.log("0.log"));
    assert!(node.logs.watch_set().contains_key(&new) && !node.logs.watch_set().contains_key(&inode));
    fs::write(node.log("0.log"), "").unwrap();
    fs::remove_file(node.log("0.log.20261125-101112")).unwrap();
    let mut told = node.acted();
    told.sort_by_key(|change| matches!(change, LogsChange::Removed { .. }));
    assert_eq!(
        told,
        [
            LogsChange::Emptied { name: "0.log".to_owned(), inode: new, had: 4, has: 0, copied: false },
            LogsChange::Removed {
                name: "0.log.20261125-101112".to_owned(),
                inode,
                had: 1000,
                rotated: true,
                replaced: false
            },
        ]
    );
    // Another file in its place.
    fs::write(node.log("0.log.tmp"), "other\n").unwrap();
    fs::rename(node.log("0.log.tmp"), node.log("0.log")).unwrap();
    let told = node.acted();
    assert!(matches!(told.as_slice(), [LogsChange::Removed { rotated: false, replaced: true, .. }]), "{told:?}");
}

#[test]
fn a_log_that_is_copied_before_it_is_emptied_was_rotated_unless_the_copy_is_hollow() {
    for (hollow, rotated) in [(false, true), (true, false)] {
        let mut node = Node::with(100_000);
        if hollow {
            fs::File::create(node.log("0.log.1")).unwrap().set_len(100_000).unwrap();
        } else {
            fs::copy(node.log("0.log"), node.log("0.log.1")).unwrap();
        }
        fs::write(node.log("0.log"), "").unwrap();
        let told = node.acted();
        assert!(matches!(told.as_slice(), [LogsChange::Emptied { copied, .. }] if *copied == rotated), "{told:?}");
    }
}

#[test]
fn an_empty_log_is_looked_at_late_enough_whatever_is_done_beside_it() {
    let mut node = Node::with(0);
    let log = node.inode(&node.log("0.log"));
    let dir = node.inode(&node.container());
    node.logs.acted(&[log], BootNs(node.now));
    let mut told = Vec::new();
    for _ in 0..40 {
        let looked = node.poll(SECOND / 100).into_iter();
        told.extend(looked.filter(|logs| logs.change == LogsChange::Empty { inode: log }).map(|_| node.now));
        node.logs.acted(&[dir], BootNs(node.now));
    }
    let (first, last) = (told[0], told[told.len() - 1]);
    assert!(last - first >= SECOND / 5, "{told:?}");
}

#[test]
fn a_pods_directory_that_goes_takes_each_log_with_it_and_what_was_not_settled_is_silent() {
    let mut node = Node::with(10);
    fs::remove_dir_all(node.dir.path().join(POD)).unwrap();
    let told: Vec<_> = node.poll(20 * SECOND).into_iter().map(|logs| logs.change).collect();
    assert!(matches!(told.as_slice(), [LogsChange::Removed { had: 10, .. }, LogsChange::Unwatched]), "{told:?}");
    assert_eq!(node.logs.watch_set().len(), 1);
    let mut node = Node::new();
    fs::write(node.log("0.log"), "x").unwrap();
    node.poll(0);
    // Acts from before the kernel knew that they are to be reported.
    fs::remove_file(node.log("0.log")).unwrap();
    let told: Vec<_> = [SECOND, 20 * SECOND].into_iter().flat_map(|ns| node.poll(ns)).collect();
    assert_eq!(told, []);
}

#[test]
fn links_to_logs_are_watched_by_themselves() {
    let mut node = Node::with(10);
    let links = tempfile::tempdir().unwrap();
    symlink("/nowhere", links.path().join("web_shop_app-cc.log")).unwrap();
    let kind = Kind::Logs { role: LogsRole::Links, pod: None, container: None };
    node.logs.tops.push((links.path().to_owned(), kind));
    node.poll(20 * SECOND);
    node.poll(SECOND);
    let inode = node.inode(links.path());
    fs::remove_file(links.path().join("web_shop_app-cc.log")).unwrap();
    node.logs.acted(&[inode], BootNs(node.now));
    let told = node.poll(0);
    assert!(matches!(told[0].change, LogsChange::Removed { rotated: false, .. }), "{told:?}");
    assert_eq!(told[0].role, LogsRole::Links);
}

#[test]
fn an_audit_log_is_told_with_its_inodes_and_again_when_another_file_stands_there() {
    let mut node = Node::with(10);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    node.logs.audit_log(&log.display().to_string(), BootNs(node.now));
    let told = node.poll(SECOND);
    assert_eq!(told[0].change, LogsChange::Watched { file: None });
    fs::write(&log, "x").unwrap();
    let (dir_inode, inode) = (node.inode(dir.path()), node.inode(&log));
    node.logs.acted(&[dir_inode], BootNs(node.now));
    let told = node.poll(0);
    assert_eq!((&told[0].change, told[0].role), (&LogsChange::Watched { file: Some(inode) }, LogsRole::Audit));
    assert!([dir_inode, inode].iter().all(|inode| node.logs.watch_set().contains_key(inode)));
    assert_eq!(node.poll(20 * SECOND), []);
}

#[test]
fn without_anything_to_look_at_it_never_wakes() {
    let mut logs = Logs::new(Path::new("/proc"), false, &[]);
    assert_eq!(logs.deadline(), BootNs(u64::MAX));
    logs.hinted(BootNs(1));
    logs.acted(&[InodeKey { dev: 1, ino: 1 }], BootNs(1));
    assert_eq!(logs.deadline(), BootNs(u64::MAX));
}
