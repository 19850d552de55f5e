//! What gives a node away: capabilities, and places that a container may have mounted.

use std::borrow::Cow;

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
    let name = match capability.split_at_checked("CAP_".len()) {
        Some((prefix, name)) if prefix.eq_ignore_ascii_case("CAP_") => name,
        _ => capability,
    };
    DANGEROUS.iter().any(|dangerous| dangerous.eq_ignore_ascii_case(name))
}

/// A path that is `/`, lies in a sensitive place, or holds one. Dots are not resolved by kubelet either: `..` is refused there,
/// so it counts as sensitive here.
pub fn sensitive(path: &str) -> bool {
    let path = normal(path);
    path == "/"
        || parts(&path).any(|part| part == b"..")
        || path.ends_with(".sock")
        || SENSITIVE.iter().any(|place| lies_in(&path, place) || lies_in(place, &path))
}

/// Whether a path is one of the places that are the node itself, or lies in one of those that hold its secrets.
pub fn is_node(path: &str) -> bool {
    let path = normal(path);
    NODE.contains(&&*path)
        || ["/etc/kubernetes/", "/root/", "/var/lib/kubelet/", "/var/lib/etcd/"]
            .iter()
            .any(|place| path.starts_with(place))
}

/// Whether a path is the socket of a container runtime, by its name, or a directory that holds one.
pub fn is_runtime(path: &str) -> bool {
    let path = normal(path);
    let place = path.strip_prefix("/var/run").map_or_else(|| path.clone(), |below| format!("/run{below}").into());
    RUNTIMES.contains(&base(&place)) || matches!(&*place, "/run" | "/run/containerd" | "/run/crio" | "/run/docker")
}

/// Whether a path is `place` or lies below it; both are normal, and `place` is not the root.
fn lies_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// What is between the slashes of an absolute path.
fn parts(path: &str) -> impl Iterator<Item = &[u8]> {
    path.as_bytes().split(|byte| *byte == b'/').skip(1)
}

/// Without empty and single-dot parts, as nearly all are from the start.
fn normal(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') && parts(path).all(|part| !matches!(part, b"" | b".")) {
        return Cow::Borrowed(path);
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Cow::Owned(format!("/{}", parts.join("/")))
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
