//! A directory of segments: which is the next, when it is over, and which have to go.
//!
//! Segments are called after the time at which they began, so that their names are in order. One in which something was
//! found, and the one before it when that was just over, gets a second name below `evidence/`: it stays when the first one goes.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

/// What a segment's file is called behind its time.
const EXTENSION: &str = "trace";
/// Where segments in which something was found are.
const EVIDENCE: &str = "evidence";
/// Segments that the directory holds when all are full: how fine what is dropped is.
const SEGMENTS: u64 = 16;
/// Sizes of a segment.
const SEGMENT_MIN: u64 = 1 << 20;
const SEGMENT_MAX: u64 = 64 << 20;
/// How long a segment lasts.
const LASTS: Duration = Duration::from_secs(600);
/// What a finding needs of what came before it.
const BEFORE: Duration = Duration::from_secs(60);

/// What a directory of segments may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes, evidence included.
    pub size: u64,
    /// How long segments without a finding are kept.
    pub age: Duration,
    /// Percent of the file system that stay free whatever the others say.
    pub free: u8,
}

/// The directory.
pub struct Segments {
    dir: PathBuf,
    limits: Limits,
    /// The segment that is being written, and since when.
    current: Option<(PathBuf, Instant)>,
    /// The one before.
    previous: Option<PathBuf>,
    /// Something was found in the current one.
    kept: bool,
    /// How many others there were at the last look, and their bytes.
    pub(super) held: Cell<(u64, u64)>,
}

/// A segment that lies in the directory.
struct Segment {
    paths: Vec<PathBuf>,
    bytes: u64,
    modified: SystemTime,
    evidence: bool,
}

impl Segments {
    /// Makes the directory where it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: PathBuf, limits: Limits) -> io::Result<Self> {
        let evidence = dir.join(EVIDENCE);
        fs::create_dir_all(&evidence)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", evidence.display())))?;
        Ok(Self { dir, limits, current: None, previous: None, kept: false, held: Cell::default() })
    }

    /// Path of the next segment, from now on the current one.
    ///
    /// # Errors
    /// When there is no room for it, in words.
    pub fn begin(&mut self) -> Result<PathBuf, String> {
        self.previous = self.current.take().map(|(path, _)| path);
        self.kept = false;
        self.look_after()?;
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ");
        let path = self.dir.join(format!("{now}.{EXTENSION}"));
        self.current = Some((path.clone(), Instant::now()));
        Ok(path)
    }

    /// Whether the current segment, of this size, has to be followed by another.
    #[must_use]
    pub fn is_over(&self, size: u64) -> bool {
        let full = (self.limits.size / SEGMENTS).clamp(SEGMENT_MIN, SEGMENT_MAX);
        size >= full || self.current.as_ref().is_none_or(|(_, since)| since.elapsed() >= LASTS)
    }

    /// Something was found: the current segment is evidence, and the one before too when it is just over.
    pub fn keep(&mut self) {
        let Some((current, since)) = self.current.as_ref().filter(|_| !self.kept) else { return };
        let previous = self.previous.as_ref().filter(|_| since.elapsed() < BEFORE);
        for path in previous.into_iter().chain([current]) {
            if let Some(name) = path.file_name() {
                match fs::hard_link(path, self.dir.join(EVIDENCE).join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        eprintln!("degraded: recording: {} cannot be kept as evidence: {error}", path.display());
                    }
                    _ => {}
                }
            }
        }
        self.kept = true;
    }

    /// Removes what is too old and too much: the oldest first, evidence last.
    ///
    /// # Errors
    /// When there is still too little room on the file system, in words.
    pub fn look_after(&self) -> Result<(), String> {
        let mut segments = self.list();
        let now = SystemTime::now();
        let mut total: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let mut count = segments.len() as u64;
        self.held.set((count, total));
        segments.sort_by_key(|segment| (segment.evidence, segment.paths.first().cloned()));
        for segment in &segments {
            let age = now.duration_since(segment.modified).unwrap_or_default();
            let old = !segment.evidence && age > self.limits.age;
            if !old && total <= self.limits.size && self.has_room()? {
                if segment.evidence {
                    break;
                }
                continue;
            }
            for path in &segment.paths {
                fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            total -= segment.bytes;
            count -= 1;
            self.held.set((count, total));
        }
        if self.has_room()? {
            return Ok(());
        }
        Err(format!("{}: less than {} % of the file system are free", self.dir.display(), self.limits.free))
    }

    fn has_room(&self) -> Result<bool, String> {
        let found =
            nix::sys::statvfs::statvfs(&self.dir).map_err(|error| format!("{}: {error}", self.dir.display()))?;
        Ok(found.blocks_available() * 100 >= found.blocks() * u64::from(self.limits.free))
    }

    /// All segments but the one that is being written.
    fn list(&self) -> Vec<Segment> {
        let mut found: BTreeMap<u64, Segment> = BTreeMap::new();
        for (dir, evidence) in [(self.dir.clone(), false), (self.dir.join(EVIDENCE), true)] {
            for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
                let path = entry.path();
                let is_current =
                    self.current.as_ref().is_some_and(|(current, _)| current.file_name() == path.file_name());
                if is_current || !is_segment(&path) {
                    continue;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                let segment = found.entry(metadata.ino()).or_insert_with(|| Segment {
                    paths: Vec::new(),
                    bytes: metadata.len(),
                    modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    evidence: false,
                });
                segment.paths.push(path);
                segment.evidence |= evidence;
            }
        }
        found.into_values().collect()
    }
}

