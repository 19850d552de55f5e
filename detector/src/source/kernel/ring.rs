//! How full a ring buffer is found. The kernel tells its own programs alone how much waits in one; whoever empties it can count.

use aya::maps::Map;

/// What the kernel puts before each record in a ring, and what records begin at a multiple of.
const HEADER: u64 = 8;

/// A ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    pub name: &'static str,
    /// Most bytes that were found in it at once since [`super::Kernel::rings`] was asked last.
    pub filled: u64,
    /// How many it holds; 0 where the kernel does not tell.
    pub size: u64,
}

impl Ring {
    pub(super) fn new(name: &'static str, map: &Map) -> Self {
        let size = match map {
            Map::RingBuf(data) => data.info().map_or(0, |info| info.max_entries().into()),
            _ => 0,
        };
        Self { name, filled: 0, size }
    }

    /// So many bytes were read until nothing was left. What came while they were read is among them: more than there is room for it
    /// cannot have been.
    pub(super) fn found(&mut self, bytes: u64) {
        self.filled = self.filled.max(bytes.min(self.size));
    }

    /// What is known, from now on anew.
    pub(super) fn take(&mut self) -> Self {
        let taken = *self;
        self.filled = 0;
        taken
    }
}

/// What a record of so many bytes takes.
pub(super) fn taken_by(record: usize) -> u64 {
    (record as u64 + HEADER).next_multiple_of(HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_moment_counts_until_it_was_asked_for() {
        let mut ring = Ring { name: "alerting", filled: 0, size: 4096 };
        for bytes in [taken_by(1), taken_by(9), 0] {
            ring.found(bytes);
        }
        assert_eq!((ring.take().filled, ring.take().filled), (24, 0));
        ring.found(1 << 20);
        assert_eq!(ring.filled, 4096);
    }
}
