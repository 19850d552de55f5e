//! `container-service-account`: the identities of this node and its pods read by somebody whose they are not, then used.
//!
//! A token belongs to the processes that descend from the first one of the containers it is projected for, and to the kubelet that puts it
//! there. Whoever else reads it is told of; whoever then connects to an API server, by itself or by others of its session, is told of
//! again, as worse. Kubeconfigs, private keys and what etcd stores are the node's own: a container reads them only where it was put there
//! to do so.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use detector_common::{connection, endpoint, kind};

use crate::{
    alert::{Evidence, File, Origin, Severity},
    context::{Context, container::Container},
    decode::{Event, Open, hook_name},
    detect::{
        Detector, Finding, base, container_exec::place, held::Held, kinds, once::Once, technique::SERVICE_ACCOUNT,
    },
    escape::escape_to,
    record::{Body, BootNs, ComponentKind, InodeKey, ProcessKey, Record, Secret, SecretKind, sense},
};

/// For how long after it read a secret somebody's connection to an API server is taken to use it, in ns.
const USE_NS: u64 = 600_000_000_000;
/// Most sessions that are remembered to have read something.
const THEFTS_MAX: usize = 1024;
/// Most readings that are not told again.
const TOLD_MAX: usize = 4096;
/// Longest name in a title, in characters.
const NAME: usize = 96;

/// Joins readings and connections.
#[derive(Debug, Default)]
pub struct ServiceAccount {
    /// By the process that the reader's session began with.
    thefts: BTreeMap<ProcessKey, Theft>,
    thefts_order: VecDeque<ProcessKey>,
    told: Once<(ProcessKey, InodeKey), TOLD_MAX>,
    held: Held,
}

/// What a session has read.
#[derive(Clone, Debug)]
struct Theft {
    reader: ProcessKey,
    time: BootNs,
    severity: Severity,
    what: String,
    container: Option<String>,
    evidence: Evidence,
    /// Its use was told of.
    used: bool,
}

impl Detector for ServiceAccount {
    fn kinds(&self) -> u64 {
        kinds(&[kind::READ, kind::CONNECTION])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if matches!(record.body, Body::Tick) {
            // What a kubelet read before it had proven to be one is its business, also when it is gone.
            self.thefts.retain(|_, theft| !context.is_component(theft.reader, ComponentKind::Kubelet));
            self.thefts_order.retain(|session| self.thefts.contains_key(session));
            return self.held.ripe(record.time, context);
        }
        let found = match event {
            Some(Event::Read(open)) => self.read(record, open, context),
            Some(Event::Connection(connection))
                if connection.act == connection::CONNECT && connection.endpoint & endpoint::API != 0 =>
            {
                let to = sense::address(&connection.remote, connection.remote_port);
                let actor = ProcessKey::from_ns(connection.header.tgid, connection.header.start_ns);
                self.connected(record, actor, &to, connection.header.hook, context)
            }
            _ => None,
        };
        found.into_iter().collect()
    }
}

/// Who reads, where it should not.
struct Reading<'a> {
    severity: Severity,
    /// `in an exec session`, ...
    how: String,
    reasons: Vec<String>,
    /// Where the reader lives.
    container: Option<&'a Container>,
}

impl ServiceAccount {
    fn read(&mut self, record: &Record, open: &Open, context: &Context) -> Option<Finding> {
        let inode = InodeKey { dev: open.event.dev, ino: open.event.ino };
        let name = base(&open.path);
        let secret = context.sense.secret_of(inode, name)?;
        let actor = ProcessKey::from_ns(open.event.header.tgid, open.event.header.start_ns);
        let reading = Self::judge(actor, secret, context)?;
        let session = context.session(actor);
        // In a container once for a session; on the host that may be a service that starts whatever comes. A token that is rotated is
        // another inode on the same file system.
        let once = if context.container_of(actor).is_some() { session } else { actor };
        if !self.told.first((once, secret.inode)) {
            return None;
        }
        let what = shown(secret, name, context);
        let exe = exe(actor, context);
        let evidence = Evidence {
            kind: "read",
            hook: Some(hook_name(open.event.header.hook)),
            sequence: record.seq,
            detail: format!("opened {} for reading", escape_to(&open.path, 256)),
        };
        let Reading { severity, how, reasons, container } = reading;
        let theft = Theft {
            reader: actor,
            time: record.time,
            severity,
            what: what.clone(),
            container: container.map(|container| container.info.id.clone()),
            evidence: evidence.clone(),
            used: false,
        };
        let finding = Finding {
            technique: &SERVICE_ACCOUNT,
            severity,
            time: record.time,
            title: format!("{what} read by {exe} {how}"),
            blocked: false,
            reasons,
            actor: Some(actor),
            container: theft.container.clone(),
            file: Some(File::named(&open.path, "read")),
            manifest: None,
            evidence: vec![evidence],
        };
        self.remember(session, theft);
        self.held.hold(ComponentKind::Kubelet, finding, record.time, context)
    }

