//! How far audit logs were read, kept in a file for the agent that comes after.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// What the file is called.
pub const NAME: &str = "audit.json";
/// Largest file that is read.
const SIZE_MAX: u64 = 1 << 20;
/// How much of a log before a position says that it is that log.
pub const TAIL: usize = 1024;

/// All positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    pub logs: Vec<Place>,
}

/// How far one log was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// As the node or its API server names it.
    pub path: String,
    /// Oldest first; the last one is what the path led to.
    pub files: Vec<Position>,
}

/// How far one file was read. It is known by what stands before that, since inodes are used again and copies have others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub ino: u64,
    /// Where the first line begins that was not read.
    pub offset: u64,
    /// How many lines were before; `None` where it was not read from its beginning.
    pub lines: Option<u64>,
    /// What follows is the rest of a line that was too long.
    #[serde(default)]
    pub within: bool,
    /// There was no more of it.
    #[serde(default)]
    pub ended: bool,
    /// See [`fingerprint`].
    pub tail: u64,
    /// When it was changed last, in ns since the epoch.
    pub modified: i64,
}

/// Of the last [`TAIL`] bytes before a position. Each line has an id of its own, and ends with times.
pub fn fingerprint(tail: &[u8]) -> u64 {
    XxHash3_64::oneshot(tail)
}

/// Reads them; none where there is no such file.
///
/// # Errors
/// When there is one that cannot be used.
pub fn read(dir: &Path) -> io::Result<Positions> {
    let file = match File::open(dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Positions::default()),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(SIZE_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Writes them, so that there is always one whole file.
///
/// # Errors
/// When the directory refuses.
pub fn write(dir: &Path, positions: &Positions) -> io::Result<()> {
    let new = dir.join("audit.json.new");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(positions)?)?;
    fs::rename(&new, dir.join(NAME))
}
