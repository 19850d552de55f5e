//! What kubelet runs in containers by itself: exec probes and life-cycle hooks, of which no file on the node tells where the pod
//! comes from the API server.
//!
//! An exec that nobody had asked for ([`By::Kubelet`]) is kubelet's own. Its command is then known in that container, so that a
//! request to kubelet or a session elsewhere at the same time makes no alarm of the next one. A session with the very command is one
//! all the same where it has its connection, unless kubelet was due to run it just then.

use std::collections::{BTreeMap, VecDeque};

use super::{Finding, way};
use crate::{
    context::{Context, container::Container, requests::By},
    escape::escape_to,
    record::{BootNs, ComponentKind, ProcessKey},
};

/// Most commands remembered.
const KNOWN_MAX: usize = 4096;
/// Most findings that wait; what comes when there are more is told as anybody's.
const HELD_MAX: usize = 256;
/// How long what began with kubelet, the runtime or the agent waits for kubelet to run it again, in ns: probes come every ten seconds
/// unless they are told otherwise.
const AGAIN_NS: u64 = 30_000_000_000;
/// How long after the runtime accepted a connection an exec may be the session's, in ns.
const SESSION_NS: u64 = 1_500_000_000;
/// How often commands of containers that are gone are forgotten, in ns.
const SWEEP_NS: u64 = 60_000_000_000;
/// Most runs of a command that are remembered.
const RUNS_MAX: usize = 6;
/// How far from its time a run may be, in ns; or a fiftieth of its period.
const JITTER_NS: u64 = 100_000_000;

/// A container's id, and what was run in it.
pub type Command = (String, Vec<String>);

/// What is known of kubelet's own execs.
#[derive(Debug, Default)]
pub struct Own {
    /// When kubelet last ran each, oldest first.
    known: BTreeMap<Command, VecDeque<BootNs>>,
    held: Vec<Held>,
    /// The last accepted connection that an exec accounts for.
    claimed: Option<BootNs>,
    swept: BootNs,
}

/// An exec of which is not known yet whose it is.
#[derive(Debug)]
struct Held {
    /// When it is decided at the latest.
    due: BootNs,
    began: BootNs,
    /// Nobody had asked for it, as far as is known.
    own: bool,
    command: Command,
    /// All of its arguments are in it.
    whole: bool,
    low: Finding,
    high: Finding,
}

/// Whose an exec is.
#[derive(Debug, PartialEq, Eq)]
pub enum Whose {
    /// kubelet's, and known.
    Known,
    /// It will be told: see [`Own::hold`].
    Later { own: bool },
    /// Somebody's, or not known whose; and why, where there is something to say.
    Anybodys(Option<String>),
}

/// When the runtime began to execute something for the CRI in a container; `None` unless it was the runtime's own monitor that did.
pub fn began(process: ProcessKey, container: &Container, context: &Context) -> Option<BootNs> {
    let lineage: Vec<_> = context.processes.lineage(process).collect();
    let at = lineage.iter().position(|(_, state)| way::is_runtime(state))?;
    // Of several that execute one another, the first.
    let last = lineage.iter().skip(at).take_while(|(_, state)| way::is_runtime(state)).last()?;
    let (monitor, _) = lineage.iter().skip(at).find(|(_, state)| way::is_monitor(state))?;
    let containers = container.init.is_some_and(|init| context.descends(init, *monitor));
    let runtimes = || {
        let mut above = context.processes.lineage(*monitor);
        above.any(|(key, _)| context.is_component(key, ComponentKind::Runtime))
    };
    (containers || runtimes()).then(|| BootNs(last.0.start.saturating_mul(ProcessKey::TICK_NS)))
}

