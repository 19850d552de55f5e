//! Which events go into the stream. API servers answer thousands of requests a second, and nearly all of them are the same few clients
//! reading: one of these in a while says as much.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use twox_hash::XxHash3_64;

use crate::record::AuditEvent;

/// How long reads like one that was passed on are left out.
const WHILE: Duration = Duration::from_secs(600);
/// Most kinds of reads remembered.
const KINDS_MAX: usize = 4096;

/// Leaves reads out that say nothing new.
#[derive(Debug, Default)]
pub struct Thin(HashMap<u64, Instant>);

impl Thin {
    /// Whether the event is to be passed on. Everything is that changes something, was refused, or that nobody was authenticated for.
    pub fn is_new(&mut self, event: &AuditEvent, now: Instant) -> bool {
        let reads = matches!(event.verb.as_str(), "get" | "list" | "watch");
        let anonymous = event.user.is_empty() || event.groups.iter().any(|group| group == "system:unauthenticated");
        let refused = matches!(event.code, 0 | 401 | 403) || event.code >= 500;
        if !reads || anonymous || refused || event.impersonated.is_some() {
            return true;
        }
        let kind = format!(
            "{}\0{}\0{:?}\0{}\0{:?}\0{}",
            event.user,
            event.agent,
            event.sources,
            event.verb,
            event.object.as_ref().map(|object| (
                &object.resource,
                &object.subresource,
                &object.group,
                &object.namespace
            )),
            event.pod.as_deref().unwrap_or_default(),
        );
        let kind = XxHash3_64::oneshot(kind.as_bytes());
        if self.0.get(&kind).is_some_and(|last| now.duration_since(*last) < WHILE) {
            return false;
        }
        if self.0.len() >= KINDS_MAX {
            self.0.retain(|_, last| now.duration_since(*last) < WHILE);
            if self.0.len() >= KINDS_MAX {
                self.0.clear();
            }
        }
        self.0.insert(kind, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn of_the_same_reads_one_is_passed_on_and_of_acts_and_refusals_each() {
        let (mut thin, now) = (Thin::default(), Instant::now());
        let event = |verb: &str, code: u16| AuditEvent { code, ..testing::audit("alice", verb, "/api/v1/pods") };
        assert!(thin.is_new(&event("list", 200), now));
        assert!(!thin.is_new(&event("list", 200), now));
        assert!(thin.is_new(&event("get", 200), now));
        let elsewhere = AuditEvent { sources: vec!["198.51.100.7".parse().unwrap()], ..event("list", 200) };
        assert!(thin.is_new(&elsewhere, now), "from another address");
        for _ in 0..2 {
            assert!(thin.is_new(&event("delete", 200), now));
            assert!(thin.is_new(&event("list", 403), now));
            let nobody = AuditEvent { groups: vec!["system:unauthenticated".to_owned()], ..event("get", 200) };
            assert!(thin.is_new(&nobody, now));
        }
        assert!(thin.is_new(&event("list", 200), now + WHILE), "after a while it is told again");
    }
}
