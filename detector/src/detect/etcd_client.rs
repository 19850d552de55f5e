//! `delete-kubernetes-events`, by its way around the API server: somebody else than it connects to etcd.
//!
//! Events, and everything else of the cluster, can be read, changed and deleted there without a trace in any audit log.

use detector_common::{connection, endpoint, kind};

use crate::{
    alert::{Evidence, Origin, Severity},
    context::{Context, container::Container},
    decode::{Event, hook_name},
    detect::{
        Detector, Finding, base, container_exec::place, held::Held, kinds, once::Once, service_account::is_probe,
        technique::DELETE_EVENTS,
    },
    escape::escape_to,
    record::{Body, ComponentKind, ProcessKey, Record, sense},
};

/// Most processes remembered, each of which is told of once.
const TOLD_MAX: usize = 4096;

/// Tells of clients of etcd.
#[derive(Debug, Default)]
pub struct EtcdClient {
    told: Once<ProcessKey, TOLD_MAX>,
    held: Held,
}

impl Detector for EtcdClient {
    fn kinds(&self) -> u64 {
        kinds(&[kind::CONNECTION])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if matches!(record.body, Body::Tick) {
            return self.held.ripe(record.time, context);
        }
        let Some(Event::Connection(connection)) = event else { return Vec::new() };
        if connection.act != connection::CONNECT || connection.endpoint & endpoint::ETCD == 0 {
            return Vec::new();
        }
        let actor = ProcessKey::from_ns(connection.header.tgid, connection.header.start_ns);
        let to = sense::address(&connection.remote, connection.remote_port);
        self.connected(record, actor, &to, connection.header.hook, context).into_iter().collect()
    }
}

impl EtcdClient {
    fn connected(
        &mut self,
        record: &Record,
        actor: ProcessKey,
        to: &str,
        hook: u16,
        context: &Context,
    ) -> Option<Finding> {
        use ComponentKind::{ApiServer, Etcd, Kubelet};
        if [ApiServer, Etcd, Kubelet].into_iter().any(|kind| context.is_component(actor, kind)) {
            return None;
        }
        let (origin, container) = context.origin(actor);
        let (severity, whence, mut reasons) = match (origin, container) {
            (Origin::Host, _) => (Severity::Medium, "from the host".to_owned(), Vec::new()),
            (Origin::Container, Some(home)) if is_etcds(home, context) => {
                let own = home.init.is_none_or(|init| context.descends(actor, init));
                if own || is_probe(actor, home, context) || asks_health(actor, context) {
                    return None;
                }
                (
                    Severity::Medium,
                    format!("in {}", place(home)),
                    vec!["it came into etcd's container from outside".to_owned()],
                )
            }
            (Origin::Container, Some(home)) => (Severity::High, format!("from {}", place(home)), Vec::new()),
            _ => (Severity::Medium, "from where is not known".to_owned(), Vec::new()),
        };
        if !self.told.first(actor) {
            return None;
        }
        reasons.insert(0, "it is not this node's API server: what it does in etcd is in no audit log".to_owned());
        let exe = context.processes.get(actor).map_or_else(String::new, |process| escape_to(&process.program.exe, 96));
        let detail = format!("connected to {to}");
        let evidence = vec![Evidence { kind: "connection", hook: Some(hook_name(hook)), sequence: record.seq, detail }];
        let finding = Finding {
            technique: &DELETE_EVENTS,
            severity,
            time: record.time,
            title: format!("etcd's clients' port {to} used by {exe} {whence}"),
            blocked: false,
            reasons,
            actor: Some(actor),
            container: container.map(|container| container.info.id.clone()),
            file: None,
            manifest: None,
            evidence,
        };
        // Each of them connects before it listens itself.
        let finding = self.held.hold(ApiServer, finding, record.time, context)?;
        self.held.hold(Etcd, finding, record.time, context)
    }
}

/// Whether this node's etcd runs in a container.
fn is_etcds(container: &Container, context: &Context) -> bool {
    let etcds = context.sense.components.components.iter().filter(|found| found.kind == ComponentKind::Etcd);
    let mut etcds = etcds.filter(|found| context.is_component(found.process, found.kind));
    etcds.any(|found| context.container_of(found.process).is_some_and(|home| home.info.id == container.info.id))
}

/// Whether a command asks for health and nothing else: probes of an etcd whose manifest is not on this node.
fn asks_health(actor: ProcessKey, context: &Context) -> bool {
    let Some(program) = context.processes.get(actor).map(|process| &process.program) else { return false };
    let words: Vec<&str> = program.argv.iter().skip(1).filter(|word| !word.starts_with('-')).collect();
    base(&program.exe) == "etcdctl"
        && !program.argv_truncated
        && matches!(words.as_slice(), ["endpoint", "health" | "status" | "hashkv"] | ["member", "list"] | ["version"])
}

#[cfg(test)]
#[path = "etcd_client_tests.rs"]
mod tests;
