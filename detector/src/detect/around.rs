//! Ways around files: the memory of kubelet and of the agent, and the block devices that manifests lie on.

use detector_common::{kind, watch};

use crate::{
    alert::{Evidence, Origin, Severity, Technique},
    context::Context,
    decode::{Event, hook_name},
    detect::{
        Detector, Finding, kinds,
        once::Lately,
        technique::{DETECTOR_TAMPERING, STATIC_POD},
    },
    escape::escape_to,
    record::{Body, ProcessKey, Record, Watched},
};

/// A process that does the same again within this time, in ns, is the same alert.
const AGAIN_NS: u64 = 10_000_000_000;
/// Most acts remembered.
const MAX: usize = 256;

/// Tells of them.
#[derive(Debug, Default)]
pub struct Around {
    watched: Watched,
    /// Who did what, lately.
    recent: Lately<(ProcessKey, u64), MAX>,
}

impl Detector for Around {
    fn kinds(&self) -> u64 {
        kinds(&[kind::OPEN, kind::PTRACE])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if let Body::Watched(watched) = &record.body {
            self.watched = watched.clone();
        }
        let Some(event) = event.filter(|event| matches!(event, Event::Open(_) | Event::Ptrace(_))) else {
            return Vec::new();
        };
        let header = event.header();
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let exe = context.processes.get(actor).map_or_else(String::new, |process| escape_to(&process.program.exe, 128));
        let (about, technique, title, reason): (u64, &'static Technique, String, &str) = match event {
            Event::Open(open) if open.event.watch & watch::BLOCK != 0 => (
                open.event.ino,
                &STATIC_POD,
                format!("Block device {} opened for writing by {exe}", escape_to(&open.path, 128)),
                "manifests lie on it: what is written there passes by every check of the file system",
            ),
            Event::Ptrace(access) => {
                let pid = access.target_tgid;
                let kubelet = self.watched.dirs.iter().any(|dir| dir.kubelet_pid == Some(pid));
                if kubelet {
                    let title = format!("kubelet (pid {pid}) opened for tracing or writing by {exe}");
                    (u64::from(pid), &STATIC_POD, title, "whoever writes kubelet's memory decides what it runs")
                } else {
                    let title = format!("The detector (pid {pid}) opened for tracing or writing by {exe}");
                    (u64::from(pid), &DETECTOR_TAMPERING, title, "whoever writes its memory decides what it reports")
                }
            }
            _ => return Vec::new(),
        };
        if !self.recent.first((actor, about), record.time, AGAIN_NS) {
            return Vec::new();
        }
        let container = context.origin(actor).0 == Origin::Container;
        let mut reasons = vec![reason.to_owned()];
        if container {
            reasons.insert(0, "a process in a container did it".to_owned());
        }
        let hook = hook_name(header.hook);
        vec![Finding {
            technique,
            severity: if container { Severity::Critical } else { Severity::High },
            time: record.time,
            title,
            blocked: false,
            reasons,
            actor: Some(actor),
            container: None,
            file: None,
            manifest: None,
            evidence: vec![Evidence {
                kind: if matches!(event, Event::Open(_)) { "open" } else { "ptrace" },
                hook: Some(hook),
                sequence: record.seq,
                detail: hook.to_owned(),
            }],
        }]
    }
}

#[cfg(test)]
mod tests {
    use detector_common::{self as wire, hook, kind};

    use crate::{
        alert::Severity,
        record::{Body, DirState, InodeKey, WatchReason, Watched, WatchedDir},
        testing::{self, Actor, Stream},
    };

    fn ptrace(actor: Actor, target_tgid: u32) -> bytes::Bytes {
        let header = actor.header(kind::PTRACE, hook::PTRACE);
        testing::raw(&wire::Ptrace { header, target_start_ns: 0, target_tgid, mode: 2 }, &[])
    }

    #[test]
    fn access_to_kubelet_and_to_the_agent_are_told_apart_and_told_once() {
        let mut stream = Stream::new();
        let dir = WatchedDir {
            path: "/manifests".to_owned(),
            reason: WatchReason::KubeletFlag,
            kubelet_pid: Some(700),
            state: DirState::Missing,
        };
        stream.push(Body::Watched(Watched { dirs: vec![dir] }));
        for pid in [700, 700, 701] {
            stream.kernel(ptrace(Actor::host(50, 10), pid));
        }
        let told: Vec<_> = stream.alerts().into_iter().map(|alert| (alert.technique.id, alert.title)).collect();
        assert_eq!(
            told,
            [
                ("static-pod", "kubelet (pid 700) opened for tracing or writing by /bin/bash".to_owned()),
                ("detector-tampering", "The detector (pid 701) opened for tracing or writing by /bin/bash".to_owned()),
            ]
        );
    }

    #[test]
    fn a_device_under_the_manifests_is_high_and_any_other_open_is_none() {
        let mut stream = Stream::new();
        let actor = Actor::host(50, 10);
        let device = InodeKey { dev: 5, ino: 77 };
        let mut raw = testing::open(actor, device, device, "/dev/vda").to_vec();
        let at = std::mem::offset_of!(wire::Open, watch);
        raw[at..at + 4].copy_from_slice(&wire::watch::BLOCK.to_ne_bytes());
        stream.kernel(raw.into());
        stream.kernel(testing::open(actor, testing::FILE, testing::DIR, "/manifests/a.yaml"));
        let alerts = stream.alerts();
        assert_eq!(alerts.len(), 1);
        assert_eq!(alerts[0].title, "Block device /dev/vda opened for writing by /bin/bash");
        assert_eq!(alerts[0].severity, Severity::High);
    }
}
