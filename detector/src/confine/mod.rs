//! What the agent gives up once everything is attached, and what its threads give up as they start.
//!
//! Capabilities, user ids and Landlock domains belong to threads, so that each thread has only what it is there for:
//!
//! | thread | capabilities | files |
//! |---|---|---|
//! | main: source and pipeline | `SYS_PTRACE`, `DAC_READ_SEARCH`; `BPF`, `PERFMON` where the kernel asks for them | reads all of them, writes as nobody |
//! | `cri`, `acting`, `audit` | `SYS_PTRACE`, `DAC_READ_SEARCH` | as root: runtimes' sockets are root's |
//! | `config`, `sink`, `recorder` | none, or what it takes to read and write what is not root's | Landlock: what is configured, and nothing else |
//! | `metrics` | none | Landlock: nothing; it listens already |
//! | `opener` | what it takes to open what a new configuration names | as root |
//!
//! The main thread has no Landlock domain: whoever has one may look into no process outside of it, and `/proc/<pid>/root` is how the
//! agent sees the node. It writes as nobody instead, which needs no path. The system calls are those of [`seccomp`] in all threads.
//! Threads share their memory: all this bounds what a mistake can be led to do, and not code that an attacker runs in here.

mod capabilities;
mod landlock;
pub mod seccomp;

use std::sync::atomic::{AtomicBool, Ordering};

use caps::Capability;
use nix::{
    libc,
    unistd::{Gid, Uid},
};

pub use landlock::Files;

/// Whether this process confines itself: as with what the kernel keeps of a process, there is one answer.
static ON: AtomicBool = AtomicBool::new(false);

/// Who is nobody on every Linux.
const NOBODY: u32 = 65534;
const NOT_NOBODY: &str = "becoming nobody takes CAP_SETUID and CAP_SETGID";

/// What it takes to see the node, also after attaching: `/proc/<pid>/root`, `exe`, `fd` and `ns` of others; files that only others than
/// root may read.
const WATCHING: [Capability; 2] = [Capability::CAP_DAC_READ_SEARCH, Capability::CAP_SYS_PTRACE];
/// What it needs beside them where the kernel lets nobody else use maps (before 6.0, under `kernel.unprivileged_bpf_disabled`).
const MAPS: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];

/// Makes what follows effective. Called before there is a second thread, or never.
pub fn switch_on() {
    ON.store(true, Ordering::Relaxed);
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Confines the thread that calls it, which works with these files and nobody's processes.
pub fn thread(files: &Files) {
    if !is_on() {
        return;
    }
    say(capabilities::keep(&files.capabilities()));
    say(files.enforce());
}

/// The same for a thread that finds what it works with in the file systems of processes, as container runtimes' sockets are.
pub fn visitor() {
    if is_on() {
        say(capabilities::keep(&WATCHING));
    }
}

/// The same for the thread that opens what a new configuration names, whatever that is and to whomever it belongs.
pub fn opener() {
    if is_on() {
        say(capabilities::keep(&[Capability::CAP_DAC_READ_SEARCH, Capability::CAP_DAC_OVERRIDE]));
    }
}

fn say(result: Result<(), String>) {
    if let Err(why) = result {
        let thread = std::thread::current();
        eprintln!("degraded: confinement of the thread {}: {why}", thread.name().unwrap_or("main"));
    }
}

/// Confines the main thread, and all threads to the system calls of [`seccomp`]. Yields what came of it in one line; `None` where the
/// process does not confine itself.
///
/// `rehearse` does what the agent does to the kernel's maps and programs later on, and says whether it could.
pub fn process(mut rehearse: impl FnMut() -> bool) -> Option<String> {
    if !is_on() {
        return None;
    }
    let nobody = write_as_nobody();
    let mut kept = WATCHING.to_vec();
    let mut give_up = || {
        capabilities::lay_down(&kept)?;
        if !rehearse() {
            kept.extend(MAPS);
        }
        capabilities::keep(&kept)
    };
    let given_up = give_up();
    let filtered = seccomp::apply();
    let parts = [
        match given_up {
            Ok(()) => format!("keeps {}", capabilities::names()),
            Err(why) => format!("keeps its capabilities ({why})"),
        },
        match nobody {
            Ok(()) => "writes as nobody".to_owned(),
            Err(why) => format!("writes as root ({why})"),
        },
        match filtered {
            Ok(()) => format!("{} system calls", seccomp::count()),
            Err(why) => format!("all system calls ({why})"),
        },
        match landlock::available() {
            Ok(()) => "sinks and recorder use their own files alone".to_owned(),
            Err(why) => format!("sinks and recorder use any files ({why})"),
        },
    ];
    Some(format!("confined: {}", parts.join("; ")))
}

/// What this kernel and these privileges let the agent give up, for `detector doctor`: whether all is well, and words.
#[must_use]
pub fn outlook() -> (bool, String) {
    let (landlock, seccomp) = (landlock::available(), seccomp::available());
    let nobody = may_become_nobody();
    let words = [
        match &seccomp {
            Ok(()) => format!("{} system calls", seccomp::count()),
            Err(why) => format!("all system calls ({why})"),
        },
        match (&landlock, landlock::abi()) {
            (Ok(()), Some(abi)) => format!("Landlock {abi} holds sinks and recorder to their files"),
            (Ok(()), None) => String::new(),
            (Err(why), _) => format!("sinks and recorder use any files ({why})"),
        },
        if nobody { "the rest writes as nobody".to_owned() } else { format!("the rest writes as root ({NOT_NOBODY})") },
    ];
    (landlock.is_ok() && seccomp.is_ok() && nobody, words.join("; "))
}

fn may_become_nobody() -> bool {
    capabilities::has(Capability::CAP_SETUID) && capabilities::has(Capability::CAP_SETGID)
}

/// Lets this thread touch files as nobody. What it may read is a matter of `CAP_DAC_READ_SEARCH`; and the way back is no system call
/// that [`seccomp`] lets through.
fn write_as_nobody() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        // Whoever is not root has no such rights.
        return Ok(());
    }
    if !may_become_nobody() {
        return Err(NOT_NOBODY.to_owned());
    }
    // SAFETY: no group is read from the null pointer. The library's function would change all threads.
    if unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) } != 0 {
        return Err(format!("its groups cannot be given up: {}", std::io::Error::last_os_error()));
    }
    // These say what was before, whether they did something or not.
    nix::unistd::setfsgid(Gid::from_raw(NOBODY));
    nix::unistd::setfsuid(Uid::from_raw(NOBODY));
    let now = (nix::unistd::setfsgid(Gid::from_raw(u32::MAX)), nix::unistd::setfsuid(Uid::from_raw(u32::MAX)));
    if now != (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY)) {
        return Err(NOT_NOBODY.to_owned());
    }
    Ok(())
}
