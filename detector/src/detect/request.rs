//! What detections of API requests have in common.

use crate::{
    alert::{Evidence, Severity, Technique},
    context::Context,
    detect::{Finding, sender::sender},
    escape::escape_to,
    record::{AuditEvent, Record},
};

/// Longest name of a user, client or object in a title, in characters.
const NAME_MAX: usize = 80;

/// Text that somebody else chose, for a title or a reason.
#[must_use]
pub fn shown(text: &str) -> String {
    escape_to(text, NAME_MAX)
}

/// `alice`, or `somebody` where nobody was authenticated.
#[must_use]
pub fn user(event: &AuditEvent) -> String {
    let name = if event.user.is_empty() { "nobody that could be authenticated".to_owned() } else { shown(&event.user) };
    match &event.impersonated {
        Some(other) => format!("{name} as {}", shown(other)),
        None => name,
    }
}

/// The other end of the connection; what headers claim comes before it.
#[must_use]
pub fn source(event: &AuditEvent) -> String {
    event.sources.last().map_or_else(|| "an unknown address".to_owned(), ToString::to_string)
}

/// Whether a request did what it asked for.
#[must_use]
pub fn succeeded(event: &AuditEvent) -> bool {
    (200..300).contains(&event.code)
}

/// Whether the API server refused it: nobody was authenticated, or whoever was may not.
#[must_use]
pub fn refused(event: &AuditEvent) -> bool {
    matches!(event.code, 401 | 403)
}

/// Whether it asks for a rehearsal.
#[must_use]
pub fn is_dry_run(event: &AuditEvent) -> bool {
    let query = event.uri.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|part| part.eq_ignore_ascii_case("dryRun=All"))
}

/// The event as evidence.
#[must_use]
pub fn evidence(record: &Record, event: &AuditEvent) -> Evidence {
    let what = if event.uri.is_empty() { String::new() } else { format!(" {}", escape_to(&event.uri, 200)) };
    Evidence {
        kind: "audit",
        hook: None,
        sequence: record.seq,
        detail: format!(
            "{}{what} by {} from {}: {} (audit id {}, {} byte {})",
            shown(&event.verb),
            user(event),
            source(event),
            event.code,
            shown(&event.id),
            escape_to(&event.log, 200),
            event.offset
        ),
    }
}

/// A finding about a request, with whoever made it, where that is known.
#[must_use]
pub fn finding(
    technique: &'static Technique,
    severity: Severity,
    title: String,
    mut reasons: Vec<String>,
    mut evidence: Vec<Evidence>,
    (record, event): (&Record, &AuditEvent),
    context: &Context,
) -> Finding {
    let sender = sender(event, record.time, context);
    reasons.extend(sender.reasons);
    evidence.extend(sender.evidence);
    Finding {
        technique,
        severity,
        time: record.time,
        title,
        blocked: false,
        reasons,
        actor: sender.actor,
        container: sender.container,
        file: None,
        manifest: None,
        evidence,
    }
}

/// Namespace and name of a service account.
#[must_use]
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}
