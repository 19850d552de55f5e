//! `detector matrix`: the Kubernetes Threat Matrix on this node, or on the one that a trace was recorded on.
//!
//! What is here is found out by [`facts`] or read from traces by [`history`]; what that means is a function of it and of one table.

mod facts;
mod history;
mod show;
pub mod table;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{alert::Severity, cli::Source};
use table::{Need, Row, TABLE};

/// What to show, and how.
#[derive(Args, Debug)]
pub struct Options {
    /// Say what these traces of a node cover, and what was found in them, instead of what this node has
    #[arg(long = "trace", value_name = "FILE", num_args = 1..)]
    traces: Vec<PathBuf>,
    /// How it is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// One page
    Html,
    Json,
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub node: String,
    pub kernel: String,
    /// Attached hooks, and how each is attached.
    pub hooks: BTreeMap<String, String>,
    pub cgroups: bool,
    pub directories: usize,
    pub kubelets: usize,
    /// `None` where it cannot be known.
    pub runtime: Option<bool>,
    pub upper: Option<bool>,
    pub audit_logs: usize,
}

/// How well a technique is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    NotHere,
    Partly,
    Covered,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::NotHere => "not here",
            Self::Partly => "partly",
            Self::Covered => "covered",
        }
    }
}

/// One technique on one node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Covered {
    pub id: &'static str,
    pub name: &'static str,
    pub tactic: &'static str,
    pub attack: &'static [&'static str],
    pub microsoft: &'static [&'static str],
    pub state: State,
    pub signals: Vec<Seen>,
    /// `None` without a trace.
    pub findings: Option<Findings>,
}

/// One way to see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    pub what: &'static str,
    /// By which hooks, and how they are attached; empty where it needs none.
    pub by: Vec<String>,
    /// Why not here.
    pub missing: Option<String>,
}

/// What was found in traces.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    pub count: u64,
    pub worst: Option<Severity>,
    /// RFC 3339.
    pub last: Option<String>,
    /// When it was last performed by `detector drill`, and found.
    pub last_drill: Option<String>,
}

/// The whole table.
#[derive(Debug, Serialize)]
struct Matrix {
    node: String,
    kernel: String,
    techniques: Vec<Covered>,
}

/// Prints it. The exit code is 1 when a trace was damaged.
///
/// # Errors
/// When a trace cannot be read, or standard output fails.
pub fn matrix(options: &Options) -> anyhow::Result<ExitCode> {
    let (facts, found, whole) = if options.traces.is_empty() {
        (facts::of(&options.source.options()), None, true)
    } else {
        let history = history::read(&options.traces)?;
        (history.facts, Some(history.found), history.whole)
    };
    let techniques = TABLE.iter().map(|row| {
        let findings = found.as_ref().map(|found| found.get(row.id).cloned().unwrap_or_default());
        cover(row, &facts, findings)
    });
    let matrix = Matrix { techniques: techniques.collect(), node: facts.node, kernel: facts.kernel };
    show::print(&matrix, options.format)?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a node with these facts sees of a technique.
fn cover(row: &Row, facts: &Facts, findings: Option<Findings>) -> Covered {
    let signals: Vec<_> = row
        .signals
        .iter()
        .map(|signal| {
            let mut by = Vec::new();
            let mut missing = None;
            for need in signal.needs {
                match meet(*need, facts) {
                    Ok(hook) => by.extend(hook),
                    Err(why) => missing = missing.or(Some(why)),
                }
            }
            Seen { what: signal.what, by, missing }
        })
        .collect();
    let here = signals.iter().filter(|signal| signal.missing.is_none()).count();
    let state = match here {
        0 => State::NotHere,
        _ if here < signals.len() => State::Partly,
        _ => State::Covered,
    };
    let Row { id, name, tactic, attack, microsoft, .. } = row;
    Covered { id, name, tactic, attack, microsoft, state, signals, findings }
}

/// The hook that meets a need, where it takes one. `Err` says why it is not met.
fn meet(need: Need, facts: &Facts) -> Result<Option<String>, String> {
    let given = |is: bool, why: &str| if is { Ok(None) } else { Err(why.to_owned()) };
    match need {
        Need::Hook(names) => {
            let found = names.iter().find_map(|name| Some((name, facts.hooks.get(*name)?)));
            match found {
                Some((name, backend)) => Ok(Some(format!("{name} ({backend})"))),
                None => Err(format!("needs the hook {}: `detector doctor` says why it is absent", names.join(" or "))),
            }
        }
        Need::Cgroups => given(facts.cgroups, "no cgroup v2 hierarchy: containers are not told apart"),
        Need::Directory => given(facts.directories > 0, "nothing is watched: name a directory with --manifest-dir"),
        Need::Kubelet => given(facts.kubelets > 0, "no kubelet runs here"),
        Need::Runtime => {
            given(facts.runtime.unwrap_or(true), "no container runtime is asked: name one with --cri-socket")
        }
        Need::Upper => {
            given(facts.upper.unwrap_or(true), "the kernel shows no types of overlayfs, which is not loaded")
        }
        Need::AuditLog => {
            given(facts.audit_logs > 0, "no API server here writes an audit log: name one with --audit-log")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> &'static Row {
        TABLE.iter().find(|row| row.id == id).unwrap()
    }

    fn facts(hooks: &[&str]) -> Facts {
        let hooks = hooks.iter().map(|hook| ((*hook).to_owned(), "lsm".to_owned())).collect();
        Facts { hooks, cgroups: true, directories: 1, kubelets: 1, runtime: Some(true), ..Facts::default() }
    }

    #[test]
    fn a_technique_is_covered_in_part_or_not_by_what_its_signals_need() {
        let state = |facts: &Facts| cover(row("container-exec"), facts, None).state;
        assert_eq!(state(&facts(&["exec", "fork", "namespaces"])), State::Covered);
        assert_eq!(state(&facts(&["exec", "fork", "syscall"])), State::Covered, "either of two hooks will do");
        assert_eq!(state(&facts(&["exec", "fork"])), State::Partly);
        assert_eq!(state(&Facts { cgroups: false, ..facts(&["exec"]) }), State::NotHere);
        assert_eq!(state(&facts(&[])), State::NotHere);
    }

    #[test]
    fn what_is_missing_is_said_and_what_sees_it_is_named() {
        let covered = cover(row("static-pod"), &Facts { kubelets: 0, ..facts(&["file-open"]) }, None);
        assert_eq!(covered.state, State::Partly);
        assert_eq!(covered.signals[1].by, ["file-open (lsm)"]);
        assert_eq!(covered.signals[2].missing.as_deref(), Some("no kubelet runs here"));
        assert_eq!(
            covered.signals[3].missing.as_deref(),
            Some("needs the hook inode-change-set or mmap or syscall: `detector doctor` says why it is absent")
        );
    }
}
