//! A sink whose receiver may be away. One thread puts alerts into the [`Spool`], another delivers them from there, so that a
//! receiver that hangs costs nothing but room in the spool.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Receiver},
    time::{Duration, Instant},
};

use super::{
    backoff::Backoff,
    queue::{Counts, Loss, Queued, batch},
    spool::{Mark, Spool},
};
use crate::escape::escape_to;

/// How often what was sent is looked after, and how long a failing sink is silent about the same thing.
const TICK: Duration = Duration::from_millis(100);
/// How often it is written down how much was delivered.
const WRITE_DOWN: Duration = Duration::from_secs(1);
/// Most bytes of one sending.
const SENDING: usize = 256 << 10;

/// Whom alerts go to. Everything may block for some seconds.
pub(super) trait Peer: Send {
    /// Most messages of one sending.
    fn batch(&self) -> usize;

    /// How long what was sent stays doubtful: a receiver that never answers has taken it when the connection is still sound
    /// after this time and nothing is on its way any more. None for one that answers.
    fn settles(&self) -> Duration;

    /// Connects, where it is not connected, and sends.
    fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), Trouble>;

    /// Bytes sent over this connection, and how many of those have arrived for certain.
    fn sent(&mut self) -> io::Result<(u64, u64)>;

    /// Breaks the connection, so that the next sending makes another.
    fn abort(&mut self);

    /// Ends the connection in good order. True when the receiver has shown that it took everything.
    fn close(&mut self) -> bool;
}

/// Why a sending failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The receiver is away, busy or unwilling for now.
    Away(io::Error),
    /// The same, and it says how long it wants to be left alone.
    Busy(io::Error, Duration),
    /// It will never take these messages.
    Refused(String),
    /// It took them but for so many.
    Partly(u64, String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Away(error)
    }
}

/// What the two threads share.
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    spool: Spool,
    /// Nothing more will come, and delivery ends at this time.
    closing: Option<Instant>,
}

