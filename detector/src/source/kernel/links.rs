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
use crate::{
    record::{BootNs, HookChange, HookState, HooksChanged},
    source::kubelet::host_root,
};

/// A hook that was attached and is not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    pub hook: &'static str,
    pub why: &'static str,
    /// The link that is gone; `None` where a switch did it.
    pub link: Option<u32>,
}

/// The links of the hooks that are attached.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Link>,
    switches: Vec<Switch>,
}

/// What says whether probes of a kind are switched on, and the hooks for which that matters.
#[derive(Debug)]
struct Switch {
    path: PathBuf,
    hooks: Vec<&'static str>,
    off: &'static str,
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
        let (mut kprobes, mut functions) = (Vec::new(), Vec::new());
        for hook in HOOKS {
            let state = states.iter().find(|state| state.name == hook.name);
            let Some(backend) = state.and_then(|state| state.backend.as_deref()) else { continue };
            if backend == Backend::Kprobe.name() {
                kprobes.push(hook.name);
            }
            if backend != Backend::Tracepoint.name() {
                functions.push(hook.name);
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
        let host = host_root(Path::new("/proc"));
        let switch = |path: &str, hooks, off| Switch { path: host.join(path), hooks, off };
        let mut switches = vec![
            switch("sys/kernel/debug/kprobes/enabled", kprobes, "kprobes are switched off in the kernel"),
            switch(
                "proc/sys/kernel/ftrace_enabled",
                functions,
                "the kernel calls nothing at the beginning of functions (kernel.ftrace_enabled is 0)",
            ),
        ];
        switches.retain(|switch| !switch.hooks.is_empty());
        Self { links: links.collect(), switches }
    }

    /// Hooks that are not attached any more. What cannot be told counts as attached.
    pub fn detached(&self) -> Vec<Detached> {
        let gone = |link: &Link| {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.fd));
            let why = why(info.as_deref(), link.is)?;
            Some(Detached { hook: link.hook, why, link: Some(link.is.link) })
        };
        let mut detached: Vec<Detached> = self.links.iter().filter_map(gone).collect();
        for switch in &self.switches {
            if fs::read_to_string(&switch.path).is_ok_and(|text| text.trim() == "0") {
                let gone = switch.hooks.iter().filter(|hook| !detached.iter().any(|known| known.hook == **hook));
                let gone: Vec<_> = gone.map(|hook| Detached { hook, why: switch.off, link: None }).collect();
                detached.extend(gone);
            }
        }
        detached
    }
}

/// What happened to hooks between two looks, the first of which was at `since`; `None` when nothing did.
#[must_use]
pub fn changes(before: &[Detached], now: &[Detached], since: BootNs) -> Option<HooksChanged> {
    let change = |one: &Detached, detached: Option<&str>| {
        let hook = HOOKS.iter().find(|hook| hook.name == one.hook);
        HookChange {
            name: one.hook.to_owned(),
            detached: detached.map(str::to_owned),
            link: one.link,
            required: hook.is_some_and(|hook| hook.required),
            without: hook.map_or("", |hook| hook.without).to_owned(),
        }
    };
    let is_in = |one: &&Detached, all: &[Detached]| all.iter().any(|other| other.hook == one.hook);
    let gone = now.iter().filter(|one| !is_in(one, before)).map(|one| change(one, Some(one.why)));
    let again = before.iter().filter(|one| !is_in(one, now)).map(|one| change(one, None));
    let hooks: Vec<_> = gone.chain(again).collect();
    (!hooks.is_empty()).then_some(HooksChanged { since, hooks })
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
    fn probes_that_are_switched_off_are_detached_hooks() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["kprobes", "ftrace"].map(|name| dir.path().join(name));
        let switch = |path: &Path, hooks| Switch { path: path.to_owned(), hooks, off: "off" };
        let links = Links {
            links: Vec::new(),
            switches: vec![switch(&one, vec!["mount"]), switch(&other, vec!["mount", "mmap"])],
        };
        assert_eq!(links.detached(), []);
        for (texts, count) in [(["1\n", "1\n"], 0), (["0\n", "1\n"], 1), (["1\n", "0\n"], 2), (["0\n", "0\n"], 2)] {
            fs::write(&one, texts[0]).unwrap();
            fs::write(&other, texts[1]).unwrap();
            assert_eq!(links.detached().len(), count, "{texts:?}");
        }
    }

    #[test]
    fn what_is_detached_is_told_when_it_comes_and_when_it_goes_and_not_in_between() {
        let gone = [Detached { hook: "file-open", why: "its descriptor is closed", link: Some(7) }];
        assert_eq!(changes(&[], &[], BootNs(1)), None);
        assert_eq!(changes(&gone, &gone, BootNs(1)), None);
        let told = changes(&[], &gone, BootNs(1)).unwrap();
        assert_eq!((told.since, told.hooks.len()), (BootNs(1), 1));
        let hook = &told.hooks[0];
        assert_eq!((hook.name.as_str(), hook.link, hook.required), ("file-open", Some(7), true));
        assert_eq!(hook.detached.as_deref(), Some("its descriptor is closed"));
        assert!(hook.without.starts_with("who opens a manifest"), "{}", hook.without);
        assert_eq!(changes(&gone, &[], BootNs(2)).unwrap().hooks[0].detached, None);
    }
}
