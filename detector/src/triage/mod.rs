//! Behind the pipeline, before the sinks: which of the alerts are told. Pure, driven by the stream's own time.
//!
//! Exceptions silence; of identical findings the first is told and the others are counted; what is more than a technique may
//! tell of a pod is held back and added up. Nothing vanishes: the counts of all alerts that were told, what exceptions silenced
//! and what a group or a limit still holds are together what was found.

mod exceptions;
pub mod expression;
mod groups;
mod limits;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    alert::{Alert, Severity},
    record::{Body, BootNs, Exception, Record, Rules},
};
use exceptions::Exceptions;
pub use exceptions::{expiry, pattern};
use groups::{Fingerprint, Groups};
use limits::Limits;

/// Most exceptions that are taken.
pub const EXCEPTIONS_MAX: usize = 256;

/// Chooses what is told.
#[derive(Debug, Default)]
pub struct Triage {
    rules: Rules,
    /// What the stream says of rules does not count.
    fixed: bool,
    exceptions: Exceptions,
    groups: Groups,
    limits: Limits,
    /// By the agent's own clock: records of the kernel are not in order.
    now: BootNs,
    boot_time_ns: u64,
    counts: Counts,
}

/// What became of findings that were not told each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Told together with others like them.
    pub grouped: u64,
    /// Beyond the rate limit.
    pub held_back: u64,
    /// By the name of the exception.
    pub silenced: BTreeMap<String, u64>,
}

/// What a record came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// In order.
    pub told: Vec<Alert>,
    pub silenced: Vec<Silenced>,
    /// The worst that was found and not silenced, told or not.
    pub worst: Option<Severity>,
    /// What the user should know of exceptions.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Whether there is anything for standard error; `explain` when what exceptions silenced is.
    #[must_use]
    pub fn says(&self, explain: bool) -> bool {
        !self.notes.is_empty() || (explain && !self.silenced.is_empty())
    }
}

/// An alert that an exception silenced.
#[derive(Debug)]
pub struct Silenced {
    pub alert: Alert,
    /// The exception's name and reason, and when it expires.
    pub name: String,
    pub reason: String,
    pub expires: String,
}

impl Triage {
    /// Judges by what the stream says.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges by these rules, whatever the stream says.
    #[must_use]
    pub fn fixed(rules: &Rules) -> Self {
        let mut triage = Self { fixed: true, ..Self::default() };
        triage.rules(rules);
        triage
    }

    /// Whether nothing comes of a record and the alerts that the pipeline made of it: so it is with nearly every one.
    #[must_use]
    pub fn passes_over(record: &Record, alerts: &[Alert]) -> bool {
        alerts.is_empty() && matches!(record.body, Body::Kernel { .. })
    }

    /// Takes the next record of the stream and the alerts that the pipeline made of it.
    #[inline]
    pub fn push(&mut self, record: &Record, alerts: Vec<Alert>) -> Outcome {
        if Self::passes_over(record, &alerts) {
            return Outcome::default();
        }
        self.judge_all(record, alerts)
    }

    fn judge_all(&mut self, record: &Record, alerts: Vec<Alert>) -> Outcome {
        let mut outcome = Outcome::default();
        match &record.body {
            Body::Start(start) => {
                self.boot_time_ns = start.boot_time_ns;
                self.passes(record.time, &mut outcome);
            }
            Body::Config(rules) => {
                self.passes(record.time, &mut outcome);
                if !self.fixed {
                    self.rules(rules);
                    // One that has expired already must not apply until the next tick.
                    self.exceptions.passes(self.now.wall(self.boot_time_ns));
                }
                if self.rules.group_ns == 0 {
                    outcome.told.extend(self.groups.finish());
                }
            }
            Body::Tick => self.passes(record.time, &mut outcome),
            _ => {}
        }
        for alert in alerts {
            self.judge(alert, &mut outcome);
        }
        outcome.notes.append(&mut self.exceptions.notes);
        outcome
    }

    /// Tells what was counted or held back until now: the stream has ended.
    pub fn finish(&mut self) -> Vec<Alert> {
        let mut told = self.groups.finish();
        told.extend(self.limits.finish());
        told
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many exceptions there are, and how many of them have expired.
    #[must_use]
    pub fn exceptions(&self) -> (usize, usize) {
        self.exceptions.sizes()
    }

    #[cfg(test)]
    fn sizes(&self) -> (usize, usize) {
        (self.groups.len(), self.limits.len())
    }

    fn rules(&mut self, rules: &Rules) {
        self.exceptions = Exceptions::new(&rules.exceptions);
        self.rules = rules.clone();
    }

    /// Windows that are over close.
    fn passes(&mut self, now: BootNs, outcome: &mut Outcome) {
        self.now = self.now.max(now);
        self.exceptions.passes(self.now.wall(self.boot_time_ns));
        outcome.told.extend(self.groups.close(self.now, self.rules.group_ns));
        outcome.told.extend(self.limits.close(self.now));
    }

    fn judge(&mut self, alert: Alert, outcome: &mut Outcome) {
        if let Some(Exception { name, reason, expires, .. }) = self.exceptions.silences(&alert) {
            *self.counts.silenced.entry(name.clone()).or_default() += 1;
            let (name, reason, expires) = (name.clone(), reason.clone(), expires.clone());
            outcome.silenced.push(Silenced { alert, name, reason, expires });
            return;
        }
        outcome.worst = outcome.worst.max(Some(alert.severity));
        let fingerprint = (self.rules.group_ns > 0).then(|| Fingerprint::of(&alert));
        let alert = match &fingerprint {
            None => alert,
            Some(fingerprint) => match self.groups.take(fingerprint, alert) {
                None => {
                    self.counts.grouped += 1;
                    return;
                }
                Some(alert) => alert,
            },
        };
        let alert = match self.limits.take(alert, self.now, &self.rules, &mut outcome.told) {
            None => {
                self.counts.held_back += 1;
                return;
            }
            Some(alert) => alert,
        };
        outcome.told.push(alert);
        if let Some(fingerprint) = fingerprint {
            outcome.told.extend(self.groups.open(fingerprint, self.now, self.rules.group_ns));
        }
    }
}