impl Shared {
    pub fn new(spool: Spool) -> Self {
        Self { state: Mutex::new(State { spool, closing: None }), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The first thread: from the queue into the spool, until the queue ends; then delivery has `grace` to end.
pub(super) fn collect(
    queue: &Receiver<Queued>,
    shared: &Shared,
    name: &str,
    counts: &Counts,
    render: &super::Render,
    grace: Duration,
) {
    while let Some(alerts) = batch(queue, counts) {
        let messages: Vec<_> = alerts.iter().map(|alert| render(alert)).collect();
        let mut state = shared.lock();
        state.spool.append(&messages);
        report(&mut state.spool, name, counts);
        shared.wake.notify_one();
    }
    shared.lock().closing = Some(Instant::now() + grace);
    shared.wake.notify_one();
}

/// What the spool has to say, and what it dropped.
fn report(spool: &mut Spool, name: &str, counts: &Counts) {
    for note in spool.take_notes() {
        eprintln!("degraded: sink {name}: {note}");
    }
    counts.lose(name, spool.take_dropped(), Loss::Spool);
    counts.wait(spool.waiting(), spool.bytes());
}

/// The second thread.
pub(super) struct Delivery {
    peer: Box<dyn Peer>,
    shared: Arc<Shared>,
    counts: Arc<Counts>,
    name: String,
    backoff: Backoff,
    /// Sent and still doubtful: up to where, bytes sent by then, and when.
    doubtful: VecDeque<(Mark, u64, Instant)>,
    /// When it was last looked whether what is doubtful arrived.
    looked: Instant,
    /// Since when the receiver is away.
    away: Option<Instant>,
    /// A message of the last sending was refused: they go one by one.
    singly: u32,
    /// It was said why something was refused.
    refused: bool,
}

impl Delivery {
    pub fn new(peer: Box<dyn Peer>, shared: Arc<Shared>, counts: Arc<Counts>, name: String) -> Self {
        let (backoff, doubtful, looked) = (Backoff::default(), VecDeque::new(), Instant::now());
        Self { peer, shared, counts, name, backoff, doubtful, looked, away: None, singly: 0, refused: false }
    }

    /// Delivers until everything is delivered after the queue's end, or the grace is over.
    pub fn run(mut self) {
        let mut written_down = Instant::now();
        loop {
            if let Err(error) = self.settle() {
                self.fail(&error, Duration::ZERO);
            }
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            if written_down.elapsed() >= WRITE_DOWN {
                written_down = Instant::now();
                state.spool.write_position();
            }
            if state.closing.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            if !state.spool.has_more() {
                if state.closing.is_some() {
                    break;
                }
                // Somebody may be waiting for the receiver to prove itself; otherwise only news matter.
                let time = if self.doubtful.is_empty() { WRITE_DOWN } else { TICK };
                drop(shared.wait(state, time));
                continue;
            }
            let count = if self.singly > 0 { 1 } else { self.peer.batch() };
            let messages = state.spool.read(count, SENDING);
            let mark = state.spool.mark();
            report(&mut state.spool, &self.name, &self.counts);
            drop(state);
            if messages.is_empty() {
                continue;
            }
            let result = self.peer.send(&messages).and_then(|()| Ok(self.took(mark)?));
            if !matches!(result, Err(Trouble::Away(_) | Trouble::Busy(..))) {
                self.singly = self.singly.saturating_sub(1);
            }
            match result {
                Ok(()) => {}
                Err(Trouble::Partly(refused, why)) => {
                    self.well();
                    self.settle_all(mark, refused);
                    self.refuse(refused, &why);
                }
                Err(Trouble::Refused(why)) if messages.len() == 1 => {
                    self.well();
                    self.settle_all(mark, 1);
                    self.refuse(1, &why);
                }
                Err(Trouble::Refused(_)) => {
                    // Which one it is shows when they go one by one.
                    self.singly = u32::try_from(messages.len()).unwrap_or(u32::MAX);
                    self.rewind();
                }
                Err(Trouble::Away(error)) if self.fail(&error, Duration::ZERO) => break,
                Err(Trouble::Busy(error, wait)) if self.fail(&error, wait) => break,
                Err(Trouble::Away(_) | Trouble::Busy(..)) => {}
            }
        }
        self.end();
    }

    /// The receiver has shown that it takes what it is sent.
    fn well(&mut self) {
        self.backoff.reset();
        if let Some(away) = self.away.take() {
            eprintln!("sink {}: delivers again after {:.0} s", self.name, away.elapsed().as_secs_f64());
        }
    }

    /// The receiver will never take so many. Why is said for the first of them.
    fn refuse(&mut self, count: u64, why: &str) {
        if !std::mem::replace(&mut self.refused, true) {
            eprintln!("degraded: sink {}: the receiver refuses: {}", self.name, escape_to(why, 200));
        }
        self.counts.lose(&self.name, count, Loss::Refused);
    }

    /// Everything up to the mark was sent.
    fn took(&mut self, mark: Mark) -> io::Result<()> {
        if self.peer.settles().is_zero() {
            self.well();
            self.settle_all(mark, 0);
        } else {
            let (sent, _) = self.peer.sent()?;
            self.doubtful.push_back((mark, sent, Instant::now()));
        }
        Ok(())
    }

    /// Everything up to the mark is done, of which so many were not delivered.
    fn settle_all(&mut self, mark: Mark, refused: u64) {
        self.doubtful.retain(|(doubtful, ..)| *doubtful > mark);
        let mut state = self.shared.lock();
        let done = state.spool.deliver(mark);
        self.counts.deliver(done.saturating_sub(refused));
        self.counts.wait(state.spool.waiting(), state.spool.bytes());
    }

    /// Forgets what the receiver has taken, which is its proof that it is there: a connection that was made is none. Under TLS 1.3
    /// a server refuses our certificate after we have sent.
    fn settle(&mut self) -> io::Result<()> {
        if self.doubtful.is_empty() || self.looked.elapsed() < TICK {
            return Ok(());
        }
        self.looked = Instant::now();
        let settles = self.peer.settles();
        let (_, arrived) = self.peer.sent()?;
        let certain = self.doubtful.iter().take_while(|(_, sent, when)| *sent <= arrived && when.elapsed() >= settles);
        if let Some((mark, ..)) = certain.last().copied() {
            self.well();
            self.settle_all(mark, 0);
        }
        Ok(())
    }

    fn rewind(&mut self) {
        self.doubtful.clear();
        self.shared.lock().spool.rewind();
    }

    /// The receiver is away: what is doubtful is sent again, after a while and no sooner than it said. True when the queue has ended,
    /// and with it the time for that.
    fn fail(&mut self, error: &io::Error, said: Duration) -> bool {
        self.peer.abort();
        self.rewind();
        if self.away.is_none() {
            self.away = Some(Instant::now());
            eprintln!("degraded: sink {}: {error}; alerts wait and are delivered later", self.name);
        }
        let until = Instant::now() + self.backoff.fail(fastrand::f64()).max(said);
        let mut state = self.shared.lock();
        while state.closing.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.wait(state, left);
        }
        state.closing.is_some()
    }

    fn end(&mut self) {
        if let Some((mark, ..)) = self.doubtful.back().copied()
            && self.peer.close()
        {
            self.settle_all(mark, 0);
        }
        let mut state = self.shared.lock();
        state.spool.write_position();
        report(&mut state.spool, &self.name, &self.counts);
        let mortal = state.spool.mortal();
        self.counts.lose(&self.name, mortal, Loss::End);
        self.counts.wait(state.spool.waiting() - mortal, state.spool.bytes());
    }
}
