//! What the agent costs in instructions: the machine's clock counts them, so they repeat.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{Kernel, lines};

/// Instructions of one round of a loop.
#[derive(Debug, Serialize)]
struct Cost {
    backend: String,
    call: String,
    /// With nothing attached.
    none: f64,
    /// Added by empty programs on the hooks that the call runs.
    floor: f64,
    /// Added by the agent.
    agent: f64,
}

/// Boots with a clock of one nanosecond an instruction and prints the table.
pub fn measure(kernel: &Kernel, place: &Path, json: Option<&Path>) -> anyhow::Result<()> {
    eprintln!("==> instructions on kernel {}", kernel.version);
    let mut least: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    let counting = ["-icount", "shift=0,sleep=off", "-smp", "1"];
    let verdict = lines(kernel, place, "detector.bench", &counting, |line| {
        let words: Vec<_> = line.split(' ').collect();
        let ["cost", backend, state, call, count, ns] = words.as_slice() else {
            if !line.is_empty() {
                eprintln!("    {line}");
            }
            return Ok(());
        };
        let rounds: f64 = count.parse().with_context(|| format!("a count: {line}"))?;
        let ns: f64 = ns.parse().with_context(|| format!("nanoseconds: {line}"))?;
        let key = ((*backend).to_owned(), (*call).to_owned(), (*state).to_owned());
        let known = least.entry(key).or_insert(f64::INFINITY);
        *known = known.min(ns / rounds);
        Ok(())
    })?;
    anyhow::ensure!(verdict == Some(0), "the machine did not finish its measurements");
    let of = |backend: &str, call: &str, state: &str| {
        least.get(&(backend.to_owned(), call.to_owned(), state.to_owned())).copied().unwrap_or(f64::NAN)
    };
    let mut costs = Vec::new();
    for backend in ["lsm", "fentry", "kprobe", "tracepoint"] {
        for call in ["open-close", "open-write", "rename", "fork-exec"] {
            let none = of(backend, call, "none");
            costs.push(Cost {
                backend: backend.to_owned(),
                call: call.to_owned(),
                none,
                floor: of(backend, call, "floor") - none,
                agent: of(backend, call, "agent") - none,
            });
        }
    }
    println!(
        "\nKernel {}. Instructions of one round, the least of 40 times 500 rounds (fork+exec: 20 times 20), twice over.\n",
        kernel.version
    );
    println!(
        "{:<12} {:<12} {:>10} {:>14} {:>14} {:>14} {:>10}",
        "backend", "call", "bare", "empty adds", "agent adds", "agent/empty", "agent/bare"
    );
    for cost in &costs {
        println!(
            "{:<12} {:<12} {:>10.0} {:>14.0} {:>14.0} {:>14.2} {:>10.4}",
            cost.backend,
            cost.call,
            cost.none,
            cost.floor,
            cost.agent,
            cost.agent / cost.floor,
            cost.agent / cost.none
        );
    }
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(&costs)? + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}
