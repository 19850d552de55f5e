//! `delete-kubernetes-events`: events deleted through the API server.
//!
//! Events expire by themselves, which no audit log has, and nearly nobody deletes one by hand. A namespace that is deleted takes its
//! events with it: its controller deletes them, after somebody deleted the namespace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::Event,
    detect::{
        Detector, Finding,
        request::{evidence, finding, is_dry_run, refused, shown, source, succeeded, user},
        technique::DELETE_EVENTS,
    },
    record::{AuditEvent, AuditObject, Body, BootNs, Record, bounded},
};

/// Who deletes what was in a namespace: its controller, by a service account of its own or by the one user of all controllers.
const NAMESPACE_CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";
const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// How long after its last one single deletions are no longer part of the same, in ns.
const BURST_NS: u64 = 60_000_000_000;
/// How long the deletion of a namespace explains that of its events, in ns: what has finalizers takes its time.
const NAMESPACE_NS: u64 = 3_600_000_000_000;
/// From how many single deletions on it is somebody who cleans up, and from how many on at large.
const SOME: u64 = 6;
const MANY: u64 = 60;
/// Most users, namespaces and records remembered.
const BURSTS_MAX: usize = 256;
const NAMESPACES_MAX: usize = 1024;
const EVIDENCE_MAX: usize = 16;

/// Counts deletions by user and address.
#[derive(Debug, Default)]
pub struct DeleteEvents {
    bursts: BTreeMap<(String, String), Burst>,
    /// Namespaces that were deleted, and when.
    namespaces: VecDeque<(String, BootNs)>,
}

/// Single deletions that follow one another.
#[derive(Debug)]
struct Burst {
    last: BootNs,
    count: u64,
    /// At which count it is told again.
    next: u64,
    namespaces: BTreeSet<String>,
    evidence: Vec<Evidence>,
}

impl Detector for DeleteEvents {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Body::Audit(event) = &record.body else { return Vec::new() };
        let Some(object) = event.object.as_ref().filter(|object| object.subresource.is_empty()) else {
            return Vec::new();
        };
        if event.stage != "ResponseComplete" || is_dry_run(event) {
            return Vec::new();
        }
        let deletes = matches!(event.verb.as_str(), "delete" | "deletecollection");
        match (object.resource.as_str(), object.group.as_str()) {
            ("namespaces", "") if deletes && succeeded(event) => {
                self.namespace_deleted(&bounded(&object.name), record.time)
            }
            ("events", "" | "events.k8s.io") if deletes => {
                return self.deleted(record, event, object, context).into_iter().collect();
            }
            _ => {}
        }
        Vec::new()
    }
}

impl DeleteEvents {
    fn namespace_deleted(&mut self, name: &str, now: BootNs) {
        self.namespaces.retain(|(known, when)| known != name && now.0.saturating_sub(when.0) < NAMESPACE_NS);
        if self.namespaces.len() >= NAMESPACES_MAX {
            self.namespaces.pop_front();
        }
        self.namespaces.push_back((name.to_owned(), now));
    }

