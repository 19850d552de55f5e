//! One audit log: the file that a path leads to, and those that it led to before.
//!
//! A file is read to its end before it is let go, whatever it is called by then. What was renamed, copied or begun anew is told apart
//! by what was read of it last.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::stat::SFlag;

use super::{
    file::{Line, Open, Read, modified},
    position::{Place, Position},
};
use crate::{
    record::LogState,
    source::root::{self, Root},
};

/// How long a file that the path does not lead to any more may stay as it is before it is let go.
const LINGER: Duration = Duration::from_secs(10);
/// How long nothing may stand at the path until that is said: between the two steps of a rotation nothing does.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// Most files of one log that are open at once, most entries of its directory that are looked at, and most rotated files.
const OPEN_MAX: usize = 64;
const ENTRIES_MAX: usize = 65_536;
const ROTATED_MAX: usize = 256;
/// Most files remembered that were read to their end.
const DONE_MAX: usize = 256;

/// A log that is followed.
pub struct Log {
    /// `/`, or `/proc/<pid>/root`.
    pub root: PathBuf,
    /// As the node or its API server names it.
    pub path: PathBuf,
    /// How far an agent before read it; empty once that was used.
    known: Vec<Position>,
    /// Oldest first; the last one is what the path leads to, or led to.
    files: VecDeque<Open>,
    /// Inode and time of the last change of those that were read.
    done: VecDeque<(u64, i64)>,
    /// It was looked at before.
    looked: bool,
    missing: Option<Instant>,
    gone: bool,
    /// What is to be said of it.
    said: Vec<LogState>,
    /// Why it could not be looked at, and why not read, when that was said last.
    trouble: [Option<String>; 2],
}

/// Indices of `trouble`.
const LOOK: usize = 0;
const READ: usize = 1;

/// The log, or a file beside it.
struct Sibling {
    name: String,
    file: File,
    metadata: Metadata,
}

/// When a rotated file was changed last, and within one tick of the clock which it is: by how many rotations ago it was (`audit.log.1`),
/// else by the time in its name.
type Age = (i64, Reverse<u64>, String);

impl Sibling {
    fn inode(&self) -> (u64, u64) {
        (self.metadata.dev(), self.metadata.ino())
    }

    fn age(&self) -> Age {
        let ago = self.name.rsplit_once('.').and_then(|(_, ago)| ago.parse().ok()).unwrap_or(0);
        (modified(&self.metadata), Reverse(ago), self.name.clone())
    }
}

impl Log {
    #[must_use]
    pub fn new(root: PathBuf, path: PathBuf, known: Vec<Position>) -> Self {
        Self {
            root,
            path,
            known,
            files: VecDeque::new(),
            done: VecDeque::new(),
            looked: false,
            missing: None,
            gone: false,
            said: Vec::new(),
            trouble: [None, None],
        }
    }

    /// What became of it since the last call.
    pub fn said(&mut self) -> Vec<LogState> {
        std::mem::take(&mut self.said)
    }

    /// The file that the path leads to, or led to.
    #[must_use]
    pub fn inode(&self) -> Option<(u64, u64)> {
        self.files.back().map(|file| (file.dev, file.ino))
    }

