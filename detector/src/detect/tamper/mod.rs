//! `detector-tampering`: what others do to the agent's process and to its programs and maps in the kernel. Losses are told by
//! [`crate::detect::impair`], tracing by [`crate::detect::around`].

mod files;
mod hooks;

use std::collections::BTreeSet;

use detector_common::{self as wire, kind, object};

use crate::{
    alert::{Evidence, Origin, Severity},
    context::Context,
    decode::{Event, hook_name},
    detect::{Detector, Finding, kinds, once::Lately, technique::DETECTOR_TAMPERING},
    escape::escape_to,
    record::{Body, Own, OwnRole, ProcessKey, Record, Start},
};

/// A process that does the same again within this time, in ns, is the same alert.
const AGAIN_NS: u64 = 10_000_000_000;
/// Most acts remembered.
const MAX: usize = 256;

/// Tells of them.
#[derive(Debug, Default)]
pub struct Tamper {
    own: Own,
    kubelets: BTreeSet<u32>,
    /// Hooks that see tracing are attached.
    sees_tracing: bool,
    /// Who did what, lately.
    recent: Lately<(ProcessKey, u32), MAX>,
    hooks: hooks::Hooks,
}

impl Detector for Tamper {
    fn kinds(&self) -> u64 {
        kinds(&[kind::SIGNAL, kind::BPF, kind::OPEN, kind::WRITE, kind::MAP, kind::ENTRY, kind::PATH, kind::PTRACE])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if let Body::Start(start) = &record.body {
            self.sees_tracing = has(start, "ptrace") || has(start, "syscall-guard");
            self.own = start.own.as_deref().cloned().unwrap_or_default();
        }
        if let Body::Watched(watched) = &record.body {
            self.kubelets = watched.dirs.iter().filter_map(|dir| dir.kubelet_pid).collect();
        }
        if let Body::Hooks(changed) = &record.body {
            return self.hooks.changed(record, changed, context).into_iter().collect();
        }
        if let Some(event) = event {
            self.hooks.acted(record, event, (self.own.pid != 0).then_some(self.own.pid));
        }
        let found = match event {
            Some(Event::Signal(signal)) => self.signal(record, signal, context),
            Some(Event::Bpf(bpf)) => self.bpf(record, bpf, context),
            Some(event) => {
                files::act(event, &mut self.own).and_then(|act| self.file(record, event.header(), &act, context))
            }
            None => None,
        };
        found.into_iter().collect()
    }
}

fn has(start: &Start, hook: &str) -> bool {
    start.hooks.iter().any(|state| state.name == hook && state.backend.is_some())
}

impl Tamper {
    fn signal(&mut self, record: &Record, signal: &wire::Signal, context: &Context) -> Option<Finding> {
        /// `TRACE_SIGNAL_IGNORED`: the agent has it ignored.
        const IGNORED: u32 = 1;
        const SIGSTOP: u32 = 19;
        let actor = ProcessKey::from_ns(signal.header.tgid, signal.header.start_ns);
        let agent = ProcessKey::from_ns(signal.target_tgid, signal.target_start_ns);
        let by_kernel = signal.code > 0;
        if signal.result == IGNORED || (by_kernel && signal.signal == SIGSTOP && self.sees_tracing) {
            return None;
        }
        // Whoever started it may end it, and have it ended: a supervisor, a runtime, the shell that it was started from.
        let ends = ends(signal.signal);
        if ends && !by_kernel && is_supervisor(actor, agent, context) {
            return None;
        }
        let (pid, name) = (signal.target_tgid, name(signal.signal));
        let (severity, title, reason) = if by_kernel && signal.signal == SIGSTOP {
            let title = format!("The detector (pid {pid}) stopped to be traced by {}", exe(actor, context));
            (Severity::High, title, "whoever traces it decides what it reports")
        } else if by_kernel {
            let title = format!("The detector (pid {pid}) is ended by the kernel ({name})");
            (Severity::Medium, title, "no process asked for it: memory may have run out")
        } else {
            let title = format!("The detector (pid {pid}) is sent {name} by {}", exe(actor, context));
            match ends {
                true => (
                    Severity::Medium,
                    title,
                    "it ends, or reads its configuration again; nobody who started it asked for that",
                ),
                false => (Severity::High, title, "while it is stopped, or once it has ended, nothing is told"),
            }
        };
        let detail = format!("{name}, si_code {}", signal.code);
        // In the kernel's own acts nobody has a part.
        let who = (!by_kernel || signal.signal == SIGSTOP).then_some(actor);
        self.tell(record, &signal.header, signal.signal, who, severity, title, reason, ("signal", detail), context)
    }

