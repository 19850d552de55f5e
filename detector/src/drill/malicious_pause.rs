//! Pods' sandboxes whose pauses do what no pause does, harmlessly.

use std::{process::ExitCode, time::Instant};

use super::{
    agent::Agent,
    container::{Container, THIS},
    say, verdict,
};
use crate::cli::Source;

/// What a pause is made to do, and the kind of evidence that says so.
const ACTS: [(&str, &str); 3] = [("open", "open"), ("socket", "socket"), ("process", "fork")];

/// Makes a sandbox for each act, whose pause is this program, and lets it do that.
///
/// # Errors
/// When containers cannot be made here, or the agent does not start.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    // This program is on nobody's list of pause binaries: that alone would be an alert, and hide the one that is drilled.
    let source = Source { pause_binaries: Vec::new(), ..source.clone() };
    let mut agent = Agent::start(&source)?;
    let annotations = serde_json::json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-namespace": "detector",
        "io.kubernetes.cri.sandbox-name": "drill",
        "io.kubernetes.cri.sandbox-uid": "drill",
    });
    let mut fine = true;
    for (act, evidence) in ACTS {
        let mut sandbox = Container::start(THIS.as_ref(), &annotations)?;
        println!("drill: made the sandbox {}, whose pause is to {act}", &sandbox.id[..12]);
        let since = Instant::now();
        sandbox.misbehave(act)?;
        let (id, pid) = (sandbox.id.clone(), sandbox.pid);
        let seen = agent.alert(since, |alert| {
            alert["technique"]["id"] == "malicious-pause-container"
                && alert["container"]["id"] == id.as_str()
                && alert["pod"]["name"] == "drill"
                && alert["evidence"].as_array().is_some_and(|all| all.iter().any(|one| one["kind"] == evidence))
        });
        fine &= say(act, seen, pid);
    }
    println!("drill: the sandboxes are removed again");
    agent.stop();
    Ok(verdict(fine))
}
