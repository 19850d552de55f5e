//! Hooks of the agent that are not attached any more, and who may have done that.
//!
//! A link's descriptor is closed by whoever got into the agent's process, and probes are switched off by whoever may write to the kernel's
//! switches. The act itself is no event; having got in is.

use std::collections::VecDeque;

use detector_common::object;

use super::exe;
use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::{Event, hook_name},
    detect::{Finding, technique::DETECTOR_TAMPERING},
    escape::escape_to,
    record::{BootNs, HookChange, HooksChanged, ProcessKey, Record},
};

/// How long before it somebody who got in may have detached a hook, in ns: a debugger may stay attached for a while.
const BEFORE_NS: u64 = 600_000_000_000;
/// Most acts remembered.
const MAX: usize = 64;
/// Most hooks that are named in a title, and most of what is lost without them.
const NAMED: usize = 3;

/// Who got in.
#[derive(Debug, Default)]
pub struct Hooks {
    acts: VecDeque<Act>,
}

#[derive(Debug)]
struct Act {
    actor: ProcessKey,
    time: BootNs,
    way: Way,
    evidence: Evidence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It may read and write the agent's memory, or drive it.
    Traces,
    /// It changed this link.
    Link(u32),
}

impl Hooks {
    /// Takes note of an act on the agent, whose pid is `own` where that is known.
    pub fn acted(&mut self, record: &Record, event: &Event, own: Option<u32>) {
        let (way, detail) = match event {
            Event::Ptrace(access) if own.is_none_or(|own| own == access.target_tgid) => {
                (Way::Traces, format!("asked to trace pid {}, or to write its memory", access.target_tgid))
            }
            // LINK_UPDATE and LINK_DETACH.
            Event::Bpf(bpf) if bpf.object == object::LINK && matches!(bpf.command, 29 | 34) => {
                (Way::Link(bpf.id), format!("bpf command {} on link {}", bpf.command, bpf.id))
            }
            _ => return,
        };
        let header = event.header();
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        self.acts.retain(|act| (act.actor, act.way) != (actor, way) && !is_old(act, record.time));
        if self.acts.len() >= MAX {
            self.acts.pop_front();
        }
        let kind = if way == Way::Traces { "ptrace" } else { "bpf" };
        let evidence = Evidence { kind, hook: Some(hook_name(header.hook)), sequence: record.seq, detail };
        self.acts.push_back(Act { actor, time: record.time, way, evidence });
    }

    /// Tells of hooks that are gone.
    pub fn changed(&self, record: &Record, changed: &HooksChanged, context: &Context) -> Option<Finding> {
        let gone: Vec<&HookChange> = changed.hooks.iter().filter(|hook| hook.detached.is_some()).collect();
        let first = gone.first()?;
        let links: Vec<u32> = gone.iter().filter_map(|hook| hook.link).collect();
        let suspects: Vec<&Act> = self
            .acts
            .iter()
            .filter(|act| !is_old(act, record.time))
            .filter(|act| match act.way {
                // A switch is turned from outside.
                Way::Traces => !links.is_empty(),
                Way::Link(link) => links.contains(&link),
            })
            .collect();
        let by = suspects.last().map(|act| act.actor);
        let who = by.map_or_else(String::new, |actor| format!(" after {} got at it", exe(actor, context)));
        let name = |hook: &HookChange| escape_to(&hook.name, 32);
        let title = match gone.as_slice() {
            [one] => format!("The detector's hook {} is not attached any more{who}", name(one)),
            all => {
                let names: Vec<_> = all.iter().take(NAMED).map(|hook| name(hook)).collect();
                let more = if all.len() > NAMED { ", ..." } else { "" };
                format!(
                    "{} of the detector's hooks are not attached any more{who}: {}{more}",
                    all.len(),
                    names.join(", ")
                )
            }
        };
        let mut reasons: Vec<String> =
            gone.iter().take(NAMED).map(|hook| format!("{}: {}", name(hook), escape_to(&hook.without, 256))).collect();
        reasons.push("until the agent is started again".to_owned());
        if by.is_none() {
            reasons.push("nobody was seen to do it".to_owned());
        }
        let mut evidence: Vec<_> = suspects.iter().map(|act| act.evidence.clone()).collect();
        evidence.push(Evidence {
            kind: "hooks",
            hook: None,
            sequence: record.seq,
            detail: escape_to(first.detached.as_deref().unwrap_or_default(), 256),
        });
        Some(Finding {
            technique: &DETECTOR_TAMPERING,
            // Of what is required nothing else tells as much.
            severity: if gone.iter().any(|hook| hook.required) { Severity::Critical } else { Severity::High },
            time: record.time,
            title,
            blocked: false,
            reasons,
            actor: by,
            container: None,
            file: None,
            manifest: None,
            evidence,
        })
    }
}

fn is_old(act: &Act, now: BootNs) -> bool {
    now.0.saturating_sub(act.time.0) > BEFORE_NS
}

#[cfg(test)]
mod tests {
    use detector_common::{self as wire, hook, kind};

    use super::*;
    use crate::{
        alert::Alert,
        record::{Body, Own, Start},
        testing::{self, AGENT, Actor, SECOND, Stream},
    };

