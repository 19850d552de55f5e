//! One finding as the page tells it: the alert, with what the records around it add.

use std::collections::VecDeque;

use detector_common::{COMM_LEN, Header};

use super::{
    content::{self, Content, Sides},
    text,
    time::{self, Ns},
};
use crate::{
    alert::{Alert, Evidence, Origin, Severity},
    context::Context,
    decode,
    record::{Body, BootNs, ManifestChange, ManifestFile, Record},
};

/// Most recent records of which is known who made them, and when.
const RECENT_MAX: usize = 65_536;
/// Most bytes of a pod's name in a heading; the whole stands below.
const HEADING_MAX: usize = 160;
/// Most recent changes of manifests whose text is kept, and their bytes.
const CHANGES_MAX: usize = 256;
const CHANGES_BYTES: usize = 4 << 20;

/// What of a record the page shows beside what the alert says of it.
struct Seen {
    seq: u64,
    time: BootNs,
    by: Option<Task>,
}

struct Task {
    pid: u32,
    thread: u32,
    uid: u32,
    comm: [u8; COMM_LEN],
}

/// A change of a manifest, with its text.
struct Change {
    seq: u64,
    path: String,
    sides: Sides,
}

/// The last records, so that evidence can be shown with its time and task.
#[derive(Default)]
pub struct Recent {
    seen: VecDeque<Seen>,
    changes: VecDeque<Change>,
    bytes: usize,
}

impl Recent {
    pub fn observe(&mut self, record: &Record) {
        // Numbers begin anew with each file.
        if self.seen.back().is_some_and(|last| last.seq >= record.seq) {
            self.seen.clear();
        }
        let by = match &record.body {
            Body::Kernel { raw } => decode::header(raw).ok().map(|Header { tgid, tid, uid, comm, .. }| Task {
                pid: tgid,
                thread: tid,
                uid,
                comm,
            }),
            _ => None,
        };
        if self.seen.len() >= RECENT_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { seq: record.seq, time: record.time, by });
        if let Body::Manifest(change) = &record.body {
            self.changed(record.seq, change);
        }
    }

    fn changed(&mut self, seq: u64, change: &ManifestChange) {
        let side = |file: &Option<ManifestFile>| file.as_ref().map(content::Side::new);
        let path = match change.name.as_str() {
            "" => change.dir.clone(),
            name => format!("{}/{name}", change.dir.trim_end_matches('/')),
        };
        let change = Change {
            seq,
            path: text::cut(&path, text::TEXT_MAX),
            sides: Sides { before: side(&change.before), after: side(&change.after) },
        };
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while self.changes.len() > CHANGES_MAX || self.bytes > CHANGES_BYTES {
            let Some(gone) = self.changes.pop_front() else { break };
            self.bytes -= gone.bytes();
        }
    }

    fn seen(&self, seq: u64) -> Option<&Seen> {
        let at = self.seen.binary_search_by_key(&seq, |seen| seen.seq).ok()?;
        self.seen.get(at)
    }

    /// The change that an alert is about: one of its evidence, else the last one of its file.
    fn change(&self, alert: &Alert) -> Option<&Change> {
        let named = |change: &&Change| {
            alert.evidence.iter().any(|evidence| evidence.kind == "manifest" && evidence.sequence == change.seq)
        };
        let path = alert.file.as_ref().map(|file| text::cut(&file.path, text::TEXT_MAX));
        let newest = || self.changes.iter().rev();
        newest().find(named).or_else(|| newest().find(|change| Some(&change.path) == path.as_ref()))
    }
}

impl Change {
    fn bytes(&self) -> usize {
        self.path.len() + self.sides.bytes()
    }
}

/// A record behind the finding.
pub struct Step {
    pub evidence: Evidence,
    /// `None` when the record is too long ago.
    pub at: Option<String>,
    pub by: Option<String>,
}

pub struct Finding {
    /// Which alert of the trace it is, from 1.
    pub number: u64,
    pub at: Ns,
    pub alert: Alert,
    pub steps: Vec<Step>,
    sides: Option<Sides>,
}

impl Finding {
    pub fn new(number: u64, alert: &Alert, recent: &Recent, record: &Record, context: &Context) -> Self {
        let mut alert = text::bounded(alert);
        let sides = recent.change(&alert).map(|change| change.sides.clone());
        let steps = std::mem::take(&mut alert.evidence)
            .into_iter()
            .map(|evidence| {
                let seen = recent.seen(evidence.sequence);
                Step {
                    at: seen.map(|seen| time::utc(time::of(seen.time, context))),
                    by: seen.and_then(|seen| seen.by.as_ref()).map(Task::shown),
                    evidence,
                }
            })
            .collect();
        let at = time::parse(&alert.time).unwrap_or_else(|| time::of(record.time, context));
        Self { number, at, alert, steps, sides }
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let alert = serde_json::to_vec(&self.alert).map_or(0, |json| json.len());
        let steps: usize = self.steps.iter().map(|step| size_of::<Step>() + step.evidence.detail.len() + 64).sum();
        size_of::<Self>() + alert + steps + self.sides.as_ref().map_or(0, Sides::bytes)
    }

    /// The manifest's text, or what changed in it.
    pub fn content(&self) -> Option<Content> {
        self.sides.as_ref().map(Sides::content)
    }

    pub fn severity(&self) -> &'static str {
        word(self.alert.severity)
    }

    /// `2026-01-01 00:01:40.004`.
    pub fn when(&self) -> String {
        time::utc(self.at)
    }

    /// Where the acting process lives, in words.
    pub fn origin(&self) -> &'static str {
        match self.alert.origin {
            Origin::Host => "the host",
            Origin::Container => "a container",
            Origin::Unknown if self.alert.process.is_some() => {
                "not known: neither the host's namespaces nor a container's cgroup"
            }
            Origin::Unknown => "not known: no hook saw an act",
        }
    }

    /// Whose it is, in a few words for the heading.
    pub fn whose(&self) -> String {
        let Alert { pod, container, process, .. } = &self.alert;
        match (pod, container, process) {
            (Some(pod), _, _) => text::cut(&format!("pod {}/{}", pod.namespace, pod.name), HEADING_MAX),
            (None, Some(container), _) => format!("container {}", container.id.chars().take(12).collect::<String>()),
            (None, None, Some(_)) => format!("from {}", self.origin().split(':').next().unwrap_or_default()),
            (None, None, None) => String::new(),
        }
    }

    /// What the manifest asks for beyond an ordinary pod.
    pub fn asks(&self) -> Vec<String> {
        let Some(manifest) = &self.alert.manifest else { return Vec::new() };
        let flags =
            [(manifest.host_network, "hostNetwork"), (manifest.host_pid, "hostPID"), (manifest.host_ipc, "hostIPC")];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned());
        let privileged = manifest.privileged.iter().map(|name| format!("privileged: {name}"));
        let paths = manifest.host_paths.iter().map(|path| format!("hostPath {path}"));
        let capabilities = manifest.capabilities.iter().map(|name| format!("capability {name}"));
        privileged.chain(flags).chain(paths).chain(capabilities).collect()
    }
}

impl Task {
    fn shown(&self) -> String {
        let end = self.comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
        let comm = String::from_utf8_lossy(&self.comm[..end]);
        let thread = if self.thread == self.pid { String::new() } else { format!(" thread {}", self.thread) };
        format!("{comm} pid {}{thread} uid {}", self.pid, self.uid)
    }
}

pub fn word(severity: Severity) -> &'static str {
    severity.word()
}
