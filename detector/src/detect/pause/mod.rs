//! `malicious-pause-container`: a sandbox whose pause process does more than sleep and reap, or is not the one that it should be.
//!
//! An honest pause executes once, and from then on makes no process, no socket, and opens nothing for writing. What the runtime
//! does in the sandbox's cgroup before that execution is not the pause's doing. What speaks against a sandbox is joined: one
//! finding, and another only when something worse comes to it, or after a while something new.

mod config;
mod signal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use detector_common::{self as wire, kind, watch};

use crate::{
    alert::{Evidence, Severity},
    context::{Context, container::Container},
    decode::{Event, hook_name},
    detect::{Detector, Finding, kinds, stored::StoredActs, technique::MALICIOUS_PAUSE},
    escape::escape_to,
    record::{Body, BootNs, ContainerRole, ExecutedFile, ProcessKey, Record},
};

pub use signal::address;
use signal::{Signal, What};

/// How long after a finding about a sandbox nothing but worse is told of it, in ns.
const QUIET_NS: u64 = 60_000_000_000;
/// Most sandboxes remembered; the oldest go first.
const MAX: usize = 8192;
/// Most signals of one sandbox that are kept.
const SIGNALS_MAX: usize = 16;
/// Most images whose binary, or whose unknown digest, is remembered.
const IMAGES_MAX: usize = 1024;
/// How long after a sandbox began what its image's name leads to may still become known, in ns: a runtime is asked for the names of
/// an image at most 10 s after it arrived, unless it takes its time.
const NAMED_NS: u64 = 12_000_000_000;
/// Longest text of others in a finding, in characters.
const SHOWN: usize = 160;

