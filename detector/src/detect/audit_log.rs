//! `delete-kubernetes-events`: the audit log itself emptied, replaced or removed, by whatever means. An effect; who acted on it a
//! moment before is in the kernel's records.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    alert::{Evidence, File, Severity},
    context::Context,
    decode::Event,
    detect::{
        Detector, Finding, base,
        log_acts::{Act, Acts, Effect, kinds_of_acts},
        technique::DELETE_EVENTS,
    },
    escape::escape_to,
    record::{Body, BootNs, ComponentKind, InodeKey, LogState, LogsChange, LogsRole, NodeLogs, Record},
};

/// Most logs whose places are known, and most inodes of one, the last ones.
const LOGS_MAX: usize = 64;
const INODES_MAX: usize = 4;
/// How long before it is told that something became of a log somebody may have done it, in ns: logs are looked at five times a second.
const BEFORE_NS: u64 = 5_000_000_000;

/// Tells of it.
#[derive(Debug, Default)]
pub struct AuditLogs {
    acts: Acts,
    places: BTreeMap<String, Place>,
}

/// Where a log is.
#[derive(Debug)]
struct Place {
    dir: InodeKey,
    /// What stood there, newest last.
    files: VecDeque<InodeKey>,
}

impl AuditLogs {
    fn watched(&mut self, logs: &NodeLogs) {
        let (LogsRole::Audit, LogsChange::Watched { file }) = (logs.role, &logs.change) else { return };
        if self.places.len() >= LOGS_MAX && !self.places.contains_key(&logs.path) {
            return;
        }
        let new = || Place { dir: logs.dir, files: VecDeque::new() };
        let place = self.places.entry(logs.path.clone()).or_insert_with(new);
        place.dir = logs.dir;
        if let Some(file) = file.filter(|file| !place.files.contains(file)) {
            place.files.push_back(file);
            if place.files.len() > INODES_MAX {
                place.files.pop_front();
            }
        }
    }

    /// The last act on a log by somebody else than an API server, which rotates its own.
    fn who(&self, path: &str, emptied: bool, now: BootNs, context: &Context) -> Option<&Act> {
        let place = self.places.get(path)?;
        let may_not = |actor| !context.is_component(actor, ComponentKind::ApiServer);
        let since = BootNs(now.0.saturating_sub(BEFORE_NS));
        let acts = place.files.iter().rev().filter_map(|file| {
            let (dir, name) = (place.dir, base(path));
            self.acts.who(&Effect { file: *file, dir, name, path, emptied, since }, may_not)
        });
        acts.filter(|act| may_not(act.actor)).max_by_key(|act| act.time)
    }
}

impl Detector for AuditLogs {
    fn kinds(&self) -> u64 {
        kinds_of_acts()
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        if let Some(event) = event {
            if !self.places.is_empty() {
                self.acts.observe(record, event);
            }
            return Vec::new();
        }
        if let Body::NodeLogs(logs) = &record.body {
            self.watched(logs);
        }
        let Body::AuditLog(log) = &record.body else { return Vec::new() };
        let path = escape_to(&log.path, 128);
        let (severity, title, reason, change) = match &log.state {
            LogState::Truncated { had, has } => (
                Severity::High,
                format!("Audit log emptied: {path}"),
                format!("{had} bytes were read of it, it has {has}, and no copy lies beside it as rotation leaves one"),
                "modified",
            ),
            LogState::Replaced { had } => (
                Severity::High,
                format!("Audit log replaced: {path}"),
                format!("what it was when {had} bytes were read of it does not lie beside it as rotation leaves it"),
                "modified",
            ),
            LogState::Removed { had } => (
                Severity::High,
                format!("Audit log removed: {path}"),
                format!(
                    "{had} bytes were read of it; what an API server writes until it opens another one is still read"
                ),
                "removed",
            ),
            LogState::Lost => (
                Severity::Low,
                format!("A part of an audit log is gone unread: {path}"),
                "while no agent read it, it was removed, compressed or written anew".to_owned(),
                "removed",
            ),
            LogState::Awaited | LogState::Begun { .. } | LogState::Resumed { .. } | LogState::Unreadable(_) => {
                return Vec::new();
            }
        };
        let emptied = matches!(log.state, LogState::Truncated { .. });
        // What happened while no agent read it was not seen either.
        let lost = matches!(log.state, LogState::Lost);
        let act = self.who(&log.path, emptied, record.time, context).filter(|_| !lost);
        let actor = act.map(|act| act.actor);
        let by =
            actor.and_then(|actor| context.processes.get(actor)).map(|process| escape_to(&process.program.exe, 128));
        let mut evidence: Vec<_> = act.map(|act| act.evidence.clone()).into_iter().collect();
        evidence.push(Evidence {
            kind: "audit-log",
            hook: None,
            sequence: record.seq,
            detail: "seen by reading the log on".to_owned(),
        });
        vec![Finding {
            technique: &DELETE_EVENTS,
            severity,
            time: record.time,
            title: by.map_or(title.clone(), |by| format!("{title} by {by}")),
            blocked: false,
            reasons: vec![reason],
            actor,
            container: None,
            file: Some(File::named(&log.path, change)),
            manifest: None,
            evidence,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::AuditLog, testing::Stream};

    #[test]
    fn a_log_that_is_emptied_replaced_or_removed_is_told_and_one_that_is_rotated_or_awaited_is_not() {
        let mut stream = Stream::new();
        for state in [
            LogState::Awaited,
            LogState::Begun { at: 0 },
            LogState::Resumed { files: 2, at: 7 },
            LogState::Unreadable("no".to_owned()),
            LogState::Truncated { had: 9, has: 0 },
            LogState::Replaced { had: 9 },
            LogState::Removed { had: 9 },
            LogState::Lost,
        ] {
            stream.push(Body::AuditLog(Box::new(AuditLog { path: "/var/log/a.log".to_owned(), state })));
        }
        let alerts = stream.alerts();
        let told: Vec<_> = alerts.iter().map(|alert| (alert.severity, alert.title.as_str())).collect();
        assert_eq!(
            told,
            [
                (Severity::High, "Audit log emptied: /var/log/a.log"),
                (Severity::High, "Audit log replaced: /var/log/a.log"),
                (Severity::High, "Audit log removed: /var/log/a.log"),
                (Severity::Low, "A part of an audit log is gone unread: /var/log/a.log"),
            ]
        );
        assert_eq!(alerts[0].file.as_ref().unwrap().path, "/var/log/a.log");
    }
}
