//! `malicious-admission-controller`, as the kernel sees it: this node's API server connects to where it never did before.
//!
//! A webhook that is registered gets every object that matches it, secrets too. What an API server connects to else is few and known:
//! etcd, kubelets, itself.

use std::net::IpAddr;

use detector_common::{connection, endpoint, kind};

use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::{Event, hook_name},
    detect::{
        Detector, Finding, kinds,
        network::{self, Networks},
        once::Once,
        technique::MALICIOUS_ADMISSION,
    },
    record::{ProcessKey, Record, sense},
};

/// Most addresses remembered; the oldest are told anew.
const SEEN_MAX: usize = 4096;
/// Where kubelets answer: logs, exec, port forwarding.
const KUBELET: u16 = 10250;

/// Remembers where API servers connected to.
#[derive(Debug, Default)]
pub struct WebhookAddress {
    seen: Once<(IpAddr, u16), SEEN_MAX>,
    allowed: Networks,
}

impl Detector for WebhookAddress {
    fn kinds(&self) -> u64 {
        kinds(&[kind::CONNECTION])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Some(Event::Connection(connection)) = event else { return Vec::new() };
        if connection.act != connection::CONNECT
            || connection.endpoint & endpoint::CLIENT == 0
            || connection.endpoint & endpoint::ETCD != 0
        {
            return Vec::new();
        }
        let (ip, port) = (sense::ip(&connection.remote), connection.remote_port);
        let own = || context.sense.components.endpoints.iter().any(|found| found.address == ip);
        if ip.is_loopback() || ip.is_unspecified() || port == KUBELET || own() {
            return Vec::new();
        }
        let policy = &context.start.policy;
        let said = !policy.webhook_networks.is_empty();
        self.allowed.set(&policy.webhook_networks);
        if said && self.allowed.contain(ip) || !self.seen.first((ip, port)) {
            return Vec::new();
        }
        let outside = !network::inside(ip);
        let to = sense::address(&connection.remote, port);
        let mut reasons =
            vec!["it is no etcd, kubelet or address of this node: a webhook or an extension API server".to_owned()];
        if outside {
            reasons.insert(0, "the address is a public one".to_owned());
        }
        if said {
            reasons.insert(0, "it is in none of webhook_networks".to_owned());
        }
        let severity = if outside || said { Severity::Medium } else { Severity::Low };
        let header = &connection.header;
        let detail = format!("connected to {to}");
        let evidence =
            Evidence { kind: "connection", hook: Some(hook_name(header.hook)), sequence: record.seq, detail };
        vec![Finding {
            technique: &MALICIOUS_ADMISSION,
            severity,
            time: record.time,
            title: format!("API server connects to {to} for the first time"),
            blocked: false,
            reasons,
            actor: Some(ProcessKey::from_ns(header.tgid, header.start_ns)),
            container: None,
            file: None,
            manifest: None,
            evidence: vec![evidence],
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::{Actor, Stream},
        testing_control as with,
    };

    const SERVER: Actor = with::API_SERVER;

    fn told(stream: &Stream) -> Vec<(String, Severity)> {
        let alerts = stream.alerts().into_iter().filter(|alert| alert.technique == MALICIOUS_ADMISSION);
        alerts.map(|alert| (alert.title, alert.severity)).collect()
    }

    #[test]
    fn an_address_that_is_new_is_told_once_and_a_public_one_is_worse() {
        let mut stream = with::node();
        for to in ["10.96.3.4:443", "10.96.3.4:443", "203.0.113.9:8443", "[2001:db8::7]:443"] {
            stream.kernel(with::connect(SERVER, to, endpoint::CLIENT));
        }
        let expected = [
            ("API server connects to 10.96.3.4:443 for the first time", Severity::Low),
            ("API server connects to 203.0.113.9:8443 for the first time", Severity::Medium),
            ("API server connects to [2001:db8::7]:443 for the first time", Severity::Medium),
        ];
        assert_eq!(told(&stream), expected.map(|(title, severity)| (title.to_owned(), severity)));
    }

    #[test]
    fn etcd_kubelets_and_the_node_itself_are_silent() {
        let mut stream = with::node();
        stream.kernel(with::connect(SERVER, "10.0.0.9:2379", endpoint::CLIENT | endpoint::ETCD));
        for to in ["10.0.0.7:10250", "127.0.0.1:443", "[::1]:6443", "10.0.0.5:10257"] {
            stream.kernel(with::connect(SERVER, to, endpoint::CLIENT));
        }
        // Anybody else's connection is none of the API server's.
        stream.kernel(with::connect(Actor::host(50, 10), "203.0.113.9:443", endpoint::API));
        assert_eq!(told(&stream), []);
    }

    #[test]
    fn what_the_configuration_allows_is_silent_and_the_rest_is_medium() {
        let mut stream = with::node();
        stream.push(with::policy(|policy| policy.webhook_networks = vec!["10.96.0.0/12".to_owned()]));
        stream.kernel(with::connect(SERVER, "10.96.3.4:443", endpoint::CLIENT));
        assert_eq!(told(&stream), []);
        stream.kernel(with::connect(SERVER, "192.168.1.1:443", endpoint::CLIENT));
        assert_eq!(
            told(&stream),
            [("API server connects to 192.168.1.1:443 for the first time".to_owned(), Severity::Medium)]
        );
    }
}