    fn deleted(
        &mut self,
        record: &Record,
        event: &AuditEvent,
        object: &AuditObject,
        context: &Context,
    ) -> Option<Finding> {
        let tell = |severity, title, reasons, evidence| {
            Some(finding(&DELETE_EVENTS, severity, title, reasons, evidence, (record, event), context))
        };
        let (who, from) = (user(event), source(event));
        let place = place(&object.namespace);
        let all = event.verb == "deletecollection";
        if refused(event) {
            let reasons = vec!["the API server refused it".to_owned()];
            let title = format!("Events {place} were to be deleted by {who}");
            return tell(Severity::Low, title, reasons, vec![evidence(record, event)]);
        }
        if !succeeded(event) {
            return None;
        }
        let controller = matches!(event.user.as_str(), NAMESPACE_CONTROLLER | CONTROLLER_MANAGER);
        if all && controller && event.impersonated.is_none() && !object.namespace.is_empty() {
            let known = self.namespaces.iter().any(|(name, when)| {
                *name == bounded(&object.namespace) && record.time.0.saturating_sub(when.0) < NAMESPACE_NS
            });
            if known {
                return None;
            }
            let reasons = vec![
                "it does so when a namespace is deleted, and the audit log did not show who deleted this one"
                    .to_owned(),
            ];
            let title = format!("Events {place} deleted by the namespace controller");
            return tell(Severity::Low, title, reasons, vec![evidence(record, event)]);
        }
        if all {
            let wide = object.namespace.is_empty() || object.namespace == "kube-system";
            let mut reasons = vec!["all at once: nothing that Kubernetes does by itself".to_owned()];
            if wide {
                reasons.push("what happened to the control plane is among them".to_owned());
            }
            let severity = if wide { Severity::High } else { Severity::Medium };
            let title = format!("All events {place} deleted by {who} from {from}");
            return tell(severity, title, reasons, vec![evidence(record, event)]);
        }
        let burst = self.burst(record, event, object)?;
        burst.next = match burst.count {
            ..SOME => SOME,
            SOME..MANY => MANY,
            more => more.saturating_mul(10),
        };
        let severity = match burst.count {
            ..SOME => Severity::Low,
            SOME..MANY => Severity::Medium,
            _ => Severity::High,
        };
        let namespaces: Vec<_> = burst.namespaces.iter().map(String::as_str).collect();
        let (title, reason) = if burst.count == 1 {
            let title = format!("An event {place} deleted by {who} from {from}");
            (title, "events expire by themselves, and nearly nobody deletes one".to_owned())
        } else {
            let title = format!("{} events deleted one by one by {who} from {from}", burst.count);
            (title, format!("in namespaces {}", namespaces.join(", ")))
        };
        let evidence = burst.evidence.clone();
        tell(severity, title, vec![reason], evidence)
    }

    /// The deletions that this one follows, when there is something to be told of them.
    fn burst(&mut self, record: &Record, event: &AuditEvent, object: &AuditObject) -> Option<&mut Burst> {
        let now = record.time;
        self.bursts.retain(|_, burst| now.0.saturating_sub(burst.last.0) < BURST_NS);
        let key = (user(event), source(event));
        if self.bursts.len() >= BURSTS_MAX
            && !self.bursts.contains_key(&key)
            && let Some(oldest) = self.bursts.iter().min_by_key(|(_, burst)| burst.last).map(|(key, _)| key.clone())
        {
            self.bursts.remove(&oldest);
        }
        let burst = self.bursts.entry(key).or_insert_with(|| Burst {
            last: now,
            count: 0,
            next: 1,
            namespaces: BTreeSet::new(),
            evidence: Vec::new(),
        });
        burst.last = now;
        burst.count += 1;
        if burst.namespaces.len() < EVIDENCE_MAX {
            burst.namespaces.insert(shown(&object.namespace));
        }
        // The first ones and the last one.
        if burst.evidence.len() >= EVIDENCE_MAX {
            burst.evidence.pop();
        }
        burst.evidence.push(evidence(record, event));
        (burst.count >= burst.next).then_some(burst)
    }
}

