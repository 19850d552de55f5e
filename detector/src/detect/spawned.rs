//! `malicious-operator`, by what it does: a workload that uses the API server, and then runs programs that it never ran.
//!
//! What a workload runs in its first minutes is what it does. An operator that calls helm, kubectl or git goes on doing that, and
//! stays silent. Exec sessions and probes are no part of the workload.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use detector_common::{connection, endpoint, kind};
use twox_hash::XxHash3_64;

use super::{
    Detector, Finding, base, container_exec::place, kinds, service_account::exe, supply_chain::Lies,
    technique::MALICIOUS_OPERATOR,
};
use crate::{
    alert::{Evidence, File, Severity},
    argv::Argv,
    context::{Context, container::Container},
    decode::{Event, Exec, Open, hook_name},
    escape::escape_to,
    record::{BootNs, ContainerRole, InodeKey, ProcessKey, Record, SecretKind, sense},
};

/// For how long a workload's programs are taken to be what it does, from its first one on, or since the agent looks, in ns.
const LEARN_NS: u64 = 300_000_000_000;
/// Most workloads, and programs of one, that are remembered. One that runs more is of no known behaviour.
const WORKLOADS_MAX: usize = 512;
const PROGRAMS_MAX: usize = 128;
/// Most findings of one workload.
const TOLD_MAX: u32 = 16;

/// Shells, and programs that fetch files, open connections or enter other containers: rarely what an operator needs anew.
const TOOLS: [&str; 28] = [
    "aria2c", "ash", "bash", "busybox", "chroot", "crictl", "csh", "ctr", "curl", "dash", "docker", "fish", "ftp",
    "ksh", "nc", "ncat", "netcat", "nsenter", "runc", "scp", "sftp", "sh", "socat", "ssh", "tftp", "toybox", "wget",
    "zsh",
];

/// Knows what workloads run, and which of them use the API server.
#[derive(Debug, Default)]
pub struct Spawned {
    workloads: BTreeMap<String, Workload>,
    order: VecDeque<String>,
}

/// A container of a pod, through its restarts.
#[derive(Debug)]
struct Workload {
    since: BootNs,
    /// Checksums of what it ran.
    programs: BTreeSet<u64>,
    /// Its own token was read by itself.
    token: Option<Evidence>,
    /// It connected to an API server.
    used: Option<Evidence>,
    told: u32,
}

