//! What speaks against a pause container, in words, and how much.

use detector_common::{self as wire, socket};

use crate::{
    alert::{Evidence, Severity},
    record::ProcessKey,
};

/// One thing that an honest pause container does not do, or is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    pub what: What,
    pub severity: Severity,
    /// Whose doing it is; `None` for what the container is.
    pub actor: Option<ProcessKey>,
    /// What happened, as the rest of a sentence that begins with the pause container.
    pub act: String,
    pub evidence: Evidence,
}

/// What kind of signal: the same kind again adds nothing but evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Fork,
    Exec,
    Socket,
    Connect,
    Open,
    Binary,
    Digest,
}

impl What {
    /// Behaviour is what no list of digests can excuse.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Fork | Self::Exec | Self::Socket | Self::Connect | Self::Binary => Severity::Critical,
            Self::Open => Severity::High,
            Self::Digest => Severity::Low,
        }
    }
}

/// What a task did with a socket: `connects to 10.1.2.3:443`.
#[must_use]
pub fn socket_act(event: &wire::Socket) -> (What, String) {
    let [family, kind, protocol] = event.args;
    match event.call {
        socket::CREATE => {
            let protocol = if protocol == 0 { String::new() } else { format!(", protocol {protocol}") };
            (What::Socket, format!("makes a socket ({}, {}{protocol})", family_name(family), kind_name(kind)))
        }
        socket::CONNECT => (What::Connect, format!("connects to {}", address(&event.address))),
        socket::BIND => (What::Connect, format!("binds a socket to {}", address(&event.address))),
        _ => (What::Socket, "makes or connects a socket".to_owned()),
    }
}

fn family_name(family: u32) -> String {
    match family {
        1 => "unix".to_owned(),
        2 => "inet".to_owned(),
        10 => "inet6".to_owned(),
        16 => "netlink".to_owned(),
        17 => "packet".to_owned(),
        40 => "vsock".to_owned(),
        other => format!("family {other}"),
    }
}

fn kind_name(kind: u32) -> String {
    // The flags above, SOCK_NONBLOCK and SOCK_CLOEXEC, say nothing.
    match kind & 0xf {
        1 => "stream".to_owned(),
        2 => "datagram".to_owned(),
        3 => "raw".to_owned(),
        5 => "seqpacket".to_owned(),
        other => format!("type {other}"),
    }
}

/// A `struct sockaddr` as people write it. Ports and addresses are in network order.
#[must_use]
pub fn address(bytes: &[u8; wire::ADDRESS_MAX]) -> String {
    let [f0, f1, p0, p1, a, b, c, d, six @ ..] = bytes;
    let port = u16::from_be_bytes([*p0, *p1]);
    match u16::from_ne_bytes([*f0, *f1]) {
        1 => {
            let path = &bytes[2..];
            // An abstract address begins with a NUL.
            let (mark, path) = if path.first() == Some(&0) { ("@", &path[1..]) } else { ("", path) };
            let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
            format!("unix:{mark}{}", String::from_utf8_lossy(&path[..end]))
        }
        2 => format!("{a}.{b}.{c}.{d}:{port}"),
        10 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&six[..16]);
            format!("[{}]:{port}", std::net::Ipv6Addr::from(octets))
        }
        0 => "an address that could not be read".to_owned(),
        other => format!("an address of {}", family_name(u32::from(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(parts: &[u8]) -> [u8; wire::ADDRESS_MAX] {
        let mut bytes = [0; wire::ADDRESS_MAX];
        bytes[..parts.len()].copy_from_slice(parts);
        bytes
    }

    #[test]
    fn addresses_are_written_as_people_do() {
        let family = |n: u16| n.to_ne_bytes().to_vec();
        let v4 = [family(2), vec![0x01, 0xbb, 10, 1, 2, 3]].concat();
        assert_eq!(address(&bytes(&v4)), "10.1.2.3:443");
        let mut v6 = [family(10), vec![0, 80, 0, 0, 0, 0]].concat();
        v6.extend(std::net::Ipv6Addr::LOCALHOST.octets());
        assert_eq!(address(&bytes(&v6)), "[::1]:80");
        assert_eq!(address(&bytes(&[family(1), b"/run/x".to_vec()].concat())), "unix:/run/x");
        assert_eq!(address(&bytes(&[family(1), b"\0name".to_vec()].concat())), "unix:@name");
        assert_eq!(address(&bytes(&[])), "an address that could not be read");
        assert_eq!(address(&[0xff; wire::ADDRESS_MAX]), "an address of family 65535");
    }
}
