//! `public-api-endpoint`: requests that nobody was authenticated for, and requests from outside the networks that the API server is for.
//!
//! Told once an hour for each source and user, and again when it becomes worse.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use twox_hash::XxHash3_64;

use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::Event,
    detect::{
        Detector, Finding,
        network::Networks,
        request::{evidence, finding, refused, service_account, shown, source, user},
        technique::PUBLIC_API,
    },
    record::{AuditEvent, Body, BootNs, Record, bounded},
};

/// How long the same is not told again, in ns.
const AGAIN_NS: u64 = 3_600_000_000_000;
/// From how many paths on it is a search.
const SEARCH: usize = 20;
/// Most sources and users, paths of one, and records that are evidence.
const SEEN_MAX: usize = 1024;
const EVIDENCE_MAX: usize = 8;

/// Knows who came from where.
#[derive(Debug, Default)]
pub struct Anonymous {
    networks: Networks,
    seen: BTreeMap<(Option<IpAddr>, Option<String>), Seen>,
}

#[derive(Debug)]
struct Seen {
    since: BootNs,
    /// The worst that was told.
    told: Option<Severity>,
    /// Checksums of paths.
    paths: BTreeSet<u64>,
    evidence: Vec<Evidence>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Whether the API server is well: load balancers and kubelet ask that.
    Health,
    /// What a node that joins reads first.
    ClusterInfo,
    /// The version, what resources there are, and paths that are none.
    Discovery,
    Resource,
}

impl Detector for Anonymous {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Body::Audit(event) = &record.body else { return Vec::new() };
        self.networks.set(&context.start.policy.allowed_networks);
        // Any of them: whoever is outside can claim to be inside as well, but not the other way round.
        let outside = event.sources.iter().any(|from| !self.networks.contain(*from) && !context.sense.is_own(*from));
        let nobody = event.user.is_empty() || event.groups.iter().any(|group| group == "system:unauthenticated");
        if !nobody && !outside {
            return Vec::new();
        }
        let refused = refused(event) || event.decision.as_deref() == Some("forbid");
        let judged = if nobody { for_nobody(event, outside, refused) } else { Some(for_somebody(event)) };
        let Some((severity, why)) = judged else { return Vec::new() };
        self.told(record, event, (severity, why), (nobody, outside, refused), context).into_iter().collect()
    }
}

/// A request without authentication.
fn for_nobody(event: &AuditEvent, outside: bool, refused: bool) -> Option<(Severity, &'static str)> {
    Some(match (asked(event), outside, refused) {
        (Asked::Health | Asked::ClusterInfo, false, false) => return None,
        (Asked::Health, true, _) => {
            (Severity::Low, "health is asked for from outside: a load balancer, or somebody who looks for API servers")
        }
        (Asked::ClusterInfo, true, false) => (
            Severity::Medium,
            "the cluster's certificate and address are open to everybody, and were read from outside",
        ),
        (Asked::Discovery, true, false) => (Severity::High, "from outside it says what it is to whoever asks"),
        (Asked::Resource, true, false) => (Severity::Critical, "from outside, resources are open to whoever asks"),
        (Asked::Resource, false, false) => (Severity::High, "resources are open to whoever asks"),
        (_, true, true) => (Severity::Medium, "from outside it is reached, and refused that"),
        (_, false, true) => (Severity::Low, "the API server refused it"),
        (Asked::Discovery, false, false) => {
            (Severity::Low, "that is open to everybody unless anonymous requests are turned off")
        }
    })
}

/// A request from outside by somebody.
fn for_somebody(event: &AuditEvent) -> (Severity, &'static str) {
    if service_account(&event.user).is_some() {
        return (
            Severity::High,
            "a service account belongs to a pod: its token may have been taken out of the cluster",
        );
    }
    if event.user.starts_with("system:") {
        return (Severity::Medium, "a component of the cluster: its credential may have been taken out of it");
    }
    if event.groups.iter().any(|group| group == "system:masters") {
        return (Severity::Medium, "a member of system:masters, whom no rule holds back");
    }
    (Severity::Low, "from outside the networks that the API server is for")
}

