//! `container-service-account`, as the API server and the kernel see it together: the token of one pod used by another, or on the host.
//!
//! How it got there does not matter: read through a mount, copied out by an exec session, sent over the network.

use super::{
    Detector, Finding,
    once::Once,
    request::{evidence, finding, shown},
    sender::{bound, by_another, whose},
    technique::SERVICE_ACCOUNT,
};
use crate::{
    alert::Severity,
    context::Context,
    decode::Event,
    record::{Body, Record},
};

/// Most uses remembered, each of which is told of once.
const TOLD_MAX: usize = 4096;

/// Tells of tokens that are not used by whom they are for.
#[derive(Debug, Default)]
pub struct TokenUse {
    /// The pod whose the token is, and where it was used.
    told: Once<(String, String), TOLD_MAX>,
}

impl Detector for TokenUse {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Body::Audit(event) = &record.body else { return Vec::new() };
        let Some(pod) = bound(event) else { return Vec::new() };
        let Some(candidates) = context.candidates(event, record.time) else { return Vec::new() };
        if candidates.all.is_empty() || !by_another(&candidates, pod, context) {
            return Vec::new();
        }
        let what = event.object.as_ref().map_or_else(|| event.uri.clone(), ToString::to_string);
        let title = format!(
            "Service account token of pod {} used by somebody else: {} {}",
            whose(pod),
            shown(&event.verb),
            shown(&what)
        );
        let evidence = vec![evidence(record, event)];
        let found = finding(&SERVICE_ACCOUNT, Severity::High, title, Vec::new(), evidence, (record, event), context);
        // By whoever used it: a container, else a process, else whoever they are.
        let by = match (&found.container, found.actor) {
            (Some(container), _) => container.clone(),
            (None, Some(actor)) => format!("{}-{}", actor.pid, actor.start),
            (None, None) => String::new(),
        };
        if self.told.first((whose(pod), by)) { vec![found] } else { Vec::new() }
    }
}
