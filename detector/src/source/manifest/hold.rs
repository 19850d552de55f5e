//! Files that are being written: what is in them is looked at when the writer pauses.

use std::collections::{BTreeMap, BTreeSet};

use super::{MS, after};
use crate::record::{BootNs, InodeKey};

/// Nanoseconds of quiet after which a file is looked at, and the longest that writes can put it off.
const QUIET: u64 = 2 * MS;
const QUIET_CAP: u64 = 50 * MS;

/// The same for content that looks unfinished.
const UNFINISHED: u64 = 250 * MS;
const UNFINISHED_CAP: u64 = 1_000 * MS;

/// Most inodes that are told apart; beyond that, writes hold back everything.
const MAX_HOLDS: usize = 1_024;

/// First and last sign of an activity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub first: BootNs,
    pub last: BootNs,
}

/// Inodes with recent writes; the key `None` stands for writes to an unknown inode.
#[derive(Default)]
pub(super) struct Holds {
    spans: BTreeMap<Option<InodeKey>, Span>,
}

impl Span {
    pub fn new(now: BootNs) -> Self {
        Self { first: now, last: now }
    }

    /// When content that looks unfinished is reported as it is.
    pub fn unfinished_until(self) -> BootNs {
        after(self.last, UNFINISHED).min(after(self.first, UNFINISHED_CAP))
    }

    fn held_until(self) -> BootNs {
        after(self.last, QUIET).min(after(self.first, QUIET_CAP))
    }
}

impl Holds {
    pub fn add(&mut self, inode: Option<InodeKey>, now: BootNs) {
        let key = if self.spans.len() < MAX_HOLDS || self.spans.contains_key(&inode) { inode } else { None };
        self.spans.entry(key).or_insert_with(|| Span::new(now)).last = now;
    }

    /// Whether an entry of the directory `dir` with that inode is still being written.
    pub fn is_held(&self, inode: InodeKey, dir: Option<InodeKey>) -> bool {
        !self.spans.is_empty()
            && (self.spans.contains_key(&Some(inode))
                || self.spans.contains_key(&None)
                || (dir.is_some() && self.spans.contains_key(&dir)))
    }

    pub fn due(&self) -> Option<BootNs> {
        self.spans.values().map(|span| span.held_until()).min()
    }

    /// Ends the holds that are due; their inodes go to `dirty`.
    pub fn fire(&mut self, now: BootNs, dirty: &mut BTreeSet<InodeKey>) {
        self.spans.retain(|inode, span| {
            let due = now >= span.held_until();
            if due {
                dirty.extend(*inode);
            }
            !due
        });
    }
}
