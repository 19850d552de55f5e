//! Which system calls the agent makes once it has attached. All others fail with EPERM, and the kernel logs them (audit type 1326): a
//! killed detector would be blind, and whoever wanted that would have an easy way to it.
//!
//! The list is what the agent was seen to do, with glibc and with musl, in a whole run: every sink, the recorder, a reload, a dead and a
//! living runtime, its end. `deploy/seccomp/detector.json` has these and what the start takes; a test compares them.

use std::{collections::BTreeMap, io};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use crate::sink::handed;

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Those that may be made with any arguments, by name and number.
type Calls = &'static [(&'static str, libc::c_long)];

/// Memory, threads, time, itself.
const ITSELF: Calls = calls![
    SYS_brk SYS_madvise SYS_mremap SYS_munmap SYS_membarrier
    SYS_exit SYS_exit_group SYS_futex SYS_get_robust_list SYS_set_robust_list SYS_set_tid_address SYS_rseq SYS_gettid
    SYS_sched_getaffinity SYS_sched_yield SYS_restart_syscall
    SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack
    SYS_capget SYS_capset SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    SYS_getcwd SYS_getegid SYS_geteuid SYS_getgid SYS_getpid SYS_getuid SYS_getrandom SYS_getrusage
    SYS_sysinfo SYS_uname
];

/// Descriptors and waiting.
const WAITING: Calls = calls![
    SYS_close SYS_dup SYS_fcntl SYS_read SYS_readv SYS_write SYS_writev SYS_pread64 SYS_pwrite64 SYS_pwritev2 SYS_lseek
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_eventfd2 SYS_pipe2 SYS_ppoll
];

/// Files. Which of them is a matter of the thread's user and Landlock.
const FILES: Calls = calls![
    SYS_openat SYS_openat2 SYS_faccessat SYS_faccessat2 SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs
    SYS_getdents64 SYS_readlinkat SYS_flock SYS_fsync SYS_fdatasync SYS_ftruncate
    SYS_linkat SYS_mkdirat SYS_renameat2 SYS_unlinkat SYS_copy_file_range SYS_sendfile
];

/// Connections. Sockets are made by a rule of their own.
const CONNECTIONS: Calls = calls![
    SYS_accept4 SYS_bind SYS_connect SYS_getpeername SYS_getsockname SYS_getsockopt SYS_listen SYS_recvfrom SYS_recvmmsg
    SYS_recvmsg SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setsockopt SYS_shutdown
];

/// What the C libraries still use where there are newer ones.
#[cfg(target_arch = "x86_64")]
const OLD: Calls = calls![
    SYS_access SYS_epoll_wait SYS_link SYS_lstat SYS_mkdir SYS_open SYS_poll
    SYS_readlink SYS_rename SYS_rmdir SYS_stat SYS_unlink
];
// Which has no name in every library of C.
#[cfg(not(target_arch = "x86_64"))]
const OLD: Calls = &[("SYS_renameat", 38)];

/// Maps of the kernel programs, and what is known of them; attaching again what was loaded at the start. Nothing is loaded or made.
const BPF: [u64; 6] = [1, 2, 3, 4, 15, 17];
const SOCKETS: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// A terminal's width and whether it is one, sockets' states, and the end of a perf event.
const IOCTLS: [u64; 7] = [0x5401, 0x5411, 0x5413, 0x541b, 0x5421, 0x5451, 0x2401];
/// Threads' names, and what only ever takes something away.
const PRCTLS: [libc::c_int; 5] =
    [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_CAPBSET_READ, libc::PR_CAPBSET_DROP, libc::PR_CAP_AMBIENT];
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const WRITABLE: u64 = libc::PROT_WRITE as u64;

/// A condition on an argument: which, how it is compared, with what.
type If = (u8, SeccompCmpOp, u64);

/// Those that may be made with some arguments: each of the lists is enough, by all of its conditions.
fn conditional() -> Vec<(&'static str, libc::c_long, Vec<Vec<If>>)> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let one_of = |argument: u8, values: &[u64]| values.iter().map(|value| vec![(argument, Eq, *value)]).collect();
    let numbers =
        |values: &[libc::c_int]| values.iter().map(|value| u64::from(value.unsigned_abs())).collect::<Vec<_>>();
    // Memory that is executable and writable holds code of somebody else. A static program maps no code at all; a dynamic one
    // maps the libraries that look hosts up.
    let code = || {
        let mut may = vec![vec![(2, MaskedEq(EXECUTABLE), 0)]];
        if cfg!(not(target_env = "musl")) {
            may.push(vec![(2, MaskedEq(WRITABLE), 0)]);
        }
        may
    };
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    vec![
        ("SYS_bpf", libc::SYS_bpf, one_of(0, &BPF)),
        // Threads, and no processes or namespaces.
        ("SYS_clone", libc::SYS_clone, vec![vec![(0, MaskedEq(thread), thread)]]),
        // Whose flags a filter cannot see: the second filter refuses it in a way that makes the C library use the other one.
        ("SYS_clone3", libc::SYS_clone3, vec![]),
        ("SYS_ioctl", libc::SYS_ioctl, one_of(1, &IOCTLS)),
        // What journald is handed that is longer than a datagram.
        ("SYS_memfd_create", libc::SYS_memfd_create, one_of(1, &handed::FLAGS.map(|flags| u64::from(flags.bits())))),
        ("SYS_mmap", libc::SYS_mmap, code()),
        ("SYS_mprotect", libc::SYS_mprotect, code()),
        ("SYS_prctl", libc::SYS_prctl, one_of(0, &numbers(&PRCTLS))),
        // Its own limits, to be read.
        ("SYS_prlimit64", libc::SYS_prlimit64, vec![vec![(0, Eq, 0), (2, Eq, 0)]]),
        ("SYS_socket", libc::SYS_socket, one_of(0, &numbers(&SOCKETS))),
        ("SYS_socketpair", libc::SYS_socketpair, one_of(0, &numbers(&[libc::AF_UNIX]))),
        // Its own threads, as the end of a panic does.
        ("SYS_tgkill", libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])),
    ]
}