fn place(namespace: &str) -> String {
    if namespace.is_empty() { "of all namespaces".to_owned() } else { format!("in {}", shown(namespace)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        alert::Alert,
        testing::{self, SECOND, Stream},
    };

    fn push(stream: &mut Stream, user: &str, verb: &str, uri: &str) {
        stream.push(Body::Audit(Box::new(testing::audit(user, verb, uri))));
    }

    fn told(stream: &Stream) -> Vec<(Severity, String)> {
        let alerts = stream.alerts();
        assert!(alerts.iter().all(|alert| alert.technique.id == "delete-kubernetes-events"));
        alerts.into_iter().map(|Alert { severity, title, .. }| (severity, title)).collect()
    }

    #[test]
    fn all_events_of_a_namespace_are_one_finding_that_names_who_and_from_where() {
        let mut stream = Stream::new();
        push(&mut stream, "alice", "deletecollection", "/api/v1/namespaces/shop/events?fieldSelector=x");
        push(&mut stream, "alice", "deletecollection", "/apis/events.k8s.io/v1/namespaces/kube-system/events");
        push(&mut stream, "alice", "deletecollection", "/api/v1/events");
        assert_eq!(
            told(&stream),
            [
                (Severity::Medium, "All events in shop deleted by alice from 10.0.0.9".to_owned()),
                (Severity::High, "All events in kube-system deleted by alice from 10.0.0.9".to_owned()),
                (Severity::High, "All events of all namespaces deleted by alice from 10.0.0.9".to_owned()),
            ]
        );
        let alert = stream.alerts().remove(0);
        let request = alert.request.unwrap();
        assert_eq!((request.user.as_str(), request.resource.as_deref()), ("alice", Some("events")));
        assert_eq!((request.namespace.as_deref(), request.source_ips), (Some("shop"), vec!["10.0.0.9".to_owned()]));
        assert_eq!((alert.process, alert.origin), (None, crate::alert::Origin::Unknown));
    }

    #[test]
    fn events_deleted_one_by_one_are_told_first_and_as_they_become_many() {
        let mut stream = Stream::new();
        for n in 0..70 {
            push(&mut stream, "bob", "delete", &format!("/api/v1/namespaces/ns{}/events/e{n}", n % 2));
        }
        let told = told(&stream);
        let severities: Vec<_> = told.iter().map(|(severity, _)| *severity).collect();
        assert_eq!(severities, [Severity::Low, Severity::Medium, Severity::High], "{told:?}");
        assert_eq!(told[1].1, "6 events deleted one by one by bob from 10.0.0.9");
        let alerts = stream.alerts();
        assert_eq!(alerts[1].reasons, ["in namespaces ns0, ns1"]);
        assert_eq!(alerts[2].evidence.len(), EVIDENCE_MAX);
        assert_eq!(alerts[2].evidence.last().unwrap().sequence, alerts[2].trace.sequence);
    }

    #[test]
    fn deletions_long_after_one_another_stay_low() {
        let mut stream = Stream::new();
        for n in 0..10 {
            push(&mut stream, "bob", "delete", &format!("/api/v1/namespaces/shop/events/e{n}"));
            stream.wait(61 * SECOND);
        }
        assert!(told(&stream).iter().all(|(severity, _)| *severity == Severity::Low));
    }

    #[test]
    fn what_a_deleted_namespace_takes_with_it_is_silent_and_without_its_deletion_low() {
        let mut stream = Stream::new();
        push(&mut stream, "alice", "delete", "/api/v1/namespaces/shop");
        push(&mut stream, NAMESPACE_CONTROLLER, "deletecollection", "/api/v1/namespaces/shop/events");
        push(&mut stream, CONTROLLER_MANAGER, "deletecollection", "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(told(&stream), []);
        push(&mut stream, NAMESPACE_CONTROLLER, "deletecollection", "/api/v1/namespaces/other/events");
        let told = told(&stream);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, Severity::Low);
    }

    /// Who calls himself so is another user, and who acts as the controller is named.
    #[test]
    fn whoever_acts_as_the_namespace_controller_is_not_it() {
        let mut stream = Stream::new();
        push(&mut stream, "alice", "delete", "/api/v1/namespaces/shop");
        push(&mut stream, "namespace-controller", "deletecollection", "/api/v1/namespaces/shop/events");
        let event = testing::audit("alice", "deletecollection", "/api/v1/namespaces/shop/events");
        let event = AuditEvent { impersonated: Some(NAMESPACE_CONTROLLER.to_owned()), ..event };
        stream.push(Body::Audit(Box::new(event)));
        let told = told(&stream);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].1.contains("alice as system:serviceaccount:kube-system:namespace-controller"), "{told:?}");
    }

    #[test]
    fn refused_attempts_are_low_and_what_deletes_nothing_is_silent() {
        let mut stream = Stream::new();
        let uri = "/api/v1/namespaces/shop/events";
        for code in [403, 404, 409, 500] {
            let event = AuditEvent { code, ..testing::audit("alice", "deletecollection", uri) };
            stream.push(Body::Audit(Box::new(event)));
        }
        assert_eq!(told(&stream), [(Severity::Low, "Events in shop were to be deleted by alice".to_owned())]);
        let mut stream = Stream::new();
        for (verb, uri) in [
            ("list", "/api/v1/namespaces/shop/events"),
            ("create", "/api/v1/namespaces/shop/events"),
            ("deletecollection", "/api/v1/namespaces/shop/events?dryRun=All"),
            ("deletecollection", "/api/v1/namespaces/shop/pods"),
            ("delete", "/apis/example.com/v1/namespaces/shop/events/x"),
            ("delete", "/api/v1/namespaces/shop/pods/events"),
        ] {
            push(&mut stream, "alice", verb, uri);
        }
        assert_eq!(told(&stream), []);
    }
}