impl Own {
    /// An exec by the CRI, without a terminal. Without all of its arguments (`whole`) a command is like another, and never known.
    pub fn whose(&mut self, began: BootNs, command: &Command, whole: bool, context: &Context) -> Whose {
        let by = context.asked(began);
        let known = self.known.get(command).filter(|_| whole);
        match (by, known) {
            (By::Unasked | By::Unseen, _) => {}
            (By::Kubelet, None) => return Whose::Later { own: true },
            (By::Early, None) => return Whose::Later { own: false },
            (_, Some(runs)) => {
                let session = self.unclaimed(began, context).is_some() && !is_due(runs, began);
                if !session {
                    self.ran(command.clone(), began);
                    return Whose::Known;
                }
            }
            (_, None) => {}
        }
        let is_known = known.is_some();
        self.claim(began, context);
        Whose::Anybodys(match by {
            By::Unasked | By::Kubelet | By::Early => is_known.then(|| {
                "kubelet runs the same by itself, but this one had a session with the container runtime".to_owned()
            }),
            By::Unseen => Some("whether it is a probe cannot be told on this node".to_owned()),
            By::Lost => Some("whether it is a probe cannot be told: records were lost".to_owned()),
            By::Session => Some("the container runtime was spoken to as sessions do: no probe".to_owned()),
            By::Port(from) => Some(format!("no probe, most likely: {from} had just asked kubelet for something")),
            By::Client(process) => {
                let exe = context.processes.get(process).map_or("a process that ended", |state| &state.program.exe);
                let exe = escape_to(exe, 64);
                Some(format!(
                    "no probe, most likely: {exe} (pid {}) is connected to the container runtime",
                    process.pid
                ))
            }
        })
    }

    /// An exec accounts for the connection that the runtime accepted before it.
    pub fn claim(&mut self, began: BootNs, context: &Context) {
        if let Some(accepted) = self.unclaimed(began, context) {
            self.claimed = Some(accepted);
        }
    }

    fn unclaimed(&self, began: BootNs, context: &Context) -> Option<BootNs> {
        let accepted =
            context.requests.accepted().filter(|accepted| self.claimed.is_none_or(|last| *accepted > last))?;
        // Processes begin in ticks.
        let before = accepted.0 <= began.0.saturating_add(ProcessKey::TICK_NS);
        (before && began.0 <= accepted.0.saturating_add(SESSION_NS)).then_some(accepted)
    }

    /// Keeps an exec until it is known whose it is: `low` when it was kubelet's own, `high` when it may be anybody's. Gives `high` back
    /// when too many wait.
    pub fn hold(
        &mut self,
        own: bool,
        began: BootNs,
        (command, whole): (Command, bool),
        [low, high]: [Finding; 2],
        now: BootNs,
    ) -> Option<Finding> {
        if self.held.len() >= HELD_MAX {
            return Some(high);
        }
        let due = if own { now } else { BootNs(now.0.saturating_add(AGAIN_NS)) };
        self.held.push(Held { due, began, own, command, whole, low, high });
        None
    }

    /// At a tick, behind what was lost until then: what is decided. With each that is kubelet's own, its command.
    pub fn decided(&mut self, now: BootNs, context: &Context) -> Vec<(Option<Command>, Finding)> {
        let mut decided = Vec::new();
        let held = std::mem::take(&mut self.held);
        let (own, early): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.own);
        for held in own {
            if context.requests.lost(held.began) {
                decided.push((None, held.high));
                continue;
            }
            if held.whole {
                self.ran(held.command.clone(), held.began);
            }
            decided.push((Some(held.command), held.low));
        }
        for held in early {
            if held.whole && self.known.contains_key(&held.command) {
                decided.push((Some(held.command), held.low));
            } else if held.due <= now {
                decided.push((None, held.high));
            } else {
                self.held.push(held);
            }
        }
        if now.0.saturating_sub(self.swept.0) >= SWEEP_NS {
            self.swept = now;
            self.known.retain(|(container, _), _| context.containers.get(container).is_some());
        }
        decided
    }

    fn ran(&mut self, command: Command, began: BootNs) {
        while self.known.len() >= KNOWN_MAX && !self.known.contains_key(&command) {
            self.known.pop_first();
        }
        let runs = self.known.entry(command).or_default();
        if runs.len() >= RUNS_MAX {
            runs.pop_front();
        }
        runs.push_back(began);
    }
}

/// Whether a run comes as long after an earlier one as that came after one before.
fn is_due(runs: &VecDeque<BootNs>, began: BootNs) -> bool {
    let pairs =
        runs.iter().enumerate().flat_map(|(at, later)| runs.iter().take(at).map(move |earlier| (earlier, later)));
    pairs.into_iter().any(|(earlier, later)| {
        let period = later.0.saturating_sub(earlier.0);
        let since = began.0.saturating_sub(later.0);
        period > 5 * JITTER_NS && since.abs_diff(period) <= JITTER_NS.max(period / 50)
    })
}
