//! What processes execute that act on what is watched: their executables' digests, read while they live.
//!
//! In a thread of its own, since an executable may lie on a file system that is slow, or never answers. A digest is told only of a
//! process of which it is certain that it executed nothing else between the act and the reading.

use std::{
    collections::VecDeque,
    io,
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
    time::Duration,
};

use detector_common::{kind, watch};

use crate::{
    confine,
    decode::{self, Event},
    record::{BootNs, ExecutedFile, ProcessKey},
    source::{images::executed::Executables, kernel::Raw},
};

/// How long the stream may wait for digests.
const PATIENCE: Duration = Duration::from_millis(50);
/// Largest executable that is read: kubelets and k3s have about 100 MiB.
const SIZE_MAX: u64 = 128 << 20;
/// Most that is read in a minute, in bytes: whoever makes many programs act must not keep a processor busy.
const MINUTE_MAX: u64 = 1 << 30;
/// Most processes that are looked at together.
const ACTS_MAX: usize = 64;
/// Most processes whose digest is remembered as told.
const TOLD_MAX: usize = 256;

/// Looks at them.
#[derive(Debug)]
pub struct Acting {
    ask: SyncSender<Vec<ProcessKey>>,
    answers: Receiver<Vec<ExecutedFile>>,
    /// An answer is still to come, and nobody waits for it any more.
    busy: bool,
    told: VecDeque<(ProcessKey, Option<String>)>,
}

/// A process, and when it first acted.
pub type Act = (ProcessKey, BootNs);

