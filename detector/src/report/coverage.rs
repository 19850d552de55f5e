//! What the trace covers: which host, when, through which hooks, and what it does not have.

use std::collections::BTreeMap;

use super::{
    text::{TEXT_MAX, cut},
    time::{self, Ns},
};
use crate::{
    pipeline::Pipeline,
    record::{Body, DirState, Record, Start, Watched, WatchedDir},
};

/// Most different starts of the agent, hooks with losses, gaps and unread parts that are told one by one.
const MOST: usize = 64;
/// Longest text of a table, in bytes.
const SHORT: usize = 512;
/// Longest name of a node: as long as a host's may be.
const NODE_MAX: usize = 253;

/// Losses of one hook.
#[derive(Debug)]
pub struct Lossy {
    /// Events for which the ring had no room.
    pub lost: u64,
    /// Runs of the program that the kernel skipped.
    pub skipped: u64,
    /// Among them such as could have raised an alert.
    pub alerting: bool,
    pub first: Ns,
    pub last: Ns,
}

impl Lossy {
    pub fn between(&self) -> String {
        between(self.first, self.last)
    }
}

/// Records that the trace does not have, between two that it has.
#[derive(Debug)]
pub struct Gap {
    pub after: u64,
    pub before: u64,
    pub first: Ns,
    pub last: Ns,
}

impl Gap {
    pub fn between(&self) -> String {
        between(self.first, self.last)
    }

    pub fn count(&self) -> u64 {
        self.before - self.after - 1
    }
}

#[derive(Debug, Default)]
pub struct Coverage {
    /// Different runs of the agent, as they were recorded.
    pub starts: Vec<Start>,
    pub watched: Watched,
    pub records: u64,
    span: Option<(Ns, Ns)>,
    pub losses: BTreeMap<String, Lossy>,
    pub gaps: Vec<Gap>,
    pub unread: Vec<String>,
    /// What of the above did not fit into its list.
    pub untold: u64,
    /// Kernel records that could not be decoded.
    pub undecodable: u64,
    /// As the pipeline last said; another pipeline begins at nothing.
    undecodable_last: u64,
    last: Option<(u64, Ns)>,
}

