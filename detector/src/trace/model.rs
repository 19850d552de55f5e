//! What a kernel record is expected to be, from those before it in its block. Writer and reader keep the same model, and only
//! what differs from it is in the file. Wrong predictions cost bytes and nothing else.

use super::wire::{self, EXEC, EXIT, FORK, HEADER, Layout, WORDS, exec, fork, header};

/// A record's fixed part.
pub type Words = [u32; WORDS];

/// Places for processes; a process has the one of its id modulo this.
const SLOTS: usize = 4096;
/// Processes that a byte can name by how recently they did something.
const RECENT: usize = 255;
/// Tail that there is none of.
pub const NONE: u32 = u32::MAX;

/// What is remembered of a process.
#[derive(Clone, Copy, Default)]
struct Slot {
    tgid: u32,
    /// Its last header's words from the start time on.
    header: [u32; HEADER - header::START],
    /// Start time and id.
    parent: [u32; 3],
    tty: [u32; 4],
    shared: [u32; 5],
    /// Its id less that in its own namespace.
    inner: u32,
}

/// Kind and hook, and the last record of them.
pub struct Symbol {
    pub kind: u16,
    pub hook: u16,
    pub layout: &'static Layout,
    body: [u32; WORDS - HEADER],
    /// Its last first tail.
    tail: u32,
}

/// A tail that the block has had.
#[derive(Clone, Copy)]
pub struct Tail {
    /// Where its bytes lie in the block's text.
    pub start: u32,
    pub len: u32,
    /// The second tail that came with it last.
    next: u32,
    /// Whether the rest was learned.
    known: bool,
    /// Inode and device of the file, when it is an exec's.
    file: [u32; 3],
    comm: [u32; 4],
}

/// What is told of a record apart from its words.
#[derive(Clone, Copy)]
pub struct Given {
    pub time: u64,
    pub tgid: u32,
    /// How recently the process did something; `None` when it is not among the recent ones.
    pub rank: Option<u8>,
    /// Its tails; [`NONE`] where it has fewer.
    pub tails: [u32; 2],
    /// A fork's child.
    pub child: u32,
    pub child_start: u64,
}

pub struct Model {
    slots: Box<[Slot]>,
    /// Places that are not as at the start of a block.
    used: Vec<usize>,
    last: usize,
    /// Ids of processes, the most recent one last.
    recent: Vec<u32>,
    pub symbols: Vec<Symbol>,
    pub masks: Vec<u64>,
    pub tails: Vec<Tail>,
    /// Time of the record before.
    pub time: u64,
    /// Process that was made last.
    pub child: u32,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            slots: vec![Slot::default(); SLOTS].into(),
            used: Vec::new(),
            last: 0,
            recent: Vec::with_capacity(RECENT),
            symbols: Vec::new(),
            masks: vec![0],
            tails: Vec::new(),
            time: 0,
            child: 0,
        }
    }
}

impl Model {
    /// As it is at the start of each block.
    pub fn clear(&mut self) {
        // A process with id 0 does not show that its place is used.
        for place in self.used.drain(..).chain([0]) {
            self.slots[place] = Slot::default();
        }
        self.last = 0;
        self.recent.clear();
        self.symbols.clear();
        self.masks.truncate(1);
        self.tails.clear();
        self.time = 0;
        self.child = 0;
    }

    pub fn add_symbol(&mut self, kind: u16, hook: u16, layout: &'static Layout) {
        self.symbols.push(Symbol { kind, hook, layout, body: [0; WORDS - HEADER], tail: NONE });
    }

    pub fn add_tail(&mut self, start: u32, len: u32) -> u32 {
        self.tails.push(Tail { start, len, next: NONE, known: false, file: [0; 3], comm: [0; 4] });
        self.tails.len() as u32 - 1
    }

