//! What the node takes from the host, and how all of it is given back: after success, failure, Ctrl-C, and after a run
//! that was killed. Everything is found again by fixed names, so that nothing needs to be remembered in memory.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Everything that the node writes is below this directory: on a disk, executable, and short enough for sockets' names.
pub const PLACE: &str = "/var/tmp/detector-node";
/// The node's name in Kubernetes, and of the cgroup that all its processes are in.
pub const NAME: &str = "detector-node";
/// Held while a node is up; also says when another one is.
const LOCK: &str = "/run/detector-node.lock";

/// Settings of the kernel that kubelet changes.
const SYSCTLS: [&str; 5] = [
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Directories outside that kubelet and the CNI library write to, whatever they are told.
const OUTSIDE: [&str; 8] = [
    "/var/lib/kubelet",
    "/var/lib/kubelet/device-plugins",
    "/var/log/pods",
    "/var/log/containers",
    "/var/lib/cni",
    "/var/lib/cni/results",
    "/run/containerd",
    "/run/containerd/s",
];
/// What kubelet remembers of device plugins.
const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";
/// How long another node is waited for.
const OTHERS: Duration = Duration::from_secs(900);
/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host, held for one node.
pub struct Held {
    _lock: Flock<fs::File>,
}

/// Holds the host, so that there is one node at a time; waits for another one.
///
/// # Errors
/// When another one is up for long.
pub fn hold() -> anyhow::Result<Held> {
    let open = || {
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        options.open(LOCK).context(LOCK)
    };
    let deadline = Instant::now() + OTHERS;
    let mut said = false;
    loop {
        if let Ok(mut lock) = Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            lock.set_len(0)?;
            write!(lock, "{}", std::process::id())?;
            return Ok(Held { _lock: lock });
        }
        let pid = fs::read_to_string(LOCK).unwrap_or_default();
        anyhow::ensure!(
            Instant::now() < deadline,
            "another `cargo xtask node` is up on this machine, process {pid}, and does not end. Type: kill {pid}"
        );
        if !said {
            crate::setup::say(&format!("waiting for another node on this machine, process {pid}"));
            said = true;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Takes what a node needs from the host, once what an earlier run left is cleaned up.
///
/// # Errors
/// When something is not to be had: another kubelet is up, or the place is not ours.
pub fn take(_: &Held) -> anyhow::Result<()> {
    if Path::new(PLACE).exists() {
        crate::setup::say("taking down what an earlier run left");
        release()?;
    }
    // Kubelet keeps it there whatever it is told, so two of them cannot be on one machine.
    if Path::new(CHECKPOINT).exists() {
        bail!(
            "{CHECKPOINT} is there: this machine has a kubelet, and the node's would overwrite that. \
             Use another machine; or, if it has none any more, type: rm {CHECKPOINT}"
        );
    }
    fs::DirBuilder::new().mode(0o700).create(PLACE).context(PLACE)?;
    let existed: Vec<_> = OUTSIDE.iter().filter(|dir| Path::new(dir).exists()).map(|dir| format!("{dir}\n")).collect();
    fs::write(existed_file(), existed.concat())?;
    fs::write(sysctl_file(), sysctls()?)?;
    for root in cgroup_roots()? {
        // One hierarchy may be mounted at several places.
        fs::create_dir_all(root.join(NAME)).with_context(|| format!("making a cgroup in {}", root.display()))?;
    }
    enable_controllers()?;
    fs::create_dir(daemons_cgroup()?).context("making a cgroup for the daemons")?;
    fs::write(network(), "")?;
    let mut unshare = Command::new("unshare");
    unshare.arg(format!("--net={}", network().display())).args(["ip", "link", "set", "lo", "up"]);
    crate::check(&mut unshare)
}

/// Takes everything down, in whatever state it is. Does what can be done, and then says what could not.
///
/// # Errors
/// Names what is left.
pub fn release() -> anyhow::Result<()> {
    if Path::new(PLACE).exists() {
        ours()?;
    }
    type Step = fn() -> anyhow::Result<()>;
    let steps: [(&str, Step); 8] = [
        ("processes", kill_all),
        // Their names are in files that go with the place.
        ("shims' sockets", shim_sockets),
        ("mounts", unmount_all),
        ("cgroups", cgroups),
        ("cgroup controllers", restore_controllers),
        ("sysctls", restore_sysctls),
        ("files outside", outside),
        // The record of what was there before: with it, a run that is killed here can be cleaned up again.
        (PLACE, || remove_tree(Path::new(PLACE))),
    ];
    let mut left = Vec::new();
    for (what, step) in steps {
        if what != PLACE || left.is_empty() {
            left.extend(step().err().map(|error| format!("{what}: {error:#}")));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    bail!("the node is not completely down:\n  - {}\nType: cargo xtask node --down", left.join("\n  - "))
}

/// Others can write to the directory that the place is in.
fn ours() -> anyhow::Result<()> {
    let place = fs::symlink_metadata(PLACE)?;
    anyhow::ensure!(
        place.is_dir() && place.uid() == 0 && place.mode() & 0o077 == 0,
        "{PLACE} is there and is not a private directory of root: somebody else made it. Look at it and remove it"
    );
    Ok(())
}

/// Where the node's network namespace is mounted.
pub fn network() -> PathBuf {
    Path::new(PLACE).join("network")
}

fn existed_file() -> PathBuf {
    Path::new(PLACE).join("existed-before")
}

fn sysctl_file() -> PathBuf {
    Path::new(PLACE).join("sysctls-before")
}

fn sysctls() -> anyhow::Result<String> {
    let mut all = String::new();
    for name in SYSCTLS {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name)).with_context(|| name.to_owned())?;
        all += &format!("{name} {}\n", value.trim());
    }
    Ok(all)
}

fn restore_sysctls() -> anyhow::Result<()> {
    for line in read_if_there(&sysctl_file())?.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        // Not everything below /proc/sys: the file is ours, but a name with `..` in it would not be.
        if SYSCTLS.contains(&name) {
            fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("{name} = {value}"))?;
        }
    }
    Ok(())
}

fn read_if_there(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| path.display().to_string()),
    }
}

