//! Recording: the stream as traces, written by a thread of its own, so that a slow disk holds nothing back.
//!
//! `detector record` writes one file. `detector run --record DIR` is a flight recorder: [`segments`] of bounded size in a
//! directory, those in which something was found kept longer than the others.

pub mod segments;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use segments::{Limits, Segments};

use crate::{
    confine::{self, Files},
    record::Record,
    trace::Writer,
};

/// How long a record may wait for its block to be written: what a killed agent loses.
const FLUSH: Duration = Duration::from_secs(1);
/// Most records that wait for the disk; what comes then is dropped, counted and said.
const WAITING_MAX: usize = 131_072;
/// How long to wait after the disk has refused something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to record to.
#[derive(Clone, Debug)]
pub enum Target {
    /// One file.
    File(PathBuf),
    /// A directory of segments.
    Dir(PathBuf, Limits),
}

/// What a recording came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recorded {
    pub records: u64,
    pub bytes: u64,
    /// Records that are missing, because the disk was too slow, too full or refused.
    pub dropped: u64,
}

/// How a recording goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub recorded: Recorded,
    /// Records that wait for the disk.
    pub waiting: u64,
    /// Traces in the directory, evidence included, and the bytes that they take.
    pub segments: u64,
    pub size: u64,
}

/// The recording's end that takes records.
pub struct Recorder {
    queue: Sender<Message>,
    waiting: Arc<AtomicUsize>,
    /// The thread wants to begin a segment, and for that the records that open it.
    wants_opening: Arc<AtomicBool>,
    /// As of the last look after the directory, once a second.
    progress: Arc<Mutex<Progress>>,
    thread: JoinHandle<io::Result<Recorded>>,
    dropped: u64,
}

enum Message {
    Records(Vec<Record>),
    /// Begin a segment with these records.
    Open(Vec<Record>),
    /// Something was found by the records so far.
    Found,
}

impl Recorder {
    /// Starts to record.
    ///
    /// # Errors
    /// When the file or directory cannot be written to.
    pub fn start(target: Target) -> anyhow::Result<Self> {
        let wants_opening = Arc::new(AtomicBool::new(false));
        let waiting = Arc::new(AtomicUsize::new(0));
        let (queue, messages) = channel();
        let (segments, output, files) = match target {
            Target::File(path) => (None, Some(Output::create(&path)?), Files::default()),
            Target::Dir(dir, limits) => {
                let files = Files::default().writing_into(&dir);
                (Some(Segments::new(dir, limits)?), None, files)
            }
        };
        let progress = Arc::<Mutex<Progress>>::default();
        let disk = Disk {
            progress: Arc::clone(&progress),
            segments,
            output,
            wants_opening: Arc::clone(&wants_opening),
            refused: None,
            begun: false,
            recorded: Recorded::default(),
            doubt: None,
        };
        let counts = Arc::clone(&waiting);
        let thread = thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            confine::thread(&files);
            disk.run(&messages, &counts)
        })?;
        Ok(Self { queue, waiting, wants_opening, progress, thread, dropped: 0 })
    }

    /// Takes records of the stream. Never waits.
    pub fn push(&mut self, records: Vec<Record>) {
        let count = records.len();
        if count == 0 {
            return;
        }
        if self.waiting.load(Ordering::Relaxed) + count > WAITING_MAX {
            if self.dropped == 0 {
                eprintln!("degraded: recording: the disk does not keep up; records are missing in the trace");
            }
            self.dropped += count as u64;
            return;
        }
        self.waiting.fetch_add(count, Ordering::Relaxed);
        // When the thread has ended, `finish` says why.
        let _ = self.queue.send(Message::Records(records));
    }

    /// Something was found: the segment at hand is worth keeping.
    pub fn found(&self) {
        let _ = self.queue.send(Message::Found);
    }

    /// Whether the records that a segment opens with are wanted, for [`Self::open`].
    #[must_use]
    pub fn wants_opening(&self) -> bool {
        self.wants_opening.load(Ordering::Relaxed)
    }

    /// Begins the next segment: with what stands after all records that were pushed.
    pub fn open(&self, opening: Vec<Record>) {
        self.wants_opening.store(false, Ordering::Relaxed);
        let _ = self.queue.send(Message::Open(opening));
    }

    /// How it goes.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let mut progress = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.recorded.dropped += self.dropped;
        progress.waiting = self.waiting.load(Ordering::Relaxed) as u64;
        progress
    }

    /// Whether it has ended before its time: [`Self::finish`] says why.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<Recorded> {
        drop(self.queue);
        let recorded = self.thread.join().map_err(|_| io::Error::other("the recorder's thread panicked"))??;
        Ok(Recorded { dropped: recorded.dropped + self.dropped, ..recorded })
    }
}

/// A trace that is being written.
struct Output {
    path: PathBuf,
    writer: Writer<BufWriter<File>>,
}

impl Output {
    fn create(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::options().write(true).create(true).truncate(true).open(path).map_err(named)?;
        let writer = Writer::new(BufWriter::new(file)).map_err(named)?;
        Ok(Self { path: path.to_owned(), writer })
    }

