//! A container, entered harmlessly.

use std::{process::ExitCode, time::Instant};

use super::{
    agent::Agent,
    container::{self, Container, THIS},
    say, verdict,
};
use crate::cli::Source;

/// Makes a container in which nothing runs, enters it past the runtime, and executes a program there that does nothing.
///
/// # Errors
/// When containers cannot be made here, or the agent does not start.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    let mut agent = Agent::start(source)?;
    let container = Container::start(THIS.as_ref(), &container::annotations())?;
    println!("drill: made the container {} and enter it by its namespaces", &container.id[..12]);
    let since = Instant::now();
    let pid = container.enter(&[])?;
    let id = container.id.clone();
    let seen = agent.alert(since, |alert| {
        alert["technique"]["id"] == "container-exec"
            && alert["container"]["id"] == id.as_str()
            && alert["pod"]["name"] == "drill"
    });
    let fine = say("entry", seen, pid);
    drop(container);
    println!("drill: the container is removed again");
    agent.stop();
    Ok(verdict(fine))
}
