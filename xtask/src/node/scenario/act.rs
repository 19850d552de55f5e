//! Acts that are system calls, performed by `cargo xtask node-act` in a process of its own.

use std::{fs, io::Read as _, os::fd::AsFd as _};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

/// What to do to the container that a process is in.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum What {
    /// Enter its mount namespace and read a file there, without executing anything
    Setns,
    /// Move this process into its cgroup, and do nothing there
    Cgroup,
}

/// Performs the act on the container of `pid`, then waits until standard input ends.
///
/// # Errors
/// When it cannot be done.
pub fn act(what: What, pid: u32) -> anyhow::Result<()> {
    match what {
        What::Setns => {
            let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).context("the container's mount namespace")?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS).context("setns")?;
            fs::read("/bin/busybox").context("a file of the container")?;
        }
        What::Cgroup => move_into(std::process::id(), pid)?,
    }
    println!("done");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Moves a process into the version 2 cgroup of another.
///
/// # Errors
/// When it cannot be found or written.
pub fn move_into(process: u32, of: u32) -> anyhow::Result<()> {
    let text = fs::read_to_string(format!("/proc/{of}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup version 2")?;
    let procs = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(|root| format!("{root}{path}/cgroup.procs"))
        .into_iter()
        .find(|procs| fs::exists(procs).unwrap_or(false))
        .context("the container's cgroup is not mounted")?;
    fs::write(&procs, process.to_string()).context(procs)
}
