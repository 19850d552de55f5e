//! What gives a node away: capabilities, and places that a container may have mounted.

use crate::detect::base;

/// Capabilities that are as good as root on the node.
const DANGEROUS: [&str; 12] = [
    "ALL",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_BOOT",
    "DAC_READ_SEARCH",
    "DAC_OVERRIDE",
    "NET_ADMIN",
    "NET_RAW",
    "BPF",
    "PERFMON",
];

/// Host paths that give the node away, with everything below them; `/` itself counts too.
const SENSITIVE: [&str; 9] =
    ["/etc", "/root", "/proc", "/sys", "/dev", "/run", "/var/run", "/var/lib/kubelet", "/var/lib/etcd"];

/// Those of them that are the node's itself: whoever writes there is root on it, and whoever reads there is often the cluster's.
const NODE: [&str; 9] =
    ["/", "/etc", "/etc/kubernetes", "/root", "/proc", "/dev", "/var/lib/kubelet", "/var/lib/etcd", "/var/run"];

/// Sockets of container runtimes, by their names.
const RUNTIMES: [&str; 6] =
    ["containerd.sock", "docker.sock", "crio.sock", "cri-dockerd.sock", "podman.sock", "buildkitd.sock"];

/// Whether a capability, in any spelling, is as good as root on the node.
pub fn dangerous(capability: &str) -> bool {
    let name = capability.to_ascii_uppercase();
    DANGEROUS.contains(&name.strip_prefix("CAP_").unwrap_or(&name))
}

/// A path that is `/`, lies in a sensitive place, or holds one. Dots are not resolved by kubelet either: `..` is refused there,
/// so it counts as sensitive here.
pub fn sensitive(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path = format!("/{}", parts.join("/"));
    path == "/"
        || parts.contains(&"..")
        || path.ends_with(".sock")
        || SENSITIVE.iter().any(|place| {
            path == *place || path.starts_with(&format!("{place}/")) || place.starts_with(&format!("{path}/"))
        })
}

/// Whether a path is one of the places that are the node itself, or lies in one of those that hold its secrets.
pub fn is_node(path: &str) -> bool {
    let path = normal(path);
    NODE.contains(&path.as_str())
        || ["/etc/kubernetes/", "/root/", "/var/lib/kubelet/", "/var/lib/etcd/"]
            .iter()
            .any(|place| path.starts_with(place))
}

/// Whether a path is the socket of a container runtime, by its name, or a directory that holds one.
pub fn is_runtime(path: &str) -> bool {
    let path = normal(path);
    let place = path.strip_prefix("/var/run").map_or_else(|| path.clone(), |below| format!("/run{below}"));
    RUNTIMES.contains(&base(&place))
        || matches!(place.as_str(), "/run" | "/run/containerd" | "/run/crio" | "/run/docker")
}

/// Without empty and single-dot parts.
fn normal(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensitive_paths_hold_or_lie_in_the_nodes_own_places() {
        for path in
            ["/", "", "//", "/etc", "/etc/kubernetes", "//etc/./ssl", "/var", "/var/lib", "/srv/../etc", "/srv/x.sock"]
        {
            assert!(sensitive(path), "{path}");
        }
        for path in ["/srv/data", "/etcetera", "/home/web", "/var/log/app", "/rooted"] {
            assert!(!sensitive(path), "{path}");
        }
    }

    #[test]
    fn the_node_itself_and_its_runtimes_are_told_from_what_is_only_sensitive() {
        for path in ["/", "", "/etc/", "/etc/kubernetes/pki", "/var/lib/kubelet", "/root/.ssh", "/dev"] {
            assert!(is_node(path), "{path}");
        }
        for path in ["/etc/ssl", "/dev/fuse", "/proc/sys", "/srv"] {
            assert!(!is_node(path), "{path}");
        }
        for path in ["/run/containerd/containerd.sock", "/var/run/docker.sock", "/run", "/var/run/"] {
            assert!(is_runtime(path), "{path}");
        }
        for path in ["/run/app.sock", "/run/lock", "/var/runner"] {
            assert!(!is_runtime(path), "{path}");
        }
    }

    #[test]
    fn capabilities_in_any_spelling() {
        for name in ["SYS_ADMIN", "CAP_SYS_ADMIN", "sys_admin", "all"] {
            assert!(dangerous(name), "{name}");
        }
        assert!(!dangerous("NET_BIND_SERVICE"));
    }
}