    fn bpf(&mut self, record: &Record, bpf: &wire::Bpf, context: &Context) -> Option<Finding> {
        let actor = ProcessKey::from_ns(bpf.header.tgid, bpf.header.start_ns);
        let what = match bpf.object {
            object::MAP => "map",
            object::PROGRAM => "program",
            _ => "link",
        };
        let (changes, verb) = match bpf.command {
            2 | 3 | 26 | 27 => (true, "changed"),
            22 => (true, "frozen"),
            29 => (true, "updated"),
            34 => (true, "detached"),
            _ => (false, "opened"),
        };
        let title = format!("The detector's {what} {} {verb} by {}", bpf.id, exe(actor, context));
        let (severity, reason) = if changes {
            (Severity::High, "what it watches, and whom it trusts, stands there")
        } else {
            (Severity::Medium, "with a descriptor of it, it can be read and changed; bpftool opens what it lists")
        };
        let detail = format!("bpf command {} on {what} {}", bpf.command, bpf.id);
        let kind = 1000 + u32::from(changes);
        self.tell(record, &bpf.header, kind, Some(actor), severity, title, reason, ("bpf", detail), context)
    }

    fn file(
        &mut self,
        record: &Record,
        header: &wire::Header,
        act: &files::Act<'_>,
        context: &Context,
    ) -> Option<Finding> {
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let (what, severity, reason) = match act.role {
            // How a ConfigMap changes.
            OwnRole::Configuration if self.kubelets.contains(&header.tgid) => {
                ("configuration", Severity::Low, "a kubelet did it, as when a ConfigMap changes")
            }
            OwnRole::Configuration => {
                ("configuration", Severity::Medium, "what is told, and what is not, stands there")
            }
            OwnRole::Traces => {
                ("traces", Severity::High, "what was recorded is evidence; nobody else has to write there")
            }
            OwnRole::Spool => ("spool", Severity::High, "alerts wait there to be delivered"),
        };
        let (path, verb) = (escape_to(&act.path, 128), &act.verb);
        let title = format!("The detector's {what}: {path} {verb} by {}", exe(actor, context));
        let kind = 2000 + act.role as u32;
        let detail = format!("{verb} {path}");
        self.tell(record, header, kind, Some(actor), severity, title, reason, ("file", detail), context)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one finding")]
    fn tell(
        &mut self,
        record: &Record,
        header: &wire::Header,
        what: u32,
        actor: Option<ProcessKey>,
        severity: Severity,
        title: String,
        reason: &str,
        (kind, detail): (&'static str, String),
        context: &Context,
    ) -> Option<Finding> {
        let key = ProcessKey::from_ns(header.tgid, header.start_ns);
        if !self.recent.first((key, what), record.time, AGAIN_NS) {
            return None;
        }
        let container = actor.is_some_and(|actor| context.origin(actor).0 == Origin::Container);
        let mut reasons = vec![reason.to_owned()];
        if container {
            reasons.insert(0, "a process in a container did it".to_owned());
        }
        Some(Finding {
            technique: &DETECTOR_TAMPERING,
            severity: if container { Severity::Critical } else { severity },
            time: record.time,
            title,
            blocked: false,
            reasons,
            actor,
            container: None,
            file: None,
            manifest: None,
            evidence: vec![Evidence { kind, hook: Some(hook_name(header.hook)), sequence: record.seq, detail }],
        })
    }
}

/// Whether a process is one that the agent descends from, or was started by one of those other than the first. Whatever has
/// lost its parent descends from the first.
fn is_supervisor(sender: ProcessKey, agent: ProcessKey, context: &Context) -> bool {
    let above = |key: ProcessKey| context.processes.lineage(agent).any(|(ancestor, _)| ancestor == key);
    let parent = context.processes.get(sender).and_then(|process| process.parent);
    above(sender) || parent.is_some_and(|parent| parent.pid != 1 && above(parent))
}

/// SIGHUP, SIGINT, SIGQUIT, SIGTERM: how programs are asked to end, or to read their configuration again.
fn ends(signal: u32) -> bool {
    matches!(signal, 1..=3 | 15)
}

fn name(signal: u32) -> String {
    let known = i32::try_from(signal).ok().and_then(|signal| nix::sys::signal::Signal::try_from(signal).ok());
    known.map_or_else(|| format!("signal {signal}"), |known| known.as_str().to_owned())
}

fn exe(actor: ProcessKey, context: &Context) -> String {
    context
        .processes
        .get(actor)
        .map_or_else(|| format!("pid {}", actor.pid), |process| escape_to(&process.program.exe, 128))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::HookState,
        testing::{self, AGENT, Actor, Stream},
    };

    const TERM: u32 = 15;
    const STOP: u32 = 19;

    /// A stream of a node whose agent was started by `/usr/bin/supervisor`, pid 60.
    fn node() -> Stream {
        let mut stream = Stream::new();
        stream.push(Body::Process(Box::new(testing::seed(60, 10, 1, "/usr/bin/supervisor"))));
        let agent = crate::record::ProcessSeed { start: 0, ..testing::seed(AGENT, 0, 60, "/usr/bin/detector") };
        stream.push(Body::Process(Box::new(crate::record::ProcessSeed { parent_start: Some(1000), ..agent })));
        stream
    }

    fn told(stream: &Stream) -> Vec<(Severity, String)> {
        let alerts = stream.alerts();
        assert!(alerts.iter().all(|alert| alert.technique.id == "detector-tampering"));
        alerts.into_iter().map(|alert| (alert.severity, alert.title)).collect()
    }

    #[test]
    fn a_signal_of_somebody_else_is_told_and_a_supervisors_is_not() {
        let mut stream = node();
        stream.kernel(testing::signal(Actor::host(60, 10), TERM, 0));
        stream.kernel(testing::signal(Actor::host(1, 0), TERM, 0));
        // kill(1), run by the supervisor.
        let tool = Actor::host(61, 99);
        stream.kernel(testing::fork(Actor::host(60, 10), tool));
        stream.kernel(testing::signal(tool, TERM, 0));
        assert_eq!(told(&stream), [], "its supervisors may end it");
        for signal in [TERM, TERM, STOP] {
            stream.kernel(testing::signal(Actor::host(50, 10), signal, 0));
        }
        assert_eq!(
            told(&stream),
            [
                (Severity::Medium, format!("The detector (pid {AGENT}) is sent SIGTERM by /bin/bash")),
                (Severity::High, format!("The detector (pid {AGENT}) is sent SIGSTOP by /bin/bash")),
            ]
        );
    }

    #[test]
    fn nobody_is_blamed_for_what_the_kernel_sends() {
        let mut stream = node();
        stream.kernel(testing::signal(Actor::host(50, 10), 9, 0x80));
        let alerts = stream.alerts();
        assert_eq!(alerts[0].title, format!("The detector (pid {AGENT}) is ended by the kernel (SIGKILL)"));
        assert_eq!(alerts[0].process, None);
    }

    #[test]
    fn a_stop_to_be_traced_is_told_where_nothing_else_tells_of_tracing() {
        for (hook, count) in [("ptrace", 0), ("fork", 1)] {
            let mut stream = node();
            let state = HookState {
                name: hook.to_owned(),
                backend: Some("lsm".to_owned()),
                reason: None,
                verified: None,
                required: false,
            };
            stream.push(Body::Start(Box::new(Start { hooks: vec![state], ..Start::default() })));
            stream.kernel(testing::signal(Actor::host(50, 10), STOP, 0x80));
            assert_eq!(stream.alerts().len(), count, "{hook}");
        }
    }

    #[test]
    fn opening_and_changing_the_agents_objects_are_told_apart_and_told_once_for_each_process() {
        let mut stream = node();
        let tool = Actor::host(50, 10);
        for (command, object, id) in
            [(14, object::MAP, 5), (13, object::PROGRAM, 6), (30, object::LINK, 7), (2, object::MAP, 5)]
        {
            stream.kernel(testing::bpf(tool, command, object, id));
        }
        assert_eq!(
            told(&stream),
            [
                (Severity::Medium, "The detector's map 5 opened by /bin/bash".to_owned()),
                (Severity::High, "The detector's map 5 changed by /bin/bash".to_owned()),
            ]
        );
    }

    #[test]
    fn from_a_container_it_is_critical() {
        let mut stream = node();
        let id = "c".repeat(64);
        stream.kernel(testing::cgroup(Actor::host(50, 10), 900, &format!("/kubepods/pod1/{id}")));
        let info = testing::container(&id, 900, crate::record::ContainerRole::Member, "app");
        stream.push(Body::Container(Box::new(info)));
        stream.kernel(testing::signal(Actor { cgroup: 900, ..Actor::host(70, 99) }, STOP, 0));
        assert_eq!(stream.alerts()[0].severity, Severity::Critical);
    }
}