    /// How far it was read; `None` while it was not.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let files: Vec<_> = self.files.iter().map(Open::position).chain(self.known.iter().cloned()).collect();
        (!files.is_empty()).then(|| Place { path: self.path.display().to_string(), files })
    }

    /// Looks what the path leads to. A file that is there when it is looked at for the first time, and that no agent before knew, is read
    /// from its end, or, with `whole`, from its beginning.
    pub fn look(&mut self, whole: bool) {
        match self.look_now(whole) {
            Ok(()) => self.trouble[LOOK] = None,
            Err(error) => self.fails(LOOK, &error),
        }
    }

    fn look_now(&mut self, whole: bool) -> io::Result<()> {
        // The process through which it is seen has ended: what is open stays so, and the next one shows where the path leads.
        let Ok(root) = self.opened_root() else { return Ok(()) };
        let current = open(&root, &self.path)?;
        let first = !std::mem::replace(&mut self.looked, true);
        let Some(current) = current else {
            self.is_missing(first);
            return Ok(());
        };
        if !self.known.is_empty() {
            let known = self.known.clone();
            let resumed = self.resume(current, &known);
            match resumed {
                Ok(()) => self.known.clear(),
                Err(_) => self.files.clear(),
            }
            return resumed;
        }
        self.missing = None;
        let gone = std::mem::take(&mut self.gone);
        if self.files.is_empty() {
            let open = if first && !whole { Open::at_end(current.file)? } else { Open::at_start(current.file)? };
            self.said.push(LogState::Begun { at: open.offset() });
            self.files.push_back(open);
            return Ok(());
        }
        if let Some(at) = self.files.iter().position(|file| (file.dev, file.ino) == current.inode()) {
            // Mostly the last one, and it stays where it is.
            self.files.make_contiguous()[at..].rotate_left(1);
            return Ok(());
        }
        let Some(last) = self.files.back() else { return Ok(()) };
        let siblings = self.siblings()?;
        let kept = siblings.iter().find(|sibling| sibling.inode() == (last.dev, last.ino));
        let since = kept.map_or_else(|| (last.modified(), Reverse(u64::MAX), String::new()), Sibling::age);
        if !gone && kept.is_none() && !self.is_compressed(last.modified()) {
            self.said.push(LogState::Replaced { had: last.offset() });
        }
        // Of rotations that followed one another fast, those in between were not seen.
        self.chain(self.files.len(), siblings, &since)?;
        self.files.push_back(Open::at_start(current.file)?);
        self.bound();
        Ok(())
    }

    /// Reads on, oldest file first.
    pub fn read(&mut self, budget: &mut usize, mut each: impl FnMut(Line<'_>)) -> bool {
        match self.read_now(budget, &mut each) {
            Ok(more) => {
                self.trouble[READ] = None;
                more
            }
            Err(error) => {
                self.fails(READ, &error);
                false
            }
        }
    }

    fn read_now(&mut self, budget: &mut usize, each: &mut impl FnMut(Line<'_>)) -> io::Result<bool> {
        let mut at = 0;
        // Which of them is the last one.
        let mut last = self.files.len().saturating_sub(1);
        while let Some(file) = self.files.get_mut(at) {
            match file.read(budget, &mut *each)? {
                Read::More => return Ok(true),
                Read::All => {
                    if at < last && file.grew.elapsed() > LINGER {
                        last -= 1;
                        file.give_up(&mut *each);
                        let (ino, modified) = (file.ino, file.modified());
                        self.is_done(ino, modified);
                        self.files.remove(at);
                    } else {
                        at += 1;
                    }
                }
                Read::Rewritten { had, has } => {
                    self.rewritten(at, had, has)?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A file was emptied and begun anew. Where that was after it was copied, what was not read yet is in the copy.
    fn rewritten(&mut self, at: usize, had: u64, has: u64) -> io::Result<()> {
        let siblings = self.siblings()?;
        let Some(file) = self.files.get_mut(at) else { return Ok(()) };
        let position = file.position();
        file.restart();
        let mut copy = None;
        for sibling in siblings.iter().filter(|sibling| position.offset > 0 && sibling.metadata.ino() != position.ino) {
            if let Some(open) = Open::resume(sibling.file.try_clone()?, &position)? {
                copy = Some((open, sibling.age()));
                break;
            }
        }
        match copy {
            Some((copy, since)) => {
                self.files.insert(at, copy);
                // It may have been copied more than once since then.
                self.chain(at + 1, siblings, &since)?;
            }
            None => self.said.push(LogState::Truncated { had, has }),
        }
        Ok(())
    }

    /// Goes on where an agent before left off.
    fn resume(&mut self, current: Sibling, known: &[Position]) -> io::Result<()> {
        let mut candidates = self.siblings()?;
        let current_is = current.inode();
        candidates.push(current);
        // What the last one that was found is: what came behind it was not read.
        let mut newest = None;
        let mut lost = false;
        for (at, position) in known.iter().enumerate() {
            // The file itself, else one that holds the same: a copy.
            candidates.sort_by_key(|candidate| (candidate.metadata.ino() != position.ino, candidate.age()));
            let mut found = None;
            for (at, candidate) in candidates.iter().enumerate() {
                let is_it = candidate.metadata.ino() == position.ino;
                if (is_it || position.offset > 0)
                    && let Some(open) = Open::resume(candidate.file.try_clone()?, position)?
                {
                    found = Some((at, open));
                    break;
                }
            }
            match found {
                Some((at, open)) => {
                    let found = candidates.remove(at);
                    newest = Some((found.inode(), found.age()));
                    self.files.push_back(open);
                }
                // Of one that was rotated and read to its end nothing is missing.
                None => lost |= at + 1 == known.len() || !position.ended,
            }
        }
        let begins = self.files.front().map(Open::offset);
        let (current, siblings): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| candidate.inode() == current_is);
        match newest {
            // Nothing is behind what the path leads to.
            Some((inode, _)) if inode == current_is => {}
            Some((_, since)) => self.chain(self.files.len(), siblings, &since)?,
            // Nothing of what was known is there: what was changed since then is new.
            None => {
                let since = known.iter().map(|position| position.modified).max().unwrap_or(i64::MAX);
                self.chain(0, siblings, &(since, Reverse(0), String::from(char::MAX)))?;
            }
        }
        for Sibling { file, .. } in current {
            self.files.push_back(Open::at_start(file)?);
        }
        self.bound();
        if lost {
            self.said.push(LogState::Lost);
        }
        match begins {
            Some(at) => self.said.push(LogState::Resumed { files: self.files.len() as u64, at }),
            None => self.said.push(LogState::Begun { at: 0 }),
        }
        Ok(())
    }

    /// Opens the rotated files that are younger than that and not known, oldest first, and puts them before the file at `at`.
    fn chain(&mut self, at: usize, mut siblings: Vec<Sibling>, since: &Age) -> io::Result<()> {
        siblings.retain(|sibling| {
            let (dev, ino) = sibling.inode();
            sibling.age() > *since
                && !self.files.iter().any(|file| (file.dev, file.ino) == (dev, ino))
                && !self.done.contains(&(ino, modified(&sibling.metadata)))
        });
        siblings.sort_by_key(Sibling::age);
        for (behind, Sibling { file, .. }) in siblings.into_iter().enumerate() {
            self.files.insert(at + behind, Open::at_start(file)?);
        }
        Ok(())
    }

    /// Of more files than that the oldest are let go.
    fn bound(&mut self) {
        while self.files.len() > OPEN_MAX {
            self.files.pop_front();
            self.said.push(LogState::Lost);
        }
    }

    fn is_done(&mut self, ino: u64, modified: i64) {
        if self.done.len() >= DONE_MAX {
            self.done.pop_front();
        }
        self.done.push_back((ino, modified));
    }

    fn is_missing(&mut self, first: bool) {
        if first {
            self.said.push(LogState::Awaited);
        }
        let since = self.missing.get_or_insert_with(Instant::now);
        let Some(last) = self.files.back() else { return };
        if since.elapsed() > GONE_AFTER && !std::mem::replace(&mut self.gone, true) {
            self.said.push(LogState::Removed { had: last.offset() });
        }
    }

    fn fails(&mut self, doing: usize, error: &io::Error) {
        let why = error.to_string();
        if self.trouble[doing].as_ref() != Some(&why) {
            self.said.push(LogState::Unreadable(why.clone()));
            self.trouble[doing] = Some(why);
        }
    }

    fn opened_root(&self) -> io::Result<Root> {
        Ok(Root::open(&self.root, PathBuf::from("/proc/self/mountinfo"))?)
    }

    /// The files that rotation left beside it.
    fn siblings(&self) -> io::Result<Vec<Sibling>> {
        let root = self.opened_root()?;
        let names = self.names(&root)?;
        let mut found = Vec::new();
        for name in names.iter().filter(|name| !is_packed(name)) {
            if let Ok(Some(sibling)) = open(&root, &self.path.with_file_name(name)) {
                found.push(sibling);
            }
        }
        Ok(found)
    }

    /// Whether a file beside it was packed since then.
    fn is_compressed(&self, since: i64) -> bool {
        let names = self.opened_root().and_then(|root| Ok((self.names(&root)?, root)));
        names.is_ok_and(|(names, root)| {
            names.iter().filter(|name| is_packed(name)).any(|name| {
                open(&root, &self.path.with_file_name(name))
                    .is_ok_and(|found| found.is_some_and(|found| modified(&found.metadata) >= since))
            })
        })
    }

    /// What rotated files of it are called.
    fn names(&self, root: &Root) -> io::Result<Vec<String>> {
        let (Some(dir), Some(own)) = (self.path.parent(), self.path.file_name().and_then(|name| name.to_str())) else {
            return Err(io::Error::other("the path names no file, or is no UTF-8"));
        };
        let stem = own.rsplit_once('.').map_or(own, |(stem, _)| stem);
        let dir = root.find(dir)?;
        let names = fs::read_dir(root::listable(&dir))?
            .take(ENTRIES_MAX)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // `audit-2026-11-25T10-00-00.000.log` (kube-apiserver), `audit.log.1` and `audit.log-20261125` (logrotate).
        let is_rotated = |name: &String| {
            let rest = name.strip_prefix(own).or_else(|| name.strip_prefix(stem));
            name != own
                && rest.is_some_and(|rest| rest.starts_with(['-', '.']) && rest.contains(|c: char| c.is_ascii_digit()))
        };
        let mut names: Vec<_> = names.filter(is_rotated).collect();
        // Where times stand in them, the youngest.
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.truncate(ROTATED_MAX);
        Ok(names)
    }
}

/// A regular file, for reading.
fn open(root: &Root, path: &Path) -> io::Result<Option<Sibling>> {
    let fd = match root.find(path) {
        Ok(fd) => fd,
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let kind = root::file_type(&nix::sys::stat::fstat(&fd)?);
    if kind != SFlag::S_IFREG {
        return Err(io::Error::other(format!("it is {}; expected a regular file", root::type_name(kind))));
    }
    let file = root::reopen(&fd)?;
    let metadata = file.metadata()?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Some(Sibling { name, file, metadata }))
}

fn is_packed(name: &str) -> bool {
    [".gz", ".xz", ".zst", ".bz2"].iter().any(|end| name.ends_with(end))
}
