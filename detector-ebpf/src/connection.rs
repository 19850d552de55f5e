//! TCP connections: who connects to API servers and etcd, whom this node's API server accepts, and where it connects itself.
//!
//! One tracepoint sees both ends. A connection begins in the thread that asks for it, also through io_uring, fast open or a
//! library that makes its system calls itself; what is accepted is established by whichever packet arrives, in nobody's name.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Connection, EndpointKey, RecentKey, connection as act, endpoint, hook, kind, setting};

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
        changed(Ptr(arg(&ctx, 0)), accepted);
    }
    0
}

#[inline(always)]
fn changed(sock: Ptr, accepted: bool) {
    let (remote, local) = match sock.read::<u16>(offset!(sock_family)) {
        AF_INET => (mapped(sock.read(offset!(sock_daddr))), mapped(sock.read(offset!(sock_rcv_saddr)))),
        AF_INET6 => (sock.read(offset!(sock_v6_daddr)), sock.read(offset!(sock_v6_rcv_saddr))),
        _ => return,
    };
    let remote_port = sock.read::<u16>(offset!(sock_dport)).swap_bytes();
    let local_port: u16 = sock.read(offset!(sock_num));
    let net_ns: u32 = sock.follow(offset!(sock_net)).read(offset!(net_inum));
    let served = if accepted { (local, local_port) } else { (remote, remote_port) };
    let key = EndpointKey::new(served.0, served.1, net_ns);
    // SAFETY: a number that the agent alone replaces, as a whole.
    let known = unsafe { ENDPOINTS.get(key) }.copied().unwrap_or(0);
    let mut flags = known & if accepted { endpoint::SERVER } else { endpoint::API | endpoint::ETCD };
    let tgid = if accepted { 0 } else { (current_id() >> 32) as u32 };
    // SAFETY: the value is not looked at.
    if !accepted && unsafe { SERVERS.get(tgid) }.is_some() {
        flags |= endpoint::CLIENT;
    }
    let port = if accepted { local_port } else { remote_port };
    if flags == 0 || !recent::is_news(&RecentKey { what: remote, tgid, port: u32::from(port) }) {
        return;
    }
    let ring = match flags & (endpoint::ETCD | endpoint::CLIENT) {
        0 if accepted => Ring::Context,
        0 => Ring::ContextNow,
        _ => Ring::Alerting,
    };
    let detail = if accepted { Detail::Nobody } else { Detail::Full };
    emit::detailed(ring, kind::CONNECTION, hook::SOCKET_STATE, current(), detail, |record: *mut Connection| {
        // SAFETY: `record` points to reserved ring-buffer memory; its addresses lie on 8-byte boundaries.
        unsafe {
            *(&raw mut (*record).local).cast::<[u64; 2]>() = local;
            *(&raw mut (*record).remote).cast::<[u64; 2]>() = remote;
            (*record).local_port = local_port;
            (*record).remote_port = remote_port;
            (*record).act = if accepted { act::ACCEPT } else { act::CONNECT };
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
