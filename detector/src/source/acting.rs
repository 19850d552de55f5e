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

/// How long the stream may wait for digests. Those that come later are told then.
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
    /// Whose executables are being read, and whose are next.
    asked: Vec<Act>,
    next: Vec<Act>,
    told: VecDeque<(ProcessKey, Option<String>)>,
}

/// A process that acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    pub process: ProcessKey,
    /// When it first did.
    pub time: BootNs,
    /// It has executed something since: what it executes now says nothing of the act.
    pub doubtful: bool,
}

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
        Ok(Self { ask, answers, asked: Vec::new(), next: Vec::new(), told: VecDeque::new() })
    }

    /// Whether nothing is to be looked at.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.next.is_empty()
    }

    /// Takes note of who acted, and waits for what they execute, [`PATIENCE`] at most.
    pub fn look(&mut self, acts: Vec<Act>) -> Vec<ExecutedFile> {
        let mut files = Vec::new();
        let new = !acts.is_empty();
        for act in acts {
            if self.asked.iter().chain(&self.next).any(|known| known.process == act.process) {
                continue;
            }
            if self.next.len() < ACTS_MAX {
                self.next.push(act);
            } else {
                files.push(unread(&act, "too many others were to be read"));
            }
        }
        if !self.asked.is_empty()
            && let Ok(answer) = self.answers.try_recv()
        {
            files.extend(self.finish(answer));
        }
        let processes: Vec<_> = self.next.iter().map(|act| act.process).collect();
        if self.asked.is_empty() && !processes.is_empty() && self.ask.try_send(processes).is_ok() {
            self.asked = std::mem::take(&mut self.next);
            if new && let Ok(answer) = self.answers.recv_timeout(PATIENCE) {
                files.extend(self.finish(answer));
            }
        }
        files
    }

    /// Takes note of what these records say was executed.
    pub fn doubt(&mut self, raws: &[Raw]) {
        for raw in raws {
            let Some(process) = executes(raw) else { continue };
            let acts = self.asked.iter_mut().chain(&mut self.next);
            for act in acts.filter(|act| act.process == process && raw.time_ns > act.time.0) {
                act.doubtful = true;
            }
        }
    }

    /// Which of the files are worth telling, now that these records were read after them.
    pub fn settle(&mut self, files: Vec<ExecutedFile>, raws: &[Raw]) -> Vec<ExecutedFile> {
        let mut told = Vec::new();
        for mut file in files {
            let since = file.acted.unwrap_or_default();
            if raws.iter().any(|raw| raw.time_ns > since.0 && executes(raw) == Some(file.process)) {
                file.sha256 = None;
                file.unreadable = Some("it executes another program since it acted".to_owned());
            }
            if self.is_news(&file) {
                told.push(file);
            }
        }
        told
    }

    fn finish(&mut self, answer: Vec<ExecutedFile>) -> Vec<ExecutedFile> {
        let acts = std::mem::take(&mut self.asked);
        let of = |act: &Act| answer.iter().find(|file| file.process == act.process).filter(|_| !act.doubtful).cloned();
        acts.iter()
            .map(|act| {
                let file = of(act).unwrap_or_else(|| unread(act, "it executes another program since it acted"));
                ExecutedFile { acted: Some(act.time), ..file }
            })
            .collect()
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

fn unread(act: &Act, why: &str) -> ExecutedFile {
    let (process, unreadable) = (act.process, Some(why.to_owned()));
    ExecutedFile { process, sha256: None, size: 0, unreadable, acted: Some(act.time) }
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
        if touched & !watch::SANDBOX == 0 {
            continue;
        }
        let header = event.header();
        let process = ProcessKey::from_ns(header.tgid, header.start_ns);
        if !acts.iter().any(|act| act.process == process) {
            acts.push(Act { process, time: BootNs(raw.time_ns), doubtful: false });
        }
    }
    acts
}

/// The process that executes something, as this record says.
fn executes(raw: &Raw) -> Option<ProcessKey> {
    let header = decode::header(&raw.bytes).ok().filter(|header| header.kind == kind::EXEC)?;
    Some(ProcessKey::from_ns(header.tgid, header.start_ns))
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
        assert_eq!(acts(&raws), [Act { process: key(actor), time: BootNs(101 * SECOND), doubtful: false }]);
        assert_eq!(acts(&[raw(101, testing::open(actor, FILE, DIR, "/m/a.yaml"), true)]).len(), 1);
    }

    #[test]
    fn a_digest_is_not_told_of_a_process_that_executed_something_after_its_act() {
        let (actor, shell) = (Actor::host(60, 90), Actor::host(50, 10));
        let sha = |raws: &[Raw]| {
            let act = Act { process: key(actor), time: BootNs(100 * SECOND), doubtful: false };
            let file = ExecutedFile { sha256: Some("ab".repeat(32)), ..unread(&act, "") };
            // Whether the records come before the answer or after it.
            let mut acting = Acting::start().unwrap();
            acting.asked.push(act);
            acting.doubt(raws);
            let before = acting.finish(vec![file.clone()]).remove(0).sha256;
            assert_eq!(acting.settle(vec![file], raws).remove(0).sha256, before);
            before
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
        let act = |process| Act { process, time: acted, doubtful: false };
        let mut acting = Acting::start().unwrap();
        let mut seen = acting.look(vec![act(process), act(gone)]);
        // The reading may take longer than anybody waits.
        while !acting.is_idle() {
            thread::sleep(PATIENCE);
            seen.extend(acting.look(Vec::new()));
        }
        let seen = acting.settle(seen, &[]);
        let mut again = acting.look(vec![act(process)]);
        while !acting.is_idle() {
            thread::sleep(PATIENCE);
            again.extend(acting.look(Vec::new()));
        }
        let again = acting.settle(again, &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        let wanted = crate::source::sha256(&mut std::fs::File::open("/bin/sleep").unwrap(), SIZE_MAX).unwrap();
        let told: Vec<_> = seen.iter().map(|file| (file.process, file.sha256.as_ref(), file.acted)).collect();
        assert_eq!(told, [(process, Some(&wanted), Some(acted)), (gone, None, Some(acted))]);
        assert!(again.is_empty(), "{again:?}");
    }
}
