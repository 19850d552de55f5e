//! Traces that belong together: segments of one stream, in the order in which they were written.

use crate::record::{Body, BootNs, Record, Start};

/// Puts traces together again: which of their records go on a stream that is known already.
#[derive(Default)]
pub struct Joiner {
    opening: Vec<Record>,
    /// Which stream it is, and its last record's number.
    stream: Option<(Stream, u64)>,
}

/// Two streams of one host begin at different times, by its own clock and the wall's.
type Stream = (u64, BootNs);

/// What to do with the record that was read.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Nothing.
    Skip,
    /// It is the next one of the stream.
    Push,
    /// A stream begins with it, or one goes on behind a gap: forget what was known, take these opening records, then the one that was read.
    Restart(Vec<Record>),
}

fn stream(start: &Start, time: BootNs) -> Stream {
    (start.boot_time_ns, time)
}

impl Joiner {
    /// Takes a record that opens a segment.
    pub fn opening(&mut self, record: Record) {
        if matches!(record.body, Body::Start(_)) {
            self.opening.clear();
        }
        self.opening.push(record);
    }

    /// Takes a record of the stream.
    pub fn next(&mut self, record: &Record) -> Next {
        let opening = std::mem::take(&mut self.opening);
        let begins = opening.first().unwrap_or(record);
        let begins = match &begins.body {
            Body::Start(start) => Some(stream(start, begins.time)),
            _ => None,
        };
        let seq = record.seq;
        match (&mut self.stream, begins) {
            (Some((known, last)), Some(begins)) if *known == begins => {
                if seq <= *last {
                    return Next::Skip;
                }
                let gap = seq != *last + 1;
                *last = seq;
                if gap && !opening.is_empty() { Next::Restart(opening) } else { Next::Push }
            }
            (_, Some(begins)) => {
                self.stream = Some((begins, seq));
                Next::Restart(opening)
            }
            (Some((_, last)), None) if seq <= *last => Next::Skip,
            (Some((_, last)), None) => {
                *last = seq;
                Next::Push
            }
            // What it began with is damaged.
            (None, None) => {
                self.stream = Some(((0, BootNs(0)), seq));
                Next::Push
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(boot_time_ns: u64, time: u64, seq: u64) -> Record {
        let start = Start { boot_time_ns, ..Start::default() };
        Record { seq, time: BootNs(time), body: Body::Start(Box::new(start)) }
    }

    fn tick(seq: u64) -> Record {
        Record { seq, time: BootNs(seq), body: Body::Tick }
    }

    #[test]
    fn a_segment_that_follows_goes_on_and_its_opening_is_not_needed() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.next(&start(9, 1, 1)), Next::Restart(vec![]));
        assert_eq!(joiner.next(&tick(2)), Next::Push);
        joiner.opening(start(9, 1, 2));
        assert_eq!(joiner.next(&tick(3)), Next::Push);
    }

    #[test]
    fn a_segment_behind_a_gap_begins_anew_with_its_opening() {
        let mut joiner = Joiner::default();
        joiner.next(&start(9, 1, 1));
        joiner.opening(start(9, 1, 7));
        assert_eq!(joiner.next(&tick(8)), Next::Restart(vec![start(9, 1, 7)]));
        // Without an opening there is nothing to begin anew with.
        assert_eq!(joiner.next(&tick(20)), Next::Push);
    }

    #[test]
    fn what_was_read_before_is_skipped_and_another_stream_is_not() {
        let mut joiner = Joiner::default();
        joiner.next(&start(9, 1, 1));
        joiner.next(&tick(2));
        joiner.opening(start(9, 1, 0));
        assert_eq!(joiner.next(&tick(1)), Next::Skip);
        assert_eq!(joiner.next(&tick(2)), Next::Skip);
        assert_eq!(joiner.next(&tick(3)), Next::Push);
        assert_eq!(joiner.next(&start(9, 5, 1)), Next::Restart(vec![]));
        assert_eq!(joiner.next(&tick(2)), Next::Push);
    }
}
