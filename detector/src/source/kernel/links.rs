//! Whether what was attached still is.
//!
//! A program of ours stays attached for as long as its link's descriptor is open: the kernel lets nobody detach such a link by its id.
//! Whoever gets into this process can close the descriptor, or put another in its place. What a descriptor is, its `fdinfo` says: to read
//! that takes no capability and no `bpf()`, so that it works also when both were given up. Kprobes can be switched off for all of the
//! kernel besides.
//!
//! Kernels before 5.15 attach a kprobe by a perf event, whose descriptor does not say what it belongs to: those are not looked at.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use aya::Ebpf;

use super::hooks::{Backend, HOOKS};
use crate::{record::HookState, source::kubelet::host_root};

/// A hook that was attached and is not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    pub hook: &'static str,
    pub why: &'static str,
}

/// The links of the hooks that are attached.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Link>,
    /// What says whether kprobes are switched on, and the hooks for which that matters.
    kprobes: Option<(PathBuf, Vec<&'static str>)>,
}

#[derive(Debug)]
struct Link {
    hook: &'static str,
    fd: RawFd,
    is: Ids,
}

/// What tells a link from every other, also from one that is made later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ids {
    link: u32,
    program: u32,
}

impl Links {
    /// Those of these hooks, found among this process's descriptors.
    pub fn find(ebpf: &Ebpf, states: &[HookState]) -> Self {
        let mut hooks = BTreeMap::new();
        let mut kprobes = Vec::new();
        for hook in HOOKS {
            let state = states.iter().find(|state| state.name == hook.name);
            let Some(backend) = state.and_then(|state| state.backend.as_deref()) else { continue };
            if backend == Backend::Kprobe.name() {
                kprobes.push(hook.name);
            }
            for attach in hook.attach.iter().filter(|attach| attach.backend.name() == backend) {
                // Of several ways only the one that is attached is loaded.
                if let Some(info) = ebpf.program(attach.program).and_then(|program| program.info().ok()) {
                    hooks.insert(info.id(), hook.name);
                }
            }
        }
        let fds = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().filter_map(Result::ok);
        let links = fds.filter_map(|entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            let is = ids(&fs::read_to_string(entry.path()).ok()?)?;
            Some(Link { hook: hooks.get(&is.program)?, fd, is })
        });
        let switch = host_root(Path::new("/proc")).join("sys/kernel/debug/kprobes/enabled");
        Self { links: links.collect(), kprobes: (!kprobes.is_empty()).then_some((switch, kprobes)) }
    }

    /// Hooks that are not attached any more. What cannot be told counts as attached.
    pub fn detached(&self) -> Vec<Detached> {
        let gone = |link: &Link| {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.fd));
            let why = why(info.as_deref(), link.is)?;
            Some(Detached { hook: link.hook, why })
        };
        let mut detached: Vec<_> = self.links.iter().filter_map(gone).collect();
        if let Some((switch, hooks)) = &self.kprobes
            && fs::read_to_string(switch).is_ok_and(|text| text.trim() == "0")
        {
            detached.extend(hooks.iter().map(|hook| Detached { hook, why: "kprobes are switched off in the kernel" }));
        }
        detached
    }
}

fn why(info: Result<&str, &io::Error>, was: Ids) -> Option<&'static str> {
    match info {
        Ok(info) if ids(info) == Some(was) => None,
        Ok(_) => Some("its descriptor is another one's"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("its descriptor is closed"),
        Err(_) => None,
    }
}

/// What a descriptor's `fdinfo` says of the link that it is.
fn ids(info: &str) -> Option<Ids> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
    Some(Ids { link: field("link_id:")?, program: field("prog_id:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t60\nlink_type:\ttracing\nlink_id:\t7\nprog_tag:\t9a\nprog_id:\t31\n";

    #[test]
    fn a_link_is_known_by_its_id_and_its_program() {
        let was = Ids { link: 7, program: 31 };
        assert_eq!(ids(LINK), Some(was));
        assert_eq!(ids("pos:\t0\nprog_type:\t26\nprog_id:\t31\n"), None, "a program is no link");
        assert_eq!(why(Ok(LINK), was), None);
        for other in [LINK.replace("link_id:\t7", "link_id:\t8"), "pos:\t0\n".to_owned(), String::new()] {
            assert_eq!(why(Ok(&other), was), Some("its descriptor is another one's"), "{other}");
        }
        assert_eq!(why(Err(&io::Error::from(io::ErrorKind::NotFound)), was), Some("its descriptor is closed"));
        // Not to be allowed to look is no detached hook.
        assert_eq!(why(Err(&io::Error::from(io::ErrorKind::PermissionDenied)), was), None);
    }

    #[test]
    fn kprobes_that_are_switched_off_are_detached_hooks() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("enabled");
        let links = Links { links: Vec::new(), kprobes: Some((switch.clone(), vec!["mount"])) };
        assert_eq!(links.detached(), []);
        for (text, count) in [("1\n", 0), ("0\n", 1)] {
            fs::write(&switch, text).unwrap();
            assert_eq!(links.detached().len(), count, "{text:?}");
        }
    }
}
