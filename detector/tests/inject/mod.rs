//! Getting into another process, as a debugger does and as whoever attacks an agent would.
#![allow(dead_code, reason = "each test uses some of it")]
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

#[cfg(target_arch = "x86_64")]
use std::{fs, os::unix::fs::FileExt as _};

use nix::{libc, unistd::Pid};

/// A thread of another process, stopped for as long as this lives.
pub struct Stopped(Pid);

impl Stopped {
    /// Stops the main thread; the others go on.
    pub fn main_thread(process: Pid) -> Self {
        ptrace(libc::PTRACE_ATTACH, process, 0, 0);
        assert!(nix::sys::wait::waitpid(process, Some(nix::sys::wait::WaitPidFlag::__WALL)).is_ok());
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        ptrace(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

fn ptrace(request: libc::c_uint, process: Pid, address: usize, data: usize) {
    // SAFETY: what `data` points to, where it points to something, is larger than what the kernel reads or writes there.
    let done = unsafe { libc::ptrace(request, process.as_raw(), address, data) };
    assert!(done >= 0, "ptrace {request}: {}", std::io::Error::last_os_error());
}

/// Stops a process's main thread while it waits in a system call: the instruction before where it is made that call.
#[cfg(target_arch = "x86_64")]
fn in_a_call(process: Pid) -> (Stopped, libc::user_regs_struct) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    for _ in 0..1000 {
        let stopped = Stopped::main_thread(process);
        // SAFETY: plain data, for which zeroes are fine.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, process, 0, &raw mut registers as usize);
        let mut instruction = [0; 2];
        let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
        memory.read_exact_at(&mut instruction, registers.rip - 2).unwrap();
        if instruction == SYSCALL {
            return (stopped, registers);
        }
        // It was doing something.
        drop(stopped);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("process {process} never waits");
}

/// Makes another process make a system call.
#[cfg(target_arch = "x86_64")]
pub fn call_in(process: Pid, number: i64, argument: u64) {
    let (stopped, before) = in_a_call(process);
    let mut call = before;
    call.rip -= 2;
    call.rax = number.cast_unsigned();
    call.rdi = argument;
    // What the kernel would do to begin the interrupted call anew is not for this one.
    call.orig_rax = u64::MAX;
    ptrace(libc::PTRACE_SETREGS, process, 0, &raw const call as usize);
    ptrace(libc::PTRACE_SINGLESTEP, process, 0, 0);
    assert!(nix::sys::wait::waitpid(process, Some(nix::sys::wait::WaitPidFlag::__WALL)).is_ok());
    let mut after = call;
    ptrace(libc::PTRACE_GETREGS, process, 0, &raw mut after as usize);
    assert_eq!(after.rax, 0, "the call did not do it");
    ptrace(libc::PTRACE_SETREGS, process, 0, &raw const before as usize);
    drop(stopped);
}

/// Descriptors of a process's BPF links.
#[cfg(target_arch = "x86_64")]
pub fn links(process: Pid) -> Vec<i32> {
    let fds = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap().map(|entry| entry.unwrap());
    let links = fds.filter(|fd| fs::read_to_string(fd.path()).is_ok_and(|info| info.contains("link_id:")));
    links.map(|fd| fd.file_name().to_str().unwrap().parse().unwrap()).collect()
}
