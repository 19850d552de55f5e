//! Messages that wait to be delivered: first in, first out, bounded, on disk where there is a directory for it.
//!
//! Segments are files of frames (length, checksum, message), the newest at the end; `position` says how much of them was
//! delivered. They survive the agent's end. What is torn or damaged is read as far as it is whole. Where the disk refuses,
//! segments are kept in memory.

mod segment;

use std::{
    collections::VecDeque,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use segment::Segment;

/// Most bytes that wait in memory, where there is no disk or it refuses.
const MEMORY: u64 = 4 << 20;
/// Into how many segments the bound is cut: what has to give way goes a segment at a time.
const SEGMENTS: u64 = 16;
const POSITION: &str = "position";

/// A place between two messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    segment: u64,
    /// Bytes of the segment before it.
    offset: u64,
    /// Messages of the segment before it.
    index: u64,
}

pub struct Spool {
    place: Option<Place>,
    bound: u64,
    segments: VecDeque<Segment>,
    /// The number of the next segment.
    next: u64,
    /// Up to here messages were delivered.
    delivered: Mark,
    /// Up to here they were read.
    read: Mark,
    /// Messages that gave way to newer ones.
    dropped: u64,
    /// What is to be said of it, oldest first.
    notes: Vec<String>,
    /// The disk refuses.
    refused: bool,
}

/// A directory that is this spool's alone.
struct Place {
    dir: PathBuf,
    /// Held for as long as the spool lives.
    _lock: File,
    /// What the file `position` says.
    written: Mark,
}

impl Spool {
    /// A spool in memory alone.
    #[must_use]
    pub fn in_memory(bound: u64) -> Self {
        Self {
            place: None,
            bound: bound.min(MEMORY),
            segments: VecDeque::new(),
            next: 1,
            delivered: Mark::default(),
            read: Mark::default(),
            dropped: 0,
            notes: Vec::new(),
            refused: false,
        }
    }

    /// A spool in a directory, with what waits there already.
    ///
    /// # Errors
    /// When the directory cannot be used, or is in use.
    pub fn open(dir: &Path, bound: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another agent or another sink spools there"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut spool = Self { bound, ..Self::in_memory(bound) };
        let mut numbers: Vec<u64> =
            fs::read_dir(dir)?.filter_map(|entry| segment::number(&entry.ok()?.file_name())).collect();
        numbers.sort_unstable();
        for number in numbers {
            let segment = Segment::open(dir, number, &mut spool.notes)?;
            spool.segments.push_back(segment);
            spool.next = number + 1;
        }
        let written = fs::read_to_string(dir.join(POSITION)).ok().and_then(|text| position(&text));
        // A position that leads into the middle of a message, or nowhere, is none: rather twice than never.
        let written = written.and_then(|(number, offset)| {
            spool.next = spool.next.max(number.saturating_add(1));
            spool.segments.iter().find(|segment| segment.number == number)?.mark(offset)
        });
        let first = spool.first();
        spool.delivered = written.unwrap_or(first).max(first);
        spool.read = spool.delivered;
        spool.place = Some(Place { dir: dir.to_owned(), _lock: lock, written: spool.delivered });
        spool.forget_delivered();
        spool.make_room(0);
        Ok(spool)
    }

    /// Takes messages.
    pub fn append(&mut self, messages: &[Vec<u8>]) {
        let limit = (self.bound / SEGMENTS).max(1);
        for message in messages {
            if message.len() > segment::MESSAGE_MAX {
                self.dropped += 1;
                self.notes.push(format!("a message of {} bytes is too long to be kept", message.len()));
                continue;
            }
            self.make_room(segment::framed(message));
            if self.segments.back().is_none_or(|last| last.is_full(limit)) {
                self.flush();
                self.begin();
            }
            if let Some(last) = self.segments.back_mut() {
                last.put(message);
            }
        }
        self.flush();
    }

