//! TCP connections: who connects to API servers and etcd, whom this node's API server accepts, and where it connects itself; when
//! kubelet and container runtimes are sent something.
//!
//! One tracepoint sees both ends. A connection begins in the thread that asks for it, also through io_uring, fast open or a
//! library that makes its system calls itself; what is accepted is established by whichever packet arrives, in nobody's name.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Connection, EndpointKey, RecentKey, connection as act, endpoint, hook, kind, server, setting};

use crate::{
    emit::{self, Ring},
    kernel::{Detail, Ptr, arg, current, current_id},
    maps::{ENDPOINTS, SERVERS, offset, setting},
    recent,
};

/// `TCP_*` of `include/net/tcp_states.h`.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`, since 4.16. When `SYN_SENT` is set, the
/// address to connect to is there, the own one need not be; when an accepted one is `ESTABLISHED`, both are.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new) = (arg(&ctx, 1) as u32, arg(&ctx, 2) as u32);
    let accepted = old == SYN_RECV && new == ESTABLISHED;
    if (new == SYN_SENT || accepted) && setting(setting::CONNECTIONS) != 0 {
        let of = if accepted { act::ACCEPT } else { act::CONNECT };
        changed(Ptr(arg(&ctx, 0)), of, hook::SOCKET_STATE);
    }
    0
}

/// `tcp_rcv_space_adjust(struct sock *sk)`, since 4.15: a thread has taken data from its connection. Which of the many that do are
/// of interest, one look-up by their process says.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn tcp_receive(ctx: BtfTracePointContext) -> i32 {
    if setting(setting::CONNECTIONS) & 2 != 0 && server((current_id() >> 32) as u32) & server::LISTENS != 0 {
        changed(Ptr(arg(&ctx, 0)), act::RECEIVE, hook::TCP_RECEIVE);
    }
    0
}

/// What of a process's connections is of interest.
#[inline(always)]
fn server(tgid: u32) -> u32 {
    // SAFETY: a number that the agent alone replaces, as a whole.
    unsafe { SERVERS.get(tgid) }.copied().unwrap_or(0)
}

#[inline(always)]
fn changed(sock: Ptr, of: u32, hook: u16) {
    let (remote, local) = match sock.read::<u16>(offset!(sock_family)) {
        AF_INET => (mapped(sock.read(offset!(sock_daddr))), mapped(sock.read(offset!(sock_rcv_saddr)))),
        AF_INET6 => (sock.read(offset!(sock_v6_daddr)), sock.read(offset!(sock_v6_rcv_saddr))),
        _ => return,
    };
    let remote_port = sock.read::<u16>(offset!(sock_dport)).swap_bytes();
    let local_port: u16 = sock.read(offset!(sock_num));
    let net_ns: u32 = sock.follow(offset!(sock_net)).read(offset!(net_inum));
    let connects = of == act::CONNECT;
    let served = if connects { (remote, remote_port) } else { (local, local_port) };
    let key = EndpointKey::new(served.0, served.1, net_ns);
    // SAFETY: a number that the agent alone replaces, as a whole.
    let known = unsafe { ENDPOINTS.get(key) }.copied().unwrap_or(0);
    let mut flags = known
        & match of {
            act::CONNECT => endpoint::API | endpoint::ETCD,
            act::ACCEPT => endpoint::SERVER | endpoint::STREAM | endpoint::KUBELET,
            _ => endpoint::STREAM | endpoint::KUBELET,
        };
    let accepted = of == act::ACCEPT;
    let tgid = if accepted { 0 } else { (current_id() >> 32) as u32 };
    if connects && server(tgid) & server::CONNECTS != 0 {
        flags |= endpoint::CLIENT;
    }
    // Connections that are made have none in the upper half, so that they stand for themselves alone.
    let port = u32::from(served.1) | if connects { 0 } else { of << 16 };
    if flags == 0 || !recent::is_news(&RecentKey { what: remote, tgid, port }) {
        return;
    }
    let ring = match flags & (endpoint::ETCD | endpoint::CLIENT) {
        0 if connects => Ring::ContextNow,
        0 => Ring::Context,
        _ => Ring::Alerting,
    };
    let detail = if accepted { Detail::Nobody } else { Detail::Full };
    emit::detailed(ring, kind::CONNECTION, hook, current(), detail, |record: *mut Connection| {
        // SAFETY: `record` points to reserved ring-buffer memory; its addresses lie on 8-byte boundaries.
        unsafe {
            *(&raw mut (*record).local).cast::<[u64; 2]>() = local;
            *(&raw mut (*record).remote).cast::<[u64; 2]>() = remote;
            (*record).local_port = local_port;
            (*record).remote_port = remote_port;
            (*record).act = of;
            (*record).endpoint = flags;
            (*record).net_ns = net_ns;
        }
    });
}

/// `::ffff:a.b.c.d` of an IPv4 address in network order, as it stands in memory.
#[inline(always)]
fn mapped(address: u32) -> [u64; 2] {
    [0, u64::from(address) << 32 | 0xffff_0000]
}
