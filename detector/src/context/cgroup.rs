//! Cgroup ids, their paths, and the container that a path names.

use std::collections::{BTreeMap, VecDeque};

use crate::context::image::is_sha256;

/// Most cgroups remembered; the oldest go first.
const MAX: usize = 16_384;

/// Paths of cgroups by id.
#[derive(Debug, Default)]
pub struct Cgroups {
    paths: BTreeMap<u64, String>,
    order: VecDeque<u64>,
}

impl Cgroups {
    /// Remembers a cgroup. An id that is reused takes its new path.
    pub fn insert(&mut self, id: u64, path: &str) {
        if self.paths.insert(id, path.to_owned()).is_none() {
            self.order.push_back(id);
            if self.order.len() > MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.paths.remove(&oldest);
            }
        }
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.order.iter().filter_map(|id| Some((*id, self.path(*id)?)))
    }

    #[must_use]
    pub fn path(&self, id: u64) -> Option<&str> {
        self.paths.get(&id).map(String::as_str)
    }
}

/// What a cgroup's last part calls a container: `<id>`, `<runtime>-<id>.scope`, or one of these above `container`, which podman makes
/// below. `None` where that cannot be a container's id.
#[must_use]
pub fn leaf(path: &str) -> Option<&str> {
    let path = path.strip_suffix("/container").unwrap_or(path);
    let name = path.rsplit('/').next()?;
    let id = match name.strip_suffix(".scope") {
        Some(scope) => scope
            .split_once("cri-containerd-")
            .map_or_else(|| scope.split_once('-').map_or(scope, |(_, id)| id), |(_, id)| id),
        None => name,
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (!id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(fits)).then_some(id)
}

/// The container id in a cgroup's path, innermost first: 64 hex digits, as containerd, CRI-O, Docker and podman make
/// them, bare (cgroupfs driver) or as `<runtime>-<id>.scope` (systemd driver).
#[must_use]
pub fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit_once('-').map_or(part, |(_, id)| id);
        is_sha256(id).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn container_ids_of_every_runtime_and_driver() {
        for path in [
            format!("/kubepods/besteffort/pod0a1b/{ID}"),
            format!("/kubepods.slice/kubepods-pod0a1b.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod0a1b.slice/crio-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/docker/{ID}"),
        ] {
            assert_eq!(container_id(&path), Some(ID), "{path}");
        }
        for path in ["/", "/system.slice/ssh.service", "/user.slice/user-0.slice/session-1.scope", "/docker/0123", ""] {
            assert_eq!(container_id(path), None, "{path}");
        }
        assert_eq!(container_id(&format!("/docker/{}", ID.to_uppercase())), None);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut cgroups = Cgroups::default();
        for id in 0..=MAX as u64 {
            cgroups.insert(id, "/x");
        }
        assert_eq!(cgroups.path(0), None);
        assert_eq!(cgroups.path(1), Some("/x"));
        assert_eq!(cgroups.order.len(), MAX);
        assert_eq!(cgroups.paths.len(), MAX);
    }
}