impl Detector for Spawned {
    fn kinds(&self) -> u64 {
        kinds(&[kind::EXEC, kind::READ, kind::CONNECTION])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match event {
            Some(Event::Exec(exec)) => {
                self.executed(record, exec, context).map_or_else(Vec::new, |finding| vec![finding])
            }
            Some(Event::Read(open)) => {
                self.read(record, open, context);
                Vec::new()
            }
            Some(Event::Connection(made)) if made.act == connection::CONNECT && made.endpoint & endpoint::API != 0 => {
                let to = sense::address(&made.remote, made.remote_port);
                let actor = ProcessKey::from_ns(made.header.tgid, made.header.start_ns);
                let detail = format!("{} connected to the API server at {to}", exe(actor, context));
                self.uses(actor, context, record.time, |workload| {
                    workload.used.get_or_insert_with(|| Evidence {
                        kind: "connection",
                        hook: Some(hook_name(made.header.hook)),
                        sequence: record.seq,
                        detail,
                    });
                });
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

impl Spawned {
    fn read(&mut self, record: &Record, open: &Open, context: &Context) {
        let inode = InodeKey { dev: open.event.dev, ino: open.event.ino };
        let Some(secret) = context.sense.secret_of(inode, base(&open.path)) else { return };
        let actor = ProcessKey::from_ns(open.event.header.tgid, open.event.header.start_ns);
        let own = context.container_of(actor).and_then(|home| home.info.pod.as_ref()).map(|pod| pod.uid.as_str());
        if secret.kind != SecretKind::Token || own.is_none() || own != secret.pod_uid.as_deref() {
            return;
        }
        let detail = format!("{} opened {} for reading", exe(actor, context), escape_to(&open.path, 256));
        self.uses(actor, context, record.time, |workload| {
            workload.token.get_or_insert_with(|| Evidence {
                kind: "read",
                hook: Some(hook_name(open.event.header.hook)),
                sequence: record.seq,
                detail,
            });
        });
    }

    /// A workload's own process does something with the API server.
    fn uses(&mut self, actor: ProcessKey, context: &Context, now: BootNs, note: impl FnOnce(&mut Workload)) {
        if let Some(workload) = context.container_of(actor).and_then(|home| self.of(home, actor, context, now)) {
            note(workload);
        }
    }

    /// The workload whose own process this is.
    fn of(&mut self, home: &Container, actor: ProcessKey, context: &Context, now: BootNs) -> Option<&mut Workload> {
        let pod = home.info.pod.as_ref().filter(|_| home.info.role != ContainerRole::Sandbox)?;
        if !context.descends(actor, home.init?) {
            return None;
        }
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = format!("{}/{}/{}", pod.uid, part(&home.info.name), part(&home.info.image));
        if !self.workloads.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > WORKLOADS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.workloads.remove(&oldest);
            }
        }
        Some(self.workloads.entry(key).or_insert_with(|| Workload {
            since: now,
            programs: BTreeSet::new(),
            token: None,
            used: None,
            told: 0,
        }))
    }

    fn executed(&mut self, record: &Record, exec: &Exec, context: &Context) -> Option<Finding> {
        let header = &exec.event.header;
        if header.mnt_ns == 0 || header.mnt_ns == context.start.host_mnt_ns || context.is_older(record.time) {
            return None;
        }
        let home = context.home(header.cgroup)?;
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let workload = self.of(home, actor, context, record.time)?;
        let lies = Lies::of(exec.event.flags);
        let name = program(&exec.path, &exec.argv);
        let known = XxHash3_64::oneshot(format!("{lies:?} {} {name}", &*exec.path).as_bytes());
        let is_full = workload.programs.len() >= PROGRAMS_MAX;
        if workload.programs.contains(&known) || (is_full && lies.is_none()) {
            return None;
        }
        if !is_full {
            workload.programs.insert(known);
        }
        let learns = record.time.0.saturating_sub(workload.since.0) < LEARN_NS;
        let used = workload.used.clone()?;
        let (severity, why) = match lies {
            // Where an operator brings programs along it does so from the start.
            Some(lies) => (if learns { Severity::Medium } else { Severity::High }, lies.reason().to_owned()),
            None if learns => return None,
            None if TOOLS.contains(&name) => {
                (Severity::Medium, format!("{name} runs commands, fetches files or opens connections"))
            }
            None => (Severity::Low, "what it ran in its first minutes did not include it".to_owned()),
        };
        if workload.told >= TOLD_MAX {
            return None;
        }
        workload.told += 1;
        let (path, line) = (escape_to(&exec.path, 256), escape_to(&exec.argv.joined(), 256));
        let token = workload.token.clone();
        let mut reasons = vec![why, "before that, it used the API server".to_owned()];
        if token.is_some() {
            reasons.push("it had read its service account's token".to_owned());
        }
        let executed = Evidence {
            kind: "exec",
            hook: Some(hook_name(header.hook)),
            sequence: record.seq,
            detail: format!("executed {line}"),
        };
        Some(Finding {
            technique: &MALICIOUS_OPERATOR,
            severity,
            time: record.time,
            title: format!("Workload that uses the API server runs what it never ran: {path} in {}", place(home)),
            blocked: false,
            reasons,
            actor: Some(actor),
            container: Some(home.info.id.clone()),
            file: Some(File::named(&exec.path, "executed")),
            manifest: None,
            evidence: token.into_iter().chain([used, executed]).collect(),
        })
    }
}

/// What a program is called; of one that is many, which of them it is this time.
fn program<'a>(path: &'a str, argv: &'a Argv) -> &'a str {
    let many = |name: &str| matches!(name, "busybox" | "toybox");
    let own = base(path);
    if !many(own) {
        return own;
    }
    let mut words = argv.iter().map(base);
    let first = words.next().filter(|name| !many(name));
    first.or_else(|| words.next()).unwrap_or(own)
}