    /// Whether a reader is one whom the secret is not for, and how bad that is.
    fn judge<'a>(actor: ProcessKey, secret: &Secret, context: &'a Context) -> Option<Reading<'a>> {
        let token = secret.kind == SecretKind::Token;
        let (origin, container) = context.origin(actor);
        let dropped = dropped(actor, origin, context);
        let reading = |severity, how: &str, reasons: Vec<String>| {
            Some(Reading { severity, how: how.to_owned(), reasons, container })
        };
        let of_dropped = |mut reasons: Vec<String>| {
            reasons.extend(dropped.map(|why| format!("its executable {why}")));
            reasons
        };
        match (origin, container) {
            (Origin::Host, _) => {
                if context.is_component(actor, ComponentKind::Kubelet) {
                    return None;
                }
                let from = context.processes.lineage(actor).find_map(|(key, _)| context.container_of(key));
                if let Some(from) = from {
                    let how = format!("on the host, coming from {}", place(from));
                    return reading(
                        Severity::High,
                        &how,
                        of_dropped(vec!["a container's process is on the host".to_owned()]),
                    );
                }
                let why = "only kubelet has to do with pods' tokens on the host".to_owned();
                match (token, dropped) {
                    (true, _) => reading(Severity::Medium, "on the host", of_dropped(vec![why])),
                    (false, Some(_)) => reading(Severity::High, "on the host", of_dropped(Vec::new())),
                    // The node's administrators and its control plane use their own credentials.
                    (false, None) => None,
                }
            }
            (Origin::Container, Some(home)) => {
                let entered = home.init.is_some_and(|init| !context.descends(actor, init));
                if entered && is_probe(actor, home, context) {
                    return None;
                }
                let how = if entered {
                    format!("in an exec session in {}", place(home))
                } else {
                    format!("in {}", place(home))
                };
                let entry = entered.then(|| "the reader came into the container from outside".to_owned());
                if !token {
                    if !entered && dropped.is_none() && context.static_pods.give(home, &secret.path) {
                        return None;
                    }
                    let why = "the node's own credentials are read in a container".to_owned();
                    return reading(Severity::High, &how, of_dropped([why].into_iter().chain(entry).collect()));
                }
                if context.is_component(actor, ComponentKind::Kubelet) {
                    return None;
                }
                if !home.is_known() {
                    let why = "whose container it is, is not known".to_owned();
                    return reading(Severity::Low, &how, of_dropped([why].into_iter().chain(entry).collect()));
                }
                let own = home.info.pod.as_ref().map(|pod| pod.uid.as_str());
                if own.is_none() || own != secret.pod_uid.as_deref() {
                    let why = "the token is another pod's".to_owned();
                    return reading(Severity::High, &how, of_dropped([why].into_iter().chain(entry).collect()));
                }
                if entered || dropped.is_some() {
                    return reading(Severity::Medium, &how, of_dropped(entry.into_iter().collect()));
                }
                None
            }
            _ => {
                let why = "where the reader lives is not known".to_owned();
                reading(Severity::Medium, "by a process of unknown origin", of_dropped(vec![why]))
            }
        }
    }

    /// Somebody connects to an API server.
    fn connected(
        &mut self,
        record: &Record,
        actor: ProcessKey,
        to: &str,
        hook: u16,
        context: &Context,
    ) -> Option<Finding> {
        if self.thefts.is_empty() {
            return None;
        }
        let lineage = std::iter::once(actor).chain(context.processes.lineage(actor).map(|(key, _)| key));
        let session = lineage.into_iter().find(|key| self.thefts.contains_key(key))?;
        let theft = self.thefts.get_mut(&session)?;
        // A kubelet that had not proven to be one when it read.
        if [actor, theft.reader].iter().any(|process| context.is_component(*process, ComponentKind::Kubelet)) {
            return None;
        }
        // Whatever started a container is no part of a session in it.
        let home = context.container_of(actor).map(|home| &home.info.id);
        if home.is_some() && home != theft.container.as_ref() {
            return None;
        }
        if theft.used || record.time.0.saturating_sub(theft.time.0) > USE_NS {
            return None;
        }
        theft.used = true;
        let reader = theft.reader;
        let severity = if theft.severity >= Severity::High { Severity::Critical } else { Severity::High };
        let detail = format!("connected to {to}");
        let used = Evidence { kind: "connection", hook: Some(hook_name(hook)), sequence: record.seq, detail };
        let finding = Finding {
            technique: &SERVICE_ACCOUNT,
            severity,
            time: record.time,
            title: format!("{} read, then {} connected to the API server", theft.what, exe(actor, context)),
            blocked: false,
            reasons: vec![format!("it connected to {to} after the same session had read it")],
            actor: Some(actor),
            container: theft.container.clone(),
            file: None,
            manifest: None,
            evidence: vec![theft.evidence.clone(), used],
        };
        // Either of them may be a kubelet that has just begun.
        let finding = self.held.hold_for(reader, ComponentKind::Kubelet, finding, record.time, context)?;
        self.held.hold(ComponentKind::Kubelet, finding, record.time, context)
    }

    fn remember(&mut self, session: ProcessKey, theft: Theft) {
        if let Some(known) = self.thefts.get_mut(&session) {
            // The worse of the two, and its use is told of again.
            if theft.severity >= known.severity || known.used {
                *known = theft;
            } else {
                known.time = theft.time;
            }
            return;
        }
        self.thefts_order.push_back(session);
        self.thefts.insert(session, theft);
        if self.thefts_order.len() > THEFTS_MAX
            && let Some(oldest) = self.thefts_order.pop_front()
        {
            self.thefts.remove(&oldest);
        }
    }
}