fn asked(event: &AuditEvent) -> Asked {
    let path = path(event);
    let is = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if event.object.is_none() {
        return if ["/healthz", "/livez", "/readyz"].into_iter().any(is) { Asked::Health } else { Asked::Discovery };
    }
    let cluster_info = event.object.as_ref().is_some_and(|object| {
        (object.namespace.as_str(), object.resource.as_str(), object.name.as_str())
            == ("kube-public", "configmaps", "cluster-info")
            && object.group.is_empty()
    });
    if cluster_info && event.verb == "get" { Asked::ClusterInfo } else { Asked::Resource }
}

fn path(event: &AuditEvent) -> &str {
    event.uri.split('?').next().unwrap_or_default()
}

impl Anonymous {
    fn told(
        &mut self,
        record: &Record,
        event: &AuditEvent,
        (mut severity, why): (Severity, &'static str),
        (nobody, outside, refused): (bool, bool, bool),
        context: &Context,
    ) -> Option<Finding> {
        let now = record.time;
        self.seen.retain(|_, seen| now.0.saturating_sub(seen.since.0) < AGAIN_NS);
        let key = (event.sources.last().copied(), (!nobody).then(|| bounded(&event.user)));
        if self.seen.len() >= SEEN_MAX
            && !self.seen.contains_key(&key)
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, seen)| seen.since).map(|(key, _)| key.clone())
        {
            self.seen.remove(&oldest);
        }
        let seen = self.seen.entry(key).or_insert_with(|| Seen {
            since: now,
            told: None,
            paths: BTreeSet::new(),
            evidence: Vec::new(),
        });
        if seen.paths.len() < SEARCH {
            seen.paths.insert(XxHash3_64::oneshot(path(event).as_bytes()));
        }
        let searches = nobody && seen.paths.len() >= SEARCH;
        if searches {
            severity = severity.max(if outside { Severity::High } else { Severity::Medium });
        }
        if seen.evidence.len() >= EVIDENCE_MAX {
            seen.evidence.remove(1);
        }
        seen.evidence.push(evidence(record, event));
        if seen.told >= Some(severity) {
            return None;
        }
        seen.told = Some(severity);
        let mut reasons = vec![why.to_owned()];
        if searches {
            reasons.insert(0, format!("it asked for {SEARCH} different paths and more"));
        }
        if outside {
            reasons.push(
                if context.start.policy.allowed_networks.is_empty() {
                    "outside means: not loopback, private or link-local; see allowed_networks"
                } else {
                    "outside means: in none of allowed_networks"
                }
                .to_owned(),
            );
        }
        if event.sources.len() > 1 {
            let claimed: Vec<_> = event.sources[..event.sources.len() - 1].iter().map(ToString::to_string).collect();
            reasons.push(format!("through a proxy, or so it claims, for {}", claimed.join(", ")));
        }
        let what = format!("{} {}", shown(&event.verb), shown(path(event)));
        let done = if refused { "refused" } else { "answered" };
        let place = if outside { "outside" } else { "within" };
        let title = if nobody {
            format!("Request without authentication {done}: {what} from {} ({place})", source(event))
        } else {
            format!("API server used from outside by {}: {what} from {}", user(event), source(event))
        };
        let evidence = seen.evidence.clone();
        Some(finding(&PUBLIC_API, severity, title, reasons, evidence, (record, event), context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Components, ContainerRole, Endpoint, EndpointRole, Policy, Rules},
        testing::{self, SECOND, Stream},
        testing_control,
    };

    const OUTSIDE: &str = "198.51.100.7";
    const INSIDE: &str = "10.0.0.9";

    fn nobody(source: &str, verb: &str, uri: &str, code: u16) -> AuditEvent {
        AuditEvent {
            groups: vec!["system:unauthenticated".to_owned()],
            sources: source.split(',').map(|source| source.parse().unwrap()).collect(),
            code,
            ..testing::audit("system:anonymous", verb, uri)
        }
    }

