//! A container whose own process executes programs that were not in its image, harmlessly.

use std::{process::ExitCode, time::Instant};

use super::{
    agent::Agent,
    container::{self, Container, OBEYS, THIS},
    say, verdict,
};
use crate::cli::Source;

/// Where the program lies, and the end of the path by which the alert names it.
const PLACES: [(&str, &str); 4] =
    [("memory", "memfd:drill"), ("nowhere", "-program"), ("tmpfs", "tmpfs/program"), ("upper", "merged/program")];

/// Lets a container execute a program from each place.
///
/// # Errors
/// When containers cannot be made here, or the agent does not start.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    let mut agent = Agent::start(source)?;
    let mut annotations = container::annotations();
    annotations[OBEYS] = "".into();
    let mut container = Container::start(THIS.as_ref(), &annotations)?;
    println!("drill: made the container {}, which executes itself from elsewhere", &container.id[..12]);
    let (id, first) = (container.id.clone(), container.pid);
    let mut fine = true;
    for (place, path) in PLACES {
        let since = Instant::now();
        container.misbehave(place)?;
        let seen = agent.alert(since, |alert| {
            alert["technique"]["id"] == "supply-chain-compromise"
                && alert["container"]["id"] == id.as_str()
                && alert["file"]["path"].as_str().is_some_and(|file| file.ends_with(path))
                && alert["process"]["ancestors"][0]["pid"] == first
        });
        // Whose child it is was looked at.
        let pid = seen.as_ref().and_then(|seen| seen.pid).unwrap_or_default();
        fine &= say(place, seen, pid);
    }
    drop(container);
    println!("drill: the container is removed again");
    agent.stop();
    Ok(verdict(fine))
}
