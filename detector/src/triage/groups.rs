//! Identical findings: the first is told, the others are counted and told as one.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::{alert::Alert, detect::technique::DETECTOR_TAMPERING, record::BootNs};

/// Most groups at once; of more the oldest one closes early.
const GROUPS_MAX: usize = 1024;

/// What makes findings identical: everything that people act on. Who acted counts by program, arguments and user, not by pid;
/// when, and the records behind it, do not count. Cryptographic, since whoever could make two findings look identical could hide
/// the second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(alert: &Alert) -> Self {
        let mut hash = Hash(Sha256::new());
        hash.text(alert.technique.id);
        hash.text(alert.severity.word());
        hash.number(u64::from(alert.blocked));
        hash.number(alert.origin as u64);
        // Of lost events only the numbers differ.
        let counts = alert.technique.id == DETECTOR_TAMPERING.id && alert.process.is_none();
        for text in [&alert.title].into_iter().chain(&alert.reasons) {
            if counts { hash.text(&without_numbers(text)) } else { hash.text(text) }
        }
        hash.number(alert.reasons.len() as u64);
        match &alert.process {
            None => hash.number(0),
            Some(process) => {
                hash.number(1 + process.argv.len() as u64);
                hash.text(&process.exe);
                hash.maybe(process.sha256.as_deref());
                process.argv.iter().for_each(|argument| hash.text(argument));
                hash.number(u64::from(process.uid));
                hash.number(process.login_uid.map_or(u64::MAX, u64::from));
            }
        }
        hash.maybe(alert.container.as_ref().map(|container| container.id.as_str()));
        hash.maybe(alert.pod.as_ref().map(|pod| pod.namespace.as_str()));
        hash.maybe(alert.pod.as_ref().map(|pod| pod.name.as_str()));
        hash.maybe(alert.pod.as_ref().map(|pod| pod.uid.as_str()));
        if let Some(file) = &alert.file {
            hash.text(&file.path);
            hash.text(file.change);
            hash.maybe(file.sha256.as_deref());
            hash.maybe(file.previous_sha256.as_deref());
            hash.maybe(file.symlink.as_deref());
        }
        if let Some(request) = &alert.request {
            hash.text(&request.user);
            hash.maybe(request.impersonated_user.as_deref());
            hash.maybe(request.source_ips.last().map(String::as_str));
            hash.text(&request.verb);
            hash.maybe(request.resource.as_deref());
            hash.maybe(request.namespace.as_deref());
            hash.maybe(request.name.as_deref());
            hash.number(u64::from(request.code));
        }
        Self(hash.0.finalize().into())
    }
}

/// Each part with its length, so that no two sequences of parts are the same bytes.
struct Hash(Sha256);

impl Hash {
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn maybe(&mut self, text: Option<&str>) {
        self.number(u64::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }
}

fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The findings that were told lately.
#[derive(Debug, Default)]
pub struct Groups {
    open: BTreeMap<Fingerprint, Group>,
    opened: u64,
}

#[derive(Debug)]
struct Group {
    until: BootNs,
    /// Which of those that close at the same time was opened first.
    number: u64,
    repeats: Option<Box<Repeats>>,
}

#[derive(Debug)]
struct Repeats {
    count: u64,
    first_time: String,
    last: Alert,
}

impl Groups {
    /// Counts a finding that is identical with one that was told; yields one that is not.
    pub fn take(&mut self, fingerprint: &Fingerprint, alert: Alert) -> Option<Alert> {
        let Some(group) = self.open.get_mut(fingerprint) else { return Some(alert) };
        match &mut group.repeats {
            Some(repeats) => {
                repeats.count += alert.count;
                repeats.last = alert;
            }
            None => {
                let (count, first_time) = (alert.count, alert.time.clone());
                group.repeats = Some(Box::new(Repeats { count, first_time, last: alert }));
            }
        }
        None
    }

    /// A finding was told: others like it are counted from now on. Yields what a group that gives way had counted.
    pub fn open(&mut self, fingerprint: Fingerprint, now: BootNs, window: u64) -> Option<Alert> {
        let mut gone = None;
        if self.open.len() >= GROUPS_MAX
            && let Some(oldest) = self.open.iter().min_by_key(|(_, group)| group.order()).map(|(oldest, _)| *oldest)
        {
            gone = self.open.remove(&oldest).and_then(Group::told);
        }
        self.opened += 1;
        let until = BootNs(now.0.saturating_add(window));
        self.open.insert(fingerprint, Group { until, number: self.opened, repeats: None });
        gone
    }

    /// Tells what was counted in windows that are over. Where something was, another window begins: a storm is told once a window.
    pub fn close(&mut self, now: BootNs, window: u64) -> Vec<Alert> {
        let mut due: Vec<_> = self.open.iter().filter(|(_, group)| group.until <= now).collect();
        due.sort_by_key(|(_, group)| group.order());
        let due: Vec<_> = due.into_iter().map(|(fingerprint, _)| *fingerprint).collect();
        let mut told = Vec::new();
        for fingerprint in due {
            if let Some(alert) = self.open.remove(&fingerprint).and_then(Group::told) {
                told.push(alert);
                if window > 0 {
                    told.extend(self.open(fingerprint, now, window));
                }
            }
        }
        told
    }

    /// Tells everything that was counted.
    pub fn finish(&mut self) -> Vec<Alert> {
        let mut groups: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
        groups.sort_by_key(Group::order);
        groups.into_iter().filter_map(Group::told).collect()
    }
}

#[cfg(test)]
impl Groups {
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

impl Group {
    fn order(&self) -> (BootNs, u64) {
        (self.until, self.number)
    }

    fn told(self) -> Option<Alert> {
        let Repeats { count, first_time, last } = *self.repeats?;
        Some(Alert { count, first_time: Some(first_time), last_time: Some(last.time.clone()), ..last })
    }
}