impl Acting {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (ask, asked) = mpsc::sync_channel::<Vec<ProcessKey>>(1);
        let (answer, answers) = mpsc::sync_channel(1);
        thread::Builder::new().name("acting".to_owned()).spawn(move || {
            confine::visitor();
            let mut executables = Executables::up_to(SIZE_MAX, MINUTE_MAX);
            for processes in asked {
                let files = processes.into_iter().map(|process| executables.executed(process)).collect();
                if answer.send(files).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { ask, answers, busy: false, told: VecDeque::new() })
    }

    /// What the processes execute now, where that is not what was told of them before. Takes at most [`PATIENCE`].
    pub fn look(&mut self, acts: &[Act]) -> Vec<ExecutedFile> {
        if self.busy && self.answers.try_recv().is_ok() {
            self.busy = false;
        }
        let wanted: Vec<_> = acts.iter().map(|(process, _)| *process).collect();
        let mut files = Vec::new();
        if !self.busy && self.ask.try_send(wanted).is_ok() {
            match self.answers.recv_timeout(PATIENCE) {
                Ok(answer) => files = answer,
                Err(_) => self.busy = true,
            }
        }
        let late = |process: ProcessKey| ExecutedFile {
            process,
            sha256: None,
            size: 0,
            unreadable: Some("it was not read in time".to_owned()),
            acted: None,
        };
        let found = acts.iter().map(|(process, acted)| {
            let file = files.iter().find(|file| file.process == *process).cloned().unwrap_or_else(|| late(*process));
            ExecutedFile { acted: Some(*acted), ..file }
        });
        found.collect::<Vec<_>>().into_iter().filter(|file| self.is_news(file)).collect()
    }

    fn is_news(&mut self, file: &ExecutedFile) -> bool {
        if let Some((_, told)) = self.told.iter_mut().find(|(process, _)| *process == file.process) {
            return std::mem::replace(told, file.sha256.clone()) != file.sha256;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back((file.process, file.sha256.clone()));
        true
    }
}

/// Who acts on what is watched in these records, and when first.
#[must_use]
pub fn acts(raws: &[Raw]) -> Vec<Act> {
    let mut acts: Vec<Act> = Vec::new();
    for raw in raws.iter().filter(|raw| raw.alerting) {
        let Ok(event) = decode::event(&raw.bytes) else { continue };
        let touched = match &event {
            Event::Open(open) | Event::Write(open) | Event::Map(open) => open.event.watch,
            Event::Entry(entry) => entry.watch,
            // Every rename of the node comes where the kernel tells of no inode changes: those that touched nothing watched do not count.
            Event::Path(call) => call.event.watch,
            Event::Change(change) => change.watch,
            Event::Ptrace(_) => watch::FILE,
            _ => 0,
        };
        if touched & !watch::SANDBOX == 0 || acts.len() >= ACTS_MAX {
            continue;
        }
        let header = event.header();
        let process = ProcessKey::from_ns(header.tgid, header.start_ns);
        if !acts.iter().any(|(known, _)| *known == process) {
            acts.push((process, BootNs(raw.time_ns)));
        }
    }
    acts
}

/// Takes back what cannot be told: in these records, read after the file was, its process has executed something since it acted.
pub fn doubt(file: &mut ExecutedFile, raws: &[Raw]) {
    let since = file.acted.unwrap_or_default();
    let executed = raws.iter().any(|raw| {
        decode::header(&raw.bytes).is_ok_and(|header| {
            header.kind == kind::EXEC
                && raw.time_ns > since.0
                && ProcessKey::from_ns(header.tgid, header.start_ns) == file.process
        })
    });
    if executed {
        file.sha256 = None;
        file.unreadable = Some("it executes another program since it acted".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Actor, DIR, FILE, SECOND};

    fn raw(time: u64, bytes: bytes::Bytes, alerting: bool) -> Raw {
        Raw { time_ns: time * SECOND, bytes, alerting }
    }

    fn key(actor: Actor) -> ProcessKey {
        ProcessKey::from_ns(actor.pid, actor.start * SECOND)
    }

    #[test]
    fn who_acts_on_what_is_watched_is_looked_at_once_and_others_are_not() {
        let (actor, other) = (Actor::host(60, 90), Actor::host(61, 91));
        let raws = [
            raw(100, testing::fork(other, actor), false),
            raw(101, testing::change(actor, FILE, 1), true),
            raw(102, testing::change(actor, FILE, 1), true),
            raw(103, testing::rename(other, None, "/a", "/b"), true),
        ];
        assert_eq!(acts(&raws), [(key(actor), BootNs(101 * SECOND))]);
        assert_eq!(acts(&[raw(101, testing::open(actor, FILE, DIR, "/m/a.yaml"), true)]).len(), 1);
    }

    #[test]
    fn a_digest_is_not_told_of_a_process_that_executed_something_after_its_act() {
        let (actor, shell) = (Actor::host(60, 90), Actor::host(50, 10));
        let file = ExecutedFile {
            process: key(actor),
            sha256: Some("ab".repeat(32)),
            size: 1,
            unreadable: None,
            acted: Some(BootNs(100 * SECOND)),
        };
        let sha = |raws: &[Raw]| {
            let mut file = file.clone();
            doubt(&mut file, raws);
            file.sha256
        };
        let exec = |time, who| raw(time, testing::exec(who, shell, "/bin/x", &["x"]), false);
        assert!(sha(&[exec(99, actor), exec(101, shell)]).is_some());
        assert_eq!(sha(&[exec(101, actor)]), None);
    }

    #[test]
    fn a_living_process_is_told_of_once_and_one_that_is_gone_without_a_digest() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = crate::source::proc::seed().unwrap().processes;
        let process = process.iter().find(|process| process.pid == child.id()).unwrap();
        let process = ProcessKey { pid: process.pid, start: process.start };
        let gone = ProcessKey { start: process.start + 1, ..process };
        let acted = BootNs(7);
        let mut acting = Acting::start().unwrap();
        // The first reading may take longer than anybody waits.
        let mut seen = Vec::new();
        for _ in 0..100 {
            seen.extend(acting.look(&[(process, acted), (gone, acted)]));
            if seen.iter().any(|file| file.sha256.is_some()) {
                break;
            }
            thread::sleep(PATIENCE);
        }
        let again = acting.look(&[(process, acted)]);
        child.kill().unwrap();
        child.wait().unwrap();
        let wanted = crate::source::sha256(&mut std::fs::File::open("/bin/sleep").unwrap(), SIZE_MAX).unwrap();
        let told: Vec<_> = seen.iter().filter(|file| file.process == process).collect();
        assert_eq!(told.last().unwrap().sha256.as_ref(), Some(&wanted));
        assert!(
            seen.iter().all(|file| file.acted == Some(acted) && (file.process == process || file.sha256.is_none()))
        );
        assert!(again.is_empty(), "{again:?}");
    }
}
