//! `static-pod`, refused: what an LSM program did not let happen under `--deny static-pod`.

use detector_common::{self as wire, kind};

use crate::{
    alert::{Evidence, File, Origin, Severity},
    context::Context,
    decode::{Event, hook_name},
    detect::{Detector, Finding, kinds, once::Lately, technique::STATIC_POD},
    escape::escape_to,
    record::{Body, DirState, ProcessKey, Record, Watched},
};

/// A process that tries the same again within this time, in ns, is the same alert.
const AGAIN_NS: u64 = 1_000_000_000;
/// Most attempts remembered.
const MAX: usize = 256;

/// Tells of refused acts.
#[derive(Debug, Default)]
pub struct Blocked {
    watched: Watched,
    /// Who tried what, lately.
    recent: Lately<(ProcessKey, String), MAX>,
}

impl Detector for Blocked {
    fn kinds(&self) -> u64 {
        kinds(&[kind::OPEN, kind::MAP, kind::ENTRY])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if let Body::Watched(watched) = &record.body {
            self.watched = watched.clone();
        }
        let Some((header, path)) = event.and_then(|event| self.refused(event)) else { return Vec::new() };
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        if !self.recent.first((actor, path.clone()), record.time, AGAIN_NS) {
            return Vec::new();
        }
        let exe = context.processes.get(actor).map_or_else(String::new, |process| escape_to(&process.program.exe, 128));
        let mut reasons = vec!["only trusted programs may change what kubelet reads (--deny static-pod)".to_owned()];
        let container = context.origin(actor).0 == Origin::Container;
        if container {
            reasons.insert(0, "a process in a container tried it".to_owned());
        }
        let hook = hook_name(header.hook);
        vec![Finding {
            technique: &STATIC_POD,
            severity: if container { Severity::Critical } else { Severity::High },
            time: record.time,
            title: format!("Change of {} refused to {exe}", escape_to(&path, 128)),
            blocked: true,
            reasons,
            actor: Some(actor),
            container: None,
            file: Some(File::named(&path, "refused")),
            manifest: None,
            evidence: vec![Evidence {
                kind: "refused",
                hook: Some(hook),
                sequence: record.seq,
                detail: format!("{hook} {}", escape_to(&path, 256)),
            }],
        }]
    }
}

impl Blocked {
    /// The refused act's header, and what it was about: as kubelet names it where the directory is known.
    fn refused<'a>(&self, event: &'a Event) -> Option<(&'a wire::Header, String)> {
        match event {
            Event::Open(open) | Event::Map(open) if open.event.flags & wire::DENIED != 0 => {
                let name = open.path.rsplit('/').next().unwrap_or_default();
                let path = self.place(open.event.dev, open.event.parent_ino, name);
                Some((&open.event.header, path.unwrap_or_else(|| open.path.clone())))
            }
            Event::Entry(entry) if entry.denied => {
                let [first, second] = &entry.names;
                let to = self.place(entry.dev, entry.to_dir_ino, second);
                let path = to.or_else(|| self.place(entry.dev, entry.dir_ino, first)).or_else(|| {
                    // A directory itself, or a mount on one.
                    self.place(entry.dev, entry.ino, "")
                });
                Some((&entry.header, path.unwrap_or_else(|| if first.is_empty() { second } else { first }.clone())))
            }
            _ => None,
        }
    }

    /// Path of an entry of a watched directory.
    fn place(&self, dev: u32, ino: u64, name: &str) -> Option<String> {
        let is = |state: &DirState| matches!(state, DirState::Present(inode) if inode.dev == dev && inode.ino == ino);
        let dir = self.watched.dirs.iter().find(|dir| is(&dir.state))?;
        Some(if name.is_empty() { dir.path.clone() } else { format!("{}/{name}", dir.path.trim_end_matches('/')) })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        alert::Severity,
        record::{Body, DirState, WatchReason, Watched, WatchedDir},
        testing::{self, Actor, DIR, FILE, SECOND, Stream},
    };

    /// The record of an entry, refused.
    fn refused(actor: Actor, names: [&str; 2]) -> bytes::Bytes {
        let raw = testing::entry(actor, detector_common::hook::INODE_RENAME, [FILE, DIR], names);
        let mut bytes = raw.to_vec();
        let at = std::mem::offset_of!(detector_common::Entry, flags);
        bytes[at..at + 4].copy_from_slice(&detector_common::DENIED.to_ne_bytes());
        bytes.into()
    }

    #[test]
    fn a_refused_act_is_one_alert_that_says_so_and_the_same_again_is_none() {
        let mut stream = Stream::new();
        let dir = WatchedDir {
            path: "/manifests".to_owned(),
            reason: WatchReason::Flag,
            kubelet_pid: None,
            state: DirState::Present(DIR),
        };
        stream.push(Body::Watched(Watched { dirs: vec![dir] }));
        let actor = Actor::host(50, 10);
        for _ in 0..5 {
            stream.kernel(refused(actor, ["x", "web.yaml"]));
        }
        stream.kernel(refused(actor, ["x", "other.yaml"]));
        stream.wait(2 * SECOND);
        stream.kernel(refused(actor, ["x", "web.yaml"]));
        // The same act let through is no alert without its effect.
        stream.kernel(testing::entry(actor, detector_common::hook::INODE_RENAME, [FILE, DIR], ["x", "web.yaml"]));
        let told: Vec<_> =
            stream.alerts().into_iter().map(|alert| (alert.blocked, alert.severity, alert.title)).collect();
        let expected = ["web", "other", "web"]
            .map(|name| (true, Severity::High, format!("Change of /manifests/{name}.yaml refused to /bin/bash")));
        assert_eq!(told, expected);
    }
}