/// How wide the arguments are that are compared: pointers and flags of memory are as wide as registers, the others are C's int.
fn width(call: libc::c_long) -> SeccompCmpArgLen {
    if matches!(call, libc::SYS_clone | libc::SYS_mmap | libc::SYS_mprotect | libc::SYS_prlimit64) {
        SeccompCmpArgLen::Qword
    } else {
        SeccompCmpArgLen::Dword
    }
}

fn unconditional() -> impl Iterator<Item = (&'static str, libc::c_long)> {
    [ITSELF, WAITING, FILES, CONNECTIONS, OLD].into_iter().flatten().copied()
}

/// How many system calls are left.
#[must_use]
pub fn count() -> usize {
    unconditional().count() + conditional().len()
}

/// Whether the kernel filters system calls.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), String> {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one number from the pointer.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

/// Lets no thread of this process make another system call, and gain no privileges by executing something.
///
/// # Errors
/// When the kernel does not filter, in words.
pub fn apply() -> Result<(), String> {
    let (list, clone3) = programs().map_err(|error| error.to_string())?;
    // What C libraries try first is no news.
    install(&clone3, 0).and_then(|()| install(&list, libc::SECCOMP_FILTER_FLAG_LOG)).map_err(|error| error.to_string())
}

/// The list, and beside it what makes `clone3` a system call that does not exist.
fn programs() -> Result<(BpfProgram, BpfProgram), seccompiler::BackendError> {
    let errno = |errno: libc::c_int| SeccompAction::Errno(errno.unsigned_abs());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = unconditional().map(|(_, call)| (call, Vec::new())).collect();
    for (_, call, ways) in conditional() {
        let condition = |(argument, compared, with)| SeccompCondition::new(argument, width(call), compared, with);
        let rule = |way: Vec<If>| SeccompRule::new(way.into_iter().map(condition).collect::<Result<_, _>>()?);
        rules.insert(call, ways.into_iter().map(rule).collect::<Result<_, _>>()?);
    }
    let arch: seccompiler::TargetArch = std::env::consts::ARCH.try_into()?;
    let list = SeccompFilter::new(rules, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    Ok((list.try_into()?, clone3.try_into()?))
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const sock_filter,
    }
    nix::sys::prctl::set_no_new_privs()?;
    let program = Program { len: program.len().try_into().map_err(io::Error::other)?, filter: program.as_ptr() };
    let flags = flags | libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: the kernel copies `len` instructions from `filter`, which lives longer than the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match answer {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has a filter of its own"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the deployment's profile lets through.
    fn deployed() -> BTreeSet<String> {
        let profile: serde_json::Value =
            serde_json::from_str(include_str!("../../../deploy/seccomp/detector.json")).unwrap();
        let groups = profile["syscalls"].as_array().unwrap();
        assert!(groups.iter().all(|group| group["action"] == "SCMP_ACT_ALLOW"));
        let names = groups.iter().flat_map(|group| group["names"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_profile_of_the_deployment_has_what_the_agent_does_and_what_its_start_takes() {
        let conditional = conditional();
        let ours = unconditional().map(|(name, _)| name).chain(conditional.iter().map(|(name, ..)| *name));
        let mut deployed = deployed();
        for name in ours {
            let name = name.trim_start_matches("SYS_");
            assert!(
                deployed.remove(name),
                "{name} is not in deploy/seccomp/detector.json, or twice in the agent's list"
            );
        }
        for start in ["execve", "perf_event_open", "seccomp", "setfsuid", "setfsgid", "setgroups"] {
            assert!(deployed.remove(start), "{start} is not in deploy/seccomp/detector.json");
        }
    }

    #[test]
    fn the_filters_fit_into_what_a_kernel_takes() {
        let (list, clone3) = programs().unwrap();
        assert!(list.len() < 4096 && clone3.len() < 32, "{} {}", list.len(), clone3.len());
    }
}
