//! The agent itself, interfered with harmlessly.

use std::{fs::File, os::fd::FromRawFd as _, process::ExitCode, time::Instant};

use anyhow::Context as _;
use detector_common::object;
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{agent::Agent, say, verdict};
use crate::{cli::Source, source::kernel::objects};

/// Opens one of the agent's maps, which is given back at once, and stops the agent for a moment.
///
/// # Errors
/// When the agent does not start, or the kernel refuses.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    let mut agent = Agent::start(source)?;
    let pid = agent.pid();
    let id = objects(&pid.to_string()).into_iter().find_map(|(kind, id)| (kind == object::MAP).then_some(id));
    let id = id.context("the agent has no maps: see `detector doctor`")?;
    let mut fine = true;
    let ours = |alert: &serde_json::Value, kind: &str| {
        alert["technique"]["id"] == "detector-tampering" && alert["evidence"][0]["kind"] == kind
    };
    let since = Instant::now();
    drop(open_map(id)?);
    println!("drill: opened the agent's map {id}, and closed it again");
    fine &= say("opened map", agent.alert(since, |alert| ours(alert, "bpf")), std::process::id());
    let since = Instant::now();
    let target = Pid::from_raw(i32::try_from(pid)?);
    kill(target, Signal::SIGSTOP)?;
    kill(target, Signal::SIGCONT)?;
    println!("drill: stopped the agent, and let it go on");
    fine &= say("signal", agent.alert(since, |alert| ours(alert, "signal")), std::process::id());
    agent.stop();
    Ok(verdict(fine))
}

/// A descriptor of a map of anybody's.
///
/// # Errors
/// When there is none, or the kernel refuses.
pub fn open_map(id: u32) -> anyhow::Result<File> {
    /// `BPF_MAP_GET_FD_BY_ID`.
    const GET: libc::c_int = 14;
    // `union bpf_attr`: map_id, next_id, open_flags.
    let attributes = [id, 0, 0, 0];
    // SAFETY: the attributes are as long as is said, and the call does not keep them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, GET, attributes.as_ptr(), size_of_val(&attributes)) };
    let fd = nix::errno::Errno::result(fd).with_context(|| format!("opening map {id}"))?;
    // SAFETY: the kernel just gave this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(i32::try_from(fd)?) })
}
