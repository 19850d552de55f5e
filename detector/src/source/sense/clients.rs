//! Who is connected to API servers, by `/proc`: connections that are older than the kernel's knowing of whom to tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{components::start, sockets};
use crate::record::{Client, Clients, Endpoint, EndpointRole, ProcessKey};

/// Most clients that are told.
const CLIENTS_MAX: usize = 1024;
/// Most connections that are looked for among processes' descriptors.
const CONNECTIONS_MAX: usize = 8192;

/// Looks at the connections of every network namespace that a process of `proc` is in.
pub fn look(proc: &Path, endpoints: &[Endpoint]) -> Clients {
    let pids = fs::read_dir(proc).into_iter().flatten().filter_map(Result::ok);
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let dir = |pid: u32| -> PathBuf { proc.join(pid.to_string()) };
    let mut namespaces: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pid, net_ns) in pids.filter_map(|pid| Some((pid, sockets::net_ns(&dir(pid))?))) {
        namespaces.entry(net_ns).or_default().push(pid);
    }
    let mut clients = Clients::default();
    let mut found = BTreeSet::new();
    let mut wanted: BTreeMap<u64, (sockets::Connection, u32)> = BTreeMap::new();
    for (net_ns, pids) in &namespaces {
        let to = |remote: SocketAddr| endpoints.iter().any(|known| is(known, remote, *net_ns));
        // A process that has just ended has no tables; the next one has the same.
        let tables = pids.iter().map(|pid| dir(*pid)).find(|dir| dir.join("net/tcp").exists());
        let Some((connections, cut)) = tables.map(|dir| sockets::connections(&dir, to)) else { continue };
        clients.cut |= cut;
        wanted.extend(connections.into_iter().map(|(ends, inode)| (inode, (ends, *net_ns))));
        if wanted.len() > CONNECTIONS_MAX {
            clients.cut = true;
            break;
        }
    }
    if wanted.is_empty() {
        return clients;
    }
    // Wherever its holder is now: a socket stays in the namespace that it was made in.
    for pid in namespaces.into_values().flatten() {
        let process = dir(pid);
        let mut held = sockets::held(&process).filter_map(|inode| wanted.get(&inode)).peekable();
        if held.peek().is_none() {
            continue;
        }
        let Some(start) = start(&process) else { continue };
        found.extend(held.map(|([local, remote], net_ns)| Client {
            process: ProcessKey { pid, start },
            local: local.ip(),
            remote: remote.ip(),
            remote_port: remote.port(),
            net_ns: *net_ns,
        }));
    }
    clients.cut |= found.len() > CLIENTS_MAX;
    clients.clients = found.into_iter().take(CLIENTS_MAX).collect();
    clients
}

/// Whether the other end of a connection is an API server.
fn is(known: &Endpoint, remote: SocketAddr, net_ns: u32) -> bool {
    known.role != EndpointRole::Etcd
        && (known.address, known.port) == (remote.ip(), remote.port())
        && (known.net_ns == 0 || known.net_ns == net_ns)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn whoever_holds_a_connection_to_an_api_server_is_found_and_others_are_not() {
        let [server, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let (_held, _else) = (
            TcpStream::connect(server.local_addr().unwrap()).unwrap(),
            TcpStream::connect(other.local_addr().unwrap()).unwrap(),
        );
        let address = server.local_addr().unwrap();
        let own = sockets::net_ns(Path::new("/proc/self")).unwrap();
        let endpoint = |role, net_ns| Endpoint { role, address: address.ip(), port: address.port(), net_ns };
        let proc = Path::new("/proc");
        let found = look(proc, &[endpoint(EndpointRole::ApiServer, own)]);
        let process = ProcessKey { pid: std::process::id(), start: start(Path::new("/proc/self")).unwrap() };
        let client =
            Client { process, local: address.ip(), remote: address.ip(), remote_port: address.port(), net_ns: own };
        assert!(found.clients.contains(&client) && !found.cut, "{found:?}");
        // Another namespace's loopback, and etcd.
        assert_eq!(look(proc, &[endpoint(EndpointRole::ApiServer, own + 1)]), Clients::default());
        assert_eq!(look(proc, &[endpoint(EndpointRole::Etcd, own)]), Clients::default());
    }
}