/// Whether it is, or was started by, a command that kubelet runs in the container by itself.
pub(super) fn is_probe(actor: ProcessKey, home: &Container, context: &Context) -> bool {
    let program = |key: ProcessKey| context.processes.get(key).map(|process| &process.program.argv);
    let session = context.session(actor);
    [actor, session].into_iter().filter_map(program).any(|argv| context.static_pods.probe(home, argv).is_some())
}

/// Why an executable was not put there by an image or a package, as far as its path tells.
fn dropped(actor: ProcessKey, origin: Origin, context: &Context) -> Option<&'static str> {
    let exe = &context.processes.get(actor)?.program.exe;
    if exe.starts_with("/memfd:") {
        return Some("lies in memory only");
    }
    if ["/tmp/", "/var/tmp/", "/dev/shm/"].iter().any(|dir| exe.starts_with(dir)) {
        return Some("lies where anybody may write");
    }
    // On the host a program that was upgraded while it ran looks the same.
    (origin == Origin::Container && exe.ends_with(" (deleted)")).then_some("was deleted")
}

/// What a process runs, as a title has it.
pub(super) fn exe(actor: ProcessKey, context: &Context) -> String {
    context.processes.get(actor).map_or_else(|| "a process".to_owned(), |process| escape_to(&process.program.exe, NAME))
}

/// What was read, as a title begins.
fn shown(secret: &Secret, name: &str, context: &Context) -> String {
    let path = || escape_to(&secret.path, NAME);
    match secret.kind {
        SecretKind::Token => {
            let uid = secret.pod_uid.as_deref().unwrap_or_default();
            let pod = context.containers.iter().filter_map(|found| found.info.pod.as_ref()).find(|pod| pod.uid == uid);
            let whose = match pod {
                Some(pod) => format!("{}/{}", escape_to(&pod.namespace, NAME), escape_to(&pod.name, NAME)),
                None => escape_to(uid, 36),
            };
            let which = if name == "token" { String::new() } else { format!(" {}", escape_to(name, NAME)) };
            format!("Service account token{which} of pod {whose}")
        }
        SecretKind::Kubeconfig => format!("Kubeconfig {}", path()),
        SecretKind::Key => format!("Private key {}", path()),
        SecretKind::Etcd => format!("etcd's data {}", path()),
    }
}
