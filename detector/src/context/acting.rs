//! The digests of the programs that acted on what is watched. Pure: the source that reads them says so in the stream.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::record::{BootNs, ExecutedFile, ProcessKey};

/// Most processes remembered. With more, nobody knows what the newer ones execute: whoever makes so many must not make one forgotten.
const MAX: usize = 1024;

/// By process.
#[derive(Debug, Default)]
pub struct Acting {
    files: BTreeMap<ProcessKey, File>,
}

#[derive(Debug)]
struct File {
    /// When the process first acted as this program.
    acted: BootNs,
    /// `None` when it is not known, or when the process was more than one program: then no act is certainly one's.
    sha256: Option<String>,
}

impl Acting {
    /// The source has looked.
    pub fn learn(&mut self, file: &ExecutedFile) {
        let Some(acted) = file.acted else { return };
        let full = self.files.len() >= MAX;
        match self.files.entry(file.process) {
            Entry::Occupied(mut known) if known.get().sha256 != file.sha256 => known.get_mut().sha256 = None,
            Entry::Vacant(free) if !full => {
                free.insert(File { acted, sha256: file.sha256.clone() });
            }
            Entry::Occupied(_) | Entry::Vacant(_) => {}
        }
    }

    /// All of them as the source would tell of them again, but for the files' sizes.
    pub fn iter(&self) -> impl Iterator<Item = ExecutedFile> {
        self.files.iter().map(|(process, File { acted, sha256 })| ExecutedFile {
            process: *process,
            sha256: sha256.clone(),
            size: 0,
            unreadable: None,
            acted: Some(*acted),
        })
    }

    /// A process has executed something.
    pub fn executes(&mut self, process: ProcessKey, time: BootNs) {
        if let Some(file) = self.files.get_mut(&process)
            && time > file.acted
        {
            file.sha256 = None;
        }
    }

    /// Forgets processes that are not known any more.
    pub fn forget(&mut self, is_known: impl Fn(ProcessKey) -> bool) {
        self.files.retain(|process, _| is_known(*process));
    }

    /// Lower-case hex of what a process executed when it acted at this time.
    #[must_use]
    pub fn sha256(&self, process: ProcessKey, time: BootNs) -> Option<&str> {
        self.files.get(&process).filter(|file| time >= file.acted)?.sha256.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pid: u32, sha256: Option<&str>) -> ExecutedFile {
        let process = ProcessKey { pid, start: 1 };
        ExecutedFile { process, sha256: sha256.map(str::to_owned), size: 1, unreadable: None, acted: Some(BootNs(100)) }
    }

    #[test]
    fn a_digest_is_of_acts_since_it_was_read_and_of_no_process_that_was_two_programs() {
        let mut acting = Acting::default();
        let process = ProcessKey { pid: 1, start: 1 };
        acting.learn(&file(1, Some("a")));
        acting.executes(process, BootNs(90));
        assert_eq!(acting.sha256(process, BootNs(100)), Some("a"));
        assert_eq!(acting.sha256(process, BootNs(99)), None);
        assert_eq!(acting.sha256(ProcessKey { start: 2, ..process }, BootNs(100)), None);
        // It executes a trusted program after it acted, and acts as that.
        acting.executes(process, BootNs(101));
        acting.learn(&file(1, Some("b")));
        assert_eq!(acting.sha256(process, BootNs(200)), None);
    }

    #[test]
    fn what_was_not_readable_once_is_never_known() {
        let mut acting = Acting::default();
        acting.learn(&file(1, None));
        acting.learn(&file(1, Some("b")));
        assert_eq!(acting.sha256(ProcessKey { pid: 1, start: 1 }, BootNs(100)), None);
    }

    #[test]
    fn a_flood_of_acting_processes_makes_none_forgotten() {
        let mut acting = Acting::default();
        for pid in 0..2000 {
            acting.learn(&file(pid, Some("a")));
        }
        assert_eq!(acting.files.len(), MAX);
        assert_eq!(acting.sha256(ProcessKey { pid: 0, start: 1 }, BootNs(100)), Some("a"));
        acting.forget(|process| process.pid == 0);
        assert_eq!(acting.files.len(), 1);
    }
}
