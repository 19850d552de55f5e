//! A pod's sandbox whose pause does what no pause does, harmlessly.

use std::{process::ExitCode, time::Instant};

use super::{
    agent::Agent,
    container::{Container, THIS},
    say, verdict,
};
use crate::cli::Source;

/// Makes a sandbox whose pause is this program, and lets it make one process that does nothing.
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
    let mut sandbox = Container::start(THIS.as_ref(), &annotations)?;
    println!("drill: made the sandbox {}, whose pause makes a process", &sandbox.id[..12]);
    let since = Instant::now();
    sandbox.misbehave()?;
    let (id, pid) = (sandbox.id.clone(), sandbox.pid);
    let seen = agent.alert(since, |alert| {
        alert["technique"]["id"] == "malicious-pause-container"
            && alert["container"]["id"] == id.as_str()
            && alert["pod"]["name"] == "drill"
            && alert["evidence"].as_array().is_some_and(|all| all.iter().any(|one| one["kind"] == "fork"))
    });
    let fine = say("process", seen, pid);
    drop(sandbox);
    println!("drill: the sandbox is removed again");
    agent.stop();
    Ok(verdict(fine))
}
