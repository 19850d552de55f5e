//! Hashes of what processes execute.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use crate::{
    record::{ExecutedFile, ProcessKey},
    source,
};

/// Largest executable that is read: a pause binary has less than one MiB.
pub const SIZE_MAX: u64 = 16 << 20;
/// Most hashes remembered.
const CACHE_MAX: usize = 1024;

/// A file as it was when it was read: device, inode, size, and modification time in ns.
type FileKey = (u64, u64, u64, i128);

/// Reads executables, each once.
#[derive(Debug)]
pub struct Executables {
    /// Largest that is read.
    most: u64,
    /// Most that is read in a minute, how much of that is left, and when the minute began.
    minute: u64,
    left: u64,
    began: Instant,
    hashes: BTreeMap<FileKey, String>,
    order: VecDeque<FileKey>,
}

impl Default for Executables {
    fn default() -> Self {
        Self::up_to(SIZE_MAX, u64::MAX)
    }
}

impl Executables {
    /// Reads files of at most `most` bytes, and at most `minute` bytes in a minute.
    #[must_use]
    pub fn up_to(most: u64, minute: u64) -> Self {
        Self { most, minute, left: minute, began: Instant::now(), hashes: BTreeMap::new(), order: VecDeque::new() }
    }

    /// What this very process executes, read through `/proc/<pid>/exe`.
    #[must_use]
    pub fn executed(&mut self, process: ProcessKey) -> ExecutedFile {
        let (size, result) = self.hash(process);
        let (sha256, unreadable) = match result {
            Ok(sha256) => (Some(sha256), None),
            Err(error) => (None, Some(format!("/proc/{}/exe: {error}", process.pid))),
        };
        ExecutedFile { process, sha256, size, unreadable, acted: None }
    }

    /// The size, as far as it is known (0 when it is not), and the hash.
    fn hash(&mut self, process: ProcessKey) -> (u64, io::Result<String>) {
        let opened = File::open(format!("/proc/{}/exe", process.pid)).and_then(|file| {
            // The pid may be another process's by now.
            if start(process.pid)? != process.start {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the process is gone"));
            }
            Ok((file.metadata()?, file))
        });
        let (metadata, mut file) = match opened {
            Ok(opened) => opened,
            Err(error) => return (0, Err(error)),
        };
        let size = metadata.size();
        if size > self.most {
            return (size, Err(io::Error::other(format!("larger than {} MiB", self.most >> 20))));
        }
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let key = (metadata.dev(), metadata.ino(), size, modified);
        if let Some(known) = self.hashes.get(&key) {
            return (size, Ok(known.clone()));
        }
        if self.began.elapsed() >= Duration::from_secs(60) {
            (self.left, self.began) = (self.minute, Instant::now());
        }
        let Some(left) = self.left.checked_sub(size) else {
            return (0, Err(io::Error::other("too much was read in this minute")));
        };
        self.left = left;
        // A file may grow while it is read.
        let hashed = source::sha256(&mut file, self.most);
        if let Ok(sha256) = &hashed {
            if self.order.len() >= CACHE_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.hashes.remove(&oldest);
            }
            self.order.push_back(key);
            self.hashes.insert(key, sha256.clone());
        }
        // What cannot be read is no large file.
        (if hashed.is_ok() { size } else { 0 }, hashed)
    }
}

/// Start of a process in clock ticks.
fn start(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).map_err(io::Error::other)?;
    Ok(stat.starttime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_program_is_hashed_once_and_another_process_of_its_pid_is_not() {
        let pid = std::process::id();
        let own = ProcessKey { pid, start: start(pid).unwrap() };
        let mut executables = Executables::default();
        let mut file = File::open("/bin/sleep").unwrap();
        let wanted = source::sha256(&mut file, SIZE_MAX).unwrap();
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let sleeping = ProcessKey { pid: child.id(), start: start(child.id()).unwrap() };
        // The child may not have executed yet.
        let found = (0..500)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                executables.executed(sleeping)
            })
            .find(|found| found.sha256.as_deref() == Some(&wanted));
        let other = ProcessKey { start: own.start + 1, ..own };
        let gone = executables.executed(other);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().size, std::fs::metadata("/bin/sleep").unwrap().len());
        assert_eq!((gone.sha256, gone.size), (None, 0));
        assert!(gone.unreadable.unwrap().contains("gone"));
    }
}
