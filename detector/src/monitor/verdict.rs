//! Whether the agent is well, and why not. Pure.

use std::time::Duration;

use serde::Serialize;

use super::Snapshot;

/// How long the loop may take for one step. It waits a quarter of a second at most by itself; outputs that are exchanged may take
/// eight seconds to end.
pub const STALLED: Duration = Duration::from_secs(15);
/// How long it may take to start: a slow node reads the kernel's types for seconds.
pub const STARTING: Duration = Duration::from_secs(60);

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub what: String,
    /// An agent that is started again may be well.
    pub curable: bool,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is all well?
    Health,
    /// Has it begun to watch?
    Ready,
    /// Would it be of use to start it again?
    Live,
}

/// The answer, as JSON.
#[derive(Debug, Serialize)]
pub struct Answer {
    pub status: &'static str,
    pub reasons: Vec<String>,
    pub hooks: Hooks,
    /// Seconds since the loop's last step.
    pub silent_seconds: f64,
    pub version: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Hooks {
    pub attached: usize,
    pub total: usize,
}

/// Everything that is wrong; `silent` is how long the loop has not made a step.
#[must_use]
pub fn judge(snapshot: &Snapshot, silent: Duration) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |curable: bool, what: String| reasons.push(Reason { what, curable });
    let patience = if snapshot.started { STALLED } else { STARTING };
    if silent >= patience {
        add(true, format!("the source stalls: no step for {} s", silent.as_secs()));
    }
    for hook in &snapshot.hooks {
        match (&hook.backend, &hook.detached) {
            (Some(_), Some(why)) => add(true, format!("hook {} is not attached any more: {why}", hook.name)),
            (None, _) if hook.required => {
                add(false, format!("hook {} is required and not attached: {}", hook.name, hook.reason));
            }
            _ => {}
        }
    }
    for sink in snapshot.sinks.iter().filter(|sink| sink.ended) {
        add(true, format!("sink {} has ended: its alerts are lost", sink.sink));
    }
    reasons
}

/// What is answered, and whether that is yes.
#[must_use]
pub fn answer(question: Question, snapshot: &Snapshot, silent: Duration) -> (bool, Answer) {
    let mut reasons = judge(snapshot, silent);
    let unready = Reason {
        what: if snapshot.stopping { "it is stopping" } else { "it is starting: hooks are being attached" }.to_owned(),
        curable: false,
    };
    let watches = snapshot.started && !snapshot.stopping;
    match question {
        Question::Live => reasons.retain(|reason| reason.curable),
        Question::Ready => reasons = if watches { Vec::new() } else { vec![unready] },
        Question::Health => reasons.extend((!watches).then_some(unready)),
    }
    let fine = reasons.is_empty();
    let answer = Answer {
        status: if fine { "ok" } else { "failed" },
        reasons: reasons.into_iter().map(|reason| reason.what).collect(),
        hooks: Hooks {
            attached: snapshot.hooks.iter().filter(|hook| hook.is_attached()).count(),
            total: snapshot.hooks.len(),
        },
        silent_seconds: silent.as_secs_f64(),
        version: env!("CARGO_PKG_VERSION"),
    };
    (fine, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{monitor::HookShown, sink};

    fn hook(name: &str, backend: Option<&str>, required: bool) -> HookShown {
        HookShown {
            name: name.to_owned(),
            backend: backend.map(str::to_owned),
            reason: "the kernel refuses".to_owned(),
            required,
            detached: None,
        }
    }

    fn well() -> Snapshot {
        Snapshot {
            started: true,
            hooks: vec![hook("exec", Some("tracepoint"), true), hook("ptrace", None, false)],
            sinks: vec![sink::State { sink: "stdout".to_owned(), ..sink::State::default() }],
            ..Snapshot::default()
        }
    }

    fn reasons(question: Question, snapshot: &Snapshot, silent: u64) -> Vec<String> {
        let (fine, answer) = answer(question, snapshot, Duration::from_secs(silent));
        assert_eq!(fine, answer.reasons.is_empty());
        answer.reasons
    }

    #[test]
    fn an_agent_that_is_well_says_so_to_every_question() {
        for question in [Question::Health, Question::Ready, Question::Live] {
            assert_eq!(reasons(question, &well(), 14), [""; 0], "{question:?}");
        }
    }

    #[test]
    fn what_a_restart_may_mend_is_no_life_and_what_it_cannot_is_only_no_health() {
        let mut missing = well();
        missing.hooks[0].backend = None;
        let mut detached = well();
        detached.hooks[0].detached = Some("its descriptor is closed".to_owned());
        let mut ended = well();
        ended.sinks[0].ended = true;
        for (snapshot, silent, says, curable) in [
            (missing, 0, "hook exec is required and not attached: the kernel refuses", false),
            (detached, 0, "hook exec is not attached any more: its descriptor is closed", true),
            (ended, 0, "sink stdout has ended: its alerts are lost", true),
            (well(), 15, "the source stalls: no step for 15 s", true),
        ] {
            assert_eq!(reasons(Question::Health, &snapshot, silent), [says]);
            assert_eq!(reasons(Question::Live, &snapshot, silent).len(), usize::from(curable), "{says}");
            assert_eq!(reasons(Question::Ready, &snapshot, silent), [""; 0], "{says}");
        }
    }

    #[test]
    fn an_agent_that_starts_or_stops_lives_and_is_not_ready() {
        let starting = Snapshot::default();
        let stopping = Snapshot { stopping: true, ..well() };
        for snapshot in [&starting, &stopping] {
            assert_eq!(reasons(Question::Ready, snapshot, 0).len(), 1);
            assert_eq!(reasons(Question::Health, snapshot, 0).len(), 1);
            assert_eq!(reasons(Question::Live, snapshot, 0), [""; 0]);
        }
        // A slow start is given more time, and not all of it.
        assert_eq!(reasons(Question::Live, &starting, 59), [""; 0]);
        assert_eq!(reasons(Question::Live, &starting, 60).len(), 1);
    }
}
