//! `detector-tampering`: events that the agent should have had and did not get.

use std::collections::BTreeMap;

use crate::{
    alert::{Evidence, Severity},
    context::Context,
    decode::Event,
    detect::{Detector, Finding, technique::DETECTOR_TAMPERING},
    record::{Body, BootNs, Record},
};

/// Losses are told at most this often for each ring, in ns; what comes in between is added up.
const EVERY_NS: u64 = 10_000_000_000;

/// Adds losses up and tells of them.
#[derive(Debug, Default)]
pub struct Impair {
    /// By hook, and whether its events can raise an alert.
    lost: BTreeMap<(bool, String), u64>,
    told: BTreeMap<bool, BootNs>,
    evidence: Vec<Evidence>,
}

impl Detector for Impair {
    fn observe(&mut self, record: &Record, _event: Option<&Event>, _context: &Context) -> Vec<Finding> {
        if let Body::Loss(loss) = &record.body {
            let lost = self.lost.entry((loss.alerting, loss.hook.clone())).or_default();
            *lost = lost.saturating_add(loss.lost);
            if self.evidence.len() < 16 {
                self.evidence.push(Evidence {
                    kind: "loss",
                    hook: None,
                    sequence: record.seq,
                    detail: format!("{} events of hook {} on CPU {}", loss.lost, loss.hook, loss.cpu),
                });
            }
        } else if !matches!(record.body, Body::Tick) {
            return Vec::new();
        }
        [true, false].into_iter().filter_map(|alerting| self.tell(alerting, record.time)).collect()
    }
}

impl Impair {
    fn tell(&mut self, alerting: bool, now: BootNs) -> Option<Finding> {
        if self.told.get(&alerting).is_some_and(|told| now.0.saturating_sub(told.0) < EVERY_NS) {
            return None;
        }
        let hooks: Vec<_> = self
            .lost
            .iter()
            .filter(|((one, _), _)| *one == alerting)
            .map(|((_, hook), lost)| (hook.clone(), *lost))
            .collect();
        let total: u64 = hooks.iter().map(|(_, lost)| lost).sum();
        if total == 0 {
            return None;
        }
        self.lost.retain(|(one, _), _| *one != alerting);
        self.told.insert(alerting, now);
        let names: Vec<_> = hooks.iter().map(|(hook, lost)| format!("{hook} ({lost})")).collect();
        let consequence = if alerting {
            "an act may have gone unseen; changes of manifests are still found by re-reading them"
        } else {
            "lineage may have gaps; acts and effects are not affected"
        };
        Some(Finding {
            technique: &DETECTOR_TAMPERING,
            severity: if alerting { Severity::High } else { Severity::Low },
            time: now,
            title: format!("{total} events were lost in the kernel"),
            blocked: false,
            reasons: vec![format!("ring buffer full at {}", names.join(", ")), consequence.to_owned()],
            actor: None,
            container: None,
            file: None,
            manifest: None,
            evidence: std::mem::take(&mut self.evidence),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        alert::Severity,
        record::{Body, Loss},
        testing::{SECOND, Stream},
    };

    fn loss(hook: &str, lost: u64, alerting: bool) -> Body {
        Body::Loss(Loss { hook: hook.to_owned(), cpu: 1, lost, alerting })
    }

    #[test]
    fn every_lost_event_is_told_and_a_flood_of_losses_is_not_a_flood_of_alerts() {
        let mut stream = Stream::new();
        stream.push(loss("syscall", 3, true));
        for _ in 0..50 {
            stream.push(loss("syscall", 2, true));
            stream.push(Body::Tick);
        }
        stream.wait(11 * SECOND);
        stream.push(Body::Tick);
        stream.wait(11 * SECOND);
        stream.push(Body::Tick);
        let titles: Vec<_> = stream.alerts().into_iter().map(|alert| (alert.title, alert.severity)).collect();
        assert_eq!(
            titles,
            [
                ("3 events were lost in the kernel".to_owned(), Severity::High),
                ("100 events were lost in the kernel".to_owned(), Severity::High),
            ]
        );
    }

    #[test]
    fn lost_context_is_low_and_does_not_wait_for_the_other_ring() {
        let mut stream = Stream::new();
        stream.push(loss("syscall", 1, true));
        stream.push(loss("fork", 7, false));
        let severities: Vec<_> = stream.alerts().iter().map(|alert| alert.severity).collect();
        assert_eq!(severities, [Severity::High, Severity::Low]);
    }
}