/// Where cgroup hierarchies are mounted.
fn cgroup_roots() -> anyhow::Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().filter(|m| m.kind.starts_with("cgroup")).map(|m| m.at).collect())
}

/// The cgroup that containerd, kubelet and the registry are in, in the version 2 hierarchy.
///
/// # Errors
/// When none is mounted.
pub fn daemons_cgroup() -> anyhow::Result<PathBuf> {
    let root = mounts()?.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.at);
    Ok(root.context("no cgroup2 is mounted. Type: mount -t cgroup2 none /sys/fs/cgroup")?.join(NAME).join("daemons"))
}

/// What kubelet wants its root cgroup to have, where the version 2 hierarchy has controllers at all.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Passes controllers on to the node's cgroup; those that were not passed on before are noted.
fn enable_controllers() -> anyhow::Result<()> {
    let daemons = daemons_cgroup()?;
    let root = daemons.ancestors().nth(2).context("no cgroup root")?;
    let listed =
        |file: &str| fs::read_to_string(root.join(file)).with_context(|| root.join(file).display().to_string());
    let (available, before) = (listed("cgroup.controllers")?, listed("cgroup.subtree_control")?);
    let has = |list: &str, name: &str| list.split_whitespace().any(|one| one == name);
    let new = CONTROLLERS.iter().filter(|name| has(&available, name) && !has(&before, name));
    let lines: String = new.map(|name| format!("{name}\n")).collect();
    fs::write(controllers_file(), &lines)?;
    for name in lines.lines() {
        let control = root.join("cgroup.subtree_control");
        fs::write(&control, format!("+{name}")).with_context(|| format!("+{name} to {}", control.display()))?;
    }
    Ok(())
}

fn restore_controllers() -> anyhow::Result<()> {
    let daemons = daemons_cgroup()?;
    let root = daemons.ancestors().nth(2).context("no cgroup root")?;
    for name in read_if_there(&controllers_file())?.lines() {
        // Refused when somebody uses it meanwhile: then it stays.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("-{name}"));
    }
    Ok(())
}

fn controllers_file() -> PathBuf {
    Path::new(PLACE).join("controllers-enabled")
}