/// Whether a file is one of ours: nothing else in the directory is ever touched.
fn is_segment(path: &Path) -> bool {
    let time = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let fits = |c: char| c.is_ascii_digit() || matches!(c, 'T' | 'Z' | '.');
    path.extension().is_some_and(|extension| extension == EXTENSION)
        && time.len() == "20260102T030405.678901Z".len()
        && time.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Limits = Limits { size: 1 << 30, age: Duration::from_secs(3600), free: 0 };

    /// A directory with the segments of these hours, a KiB each; those that are marked are evidence.
    fn directory(hours: &[(u32, bool)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(EVIDENCE)).unwrap();
        for (hour, evidence) in hours {
            let name = name(*hour);
            fs::write(dir.path().join(&name), [0; 1024]).unwrap();
            if *evidence {
                fs::hard_link(dir.path().join(&name), dir.path().join(EVIDENCE).join(&name)).unwrap();
            }
        }
        dir
    }

    fn name(hour: u32) -> String {
        format!("20260102T{hour:02}0000.000000Z.trace")
    }

    fn left(dir: &Path) -> Vec<String> {
        let names = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let all = names(dir.to_owned()).chain(names(dir.join(EVIDENCE)));
        let mut all: Vec<_> = all.map(|name| name.into_string().unwrap()).filter(|name| name != EVIDENCE).collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn the_oldest_go_first_and_evidence_after_all_others() {
        let dir = directory(&[(1, true), (2, false), (3, false), (4, true)]);
        fs::write(dir.path().join("notes.trace"), [0; 9000]).unwrap();
        let after = |size: u64| {
            Segments::new(dir.path().to_owned(), Limits { size, ..PLENTY }).unwrap().look_after().unwrap();
            left(dir.path())
        };
        let [one, three, four] = [1, 3, 4].map(name);
        // What is not ours is neither counted nor touched.
        let notes = || "notes.trace".to_owned();
        assert_eq!(after(4096).len(), 5);
        assert_eq!(after(3 * 1024), [one.clone(), three, four.clone(), notes()]);
        assert_eq!(after(2 * 1024), [one, four.clone(), notes()]);
        assert_eq!(after(1024), [four, notes()]);
        assert_eq!(after(0), [notes()]);
    }

    #[test]
    fn what_is_too_old_goes_unless_it_is_evidence() {
        let dir = directory(&[(1, false), (2, true)]);
        let old = fs::FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(7200));
        for hour in [1, 2] {
            let file = fs::File::options().write(true).open(dir.path().join(name(hour))).unwrap();
            file.set_times(old).unwrap();
        }
        Segments::new(dir.path().to_owned(), PLENTY).unwrap().look_after().unwrap();
        assert_eq!(left(dir.path()), [name(2)]);
    }

    #[test]
    fn a_file_system_that_is_nearly_full_gets_no_more() {
        let dir = directory(&[(1, false)]);
        // No file system is empty.
        let mut segments = Segments::new(dir.path().to_owned(), Limits { free: 100, ..PLENTY }).unwrap();
        let error = segments.begin().unwrap_err();
        assert!(error.contains("less than 100 % of the file system are free"), "{error}");
        assert!(left(dir.path()).is_empty());
    }

    #[test]
    fn a_finding_keeps_the_segment_at_hand_and_the_one_before_it() {
        let dir = directory(&[]);
        let mut segments = Segments::new(dir.path().to_owned(), PLENTY).unwrap();
        let paths = [0, 1].map(|_| {
            let path = segments.begin().unwrap();
            fs::write(&path, [0; 1024]).unwrap();
            path
        });
        segments.keep();
        segments.keep();
        let kept = fs::read_dir(dir.path().join(EVIDENCE)).unwrap().count();
        assert_eq!(kept, 2);
        for path in &paths {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(left(dir.path()).len(), 2);
    }
}
