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
    /// By hook, whether its events can raise an alert, and whether they were skipped.
    lost: BTreeMap<(bool, bool, String), u64>,
    told: BTreeMap<bool, BootNs>,
    /// For each ring, as for what was told.
    evidence: BTreeMap<bool, Vec<Evidence>>,
}

impl Detector for Impair {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, _context: &Context) -> Vec<Finding> {
        if let Body::Loss(loss) = &record.body {
            let lost = self.lost.entry((loss.alerting, loss.skipped, loss.hook.clone())).or_default();
            *lost = lost.saturating_add(loss.lost);
            let evidence = self.evidence.entry(loss.alerting).or_default();
            if evidence.len() < 16 {
                evidence.push(Evidence {
                    kind: "loss",
                    hook: None,
                    sequence: record.seq,
                    detail: match loss.cpu {
                        Some(cpu) => format!("{} events of hook {} on CPU {cpu}", loss.lost, loss.hook),
                        None => format!("{} runs of hook {}", loss.lost, loss.hook),
                    },
                });
            }
        }
        // A look at the counters yields a record for each hook and CPU, and time passes behind them.
        if !matches!(record.body, Body::Tick) {
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
        let of = |skipped: bool| -> (u64, String) {
            let hooks = self.lost.iter().filter(|((one, other, _), _)| (*one, *other) == (alerting, skipped));
            let names: Vec<_> = hooks.clone().map(|((.., hook), lost)| format!("{hook} ({lost})")).collect();
            (hooks.map(|(_, lost)| lost).sum(), names.join(", "))
        };
        let ((full, full_at), (skipped, skipped_at)) = (of(false), of(true));
        if full == 0 && skipped == 0 {
            return None;
        }
        self.lost.retain(|(one, ..), _| *one != alerting);
        self.told.insert(alerting, now);
        let mut reasons = Vec::new();
        if full > 0 {
            reasons.push(format!("ring buffer full at {full_at}"));
        }
        if skipped > 0 {
            reasons.push(format!(
                "skipped by the kernel, because the program was in the middle of another run on the same CPU, at {skipped_at}"
            ));
        }
        let consequence = if alerting {
            "an act may have gone unseen; changes of manifests are still found by re-reading them"
        } else {
            "processes and containers are looked at again; what came and went meanwhile is not known"
        };
        reasons.push(consequence.to_owned());
        Some(Finding {
            technique: &DETECTOR_TAMPERING,
            // Most runs look at what is not watched: a skipped one is rarely an act.
            severity: match (alerting, full > 0) {
                (true, true) => Severity::High,
                (true, false) => Severity::Medium,
                (false, _) => Severity::Low,
            },
            time: now,
            title: match full.saturating_add(skipped) {
                1 => "1 event was lost in the kernel".to_owned(),
                lost => format!("{lost} events were lost in the kernel"),
            },
            blocked: false,
            reasons,
            actor: None,
            container: None,
            file: None,
            manifest: None,
            evidence: self.evidence.remove(&alerting).unwrap_or_default(),
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
        Body::Loss(Box::new(Loss { hook: hook.to_owned(), cpu: Some(1), lost, skipped: false, alerting }))
    }

    fn skipped(hook: &str, lost: u64) -> Body {
        Body::Loss(Box::new(Loss { hook: hook.to_owned(), cpu: None, lost, skipped: true, alerting: true }))
    }

    #[test]
    fn skipped_runs_are_told_as_such_and_weigh_less_than_lost_events() {
        let mut stream = Stream::new();
        stream.push(skipped("file-open", 3));
        stream.push(Body::Tick);
        stream.wait(11 * SECOND);
        stream.push(skipped("file-open", 2));
        stream.push(Body::Tick);
        stream.wait(11 * SECOND);
        stream.push(loss("mount", 1, true));
        stream.push(Body::Tick);
        let alerts = stream.alerts();
        let told: Vec<_> = alerts.iter().map(|alert| (alert.title.as_str(), alert.severity)).collect();
        assert_eq!(
            told,
            [
                ("3 events were lost in the kernel", Severity::Medium),
                ("2 events were lost in the kernel", Severity::Medium),
                ("1 event was lost in the kernel", Severity::High),
            ]
        );
        assert!(alerts[0].reasons[0].starts_with("skipped by the kernel"), "{:?}", alerts[0].reasons);
        assert!(alerts[0].reasons[0].ends_with("file-open (3)"), "{:?}", alerts[0].reasons);
        assert_eq!(alerts[2].reasons[0], "ring buffer full at mount (1)");
    }

    #[test]
    fn every_lost_event_is_told_and_a_flood_of_losses_is_not_a_flood_of_alerts() {
        let mut stream = Stream::new();
        stream.push(loss("syscall", 1, true));
        stream.push(loss("mount", 2, true));
        stream.push(Body::Tick);
        for _ in 0..50 {
            stream.push(loss("syscall", 2, true));
            stream.push(Body::Tick);
        }
        stream.wait(11 * SECOND);
        stream.push(Body::Tick);
        stream.wait(11 * SECOND);
        stream.push(Body::Tick);
        let alerts = stream.alerts();
        // All that one look found is one alert.
        assert_eq!(alerts[0].reasons[0], "ring buffer full at mount (2), syscall (1)");
        assert_eq!(alerts[0].evidence.len(), 2);
        let titles: Vec<_> = alerts.into_iter().map(|alert| (alert.title, alert.severity)).collect();
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
        stream.push(Body::Tick);
        let alerts = stream.alerts();
        let told: Vec<_> = alerts.iter().map(|alert| (alert.severity, alert.evidence[0].detail.as_str())).collect();
        let expected =
            [(Severity::High, "1 events of hook syscall on CPU 1"), (Severity::Low, "7 events of hook fork on CPU 1")];
        assert_eq!(told, expected);
    }
}