/// Joins what speaks against each sandbox.
#[derive(Debug, Default)]
pub struct Pause {
    acts: StoredActs,
    sandboxes: BTreeMap<String, Sandbox>,
    order: VecDeque<String>,
    /// Hash of what an image's sandboxes executed first, by the image's digest.
    binaries: BTreeMap<String, String>,
    /// Images of unknown digest that were told of.
    told_images: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Sandbox {
    /// The pause program runs: what happens from now on is its doing.
    runs: bool,
    /// The digest that its image's name led to was looked at.
    judged: bool,
    signals: Vec<Signal>,
    /// When it was told of, how bad it was, and how many signals there were.
    told: Option<(BootNs, Severity, usize)>,
}

impl Detector for Pause {
    fn kinds(&self) -> u64 {
        kinds(&[kind::EXEC, kind::FORK, kind::SOCKET, kind::OPEN, kind::ENTRY, kind::PATH])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match &record.body {
            Body::Kernel { .. } => {
                let Some(event) = event else { return Vec::new() };
                self.acts.observe(record, event);
                self.acted(record, event, context).map_or_else(Vec::new, |finding| vec![finding])
            }
            Body::Process(seed) => {
                let key = seed.key();
                if let Some(container) = context.container_of(key).filter(|found| found.is_sandbox())
                    && container.init == Some(key)
                {
                    self.sandbox(&container.info.id).runs = true;
                }
                Vec::new()
            }
            Body::Executed(file) if file.acted.is_none() => self.executed(record, file, context).into_iter().collect(),
            Body::PauseConfig(config) => config::changed(record, config, &self.acts, context).into_iter().collect(),
            Body::Container(info) if info.role != ContainerRole::Member => {
                let container = context.containers.get(&info.id).filter(|found| found.is_sandbox());
                container.and_then(|found| self.digest(record, found, context)).into_iter().collect()
            }
            // Now there may be a digest to what sandboxes call their image.
            Body::ImageNames(_) => {
                let mut sandboxes: Vec<&Container> = context.containers.sandboxes().collect();
                // Of several that run it the one is told that brought it.
                sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.began));
                sandboxes.into_iter().filter_map(|found| self.digest(record, found, context)).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Pause {
    fn sandbox(&mut self, id: &str) -> &mut Sandbox {
        if !self.sandboxes.contains_key(id) {
            self.order.push_back(id.to_owned());
            if self.order.len() > MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.sandboxes.remove(&oldest);
            }
        }
        self.sandboxes.entry(id.to_owned()).or_default()
    }

    /// Something happened in a sandbox's cgroup.
    fn acted(&mut self, record: &Record, event: &Event, context: &Context) -> Option<Finding> {
        let interesting = match event {
            Event::Exec(_) | Event::Fork(_) => true,
            // Of a connection to a container runtime the same is told as one of any.
            Event::Socket(socket) => socket.call != detector_common::socket::RUNTIME,
            Event::Open(open) => open.event.watch & watch::SANDBOX != 0,
            _ => false,
        };
        if !interesting || context.is_older(record.time) {
            return None;
        }
        let header = event.header();
        let container = context.home(header.cgroup)?;
        if !container.is_sandbox() {
            return None;
        }
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let sandbox = self.sandbox(&container.info.id);
        if !sandbox.runs {
            // The runtime is on its way in, and executes itself anew before it executes the pause program.
            sandbox.runs = matches!(event, Event::Exec(_)) && container.init == Some(actor);
            return None;
        }
        let (what, act) = match event {
            Event::Exec(exec) => (What::Exec, format!("executes {}", escape_to(&exec.path, SHOWN))),
            Event::Fork(fork) => (What::Fork, format!("makes a process (pid {})", fork.child_tgid)),
            Event::Socket(socket) => {
                let (what, act) = signal::socket_act(socket);
                (what, escape_to(&act, SHOWN))
            }
            Event::Open(open) => (What::Open, format!("opens {} for writing", escape_to(&open.path, SHOWN))),
            _ => return None,
        };
        let evidence = evidence(record, event_kind(event), Some(header), &act);
        let signal = Signal { what, severity: what.severity(), actor: Some(actor), act, evidence };
        self.add(record, container, signal)
    }

    /// The file that a sandbox's process executes was looked at.
    fn executed(&mut self, record: &Record, file: &ExecutedFile, context: &Context) -> Option<Finding> {
        let container = context.container_of(file.process).filter(|found| found.is_sandbox())?;
        let image = container.info.image_digest.clone().or_else(|| {
            let name = container.info.image.as_deref()?;
            context.images.digests(name).into_iter().next()
        });
        let allowed = &context.start.policy.pause_binaries;
        let (severity, act) = match &file.sha256 {
            // Reading a small file fails when its process has ended; no pause is so large that it is not read. That proves
            // nothing, and must not hide behaviour.
            None if file.unreadable.is_some() && file.size > 0 => {
                (Severity::Medium, format!("executes a file of {} bytes: no pause is so large", file.size))
            }
            None => return None,
            Some(sha256) if !allowed.is_empty() => {
                if allowed.contains(sha256) {
                    return None;
                }
                (Severity::Critical, format!("executes a file that is no known pause binary: sha256 {sha256}"))
            }
            Some(sha256) => {
                let image = image?;
                match self.binaries.get(&image) {
                    Some(first) if first != sha256 => (
                        Severity::High,
                        format!("executes another file than its image did before: sha256 {sha256}, not {first}"),
                    ),
                    Some(_) => return None,
                    None => {
                        if self.binaries.len() >= IMAGES_MAX {
                            self.binaries.pop_first();
                        }
                        self.binaries.insert(image, sha256.clone());
                        return None;
                    }
                }
            }
        };
        let evidence = evidence(record, "executed", None, &act);
        let signal = Signal { what: What::Binary, severity, actor: Some(file.process), act, evidence };
        self.add(record, container, signal)
    }

    /// Compares the digest of a sandbox's image with those that are known.
    fn digest(&mut self, record: &Record, container: &Container, context: &Context) -> Option<Finding> {
        if self.sandboxes.get(&container.info.id).is_some_and(|sandbox| sandbox.has(What::Digest)) {
            return None;
        }
        let images = &context.images;
        // Older runtimes do not say which image a sandbox runs: the one that they are told to use.
        let said = container.info.image_digest.as_deref().or(container.info.image.as_deref());
        let reference = said.or_else(|| images.pause())?;
        let digests = images.digests(reference);
        if !images.comparable(&digests) {
            return None;
        }
        let judged = std::mem::replace(&mut self.sandbox(&container.info.id).judged, true);
        // The name may lead elsewhere by now. What has run for longer was made of what it led to before.
        let by_name = container.info.image_digest.is_none();
        let young = container.began.is_some_and(|began| record.time.0.saturating_sub(began.0) <= NAMED_NS);
        if images.known_pause(&digests) || (by_name && judged && !young) {
            return None;
        }
        let names = images.names_of(&digests).into_iter().chain(container.info.image.clone());
        let name = names.map(|name| escape_to(&name, SHOWN)).next().unwrap_or_else(|| escape_to(reference, SHOWN));
        let shown: Vec<_> = digests.iter().map(|digest| escape_to(digest, SHOWN)).collect();
        let act = format!(
            "runs an image of unknown digest, {name} ({}): name one with --pause-digest if it is yours",
            shown.join(", ")
        );
        let evidence = evidence(record, "container", None, &act);
        let signal =
            Signal { what: What::Digest, severity: What::Digest.severity(), actor: container.init, act, evidence };
        // A node runs one pause image in all its pods: once is enough, unless there is more.
        let image = digests.iter().next()?;
        let known = self.told_images.iter().any(|told| told == image);
        let alone = self.sandboxes.get(&container.info.id).is_none_or(|sandbox| sandbox.signals.is_empty());
        if known && alone {
            self.sandbox(&container.info.id).signals.push(signal);
            return None;
        }
        if !known {
            if self.told_images.len() >= IMAGES_MAX {
                self.told_images.pop_front();
            }
            self.told_images.push_back(image.clone());
        }
        self.add(record, container, signal)
    }

    /// Adds a signal; yields a finding when that makes a difference.
    fn add(&mut self, record: &Record, container: &Container, signal: Signal) -> Option<Finding> {
        let sandbox = self.sandbox(&container.info.id);
        let actor = signal.actor;
        if !sandbox.has(signal.what) && sandbox.signals.len() < SIGNALS_MAX {
            sandbox.signals.push(signal);
        } else if let Some(same) = sandbox.signals.iter_mut().find(|known| known.what == signal.what) {
            // The latest of its kind says what goes on now.
            let worse = same.severity.max(signal.severity);
            *same = Signal { severity: worse, ..signal };
        }
        let severity = sandbox.signals.iter().map(|signal| signal.severity).max()?;
        let kinds = sandbox.signals.len();
        let news = match sandbox.told {
            None => true,
            Some((_, told, _)) if severity > told => true,
            Some((time, _, before)) => kinds > before && record.time.0.saturating_sub(time.0) >= QUIET_NS,
        };
        if !news {
            return None;
        }
        sandbox.told = Some((record.time, severity, kinds));
        let mut signals = sandbox.signals.clone();
        signals.sort_by_key(|signal| (std::cmp::Reverse(signal.severity), signal.evidence.sequence));
        let worst = signals.first()?;
        let whose = match &container.info.pod {
            Some(pod) => format!("of pod {}/{}", escape_to(&pod.namespace, SHOWN), escape_to(&pod.name, SHOWN)),
            None => escape_to(&container.info.id, 12),
        };
        Some(Finding {
            technique: &MALICIOUS_PAUSE,
            severity,
            time: record.time,
            title: format!("Pause container {whose} {}", worst.act),
            blocked: false,
            reasons: signals.iter().map(|signal| format!("it {}", signal.act)).collect(),
            actor: worst.actor.or(actor).or(container.init),
            container: Some(container.info.id.clone()),
            file: None,
            manifest: None,
            evidence: signals.into_iter().map(|signal| signal.evidence).collect(),
        })
    }
}

impl Sandbox {
    fn has(&self, what: What) -> bool {
        self.signals.iter().any(|signal| signal.what == what)
    }
}

fn evidence(record: &Record, kind: &'static str, header: Option<&wire::Header>, act: &str) -> Evidence {
    Evidence { kind, hook: header.map(|header| hook_name(header.hook)), sequence: record.seq, detail: act.to_owned() }
}

fn event_kind(event: &Event) -> &'static str {
    match event {
        Event::Exec(_) => "exec",
        Event::Fork(_) => "fork",
        Event::Socket(_) => "socket",
        _ => "open",
    }
}