    /// How recently a process did something; `None` when it is not among the recent ones.
    pub fn rank(&self, tgid: u32) -> Option<u8> {
        self.recent.iter().rev().position(|known| *known == tgid).and_then(|rank| u8::try_from(rank).ok())
    }

    pub fn ranked(&self, rank: u8) -> Option<u32> {
        self.recent.iter().rev().nth(rank.into()).copied()
    }

    /// The tail that is expected at this place of a record.
    pub fn expected_tail(&self, symbol: usize, place: usize, first: u32) -> u32 {
        match place {
            0 => self.symbols.get(symbol).map_or(NONE, |symbol| symbol.tail),
            _ => self.tails.get(first as usize).map_or(NONE, |tail| tail.next),
        }
    }

    fn slot(&self, tgid: u32) -> &Slot {
        let slot = &self.slots[tgid as usize % SLOTS];
        // A process that the block has not had is likely to be like the one before.
        if slot.tgid == tgid { slot } else { &self.slots[self.last] }
    }

    /// Puts a process into its place.
    fn put(&mut self, slot: Slot) {
        let place = slot.tgid as usize % SLOTS;
        if self.slots[place].tgid != slot.tgid {
            self.used.push(place);
        }
        self.slots[place] = slot;
    }

    /// The place of a process, to be changed.
    fn place(&mut self, tgid: u32, like: usize) -> &mut Slot {
        let place = tgid as usize % SLOTS;
        if self.slots[place].tgid != tgid {
            self.used.push(place);
            self.slots[place] = Slot { tgid, ..self.slots[like] };
        }
        &mut self.slots[place]
    }

    /// Makes `words` the record that is expected. `text` holds the tails.
    pub fn predict(&self, symbol: usize, given: &Given, text: &[u8], words: &mut Words) {
        let Some(symbol) = self.symbols.get(symbol) else { return words.fill(0) };
        let slot = self.slot(given.tgid);
        words[0] = u32::from(symbol.kind) | u32::from(symbol.hook) << 16;
        words[header::TIME..header::START].copy_from_slice(&wire::halves(given.time));
        words[header::START..HEADER].copy_from_slice(&slot.header);
        words[header::TGID] = given.tgid;
        words[header::TID] = given.tgid;
        words[HEADER..].fill(0);
        match symbol.kind {
            EXIT => {
                // These the kernel program leaves out.
                words[header::CGROUP..header::TGID].fill(0);
                words[header::UID] = 0;
                words[header::LOGIN_UID] = u32::MAX;
                words[header::MNT_NS..HEADER].fill(0);
            }
            FORK => {
                words[header::MNT_NS..header::COMM].fill(0);
                words[fork::CHILD_START..fork::CHILD_TGID].copy_from_slice(&wire::halves(given.child_start));
                words[fork::CHILD_TGID] = given.child;
                words[fork::PARENT_START..fork::PARENT_TGID].copy_from_slice(&slot.header[..2]);
                words[fork::PARENT_TGID] = given.tgid;
            }
            EXEC => self.predict_exec(words, slot, given, text),
            _ => words[HEADER..].copy_from_slice(&symbol.body),
        }
        let mut len = symbol.layout.fixed;
        for (tail, spec) in given.tails.iter().zip(symbol.layout.tails) {
            len += match spec {
                wire::Tail::Length(at) => {
                    let bytes = self.tails.get(*tail as usize).map_or(0, |tail| tail.len);
                    let (word, shift) = (at / 4, at % 4 * 8);
                    words[word] = words[word] & !(0xffff << shift) | (bytes & 0xffff) << shift;
                    bytes as usize
                }
                wire::Tail::Padded(bytes) => *bytes,
            };
        }
        words[1] = len as u32;
    }