    /// Ends it; after that it survives a crash of the host.
    fn finish(self) -> io::Result<u64> {
        let file = self.writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

/// The thread's side.
struct Disk {
    progress: Arc<Mutex<Progress>>,
    /// Where segments go; `None` for one file.
    segments: Option<Segments>,
    output: Option<Output>,
    wants_opening: Arc<AtomicBool>,
    /// When something was refused last.
    refused: Option<Instant>,
    /// The stream has begun.
    begun: bool,
    recorded: Recorded,
    /// What was said last of the disk.
    doubt: Option<String>,
}

impl Disk {
    fn run(mut self, messages: &Receiver<Message>, waiting: &AtomicUsize) -> io::Result<Recorded> {
        let mut flush_at = Instant::now() + FLUSH;
        loop {
            match messages.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
                Ok(Message::Records(records)) => {
                    waiting.fetch_sub(records.len(), Ordering::Relaxed);
                    self.write(&records)?;
                }
                Ok(Message::Open(opening)) => self.open(&opening),
                Ok(Message::Found) => {
                    self.segments.iter_mut().for_each(Segments::keep);
                    flush_at = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if flush_at <= Instant::now() {
                flush_at = Instant::now() + FLUSH;
                self.flush()?;
            }
        }
        self.close()?;
        Ok(self.recorded)
    }

    fn write(&mut self, records: &[Record]) -> io::Result<()> {
        self.begun = true;
        // A stream from its beginning opens itself.
        if self.output.is_none() && records.first().is_some_and(|first| first.seq == 1) {
            self.begin();
        }
        let Some(output) = &mut self.output else {
            self.recorded.dropped += records.len() as u64;
            return Ok(());
        };
        let mut written = Ok(());
        for (at, record) in records.iter().enumerate() {
            written = output.writer.push(record);
            if written.is_err() {
                self.recorded.dropped += (records.len() - at) as u64;
                break;
            }
            self.recorded.records += 1;
        }
        self.bear(written)
    }

    /// Writes what waits, looks after the directory, and asks for the next segment when it is time.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.output.as_mut().map_or(Ok(()), |output| output.writer.flush());
        if let Some(segments) = &self.segments {
            let size = self.output.as_ref().map_or(0, |output| output.writer.written());
            let room = segments.look_after();
            say(&mut self.doubt, room.as_ref().err().cloned());
            if room.is_err() {
                self.refused = Some(Instant::now());
            }
            let waits = self.refused.is_some_and(|refused| refused.elapsed() < PATIENCE);
            let is_over = self.output.is_none() || segments.is_over(size);
            if self.begun && is_over && !waits {
                self.wants_opening.store(true, Ordering::Relaxed);
            }
            if room.is_err()
                && let Some(output) = self.output.take()
            {
                self.recorded.bytes += output.finish().unwrap_or(0);
            }
        }
        let result = self.bear(flushed);
        self.tell_progress();
        result
    }

    fn tell_progress(&self) {
        let written = self.output.as_ref().map_or(0, |output| output.writer.written());
        let (segments, size) = self.segments.as_ref().map_or((0, 0), |segments| segments.held.get());
        let current = u64::from(self.output.is_some());
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.recorded = Recorded { bytes: self.recorded.bytes + written, ..self.recorded };
        (progress.segments, progress.size) = (segments + current, size + written);
    }

    /// Begins the next segment with these records.
    fn open(&mut self, opening: &[Record]) {
        if let Err(error) = self.close() {
            say(&mut self.doubt, Some(error.to_string()));
        }
        self.begin();
        let written = self
            .output
            .as_mut()
            .map_or(Ok(()), |output| opening.iter().try_for_each(|record| output.writer.opening(record)));
        // Segments are many: the error is borne, and not passed on.
        let _ = self.bear(written);
    }

    /// Begins the next segment, where there is room for one.
    fn begin(&mut self) {
        let Some(segments) = &mut self.segments else { return };
        let opened = segments.begin().and_then(|path| Output::create(&path).map_err(|error| error.to_string()));
        say(&mut self.doubt, opened.as_ref().err().cloned());
        self.output = opened.ok();
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(output) = self.output.take() {
            self.recorded.bytes += output.finish()?;
        }
        Ok(())
    }

    /// With one file an error ends the recording; of segments the next one may go well.
    fn bear(&mut self, result: io::Result<()>) -> io::Result<()> {
        let Err(error) = result else { return Ok(()) };
        if self.segments.is_none() {
            return Err(error);
        }
        self.refused = Some(Instant::now());
        if let Some(output) = self.output.take() {
            say(&mut self.doubt, Some(format!("{}: {error}", output.path.display())));
        }
        Ok(())
    }
}

/// Says on standard error what is wrong, or that it is well again; once.
fn say(doubt: &mut Option<String>, now: Option<String>) {
    if *doubt == now {
        return;
    }
    match &now {
        Some(why) => eprintln!("degraded: recording: {why}; records are missing in the trace until that is mended"),
        None => eprintln!("recording: goes on"),
    }
    // Standard error is the last resort.
    let _ = io::stderr().flush();
    *doubt = now;
}
