//! A static pod, planted harmlessly.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{agent::Agent, say, verdict};
use crate::{
    cli::Source,
    escape::escape,
    record::{Body, DirState},
    source::{manifest::View, proc},
};

/// Plants a manifest that kubelet rejects, and takes it away again.
///
/// # Errors
/// When no watched directory is there, or the agent does not start.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    let dir = directory(source)?;
    let name = format!("detector-drill-{}.yaml", std::process::id());
    let path = dir.join(&name);
    // No kubelet knows this kind: it logs an error and runs nothing.
    let content = format!("apiVersion: detector.drill/v1\nkind: Drill\nmetadata:\n  name: {name}\n");
    let mut agent = Agent::start(source)?;
    println!("drill: planting {} (a manifest that kubelet rejects)", escape(&path.display().to_string()));
    let planted = plant(&path, &content)?;
    let added = agent.alert(planted, |alert| is_about(alert, &name, "added"));
    let removed_at = Instant::now();
    fs::remove_file(&path).with_context(|| format!("removing {}: remove it by hand", path.display()))?;
    let removed = agent.alert(removed_at, |alert| is_about(alert, &name, "removed"));
    println!("drill: the manifest is removed again");
    let me = std::process::id();
    let fine = say("planting", added, me) & say("removal", removed, me);
    agent.stop();
    Ok(verdict(fine))
}

/// Whether an alert is about the manifest of this name, and this change of it.
fn is_about(alert: &Value, name: &str, change: &str) -> bool {
    let file = &alert["file"];
    file["change"] == change && file["path"].as_str().is_some_and(|path| path.ends_with(name))
}

/// Writes the manifest; returns when the last system call did.
fn plant(path: &Path, content: &str) -> anyhow::Result<Instant> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    file.write_all(content.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    Ok(Instant::now())
}

/// The first directory that is watched and there, as this process reaches it.
fn directory(source: &Source) -> anyhow::Result<PathBuf> {
    let batch = View::new(source.options().discovery).start(proc::now());
    let dirs = batch.bodies.into_iter().find_map(|body| match body {
        Body::Watched(watched) => Some(watched.dirs),
        _ => None,
    });
    let dirs = dirs.unwrap_or_default();
    let Some(dir) = dirs.iter().find(|dir| matches!(dir.state, DirState::Present(_))) else {
        let missing: Vec<_> = dirs.iter().map(|dir| escape(&dir.path)).collect();
        bail!(
            "no watched directory exists ({}). Name one: detector drill static-pod --manifest-dir DIR",
            if missing.is_empty() { "none is watched".to_owned() } else { missing.join(", ") }
        );
    };
    Ok(match dir.kubelet_pid {
        Some(pid) => Path::new(&format!("/proc/{pid}/root")).join(dir.path.trim_start_matches('/')),
        None => PathBuf::from(&dir.path),
    })
}
