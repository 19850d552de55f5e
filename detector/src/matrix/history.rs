//! What traces say of the node that they were recorded on, and what is found in them.

use std::{collections::BTreeMap, fs::File, path::PathBuf};

use anyhow::Context as _;

use super::{Facts, Findings};
use crate::{
    alert::{Alert, Severity},
    escape::escape,
    pipeline::Pipeline,
    record::{Body, DirState, InfoFrom, ProcessKey, Record, Start, Watched},
    trace::{Item, Joiner, Next, Reader},
};

/// What traces say.
pub struct History {
    pub facts: Facts,
    /// By technique.
    pub found: BTreeMap<&'static str, Findings>,
    /// Nothing of them was lost or damaged.
    pub whole: bool,
}

/// Reads traces, in the order of time.
///
/// # Errors
/// When one cannot be read, or is no trace.
pub fn read(files: &[PathBuf]) -> anyhow::Result<History> {
    let facts = Facts { runtime: Some(false), ..Facts::default() };
    let mut history = History { facts, found: BTreeMap::new(), whole: true };
    let (mut pipeline, mut joiner) = (Pipeline::new(), Joiner::default());
    for path in files {
        let name = escape(&path.display().to_string());
        let file = File::open(path).with_context(|| name.clone())?;
        for item in Reader::new(file).with_context(|| name.clone())? {
            let record = match item.with_context(|| name.clone())? {
                Item::Opening(record) => {
                    joiner.opening(record);
                    continue;
                }
                Item::Record(record) => record,
                Item::Damage(damage) => {
                    history.whole &= !damage.is_loss();
                    eprintln!("note: {name}: {damage}");
                    continue;
                }
            };
            match joiner.next(&record) {
                Next::Skip => continue,
                Next::Push => {}
                Next::Restart(opening) => {
                    pipeline = Pipeline::new();
                    for record in &opening {
                        history.learn(record);
                        // What they would tell was told when it happened.
                        drop(pipeline.push(record));
                    }
                }
            }
            history.learn(&record);
            for alert in pipeline.push(&record) {
                history.count(&alert, &pipeline);
            }
        }
    }
    Ok(history)
}

impl History {
    fn learn(&mut self, record: &Record) {
        match &record.body {
            Body::Start(start) => self.facts.started(start),
            Body::Watched(watched) => self.facts.watches(watched),
            Body::AuditLog(_) => self.facts.audit_logs = 1,
            Body::Cgroup { .. } => self.facts.cgroups = true,
            Body::Container(info) if matches!(info.from, InfoFrom::Cri(_)) => self.facts.runtime = Some(true),
            Body::ImageNames(_) => self.facts.runtime = Some(true),
            _ => {}
        }
    }

    fn count(&mut self, alert: &Alert, pipeline: &Pipeline) {
        let found = self.found.entry(alert.technique.id).or_default();
        // A drill is none of what happened to the node.
        if is_drill(alert, pipeline) {
            found.last_drill = Some(alert.time.clone());
            return;
        }
        found.count += alert.count;
        found.worst = found.worst.max(Some(alert.severity)).filter(|worst| *worst >= Severity::Info);
        found.last = Some(alert.time.clone());
    }
}

/// Whether a process that ran `detector drill` with this technique did it, or one that descends from one. Whoever attacks can be
/// called so too: then it is shown as a drill, and found all the same.
fn is_drill(alert: &Alert, pipeline: &Pipeline) -> bool {
    let processes = &pipeline.context().processes;
    let Some(actor) = alert.process.as_ref().and_then(|process| processes.latest(process.pid)) else { return false };
    let drills = |key: ProcessKey| {
        processes.get(key).is_some_and(|process| {
            let argv = process.program.argv.to_vec();
            argv.windows(2).any(|two| two[0] == "drill" && two[1] == alert.technique.id)
        })
    };
    drills(actor) || processes.lineage(actor).any(|(key, _)| drills(key))
}

impl Facts {
    /// The agent began.
    pub fn started(&mut self, start: &Start) {
        self.node.clone_from(&start.node);
        self.kernel.clone_from(&start.kernel);
        let attached = start.hooks.iter().filter_map(|hook| Some((hook.name.clone(), hook.backend.clone()?)));
        self.hooks = attached.collect();
    }

    /// These directories are watched.
    pub fn watches(&mut self, watched: &Watched) {
        let can = |state: &DirState| !matches!(state, DirState::Url | DirState::Unreadable(_));
        self.directories = watched.dirs.iter().filter(|dir| can(&dir.state)).count();
        self.kubelets = watched.dirs.iter().filter(|dir| dir.kubelet_pid.is_some()).count();
    }
}
