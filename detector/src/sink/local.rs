//! Standard output and files: lines, written by one thread, flushed when nothing more waits.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use super::{
    Stdout, line,
    queue::{Counts, Loss, Queued, batch},
    spec::FileSpec,
};

/// How often a file that cannot be written to is spoken of.
const SAY: Duration = Duration::from_secs(10);

/// Writes to standard output until the queue ends.
///
/// # Errors
/// When standard output is gone.
pub(super) fn stdout(queue: &Receiver<Queued>, mut out: Stdout, counts: &Counts) -> io::Result<()> {
    while let Some(alerts) = batch(queue, counts) {
        for alert in alerts {
            out.send(&alert)?;
            counts.deliver(1);
        }
    }
    Ok(())
}

/// Writes lines to a file until the queue ends. A disk that refuses costs the alerts that it refuses, which are counted.
pub(super) fn file(queue: &Receiver<Queued>, spec: FileSpec, name: &str, counts: &Counts) {
    let mut log = Log { spec, open: None, torn: false };
    let mut said = None::<Instant>;
    while let Some(alerts) = batch(queue, counts) {
        match log.take(&alerts) {
            Ok(()) => {
                counts.deliver(alerts.len() as u64);
                if said.take().is_some() {
                    eprintln!("sink {name}: takes alerts again");
                }
            }
            Err(error) => {
                // How much of the buffer came to the disk is not known: none of the batch counts as written.
                log.open = None;
                log.torn = true;
                if said.is_none_or(|said| said.elapsed() >= SAY) {
                    said = Some(Instant::now());
                    eprintln!("degraded: sink {name}: {error}");
                }
                counts.lose(name, alerts.len() as u64, Loss::File);
            }
        }
    }
}

/// A file that grows and is put aside.
struct Log {
    spec: FileSpec,
    open: Option<Open>,
    /// Its last line may be half of one.
    torn: bool,
}

struct Open {
    file: BufWriter<File>,
    size: u64,
    /// Which file it is.
    inode: (u64, u64),
}

impl Log {
    fn take(&mut self, alerts: &[Queued]) -> io::Result<()> {
        self.look_after()?;
        for alert in alerts {
            self.write(&line(alert, self.spec.form, false)?)?;
        }
        self.flush()
    }

    /// Opens it, also when somebody has moved it away since.
    fn look_after(&mut self) -> io::Result<()> {
        let standing = fs::metadata(&self.spec.path).map(|file| (file.dev(), file.ino())).ok();
        if self.open.as_ref().is_some_and(|open| Some(open.inode) == standing) {
            return Ok(());
        }
        let file = File::options().create(true).append(true).read(true).mode(0o640).open(&self.spec.path)?;
        let metadata = file.metadata()?;
        let mut open =
            Open { size: metadata.len(), inode: (metadata.dev(), metadata.ino()), file: BufWriter::new(file) };
        if std::mem::take(&mut self.torn) && open.size > 0 {
            open.file.write_all(b"\n")?;
            open.size += 1;
        }
        self.open = Some(open);
        Ok(())
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let full = |open: &Open| {
            open.size > 0 && self.spec.rotate.is_some_and(|rotate| open.size + line.len() as u64 > rotate)
        };
        if self.open.as_ref().is_some_and(full) {
            self.flush()?;
            self.open = None;
            put_aside(&self.spec.path, self.spec.keep)?;
            self.look_after()?;
        }
        let Some(open) = &mut self.open else { return Err(io::Error::other("the file is not open")) };
        open.size += line.len() as u64;
        open.file.write_all(line.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), |open| open.file.flush())
    }
}

/// PATH becomes PATH.1, that PATH.2, and so on; the oldest goes.
fn put_aside(path: &Path, keep: u32) -> io::Result<()> {
    let nth = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    if keep == 0 {
        return fs::remove_file(path);
    }
    for n in (1..keep).rev() {
        match fs::rename(nth(n), nth(n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, nth(1))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::{
        alert::Alert,
        sink::{format::tests::alert, spec::Form},
    };

    /// Writes alerts of these titles, and what became of them.
    fn write(spec: &FileSpec, titles: &[String]) -> (u64, u64) {
        let (send, queue) = mpsc::channel();
        for title in titles {
            send.send(Arc::new(Alert { title: title.clone(), ..alert() })).unwrap();
        }
        drop(send);
        let counts = Counts::default();
        file(&queue, spec.clone(), "test", &counts);
        let state = counts.state("test");
        (state.delivered, state.dropped)
    }

    fn titles(text: &str) -> Vec<String> {
        let of = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["title"].as_str().unwrap().to_owned();
        text.lines().map(of).collect()
    }

    fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|number| format!("alert {number}")).collect()
    }

    #[test]
    fn a_full_file_is_put_aside_and_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.jsonl");
        let spec = FileSpec { path: path.clone(), form: Form::Json, rotate: Some(8192), keep: 2 };
        assert_eq!(write(&spec, &numbered(0..40)), (40, 0));
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["alerts.jsonl", "alerts.jsonl.1", "alerts.jsonl.2"]);
        let mut kept = Vec::new();
        for name in names.iter().rev() {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(text.len() <= 8192);
            kept.extend(titles(&text));
        }
        assert!(kept.len() < 40 && numbered(0..40).ends_with(&kept), "{kept:?}");
    }

    #[test]
    fn a_file_that_somebody_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.jsonl");
        let mut log = Log {
            spec: FileSpec { path: path.clone(), form: Form::Json, rotate: None, keep: 5 },
            open: None,
            torn: false,
        };
        for line in ["one\n", "two\n"] {
            log.look_after().unwrap();
            log.write(line).unwrap();
            log.flush().unwrap();
            if line == "one\n" {
                fs::rename(&path, dir.path().join("moved")).unwrap();
            }
        }
        assert_eq!(fs::read_to_string(dir.path().join("moved")).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn what_a_disk_refuses_is_counted() {
        let spec = FileSpec { path: "/dev/full".into(), form: Form::Json, rotate: None, keep: 5 };
        assert_eq!(write(&spec, &numbered(0..3)), (0, 3));
        let spec = FileSpec { path: "/nonexistent/x".into(), ..spec };
        assert_eq!(write(&spec, &numbered(0..3)), (0, 3));
    }
}