    fn predict_exec(&self, words: &mut Words, slot: &Slot, given: &Given, text: &[u8]) {
        let [path, arguments] = given.tails.map(|tail| self.tails.get(tail as usize));
        // The same program with the same arguments, else the same program.
        let known = arguments.filter(|tail| tail.known).or(path.filter(|tail| tail.known));
        if let Some(known) = known {
            words[exec::INO..exec::PARENT_START].copy_from_slice(&known.file[..2]);
            words[exec::DEV] = known.file[2];
            words[header::COMM..HEADER].copy_from_slice(&known.comm);
        } else if let Some(path) = path {
            // Paths come leaf first; of its name the kernel keeps 15 bytes.
            let (start, len) = (path.start as usize, path.len as usize);
            let name = text.get(start..).and_then(|text| text.get(..len)).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let mut comm = [0; 16];
            let len = name.len().min(15);
            comm[..len].copy_from_slice(&name[..len]);
            for (word, bytes) in words[header::COMM..HEADER].iter_mut().zip(comm.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        words[exec::PARENT_START..exec::DEV].copy_from_slice(&slot.parent);
        words[exec::TTY..exec::SHARED].copy_from_slice(&slot.tty);
        words[exec::SHARED..exec::INNER_PID].copy_from_slice(&slot.shared);
        words[exec::INNER_PID] = given.tgid.wrapping_sub(slot.inner);
    }

    /// Takes the record as it is.
    pub fn learn(&mut self, symbol: usize, words: &Words, given: &Given) {
        self.time = given.time;
        let Some(known) = self.symbols.get_mut(symbol) else { return };
        let kind = known.kind;
        known.tail = given.tails[0];
        if !matches!(kind, EXEC | FORK | EXIT) {
            known.body.copy_from_slice(&words[HEADER..]);
        }
        if let Some(first) = self.tails.get_mut(given.tails[0] as usize) {
            first.next = given.tails[1];
        }
        self.touch(given);
        if kind == EXIT {
            self.recent.pop();
            return;
        }
        let like = std::mem::replace(&mut self.last, given.tgid as usize % SLOTS);
        let slot = self.place(given.tgid, like);
        let spaces = [slot.header[header::MNT_NS - header::START], slot.header[header::PID_NS - header::START]];
        slot.header.copy_from_slice(&words[header::START..HEADER]);
        match kind {
            FORK => {
                slot.header[header::MNT_NS - header::START] = spaces[0];
                slot.header[header::PID_NS - header::START] = spaces[1];
                let mut made = *slot;
                let child = words[fork::CHILD_TGID];
                made.tgid = child;
                made.header[..2].copy_from_slice(&words[fork::CHILD_START..fork::CHILD_TGID]);
                made.parent.copy_from_slice(&words[fork::PARENT_START..=fork::PARENT_TGID]);
                self.put(made);
                self.child = child;
                self.remember(child);
            }
            EXEC => {
                slot.parent.copy_from_slice(&words[exec::PARENT_START..exec::DEV]);
                slot.tty.copy_from_slice(&words[exec::TTY..exec::SHARED]);
                slot.shared.copy_from_slice(&words[exec::SHARED..exec::INNER_PID]);
                slot.inner = given.tgid.wrapping_sub(words[exec::INNER_PID]);
                for tail in given.tails {
                    let Some(tail) = self.tails.get_mut(tail as usize) else { continue };
                    tail.known = true;
                    tail.file = [words[exec::INO], words[exec::INO + 1], words[exec::DEV]];
                    tail.comm.copy_from_slice(&words[header::COMM..HEADER]);
                }
            }
            _ => {}
        }
    }

    /// A process did something.
    fn touch(&mut self, given: &Given) {
        match given.rank.and_then(|rank| self.recent.len().checked_sub(usize::from(rank) + 1)) {
            Some(at) => {
                self.recent.copy_within(at + 1.., at);
                if let Some(last) = self.recent.last_mut() {
                    *last = given.tgid;
                }
            }
            None => self.remember(given.tgid),
        }
    }

    fn remember(&mut self, tgid: u32) {
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(tgid);
    }
}
