//! Programs that may change manifests under `--deny`: which inodes they are, looked at again and again.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{
    record::InodeKey,
    source::{
        self,
        root::{self, Root},
    },
};

/// Largest program that is read.
const SIZE_MAX: u64 = 1 << 30;

/// A program that may change manifests under `--deny`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub path: PathBuf,
    /// Lower-case hex of its SHA-256; `None` trusts what lies there at the start.
    pub sha256: Option<String>,
}

/// A program is not what the user means.
#[derive(Debug, thiserror::Error)]
#[error("--trust {}: {why}", path.display())]
pub struct TrustError {
    path: PathBuf,
    why: String,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Trusted(Vec<Program>);

#[derive(Debug)]
struct Program {
    path: PathBuf,
    /// What it has to have.
    sha256: String,
    /// As it was when it was read last; `None` when it could not be.
    seen: Option<Seen>,
    /// It is what it has to be.
    good: bool,
}

/// A file, and what changes with its content: the times of its last change, in seconds and ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: InodeKey,
    size: i64,
    times: [(i64, i64); 2],
}

impl Trusted {
    /// Reads the programs.
    ///
    /// # Errors
    /// When one cannot be read, or is not the one that the user means.
    pub fn new(programs: &[Trust]) -> Result<Self, TrustError> {
        let read = |program: &Trust| {
            let error = |why| TrustError { path: program.path.clone(), why };
            let path = std::path::absolute(&program.path).map_err(|e| error(e.to_string()))?;
            let (seen, found) = read(&path).map_err(|e| error(e.to_string()))?;
            let wanted = program.sha256.as_ref().map(|wanted| wanted.to_ascii_lowercase());
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                return Err(error(format!("its SHA-256 is {found}, not {wanted}")));
            }
            Ok(Program { path, sha256: found, seen: Some(seen), good: true })
        };
        programs.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Those that are what they have to be.
    pub fn inodes(&self) -> impl Iterator<Item = InodeKey> {
        self.0.iter().filter(|program| program.good).filter_map(|program| Some(program.seen?.inode))
    }

    /// Looks whether they still are. True when [`Self::inodes`] are others now; what the user should know goes into `warnings`.
    pub fn look(&mut self, warnings: &mut Vec<String>) -> bool {
        let mut changed = false;
        for program in &mut self.0 {
            let now = find(&program.path).ok().map(|(_, seen)| seen);
            if now == program.seen {
                continue;
            }
            let (before, was_good) = (program.seen, program.good);
            let found = match now.map(|_| read(&program.path)) {
                Some(Ok((seen, sha256))) => {
                    program.seen = Some(seen);
                    program.good = sha256 == program.sha256;
                    format!("its SHA-256 is {sha256} now")
                }
                Some(Err(error)) => {
                    (program.seen, program.good) = (now, false);
                    error.to_string()
                }
                None => {
                    (program.seen, program.good) = (None, false);
                    "it is gone".to_owned()
                }
            };
            let inode = |seen: Option<Seen>| seen.map(|seen| seen.inode);
            changed |= program.good != was_good || (program.good && inode(before) != inode(program.seen));
            let path = program.path.display();
            match (was_good, program.good) {
                (true, false) => warnings.push(format!("{path} is not trusted any more: {found}")),
                (false, true) => warnings.push(format!("{path} is trusted again")),
                _ => {}
            }
        }
        changed
    }
}

fn read(path: &Path) -> io::Result<(Seen, String)> {
    let (fd, seen) = find(path)?;
    Ok((seen, source::sha256(&mut root::reopen(&fd)?, SIZE_MAX)?))
}

fn find(path: &Path) -> io::Result<(OwnedFd, Seen)> {
    let root = Root::open(Path::new("/"), PathBuf::from("/proc/self/mountinfo"))?;
    let (fd, stat) = root.walk(path).target?;
    let seen = seen(root.inode(&fd, &stat), &stat);
    Ok((fd, seen))
}

fn seen(inode: InodeKey, stat: &nix::sys::stat::FileStat) -> Seen {
    Seen {
        inode,
        size: stat.st_size,
        times: [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)],
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_program_that_is_replaced_is_not_trusted_and_the_same_one_again_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, "good").unwrap();
        let mut trusted = Trusted::new(&[Trust { path: path.clone(), sha256: None }]).unwrap();
        let first: Vec<_> = trusted.inodes().collect();
        let mut warnings = Vec::new();
        assert!(!trusted.look(&mut warnings));
        // Another file in its place; the first one's number is not free.
        fs::hard_link(&path, dir.path().join("kept")).unwrap();
        fs::write(dir.path().join("other"), "evil").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(trusted.look(&mut warnings));
        assert_eq!(trusted.inodes().count(), 0);
        assert!(!trusted.look(&mut warnings));
        fs::remove_file(&path).unwrap();
        assert!(!trusted.look(&mut warnings));
        // The same program in another file, as after a reinstallation.
        fs::write(dir.path().join("again"), "good").unwrap();
        fs::rename(dir.path().join("again"), &path).unwrap();
        assert!(trusted.look(&mut warnings));
        assert_eq!(trusted.inodes().count(), 1);
        assert_ne!(trusted.inodes().collect::<Vec<_>>(), first);
        // The file itself written to.
        fs::write(&path, "worse").unwrap();
        assert!(trusted.look(&mut warnings));
        assert_eq!(trusted.inodes().count(), 0);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    }

    #[test]
    fn another_program_than_the_user_means_is_an_error_that_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, "good").unwrap();
        let error = Trusted::new(&[Trust { path: path.clone(), sha256: Some("00".repeat(32)) }]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("its SHA-256 is 770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"),
            "{error}"
        );
        assert!(Trusted::new(&[Trust { path: dir.path().join("none"), sha256: None }]).is_err());
    }
}