    const TOOL: Actor = Actor { pid: 60, start: 90, cgroup: 1, mnt_ns: testing::HOST_MNT, pid_ns: testing::HOST_PID };

    fn node() -> Stream {
        let mut stream = Stream::new();
        let Body::Start(start) = testing::start() else { unreachable!() };
        let own = Some(Box::new(Own { pid: AGENT, files: Vec::new() }));
        stream.push(Body::Start(Box::new(Start { own, ..*start })));
        stream.kernel(testing::fork(Actor::host(50, 10), TOOL));
        stream.kernel(testing::exec(TOOL, Actor::host(50, 10), "/usr/bin/gdb", &["gdb"]));
        stream
    }

    fn ptrace(actor: Actor, target_tgid: u32) -> bytes::Bytes {
        let header = actor.header(kind::PTRACE, hook::PTRACE);
        testing::raw(&wire::Ptrace { header, target_start_ns: 0, target_tgid, mode: 2 }, &[])
    }

    fn change(name: &str, required: bool, detached: Option<&str>, link: Option<u32>) -> HookChange {
        let detached = detached.map(str::to_owned);
        HookChange { name: name.to_owned(), detached, link, required, without: "who does it is not seen".to_owned() }
    }

    fn hooks(stream: &mut Stream, hooks: Vec<HookChange>) {
        let since = stream.now();
        stream.push(Body::Hooks(Box::new(HooksChanged { since, hooks })));
    }

    fn gone(alerts: Vec<Alert>) -> Vec<Alert> {
        alerts.into_iter().filter(|alert| alert.title.contains("not attached any more")).collect()
    }

    #[test]
    fn a_hook_that_is_gone_is_told_by_its_weight_with_whoever_got_into_the_agent_before() {
        for (required, severity) in [(true, Severity::Critical), (false, Severity::High)] {
            let mut stream = node();
            stream.kernel(ptrace(TOOL, AGENT));
            hooks(&mut stream, vec![change("file-open", required, Some("its descriptor is closed"), Some(7))]);
            let alerts = gone(stream.alerts());
            assert_eq!(alerts.len(), 1);
            assert_eq!(
                alerts[0].title,
                "The detector's hook file-open is not attached any more after /usr/bin/gdb got at it"
            );
            assert_eq!(alerts[0].severity, severity);
            assert_eq!(alerts[0].process.as_ref().unwrap().pid, TOOL.pid);
            assert_eq!(alerts[0].evidence.len(), 2);
            assert_eq!(alerts[0].reasons[0], "file-open: who does it is not seen");
        }
    }

    #[test]
    fn nobody_is_blamed_who_did_not_get_at_that_link_or_did_long_ago_or_traced_another() {
        let mut stream = node();
        stream.kernel(ptrace(TOOL, AGENT));
        stream.wait(601 * SECOND);
        stream.kernel(ptrace(TOOL, 700));
        stream.kernel(testing::bpf(TOOL, 34, object::LINK, 8));
        // Opened, and not changed.
        stream.kernel(testing::bpf(TOOL, 30, object::LINK, 7));
        hooks(&mut stream, vec![change("fork", false, Some("its descriptor is closed"), Some(7))]);
        let alerts = gone(stream.alerts());
        assert_eq!(alerts[0].process, None);
        assert_eq!(alerts[0].reasons.last().unwrap(), "nobody was seen to do it");
        stream.kernel(testing::bpf(TOOL, 34, object::LINK, 7));
        hooks(&mut stream, vec![change("fork", false, Some("its descriptor is another one's"), Some(7))]);
        assert_eq!(gone(stream.alerts())[1].process.as_ref().unwrap().pid, TOOL.pid);
    }

    #[test]
    fn all_that_a_switch_takes_is_one_finding_that_no_tracer_is_blamed_for_and_switched_on_again_is_none() {
        let mut stream = node();
        stream.kernel(ptrace(TOOL, AGENT));
        let all = ["file-open", "mount", "mmap", "umount"];
        let off = Some("kprobes are switched off in the kernel");
        hooks(&mut stream, all.map(|name| change(name, name == "mount", off, None)).to_vec());
        hooks(&mut stream, all.map(|name| change(name, name == "mount", None, None)).to_vec());
        let alerts = gone(stream.alerts());
        assert_eq!(alerts.len(), 1);
        assert_eq!(alerts[0].title, "4 of the detector's hooks are not attached any more: file-open, mount, mmap, ...");
        assert_eq!((alerts[0].severity, &alerts[0].process), (Severity::Critical, &None));
    }

    #[test]
    fn a_hook_that_could_not_be_attached_at_the_start_is_no_tampering() {
        let mut stream = Stream::new();
        let state = crate::record::HookState {
            name: "file-open".to_owned(),
            backend: None,
            reason: Some("not here".to_owned()),
            verified: None,
            required: true,
        };
        stream.push(Body::Start(Box::new(Start { hooks: vec![state], ..Start::default() })));
        stream.push(Body::Tick);
        assert_eq!(stream.alerts(), []);
    }
}
