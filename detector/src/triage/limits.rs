//! At most so many alerts of one technique about one pod; what is beyond comes as one alert that says how much it was.

use std::collections::BTreeMap;

use crate::{
    alert::{Alert, Origin, Severity},
    record::{BootNs, Rules},
};

/// Most pods and techniques at once; of more the oldest one closes early.
const LIMITS_MAX: usize = 1024;
/// Most titles that a summary shows.
const TITLES_MAX: usize = 5;

/// Technique, and the pod by namespace and name; else the container; else where it was.
type Key = (&'static str, String, String);

/// What was told lately, by technique and pod.
#[derive(Debug, Default)]
pub struct Limits {
    open: BTreeMap<Key, Limit>,
    opened: u64,
}

#[derive(Debug)]
struct Limit {
    until: BootNs,
    number: u64,
    told: u64,
    most: u64,
    held: Option<Box<Held>>,
}

#[derive(Debug)]
struct Held {
    first_time: String,
    severities: BTreeMap<Severity, u64>,
    /// The first ones that differ.
    titles: Vec<String>,
    last: Alert,
}

impl Limits {
    /// Yields an alert that may be told; adds up one that may not. What is critical is always told, whatever the limit. What a
    /// limit that gives way had held back goes to `told`.
    pub fn take(&mut self, alert: Alert, now: BootNs, rules: &Rules, told: &mut Vec<Alert>) -> Option<Alert> {
        if rules.limit == 0 || rules.limit_ns == 0 || alert.severity >= Severity::Critical {
            return Some(alert);
        }
        let key = key(&alert);
        if !self.open.contains_key(&key) {
            self.opened += 1;
            if self.open.len() >= LIMITS_MAX
                && let Some(oldest) = self.open.iter().min_by_key(|(_, limit)| limit.order()).map(|(oldest, _)| oldest)
            {
                let oldest = oldest.clone();
                told.extend(self.open.remove(&oldest).and_then(Limit::summary));
            }
        }
        let number = self.opened;
        let limit = self.open.entry(key).or_insert_with(|| Limit {
            until: BootNs(now.0.saturating_add(rules.limit_ns)),
            number,
            told: 0,
            most: rules.limit,
            held: None,
        });
        if limit.told < limit.most {
            limit.told += 1;
            return Some(alert);
        }
        limit.hold(alert);
        None
    }

    /// Tells what was held back in windows that are over.
    pub fn close(&mut self, now: BootNs) -> Vec<Alert> {
        let mut due: Vec<_> = self.open.extract_if(.., |_, limit| limit.until <= now).map(|(_, limit)| limit).collect();
        due.sort_by_key(Limit::order);
        due.into_iter().filter_map(Limit::summary).collect()
    }

    /// Tells everything that was held back.
    pub fn finish(&mut self) -> Vec<Alert> {
        self.close(BootNs(u64::MAX))
    }
}

#[cfg(test)]
impl Limits {
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

impl Limit {
    fn order(&self) -> (BootNs, u64) {
        (self.until, self.number)
    }

    fn hold(&mut self, alert: Alert) {
        let held = match &mut self.held {
            Some(held) => {
                held.last = alert;
                held
            }
            None => {
                let (severities, titles) = (BTreeMap::new(), Vec::new());
                let held = Held { first_time: alert.time.clone(), severities, titles, last: alert };
                self.held.insert(Box::new(held))
            }
        };
        *held.severities.entry(held.last.severity).or_default() += held.last.count;
        if held.titles.len() < TITLES_MAX && !held.titles.contains(&held.last.title) {
            held.titles.push(held.last.title.clone());
        }
    }

    /// An alert for all that were held back. It names no process: it may have been many.
    fn summary(self) -> Option<Alert> {
        let Held { first_time, severities, titles, last } = *self.held?;
        let count = severities.values().sum();
        let by_severity: Vec<_> =
            severities.iter().rev().map(|(severity, n)| format!("{n} {}", severity.word())).collect();
        let mut reasons = vec![format!(
            "more than {} alerts of this technique about this pod in a short time; held back: {}",
            self.most,
            by_severity.join(", ")
        )];
        reasons.extend(titles.into_iter().map(|title| format!("for example: {title}")));
        Some(Alert {
            severity: severities.last_key_value().map_or(last.severity, |(severity, _)| *severity),
            title: format!("{count} alerts of {} were held back by the rate limit", last.technique.id),
            blocked: false,
            reasons,
            process: None,
            file: None,
            manifest: None,
            request: None,
            evidence: Vec::new(),
            count,
            first_time: Some(first_time),
            last_time: Some(last.time.clone()),
            ..last
        })
    }
}

fn key(alert: &Alert) -> Key {
    let place = match (&alert.pod, &alert.container) {
        (Some(pod), _) => (pod.namespace.clone(), pod.name.clone()),
        (None, Some(container)) => (String::new(), container.id.clone()),
        (None, None) => {
            let origin = match alert.origin {
                Origin::Host => "host",
                Origin::Container => "container",
                Origin::Unknown => "unknown",
            };
            (String::new(), origin.to_owned())
        }
    };
    (alert.technique.id, place.0, place.1)
}
