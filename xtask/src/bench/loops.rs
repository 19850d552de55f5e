//! Tight loops of system calls, run in a process of their own on one CPU; each prints the ns that it took.

use std::{
    ffi::CString,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, open, renameat},
    sched::{CpuSet, sched_setaffinity},
    sys::{
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, execv, fork},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// Opens an unwatched file for reading, and closes it
    OpenClose,
    /// Opens an unwatched file for writing, and closes it
    OpenWrite,
    /// Renames an unwatched file there and back
    Rename,
    /// Forks, executes a program that ends at once, and waits
    ForkExec,
    /// As fork-exec, on any CPU, for `count` milliseconds; prints how many
    Storm,
}

/// Runs a loop `count` times, and that `samples` times over; prints what the fastest took.
pub fn run(what: Loop, count: u64, dir: &Path, samples: u32) -> anyhow::Result<()> {
    let program = CString::new("/bin/true")?;
    let args = [program.clone()];
    if what == Loop::Storm {
        let end = Instant::now() + Duration::from_millis(count);
        let mut done = 0_u64;
        while Instant::now() < end {
            spawn(&program, &args)?;
            done += 1;
        }
        println!("{done}");
        return Ok(());
    }
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let path = dir.join("unwatched");
    fs::write(&path, "x")?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let other = CString::new(dir.join("renamed").as_os_str().as_bytes())?;
    let mut least = u128::MAX;
    for _ in 0..samples.max(1) {
        least = least.min(timed(what, count, [&path, &other], (&program, &args))?);
    }
    println!("{least}");
    Ok(())
}

/// How long `count` rounds take, in ns.
fn timed(
    what: Loop,
    count: u64,
    [path, other]: [&CString; 2],
    (program, args): (&CString, &[CString]),
) -> Result<u128, Errno> {
    let started = Instant::now();
    match what {
        Loop::OpenClose => repeat(count, || open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty()).map(drop))?,
        Loop::OpenWrite => repeat(count, || open(path.as_c_str(), OFlag::O_WRONLY, Mode::empty()).map(drop))?,
        Loop::Rename => repeat(count, || {
            renameat(AT_FDCWD, path.as_c_str(), AT_FDCWD, other.as_c_str())?;
            renameat(AT_FDCWD, other.as_c_str(), AT_FDCWD, path.as_c_str())
        })?,
        Loop::ForkExec | Loop::Storm => repeat(count, || spawn(program, args))?,
    }
    Ok(started.elapsed().as_nanos())
}

fn repeat(count: u64, mut once: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    (0..count).try_for_each(|_| once())
}

fn spawn(program: &CString, args: &[CString]) -> Result<(), Errno> {
    // SAFETY: the child does nothing between fork and exec but what is allowed there; this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = execv(program, args);
            // SAFETY: always allowed.
            unsafe { nix::libc::_exit(127) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            _ => Err(Errno::ECHILD),
        },
    }
}
