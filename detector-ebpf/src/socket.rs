//! Sockets of tasks in a pod's sandbox: an honest pause process has none. And who connects to a container runtime.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use detector_common::{ADDRESS_MAX, RecentKey, Socket, hook, kind, socket as call, syscall as class};

use crate::{
    emit::{self, Ring},
    entry::key,
    kernel::{self, Ptr, current, current_id},
    maps::{RUNTIMES, masked, offset},
    recent,
    security::{self, May},
    watched,
};

const AF_UNIX: u16 = 1;

/// `address` is the caller's, in its own memory or in a copy of the kernel's: which, `read` knows. Nothing branches, for the
/// verifier would follow each way: a read of what is no address fails, and clears.
#[inline(always)]
fn report(task: Ptr, hook: u16, call: u32, args: [u32; 3], read: impl FnOnce(*mut u8, u32)) {
    emit::fixed(Ring::Alerting, kind::SOCKET, hook, task, |record: *mut Socket| {
        // In whole words, so that the mask is the bound that the verifier needs.
        const LENGTHS: u64 = ADDRESS_MAX as u64 & !3;
        let len = if args[2] > ADDRESS_MAX as u32 { ADDRESS_MAX as u32 } else { args[2] };
        let len = masked::<LENGTHS>(u64::from(len)) as u32;
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).call = call;
            (*record).args = args;
            (*record).address = [0; ADDRESS_MAX];
            (*record).zero = 0;
            read((&raw mut (*record).address).cast(), len);
        }
    });
}

// `security_socket_create(int family, int type, int protocol, int kern)`, since 2.6.
security::wrappers!(lsm_socket_create, fentry_socket_create, kprobe_socket_create, 4, |args: [Ptr; 4], _may: May| {
    let [family, kind, protocol, kern] = args.map(|arg| arg.0 as u32);
    // The kernel makes sockets of its own in the name of whoever runs.
    if kern == 0 && watched::sandbox() != 0 {
        report(current(), hook::SOCKET_CREATE, call::CREATE, [family, kind, protocol], |_, _| {});
    }
    false
});

// `security_socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`, since 2.6; the address is a copy in
// kernel memory.
security::wrappers!(
    lsm_socket_connect,
    fentry_socket_connect,
    kprobe_socket_connect,
    3,
    |args: [Ptr; 3], _may: May| {
        if watched::sandbox() != 0 {
            report(current(), hook::SOCKET_CONNECT, call::CONNECT, [0, 0, args[2].0 as u32], |out, len| {
                // SAFETY: `out` has room for `len` bytes; the helper checks the address.
                unsafe { bpf_probe_read_kernel(out.cast(), len, args[1].0 as *const _) };
            });
        }
        false
    }
);

// `security_unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`, since 2.6: `other` listens.
security::wrappers!(lsm_unix_connect, fentry_unix_connect, kprobe_unix_connect, 3, |args: [Ptr; 3], _may: May| {
    runtime(current(), args[1], hook::UNIX_CONNECT);
    false
});

/// Reports a connection to a socket by which a container runtime is asked: by the inode that it is bound to, whatever path leads there.
#[inline(always)]
fn runtime(task: Ptr, sock: Ptr, hook: u16) {
    let dentry = sock.follow(offset!(unix_dentry));
    let socket = key(dentry.follow(offset!(dentry_inode)));
    let dir = key(dentry.follow(offset!(dentry_parent)).follow(offset!(dentry_inode)));
    // SAFETY: the values are not looked at.
    let asked = unsafe { RUNTIMES.get(socket).is_some() || RUNTIMES.get(dir).is_some() };
    let tgid = (current_id() >> 32) as u32;
    if !asked || !recent::is_news(&RecentKey { what: [socket.ino, u64::from(socket.dev)], tgid, port: u32::MAX - 1 }) {
        return;
    }
    emit::fixed(Ring::Context, kind::SOCKET, hook, task, |record: *mut Socket| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).call = call::RUNTIME;
            (*record).args = [socket.dev, socket.ino as u32, (socket.ino >> 32) as u32];
            (*record).address = [0; ADDRESS_MAX];
            (*record).zero = 0;
        }
    });
}

/// A `connect` that succeeded, with its first three arguments; `call` is [`call::CONNECT`], or [`call::ANY`] of one of which nobody
/// knows what it was.
#[inline(always)]
pub fn connected(task: Ptr, call: u32, fd: u32, args: [u64; 3]) {
    if watched::sandbox() != 0 {
        acted(task, hook::SYS_EXIT_GUARD, call, args);
    }
    let sock = kernel::file_of(task, fd).follow(offset!(file_private)).follow(offset!(socket_sk));
    if sock.read::<u16>(offset!(sock_family)) == AF_UNIX {
        // What a listening socket is bound to, what it accepts is bound to as well.
        runtime(task, sock.follow(offset!(unix_peer)), hook::SYS_EXIT_GUARD);
    }
}

/// A system call on sockets that succeeded, with its first three arguments.
#[inline(always)]
pub fn called(task: Ptr, class: u8, args: [u64; 3]) {
    acted(task, hook::SYS_EXIT, u32::from(class - class::SOCKET) + call::CREATE, args);
}

#[inline(always)]
fn acted(task: Ptr, hook: u16, call: u32, args: [u64; 3]) {
    report(task, hook, call, args.map(|arg| arg as u32), |out, len| {
        // SAFETY: `out` has room for `len` bytes; the helper checks the address.
        unsafe { bpf_probe_read_user(out.cast(), len, args[1] as usize as *const _) };
    });
}
