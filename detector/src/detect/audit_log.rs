//! `delete-kubernetes-events`: the audit log itself emptied, replaced or removed, by whatever means. An effect: who did it is not known
//! from this.

use crate::{
    alert::{Evidence, File, Severity},
    context::Context,
    decode::Event,
    detect::{Detector, Finding, technique::DELETE_EVENTS},
    escape::escape_to,
    record::{Body, LogState, Record},
};

/// Tells of it.
#[derive(Debug, Default)]
pub struct AuditLogs;

impl Detector for AuditLogs {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, _context: &Context) -> Vec<Finding> {
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
        vec![Finding {
            technique: &DELETE_EVENTS,
            severity,
            time: record.time,
            title,
            blocked: false,
            reasons: vec![reason],
            actor: None,
            container: None,
            file: Some(File::named(&log.path, change)),
            manifest: None,
            evidence: vec![Evidence {
                kind: "audit-log",
                hook: None,
                sequence: record.seq,
                detail: "seen by reading the log on".to_owned(),
            }],
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