    fn push(stream: &mut Stream, event: AuditEvent) {
        stream.push(Body::Audit(Box::new(event)));
    }

    fn one(event: AuditEvent) -> Option<Severity> {
        let mut stream = Stream::new();
        push(&mut stream, event);
        let alerts = stream.alerts();
        assert!(alerts.len() <= 1 && alerts.iter().all(|alert| alert.technique.id == "public-api-endpoint"));
        alerts.first().map(|alert| alert.severity)
    }

    #[test]
    fn what_was_asked_from_where_and_whether_it_was_answered_decide_how_bad_it_is() {
        let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
        for (source, uri, code, severity) in [
            (OUTSIDE, "/version", 200, Some(Severity::High)),
            (OUTSIDE, "/version?timeout=32s", 200, Some(Severity::High)),
            (OUTSIDE, "/api", 403, Some(Severity::Medium)),
            (OUTSIDE, "/api/v1/namespaces/kube-system/secrets", 403, Some(Severity::Medium)),
            (OUTSIDE, "/api/v1/namespaces/kube-system/secrets", 200, Some(Severity::Critical)),
            (OUTSIDE, "/healthz", 200, Some(Severity::Low)),
            (OUTSIDE, info, 200, Some(Severity::Medium)),
            (INSIDE, "/version", 200, Some(Severity::Low)),
            (INSIDE, "/api/v1/pods", 403, Some(Severity::Low)),
            (INSIDE, "/api/v1/pods", 200, Some(Severity::High)),
            // Probes, load balancers, nodes that join.
            (INSIDE, "/healthz", 200, None),
            (INSIDE, "/livez?verbose", 200, None),
            (INSIDE, "/readyz/etcd", 200, None),
            ("127.0.0.1", "/livez", 200, None),
            (INSIDE, info, 200, None),
            // What is only called so.
            (INSIDE, "/healthzz", 200, Some(Severity::Low)),
        ] {
            assert_eq!(one(nobody(source, "get", uri, code)), severity, "{source} {uri} {code}");
        }
    }

    #[test]
    fn a_header_that_claims_an_address_inside_does_not_hide_the_one_outside() {
        assert_eq!(one(nobody("10.0.0.1,198.51.100.7", "get", "/version", 200)), Some(Severity::High));
        assert_eq!(one(nobody("198.51.100.7,10.0.0.1", "get", "/version", 200)), Some(Severity::High));
    }

    #[test]
    fn a_node_with_a_public_address_is_not_outside_of_itself() {
        for (role, told) in [(EndpointRole::ApiServer, 0), (EndpointRole::Api, 1)] {
            let own = Endpoint { address: OUTSIDE.parse().unwrap(), port: 6443, net_ns: 0, role };
            let mut stream = testing_control::node();
            stream.push(Body::Components(Box::new(Components { components: Vec::new(), endpoints: vec![own] })));
            push(&mut stream, nobody(OUTSIDE, "get", "/readyz", 200));
            assert_eq!(stream.alerts().len(), told);
        }
    }

    #[test]
    fn a_token_that_is_none_is_nobody() {
        let event = AuditEvent { user: String::new(), groups: vec![], ..nobody(OUTSIDE, "list", "/api/v1/pods", 401) };
        let mut stream = Stream::new();
        push(&mut stream, event);
        let alert = stream.alerts().remove(0);
        assert_eq!(alert.severity, Severity::Medium);
        assert_eq!(
            alert.title,
            "Request without authentication refused: list /api/v1/pods from 198.51.100.7 (outside)"
        );
    }

