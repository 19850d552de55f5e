//! Kernel programs of the detector: one behaviour a file; maps, emission, task and dentry walks apart.
#![no_std]
#![no_main]
// For the atomic addition in `maps`.
#![feature(asm_experimental_arch)]

mod bpf;
mod cgroup;
mod change;
mod connection;
mod emit;
mod entry;
mod floor;
mod io_uring;
mod kernel;
mod maps;
mod mount;
mod namespaces;
mod open;
mod path;
mod process;
mod ptrace;
mod recent;
mod secrets;
mod security;
mod signal;
mod socket;
mod syscall;
mod watched;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel offers most tracing helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
