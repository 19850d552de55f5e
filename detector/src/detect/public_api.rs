//! `public-api-endpoint`, as the kernel sees it: this node's API server accepts connections from outside.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use detector_common::{connection, endpoint, kind};

use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::{Event, hook_name},
    detect::{Detector, Finding, kinds, network::Networks, technique::PUBLIC_API},
    record::{BootNs, ComponentKind, Record, sense},
};

/// Of a source that was told nothing is told for so long, in ns.
const QUIET_NS: u64 = 3_600_000_000_000;
/// Most sources that are told each within that time; what comes from others then is one finding.
const SOURCES_MAX: usize = 64;

/// Groups accepted connections by where they come from.
#[derive(Debug, Default)]
pub struct PublicApi {
    told: BTreeMap<IpAddr, BootNs>,
    /// When it was told that there are more sources than are told each.
    many: Option<BootNs>,
    allowed: Networks,
}

impl Detector for PublicApi {
    fn kinds(&self) -> u64 {
        kinds(&[kind::CONNECTION])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Some(Event::Connection(accepted)) = event.filter(|_| !context.is_older(record.time)) else {
            return Vec::new();
        };
        if accepted.act != connection::ACCEPT || accepted.endpoint & endpoint::SERVER == 0 {
            return Vec::new();
        }
        let from = sense::ip(&accepted.remote);
        let allowed = &context.start.policy.allowed_networks;
        self.allowed.set(allowed);
        if self.allowed.contain(from) || context.sense.is_own(from) {
            return Vec::new();
        }
        let Some(whose) = self.news(source(from), record.time) else { return Vec::new() };
        let at = sense::address(&accepted.local, accepted.local_port);
        let detail = format!("{at} accepted {}", sense::address(&accepted.remote, accepted.remote_port));
        let mut components = context.sense.components.components.iter();
        let server = components.find(|found| found.kind == ComponentKind::ApiServer && found.net_ns == accepted.net_ns);
        let (severity, why) = if allowed.is_empty() {
            (Severity::Low, "the address is a public one; allowed_networks in the configuration says which are right")
        } else {
            (Severity::Medium, "the address is in none of allowed_networks")
        };
        vec![Finding {
            technique: &PUBLIC_API,
            severity,
            time: record.time,
            title: format!("API server at {at} accepts connections from {whose}"),
            blocked: false,
            reasons: vec![why.to_owned(), "whoever can connect can ask /version without any credentials".to_owned()],
            actor: server.map(|found| found.process),
            container: None,
            file: None,
            manifest: None,
            evidence: vec![Evidence {
                kind: "connection",
                hook: Some(hook_name(accepted.header.hook)),
                sequence: record.seq,
                detail,
            }],
        }]
    }
}

impl PublicApi {
    /// What to call a source that is to be told of now.
    fn news(&mut self, source: IpAddr, now: BootNs) -> Option<String> {
        let quiet = |told: &BootNs| now.0.saturating_sub(told.0) < QUIET_NS;
        self.told.retain(|_, told| quiet(told));
        if self.told.contains_key(&source) {
            return None;
        }
        if self.told.len() < SOURCES_MAX {
            self.told.insert(source, now);
            return Some(if source.is_ipv4() { format!("{source}/24") } else { format!("{source}/64") });
        }
        if self.many.as_ref().is_some_and(quiet) {
            return None;
        }
        self.many = Some(now);
        Some(format!("more than {SOURCES_MAX} networks"))
    }
}

/// The network that is taken for one source.
fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(four) => IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & !0xff)),
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::{SECOND, Stream},
        testing_control as with,
    };

    fn told(stream: &Stream) -> Vec<(String, Severity)> {
        let alerts = stream.alerts().into_iter().filter(|alert| alert.technique == PUBLIC_API);
        alerts.map(|alert| (alert.title, alert.severity)).collect()
    }

    fn title(from: &str) -> String {
        format!("API server at 10.0.0.5:6443 accepts connections from {from}")
    }

    #[test]
    fn a_public_address_is_told_once_for_its_network() {
        let mut stream = with::node();
        for from in ["203.0.113.9:5000", "203.0.113.9:5001", "203.0.113.77:5000", "[2001:db8::7]:5000"] {
            stream.kernel(with::accept(from, "10.0.0.5:6443"));
        }
        assert_eq!(told(&stream), [(title("203.0.113.0/24"), Severity::Low), (title("2001:db8::/64"), Severity::Low)]);
        stream.wait(3700 * SECOND);
        stream.kernel(with::accept("203.0.113.9:6000", "10.0.0.5:6443"));
        assert_eq!(told(&stream).len(), 3);
    }

    #[test]
    fn the_clusters_own_networks_are_silent() {
        let mut stream = with::node();
        for from in ["10.0.0.7:5000", "127.0.0.1:5000", "10.0.0.5:5000", "[fd00::7]:5000"] {
            stream.kernel(with::accept(from, "10.0.0.5:6443"));
        }
        assert_eq!(told(&stream), []);
    }

    #[test]
    fn with_allowed_networks_only_those_are_silent() {
        let mut stream = with::node();
        stream.push(with::policy(|policy| policy.allowed_networks = vec!["203.0.113.0/24".to_owned()]));
        stream.kernel(with::accept("203.0.113.9:5000", "10.0.0.5:6443"));
        stream.kernel(with::accept("127.0.0.1:5000", "127.0.0.1:6443"));
        // The node's own address needs no permission.
        stream.kernel(with::accept("10.0.0.5:5000", "10.0.0.5:6443"));
        assert_eq!(told(&stream), []);
        stream.kernel(with::accept("192.168.7.7:5000", "10.0.0.5:6443"));
        assert_eq!(told(&stream), [(title("192.168.7.0/24"), Severity::Medium)]);
    }

    #[test]
    fn a_scan_from_everywhere_is_no_flood_of_findings() {
        let mut stream = with::node();
        for n in 0..=255_u8 {
            stream.kernel(with::accept(&format!("203.0.{n}.9:5000"), "10.0.0.5:6443"));
        }
        let told = told(&stream);
        assert_eq!(told.len(), SOURCES_MAX + 1);
        assert_eq!(told.last().unwrap().0, title("more than 64 networks"));
    }
}