    #[test]
    fn each_source_is_told_once_an_hour_and_again_when_it_becomes_worse() {
        let mut stream = Stream::new();
        for _ in 0..50 {
            push(&mut stream, nobody(OUTSIDE, "get", "/api", 403));
            push(&mut stream, nobody("198.51.100.8", "get", "/api", 403));
        }
        push(&mut stream, nobody(OUTSIDE, "get", "/version", 200));
        push(&mut stream, nobody(OUTSIDE, "get", "/version", 200));
        let severities = |stream: &Stream| -> Vec<_> { stream.alerts().iter().map(|alert| alert.severity).collect() };
        assert_eq!(severities(&stream), [Severity::Medium, Severity::Medium, Severity::High]);
        stream.wait(3601 * SECOND);
        push(&mut stream, nobody(OUTSIDE, "get", "/api", 403));
        assert_eq!(severities(&stream).len(), 4);
    }

    #[test]
    fn whoever_tries_many_paths_searches() {
        let mut stream = Stream::new();
        for n in 0..30 {
            push(&mut stream, nobody(INSIDE, "get", &format!("/apis/g{n}/v1/x"), 403));
        }
        let alerts = stream.alerts();
        let severities: Vec<_> = alerts.iter().map(|alert| alert.severity).collect();
        assert_eq!(severities, [Severity::Low, Severity::Medium]);
        assert_eq!(alerts[1].reasons[0], "it asked for 20 different paths and more");
        assert_eq!(alerts[1].evidence.len(), EVIDENCE_MAX);
    }

    #[test]
    fn who_is_authenticated_is_silent_inside_and_outside_by_what_he_is() {
        let event = |user: &str, source: &str| AuditEvent {
            sources: vec![source.parse().unwrap()],
            ..testing::audit(user, "list", "/api/v1/pods")
        };
        for user in ["alice", "system:serviceaccount:shop:web", "system:node:n", "system:kube-scheduler"] {
            assert_eq!(one(event(user, INSIDE)), None, "{user}");
        }
        assert_eq!(one(event("alice", OUTSIDE)), Some(Severity::Low));
        assert_eq!(one(event("system:node:n", OUTSIDE)), Some(Severity::Medium));
        assert_eq!(one(event("system:serviceaccount:shop:web", OUTSIDE)), Some(Severity::High));
        let master = AuditEvent { groups: vec!["system:masters".to_owned()], ..event("alice", OUTSIDE) };
        assert_eq!(one(master), Some(Severity::Medium));
    }

    #[test]
    fn networks_of_the_users_own_take_the_place_of_private_ones() {
        let mut stream = Stream::new();
        let policy = Policy { allowed_networks: vec!["198.51.100.0/24".to_owned()], ..Policy::default() };
        stream.push(Body::Config(Box::new(Rules { policy, ..Rules::default() })));
        push(&mut stream, nobody(OUTSIDE, "get", "/version", 200));
        push(&mut stream, nobody(INSIDE, "get", "/version", 200));
        let severities: Vec<_> = stream.alerts().iter().map(|alert| alert.severity).collect();
        assert_eq!(severities, [Severity::Low, Severity::High]);
    }

    #[test]
    fn a_token_that_is_bound_to_a_pod_of_this_node_names_the_pod() {
        let mut stream = Stream::new();
        stream.push(Body::Container(Box::new(testing::container("c1", 7, ContainerRole::Member, "app"))));
        let event = AuditEvent {
            pod: Some("web-node-1".to_owned()),
            sources: vec![OUTSIDE.parse().unwrap()],
            ..testing::audit("system:serviceaccount:shop:web", "list", "/api/v1/pods")
        };
        push(&mut stream, event.clone());
        let alert = stream.alerts().remove(0);
        assert_eq!(alert.pod.unwrap().name, "web-node-1");
        assert_eq!(alert.request.unwrap().pod.as_deref(), Some("web-node-1"));
        // A pod of that name in another namespace is another pod.
        let mut stream = Stream::new();
        stream.push(Body::Container(Box::new(testing::container("c1", 7, ContainerRole::Member, "app"))));
        push(&mut stream, AuditEvent { user: "system:serviceaccount:other:web".to_owned(), ..event });
        assert_eq!(stream.alerts().remove(0).pod, None);
    }
}
