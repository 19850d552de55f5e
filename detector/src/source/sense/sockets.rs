//! Where a process listens, and which addresses its network namespace has, by `/proc`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Most descriptors of a process that are looked at.
const FDS_MAX: usize = 65_536;
/// Most bytes of one of the kernel's tables that are read.
const TABLE_MAX: u64 = 8 << 20;
/// Most addresses of a network namespace.
const ADDRESSES_MAX: usize = 256;
/// Most sockets that one process listens on.
const LISTENING_MAX: usize = 64;

/// Inode number of the network namespace of a process, by its directory in `/proc`.
pub fn net_ns(process: &Path) -> Option<u32> {
    u32::try_from(fs::metadata(process.join("ns/net")).ok()?.ino()).ok()
}

/// Inode numbers of the sockets that a process holds a descriptor of.
pub fn held(process: &Path) -> impl Iterator<Item = u64> {
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten().filter_map(Result::ok).take(FDS_MAX);
    fds.filter_map(|fd| {
        let link = fs::read_link(fd.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// A TCP connection: its own end, and its other one.
pub type Connection = [SocketAddr; 2];

/// The connections of a process's network namespace to one of these, with their sockets' inode numbers; and whether there may be more than
/// were looked at.
pub fn connections(process: &Path, to: impl Fn(SocketAddr) -> bool) -> (Vec<(Connection, u64)>, bool) {
    let (mut found, mut cut) = (Vec::new(), false);
    for table in ["net/tcp", "net/tcp6"] {
        let mut read = 0;
        for line in lines(&process.join(table)) {
            read += line.len() as u64 + 1;
            if let Some((connection, inode)) = connection(&line)
                && to(connection[1])
            {
                found.push((connection, inode));
            }
        }
        cut |= read >= TABLE_MAX;
    }
    (found, cut)
}

/// Paths on which a process itself listens for streams, but for those that only take events: shims connect there all day.
pub fn listening_unix(process: &Path) -> Vec<PathBuf> {
    const EVENTS: &str = ".ttrpc";
    let sockets: BTreeSet<u64> = held(process).collect();
    let mut found = Vec::new();
    for (path, inode) in lines(&process.join("net/unix")).skip(1).filter_map(|line| unix_listener(&line)) {
        if sockets.contains(&inode) && found.len() < LISTENING_MAX && !path.ends_with(EVENTS) {
            found.push(PathBuf::from(path));
        }
    }
    found
}

/// `num refcount protocol flags type state inode path`. `None` for one that does not listen, or is bound to no file.
fn unix_listener(line: &str) -> Option<(String, u64)> {
    const ACCEPTS: &str = "00010000";
    let mut fields = line.split_ascii_whitespace();
    let flags = fields.nth(3)?;
    let inode = fields.nth(2)?.parse().ok()?;
    // A path may hold spaces.
    let path = line.get(line.find(" /")? + 1..)?;
    (flags == ACCEPTS).then(|| (path.to_owned(), inode))
}

/// Addresses on which a process itself listens for TCP: sockets that it holds a descriptor of.
pub fn listening(process: &Path) -> Vec<SocketAddr> {
    let sockets: BTreeSet<u64> = held(process).collect();
    let mut found = Vec::new();
    for table in ["net/tcp", "net/tcp6"] {
        for (address, inode) in lines(&process.join(table)).skip(1).map_while(|line| listener(&line)) {
            if sockets.contains(&inode) && found.len() < LISTENING_MAX && !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode`. `None` for one that does not listen: those come
/// behind all that do.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    if state != LISTEN {
        return None;
    }
    Some((socket_address(local)?, inode.parse().ok()?))
}

/// The same line. `None` for one that is no connection, or that no process holds a descriptor of any more.
fn connection(line: &str) -> Option<(Connection, u64)> {
    const ESTABLISHED: &str = "01";
    const SYN_SENT: &str = "02";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let [local, remote] = [fields.next()?, fields.next()?];
    let state = fields.next()?;
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    if inode == 0 || ![ESTABLISHED, SYN_SENT].contains(&state) {
        return None;
    }
    Some(([socket_address(local)?, socket_address(remote)?], inode))
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    Some(SocketAddr::new(hex_address(address)?, u16::from_str_radix(port, 16).ok()?))
}

/// Words of an address, each as the host's number of its four bytes.
fn hex_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, four) in octets.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// The addresses that packets to the network namespace of a process may have.
pub fn addresses(process: &Path) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let mut last = None;
    // `|-- 10.0.0.5`, then `/32 host LOCAL` below it.
    for line in lines(&process.join("net/fib_trie")) {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last
        {
            found.insert(IpAddr::V4(address));
        }
    }
    for line in lines(&process.join("net/if_inet6")) {
        let address = line.split_ascii_whitespace().next().and_then(|digits| u128::from_str_radix(digits, 16).ok());
        found.extend(address.map(|address| IpAddr::V6(Ipv6Addr::from(address))));
    }
    found.into_iter().take(ADDRESSES_MAX).collect()
}

fn lines(path: &Path) -> impl Iterator<Item = String> + use<> {
    let file = File::open(path).ok().map(|file| BufReader::new(file.take(TABLE_MAX)));
    file.into_iter().flat_map(|file| file.lines().map_while(Result::ok))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_listens_where_its_own_sockets_do() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = Path::new("/proc/self");
        assert!(listening(process).contains(&four.local_addr().unwrap()));
        // The same table as another process sees it, which has no descriptor of the socket.
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let theirs = listening(Path::new(&format!("/proc/{}", other.id())));
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(theirs, []);
        assert!(addresses(process).contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(net_ns(process).is_some_and(|inode| inode != 0));
    }

    #[test]
    fn a_process_is_asked_where_its_own_sockets_listen_and_not_where_it_only_takes_events() {
        let dir = tempfile::tempdir().unwrap();
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
        let (_asked, _events) = (listen("a b.sock"), listen("a.sock.ttrpc"));
        let found = listening_unix(Path::new("/proc/self"));
        assert!(found.contains(&dir.path().join("a b.sock")), "{found:?}");
        assert!(!found.iter().any(|path| path.ends_with("a.sock.ttrpc")), "{found:?}");
        let connected = "0000000000000000: 00000003 00000000 00000000 0001 03 77 /run/x.sock";
        assert_eq!(unix_listener(connected), None);
        assert_eq!(
            unix_listener(&connected.replacen("00000000 0001", "00010000 0001", 1)),
            Some(("/run/x.sock".to_owned(), 77))
        );
        for bad in ["", "x", "0: 2 0 00010000 0001 01 9", "0: 2 0 00010000 0001 01 x /a"] {
            assert_eq!(unix_listener(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_of_the_kernels_tables_are_read() {
        let line = "   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0";
        assert_eq!(listener(line), Some(("127.0.0.1:3306".parse().unwrap(), 1234)));
        let six =
            "   1: 00000000000000000000000001000000:18EB 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 77 1";
        assert_eq!(listener(six), Some(("[::1]:6379".parse().unwrap(), 77)));
        for bad in ["", "0: x", &line.replace("0A", "01"), &line.replace("0CEA", "1CEA0")] {
            assert_eq!(listener(bad), None, "{bad}");
        }
        let connected = line.replace("0A", "01").replace("00000000:0000", "0500000A:192B");
        let ends = ["127.0.0.1:3306", "10.0.0.5:6443"].map(|end| end.parse().unwrap());
        assert_eq!(connection(&connected), Some((ends, 1234)));
        for bad in [line, &connected.replace(" 1234 ", " 0 "), &connected.replace(" 01 ", " 06 "), "0: 1 2 01"] {
            assert_eq!(connection(bad), None, "{bad}");
        }
    }
}