    /// The next messages: at least one where there are any, up to `count` or `bytes`.
    pub fn read(&mut self, count: usize, bytes: usize) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut size = 0;
        while messages.len() < count && size < bytes {
            let Some(at) = self.segments.iter().position(|segment| segment.number >= self.read.segment) else { break };
            let segment = &mut self.segments[at];
            if segment.number > self.read.segment {
                self.read = segment.start();
            }
            if self.read.index >= segment.messages() {
                match self.segments.get(at + 1) {
                    Some(next) => self.read = next.start(),
                    None => break,
                }
                continue;
            }
            match segment.get(self.read) {
                Ok((message, mark)) => {
                    size += message.len();
                    self.read = mark;
                    messages.push(message);
                }
                Err(error) => {
                    let lost = segment.cut(self.read);
                    self.dropped += lost;
                    self.notes.push(format!("{error}: {lost} messages are lost"));
                }
            }
        }
        messages
    }

    /// Up to where messages were read.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.read
    }

    /// What was read and not delivered is read again.
    pub fn rewind(&mut self) {
        self.read = self.delivered;
    }

    /// Everything before `mark` was delivered; how many messages that are.
    pub fn deliver(&mut self, mark: Mark) -> u64 {
        let waiting = self.waiting();
        self.delivered = self.delivered.max(mark.min(self.read));
        let delivered = waiting - self.waiting();
        self.forget_delivered();
        delivered
    }

    /// How many messages wait, those on their way included.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let of = |segment: &Segment| match segment.number.cmp(&self.delivered.segment) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => segment.messages().saturating_sub(self.delivered.index),
            std::cmp::Ordering::Greater => segment.messages(),
        };
        self.segments.iter().map(of).sum()
    }

    /// What it takes, in bytes: what was delivered goes with the rest of its segment.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// Most that it may take, in bytes.
    #[must_use]
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// Whether there are messages that were not read.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.segments.iter().any(|segment| match segment.number.cmp(&self.read.segment) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => segment.messages() > self.read.index,
            std::cmp::Ordering::Greater => segment.messages() > 0,
        })
    }

    /// How many waiting messages do not survive the agent.
    #[must_use]
    pub fn mortal(&self) -> u64 {
        let in_memory = self.segments.iter().filter(|segment| !segment.is_on_disk());
        in_memory
            .map(|segment| {
                let gone = if segment.number == self.delivered.segment { self.delivered.index } else { 0 };
                segment.messages().saturating_sub(gone)
            })
            .sum()
    }

    /// How many messages were dropped since this was asked last.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// What is to be said of it since this was asked last.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Writes down how much was delivered. What was delivered since is delivered again after a crash.
    pub fn write_position(&mut self) {
        let Some(place) = &mut self.place else { return };
        if place.written == self.delivered {
            return;
        }
        let text = format!("{} {}\n", self.delivered.segment, self.delivered.offset);
        let new = place.dir.join("position.new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, place.dir.join(POSITION)));
        match written {
            Ok(()) => place.written = self.delivered,
            Err(error) => self.refuse(&error),
        }
    }

    /// Writes what was put; what cannot be written is kept in memory, behind what was.
    fn flush(&mut self) {
        let Some(last) = self.segments.back_mut() else { return };
        let Err(error) = last.flush() else { return };
        let rest = last.take_unwritten();
        self.refuse(&error);
        let mut segment = Segment::in_memory(self.next);
        self.next += 1;
        rest.iter().for_each(|message| segment.put(message));
        self.segments.push_back(segment);
        self.make_room(0);
    }

    fn refuse(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.refused, true) {
            self.notes.push(format!(
                "the spool's disk refuses ({error}): alerts wait in memory, {} at most",
                bytesize::ByteSize(MEMORY)
            ));
        }
    }

    fn first(&self) -> Mark {
        self.segments.front().map_or(Mark { segment: self.next, ..Mark::default() }, Segment::start)
    }

    fn begin(&mut self) {
        let number = self.next;
        self.next += 1;
        let segment = match &self.place {
            None => Segment::in_memory(number),
            Some(place) => match Segment::create(&place.dir, number) {
                Ok(segment) => {
                    if std::mem::take(&mut self.refused) {
                        self.notes.push("the spool's disk takes alerts again".to_owned());
                    }
                    segment
                }
                Err(error) => {
                    self.refuse(&error);
                    Segment::in_memory(number)
                }
            },
        };
        self.segments.push_back(segment);
    }

    /// Lets the oldest segments go until `bytes` more are within bounds.
    fn make_room(&mut self, bytes: u64) {
        loop {
            let total = self.bytes();
            let memory: u64 = self.segments.iter().filter(|segment| !segment.is_on_disk()).map(Segment::bytes).sum();
            let at = if total > 0 && total + bytes > self.bound {
                0
            } else if memory > 0 && memory + bytes > MEMORY {
                self.segments.iter().position(|segment| !segment.is_on_disk()).unwrap_or(0)
            } else {
                return;
            };
            let Some(gone) = self.segments.remove(at) else { return };
            let delivered = match gone.number.cmp(&self.delivered.segment) {
                std::cmp::Ordering::Less => gone.messages(),
                std::cmp::Ordering::Equal => self.delivered.index,
                std::cmp::Ordering::Greater => 0,
            };
            self.dropped += gone.messages() - delivered;
            gone.remove();
            let first = self.first();
            self.delivered = self.delivered.max(first);
            self.read = self.read.max(self.delivered);
        }
    }

    /// Removes segments that were delivered to their end.
    fn forget_delivered(&mut self) {
        while let Some(first) = self.segments.front() {
            let done = first.number < self.delivered.segment
                || (first.number == self.delivered.segment && first.messages() <= self.delivered.index);
            if !done {
                break;
            }
            if let Some(gone) = self.segments.pop_front() {
                gone.remove();
            }
            let first = self.first();
            self.delivered = self.delivered.max(first);
            self.read = self.read.max(self.delivered);
        }
    }
}

fn position(text: &str) -> Option<(u64, u64)> {
    let (number, offset) = text.strip_suffix('\n')?.split_once(' ')?;
    Some((number.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests;