impl Coverage {
    pub fn observe(&mut self, record: &Record, pipeline: &Pipeline) {
        self.records += 1;
        let at = time::of(record.time, pipeline.context());
        self.span = Some(self.span.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        if let Some((after, since)) = self.last
            && record.seq > after.saturating_add(1)
            && !matches!(record.body, Body::Start(_))
        {
            let (first, last) = (since.min(at), since.max(at));
            push(&mut self.gaps, &mut self.untold, Gap { after, before: record.seq, first, last });
        }
        self.last = Some((record.seq, at));
        let undecodable = pipeline.stats().undecodable;
        self.undecodable += undecodable.checked_sub(self.undecodable_last).unwrap_or(undecodable);
        self.undecodable_last = undecodable;
        match &record.body {
            Body::Start(start) => self.started(start),
            Body::Watched(watched) => {
                let dirs = watched.dirs.iter().take(MOST).map(|dir| WatchedDir {
                    path: cut(&dir.path, TEXT_MAX),
                    state: match &dir.state {
                        DirState::Unreadable(why) => DirState::Unreadable(cut(why, SHORT)),
                        state => state.clone(),
                    },
                    ..dir.clone()
                });
                self.watched = Watched { dirs: dirs.collect() };
            }
            Body::Loss(loss) => {
                let name = cut(&loss.hook, SHORT);
                if self.losses.len() >= MOST && !self.losses.contains_key(&name) {
                    self.untold += 1;
                    return;
                }
                let new = Lossy { lost: 0, skipped: 0, alerting: false, first: at, last: at };
                let lossy = self.losses.entry(name).or_insert(new);
                let count = if loss.skipped { &mut lossy.skipped } else { &mut lossy.lost };
                *count = count.saturating_add(loss.lost);
                lossy.alerting |= loss.alerting;
                (lossy.first, lossy.last) = (lossy.first.min(at), lossy.last.max(at));
            }
            _ => {}
        }
    }

    pub fn unread(&mut self, what: &str) {
        push(&mut self.unread, &mut self.untold, cut(what, TEXT_MAX));
    }

    fn started(&mut self, start: &Start) {
        let mut hooks = start.hooks.clone();
        hooks.truncate(MOST);
        for hook in &mut hooks {
            hook.name = cut(&hook.name, SHORT);
            hook.backend = hook.backend.as_deref().map(|backend| cut(backend, SHORT));
            hook.reason = hook.reason.as_deref().map(|reason| cut(reason, TEXT_MAX));
        }
        let start = Start {
            node: cut(&start.node, NODE_MAX),
            kernel: cut(&start.kernel, SHORT),
            agent_version: cut(&start.agent_version, SHORT),
            boot_time_ns: start.boot_time_ns,
            hooks,
            ..Start::default()
        };
        if !self.starts.contains(&start) {
            push(&mut self.starts, &mut self.untold, start);
        }
    }

    /// From the first record to the last; nothing when there is none.
    pub fn span(&self) -> Option<(Ns, Ns)> {
        self.span
    }

    pub fn first(&self) -> String {
        self.span.map_or_else(|| "no record".to_owned(), |(first, _)| time::utc(first))
    }

    pub fn last(&self) -> String {
        self.span.map_or_else(|| "no record".to_owned(), |(_, last)| time::utc(last))
    }

    pub fn duration(&self) -> String {
        time::span(self.span.map_or(0, |(first, last)| last - first))
    }

    /// Whether the trace has every record, and no event was lost on the way into it.
    pub fn is_complete(&self) -> bool {
        self.records > 0
            && self.losses.is_empty()
            && self.gaps.is_empty()
            && self.unread.is_empty()
            && (self.untold, self.undecodable) == (0, 0)
    }

    /// Hooks that are required and were not attached, in any run.
    pub fn blind(&self) -> bool {
        self.starts.iter().flat_map(|start| &start.hooks).any(|hook| hook.required && hook.backend.is_none())
    }

    pub fn nodes(&self) -> String {
        let mut nodes: Vec<_> = self.starts.iter().map(|start| start.node.as_str()).collect();
        nodes.dedup();
        if nodes.is_empty() { "an unknown node".to_owned() } else { nodes.join(", ") }
    }

    /// When something is missing, for the timeline.
    pub fn missing(&self) -> impl Iterator<Item = (Ns, Ns)> {
        let losses = self.losses.values().map(|lossy| (lossy.first, lossy.last));
        losses.chain(self.gaps.iter().map(|gap| (gap.first, gap.last)))
    }
}

pub fn attached(start: &Start) -> usize {
    start.hooks.iter().filter(|hook| hook.backend.is_some()).count()
}

/// `18 by fentry, 9 by tracepoint`.
pub fn backends(start: &Start) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    start.hooks.iter().filter_map(|hook| hook.backend.as_deref()).for_each(|by| *counts.entry(by).or_default() += 1);
    counts.iter().map(|(backend, count)| format!("{count} by {backend}")).collect::<Vec<_>>().join(", ")
}

pub fn state(dir: &WatchedDir) -> &str {
    match &dir.state {
        DirState::Present(_) => "directory",
        DirState::File(_) => "a single file",
        DirState::Missing => "does not exist",
        DirState::Url => "a URL: what it serves is not watched",
        DirState::Unreadable(why) => why,
    }
}

fn between(first: Ns, last: Ns) -> String {
    if first == last { time::utc(first) } else { format!("{} to {}", time::utc(first), time::utc(last)) }
}

fn push<T>(list: &mut Vec<T>, untold: &mut u64, item: T) {
    if list.len() < MOST { list.push(item) } else { *untold += 1 }
}