struct Mount {
    at: PathBuf,
    kind: String,
}

/// All mounts of this namespace, in the order in which they were made.
fn mounts() -> anyhow::Result<Vec<Mount>> {
    Ok(parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let at = before.split(' ').nth(4)?.replace("\\040", " ");
            Some(Mount { at: at.into(), kind: after.split(' ').next()?.to_owned() })
        })
        .collect()
}

/// Everything in the node's cgroups, however it got there.
fn kill_all() -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut alive = Vec::new();
        for root in cgroup_roots()? {
            for dir in tree(&root.join(NAME)) {
                let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                alive.extend(pids.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 1));
                // A frozen process does not die.
                let _ = fs::write(dir.join("freezer.state"), "THAWED");
            }
        }
        if alive.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "not killed: {alive:?}");
        for pid in alive {
            // Gone in between is fine.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory and all below it, deepest first; symbolic links are not followed.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    if top.is_dir() {
        all.push(top.to_owned());
    }
    all
}

fn cgroups() -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for dir in cgroup_roots()?.into_iter().flat_map(|root| tree(&root.join(NAME))) {
        // A killed process holds its cgroup until it is gone completely.
        while let Err(error) = fs::remove_dir(&dir) {
            if error.kind() == ErrorKind::NotFound {
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "{}: {error}", dir.display());
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Mounts below the place, last made first.
fn unmount_all() -> anyhow::Result<()> {
    for mount in mounts()?.into_iter().rev().filter(|mount| mount.at.starts_with(PLACE)) {
        umount2(&mount.at, MntFlags::MNT_DETACH).with_context(|| mount.at.display().to_string())?;
    }
    Ok(())
}

/// Shims listen below `/run/containerd` whatever they are told; each names its socket in its bundle.
fn shim_sockets() -> anyhow::Result<()> {
    for dir in tree(&Path::new(PLACE).join("state/io.containerd.runtime.v2.task")) {
        let address = read_if_there(&dir.join("address"))?;
        if let Some(path) = address.trim().strip_prefix("unix://").filter(|path| path.starts_with("/run/containerd/s/"))
        {
            remove_file(Path::new(path))?;
        }
    }
    Ok(())
}

/// Directories that were not there before are removed; from the others, what has the node's name.
fn outside() -> anyhow::Result<()> {
    if !existed_file().exists() {
        return Ok(());
    }
    let existed = read_if_there(&existed_file())?;
    let in_name = format!("-{NAME}_");
    for dir in ["/var/log/pods", "/var/log/containers"] {
        for entry in entries(dir).filter(|entry| entry.file_name().to_string_lossy().contains(&in_name)) {
            if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { remove_file(&entry.path())? }
        }
    }
    // Results of the CNI library name the pod inside: that of the loopback network is called as everybody's.
    let of_ours = format!("-{NAME}\"]");
    for entry in entries("/var/lib/cni/results") {
        if fs::read_to_string(entry.path()).is_ok_and(|result| result.contains(&of_ours)) {
            remove_file(&entry.path())?;
        }
    }
    for file in
        [CHECKPOINT, "/var/lib/kubelet/device-plugins/kubelet.sock", "/var/lib/kubelet/device-plugins/DEPRECATION"]
    {
        remove_file(Path::new(file))?;
    }
    for dir in OUTSIDE.iter().rev().filter(|dir| !existed.lines().any(|line| line == **dir)) {
        // Not empty: somebody else has put something there meanwhile.
        match fs::remove_dir(dir) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(error).context(*dir);
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is in a directory; nothing when it is not there.
fn entries(dir: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok)
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_optional_fields_and_spaces() {
        let text = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                    52 41 0:39 / /var/tmp/a\\040b rw shared:7 master:1 - overlay overlay rw,lowerdir=/x\n";
        let mounts: Vec<_> = parse_mounts(text).into_iter().map(|m| (m.at, m.kind)).collect();
        assert_eq!(
            mounts,
            [("/sys/fs/cgroup/unified".into(), "cgroup2".to_owned()), ("/var/tmp/a b".into(), "overlay".to_owned())]
        );
    }
}
