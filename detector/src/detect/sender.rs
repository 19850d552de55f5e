//! Who made a request that an audit log tells of: by the connections from its address, and by the pod that its token is bound to.
//!
//! Somebody is named only where nobody else fits. What names several is said, and names nobody.

use std::{collections::BTreeSet, net::IpAddr};

use super::{container_exec::place, request::service_account};
use crate::{
    alert::{Evidence, Origin},
    context::{
        Context,
        clients::{Candidates, Connected},
        container::Container,
    },
    decode::hook_name,
    escape::escape_to,
    record::{AuditEvent, BootNs, PodRef, ProcessKey, sense},
};

/// Most that are named of those that fit, and that are evidence.
const NAMED: usize = 4;

/// Who made a request, as far as it is known.
#[derive(Debug, Default)]
pub struct Sender {
    pub actor: Option<ProcessKey>,
    /// Id of the container, or of the sandbox where only the pod is known.
    pub container: Option<String>,
    /// How it is known, or why not.
    pub reasons: Vec<String>,
    pub evidence: Vec<Evidence>,
}

/// Who made a request that was read from a log at this time.
pub fn sender(event: &AuditEvent, read: BootNs, context: &Context) -> Sender {
    let bound = bound(event);
    let home = bound.and_then(|pod| Some(on_this_node(pod, context)?.info.id.clone()));
    let Some(candidates) = context.candidates(event, read).filter(|candidates| !candidates.all.is_empty()) else {
        return Sender { container: home, ..Sender::default() };
    };
    let from = event.sources.last().map(IpAddr::to_string).unwrap_or_default();
    let mut sender = by_connection(&candidates, &from, context);
    if let Some(bound) = bound {
        let named = sender.actor.is_some() || sender.container.is_some();
        if by_another(&candidates, bound, context) {
            sender.reasons.insert(0, format!("the token is bound to pod {}, and somebody else used it", whose(bound)));
        } else if !named {
            sender.reasons.push(format!("its token is bound to pod {}", whose(bound)));
            sender.container = home;
        }
    }
    sender.evidence = candidates.all.iter().take(NAMED).map(|made| evidence(made)).collect();
    sender
}

/// Namespace and name of a pod.
type Name<'a> = (&'a str, &'a str);

/// The pod that the token of a service account is bound to.
pub fn bound(event: &AuditEvent) -> Option<Name<'_>> {
    let (namespace, _) = service_account(&event.user)?;
    Some((namespace, event.pod.as_deref()?))
}

/// Whether all that may have made a request are known to be somebody else than this pod.
pub fn by_another(candidates: &Candidates<'_>, pod: Name<'_>, context: &Context) -> bool {
    let is_other = |made: &&Connected| match home(made, context) {
        Some(home) => home.info.pod.as_ref().is_some_and(|of| (of.namespace.as_str(), of.name.as_str()) != pod),
        None => context.origin(made.process).0 == Origin::Host,
    };
    // Whose an address is, is certain of a pod's own one only, where connections were lost.
    (candidates.complete || pod_of(candidates, context).is_some()) && candidates.all.iter().all(is_other)
}

fn by_connection(candidates: &Candidates<'_>, from: &str, context: &Context) -> Sender {
    let all = &candidates.all;
    let who: BTreeSet<String> = all.iter().map(|made| name(made, context)).collect();
    let mut named: Vec<_> = who.iter().take(NAMED).map(String::as_str).collect();
    let more = format!("{} more", who.len() - named.len());
    if who.len() > NAMED {
        named.push(&more);
    }
    let named = named.join(", ");
    let processes: BTreeSet<ProcessKey> = all.iter().map(|made| made.process).collect();
    if let (true, 1, Some(made)) = (candidates.complete, processes.len(), all.first()) {
        let reason =
            format!("it came over a connection of {named}: nobody else on this node had one from {from} that fits");
        return Sender {
            actor: Some(made.process),
            container: home(made, context).map(|home| home.info.id.clone()),
            reasons: vec![reason],
            ..Sender::default()
        };
    }
    if let Some(pod) = pod_of(candidates, context) {
        let homes: BTreeSet<_> = all.iter().filter_map(|made| Some(&home(made, context)?.info.id)).collect();
        let container = match homes.first() {
            Some(only) if homes.len() == 1 && candidates.complete => Some((*only).clone()),
            // Of the pod's other containers a connection may have been lost.
            _ => of_pod(pod, context).map(|home| home.info.id.clone()),
        };
        let whose = whose((&pod.namespace, &pod.name));
        let reason = format!("it came from pod {whose}, by which of its processes is not known: {named}");
        return Sender { container, reasons: vec![reason], ..Sender::default() };
    }
    let reason = if candidates.complete {
        format!("it came over a connection of one of these, which is not known: {named}")
    } else {
        format!("it may have come over a connection of {named}: connections were lost, so that others fit too")
    };
    Sender { reasons: vec![reason], ..Sender::default() }
}

/// The pod that all of them are of.
pub fn pod_of<'a>(candidates: &Candidates<'_>, context: &'a Context) -> Option<&'a PodRef> {
    let pod = |made: &Connected| home(made, context)?.info.pod.as_ref();
    let first = candidates.all.first().and_then(|made| pod(made))?;
    candidates.all.iter().all(|made| pod(made).is_some_and(|pod| pod.uid == first.uid)).then_some(first)
}

/// The container that it was in, which may have become known since.
fn home<'a>(made: &Connected, context: &'a Context) -> Option<&'a Container> {
    let then = made.container.as_deref().and_then(|id| context.containers.get(id));
    then.or_else(|| context.container_of(made.process))
}

/// `shop/web`, for people.
pub fn whose((namespace, name): Name<'_>) -> String {
    format!("{}/{}", escape_to(namespace, 64), escape_to(name, 96))
}

fn name(made: &Connected, context: &Context) -> String {
    let exe = context.processes.get(made.process).map_or_else(String::new, |of| escape_to(&of.program.exe, 96));
    match home(made, context) {
        Some(home) => format!("{exe} in {}", place(home)),
        None => exe,
    }
}

fn evidence(made: &Connected) -> Evidence {
    let to = sense::address(&sense::octets(made.remote.0), made.remote.1);
    let from = if made.local.is_unspecified() { String::new() } else { format!(" from {}", made.local) };
    let pid = made.process.pid;
    Evidence {
        kind: "connection",
        hook: made.hook.map(hook_name),
        sequence: made.sequence,
        detail: format!("pid {pid} connected to {to}{from}"),
    }
}

/// The pod's sandbox, or any container of it.
fn of_pod<'a>(pod: &PodRef, context: &'a Context) -> Option<&'a Container> {
    let all = || context.containers.iter().filter(|home| home.info.pod.as_ref().is_some_and(|of| of.uid == pod.uid));
    all().find(|home| home.is_sandbox()).or_else(|| all().next())
}

/// A container of the pod of this name, if that runs here.
fn on_this_node<'a>((namespace, name): Name<'_>, context: &'a Context) -> Option<&'a Container> {
    let mut pods = context.containers.iter().filter_map(|home| home.info.pod.as_ref());
    of_pod(pods.find(|pod| pod.name == name && pod.namespace == namespace)?, context)
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
