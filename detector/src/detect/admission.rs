//! `malicious-admission-controller`: a configuration made or changed that sends what the API server is asked to somebody, who may read it
//! and, where it mutates, change it.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobMatcher;
use sha2::{Digest as _, Sha256};

use crate::{
    alert::Severity,
    context::Context,
    decode::Event,
    detect::{
        Detector, Finding,
        network::inside,
        request::{evidence, finding, is_dry_run, refused, service_account, shown, source, succeeded, user},
        technique::MALICIOUS_ADMISSION,
    },
    record::{AuditEvent, AuditObject, Body, Record, Webhook, WebhookRule, bounded},
    triage,
};

/// Most configurations remembered.
const KNOWN_MAX: usize = 1024;
/// Most webhooks that a finding names.
const SHOWN_MAX: usize = 4;
/// Knows the configurations that it has seen.
#[derive(Debug, Default)]
pub struct Admission {
    /// SHA-256 of what each was, by resource and name: whoever could make two look the same could hide the second.
    known: BTreeMap<(String, String), [u8; 32]>,
    said: Vec<String>,
    allowed: Vec<GlobMatcher>,
}

/// Where a webhook sends objects, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Allowed,
    Service,
    Inside,
    Unknown,
    Outside,
}

impl Detector for Admission {
    fn kinds(&self) -> u64 {
        0
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, context: &Context) -> Vec<Finding> {
        let Body::Audit(event) = &record.body else { return Vec::new() };
        let Some(object) = event
            .object
            .as_ref()
            .filter(|object| object.group == "admissionregistration.k8s.io" && object.subresource.is_empty())
        else {
            return Vec::new();
        };
        if event.stage != "ResponseComplete" {
            return Vec::new();
        }
        self.policy(&context.start.policy.admission_webhooks);
        match (object.resource.as_str(), event.verb.as_str()) {
            ("mutatingwebhookconfigurations" | "validatingwebhookconfigurations", "create" | "update" | "patch") => {
                self.changed(record, event, object, context)
            }
            ("mutatingwebhookconfigurations" | "validatingwebhookconfigurations", "delete") if succeeded(event) => {
                self.known.remove(&key(object));
                None
            }
            (
                "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings",
                "create" | "update" | "patch",
            ) if succeeded(event) && !is_dry_run(event) => {
                let title = format!(
                    "{} {} {} by {} from {}",
                    kind(&object.resource),
                    shown(&object.name),
                    past(&event.verb),
                    user(event),
                    source(event)
                );
                let reasons =
                    vec!["an expression decides about requests, or changes them, within the API server".to_owned()];
                Some(told(Severity::Low, title, reasons, record, event, context))
            }
            _ => None,
        }
        .into_iter()
        .collect()
    }
}

impl Admission {
    fn policy(&mut self, said: &[String]) {
        if self.said != said {
            self.said = said.to_vec();
            // They were checked when the configuration was read.
            self.allowed = said.iter().filter_map(|pattern| triage::pattern(pattern).ok()).collect();
        }
    }

    fn changed(
        &mut self,
        record: &Record,
        event: &AuditEvent,
        object: &AuditObject,
        context: &Context,
    ) -> Option<Finding> {
        let name = if object.name.is_empty() { "(named by the API server)".to_owned() } else { shown(&object.name) };
        let what = format!("{} {name}", kind(&object.resource));
        let (who, from) = (user(event), source(event));
        if refused(event) {
            let title = format!("{what} was to be {} by {who} from {from}", past(&event.verb));
            return Some(told(
                Severity::Low,
                title,
                vec!["the API server refused it".to_owned()],
                record,
                event,
                context,
            ));
        }
        if !succeeded(event) {
            return None;
        }
        let dry = is_dry_run(event);
        // A certificate renewed, a label set: it goes where it went.
        if let Some(webhooks) = event.webhooks.as_ref().filter(|_| !dry && !object.name.is_empty())
            && self.is_known(key(object), webhooks)
        {
            return None;
        }
        let webhooks = event.webhooks.as_deref().unwrap_or_default();
        let target = webhooks.iter().map(|webhook| self.target(webhook)).max().unwrap_or(Target::Unknown);
        let secrets = webhooks.iter().any(|webhook| webhook.rules.iter().any(|rule| covers(rule, "", "secrets")));
        let pods = webhooks.iter().any(|webhook| webhook.rules.iter().any(|rule| covers(rule, "", "pods")));
        let everywhere = webhooks.iter().any(|webhook| !webhook.selects);
        let own = self.is_own(event, webhooks);
        let mut severity = match target {
            Target::Allowed => Severity::Low,
            Target::Service if own => Severity::Low,
            Target::Service if secrets => Severity::High,
            Target::Service | Target::Inside => Severity::Medium,
            Target::Unknown if event.cut => Severity::High,
            Target::Unknown => Severity::Medium,
            Target::Outside => Severity::High,
        };
        if target == Target::Outside && secrets && everywhere {
            severity = Severity::Critical;
        }
        if dry {
            severity = Severity::Low;
        }
        let mut reasons: Vec<_> = webhooks.iter().take(SHOWN_MAX).map(|webhook| self.shown(webhook)).collect();
        match &event.webhooks {
            None if event.cut => {
                reasons.push("the request is longer than what is read of one: where it sends objects is not known".to_owned());
            }
            None => reasons.push(
                "the audit log does not say where it sends objects: its policy has to log these at level Request or RequestResponse"
                    .to_owned(),
            ),
            Some(_) => {}
        }
        if secrets {
            reasons.push("it sees secrets".to_owned());
        }
        if pods {
            reasons.push(
                if object.resource.starts_with('m') { "it sees pods and may change them" } else { "it sees pods" }
                    .to_owned(),
            );
        }
        if event.groups.iter().any(|group| group == "system:masters") {
            reasons.push("done by a member of system:masters".to_owned());
        }
        if own && target == Target::Service {
            reasons.push("the service account and the service are of one namespace".to_owned());
        }
        if dry {
            reasons.push("a dry run: nothing changed".to_owned());
        }
        let to = match target {
            Target::Outside => webhooks
                .iter()
                .find(|webhook| self.target(webhook) == Target::Outside)
                .and_then(|webhook| host(webhook.url.as_deref()?))
                .map_or_else(String::new, |host| format!(", sending objects to {}", shown(&host))),
            _ => String::new(),
        };
        let title = format!("{what} {} by {who} from {from}{to}", past(&event.verb));
        Some(told(severity, title, reasons, record, event, context))
    }

    /// Whether it is what it was. Remembers what it is now.
    fn is_known(&mut self, key: (String, String), webhooks: &[Webhook]) -> bool {
        // No webhook fails to become JSON.
        let now: [u8; 32] = Sha256::digest(serde_json::to_vec(webhooks).unwrap_or_default()).into();
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&key) {
            self.known.pop_first();
        }
        self.known.insert(key, now) == Some(now)
    }

    fn target(&self, webhook: &Webhook) -> Target {
        let is_allowed = |text: &str| self.allowed.iter().any(|pattern| pattern.is_match(text));
        match (&webhook.url, &webhook.service) {
            (Some(url), _) if is_allowed(url) => Target::Allowed,
            (Some(url), _) => match host(url) {
                Some(host) if is_inside(&host) => Target::Inside,
                Some(_) => Target::Outside,
                None => Target::Unknown,
            },
            (None, Some(service)) if is_allowed(service) => Target::Allowed,
            (None, Some(_)) => Target::Service,
            (None, None) => Target::Unknown,
        }
    }

    /// Whether an operator looks after its own: it is a service account, and every service is of its namespace.
    fn is_own(&self, event: &AuditEvent, webhooks: &[Webhook]) -> bool {
        let Some((namespace, _)) = service_account(&event.user) else { return false };
        let services: BTreeSet<_> = webhooks
            .iter()
            .map(|webhook| webhook.service.as_deref().and_then(|service| Some(service.split_once('/')?.0)))
            .collect();
        event.impersonated.is_none() && services == BTreeSet::from([Some(namespace)])
    }

    fn shown(&self, webhook: &Webhook) -> String {
        let to = match (&webhook.url, &webhook.service) {
            (Some(url), _) => format!("to {}", shown(url)),
            (None, Some(service)) => format!("to the service {}", shown(service)),
            (None, None) => "somewhere".to_owned(),
        };
        let resources: BTreeSet<_> =
            webhook.rules.iter().flat_map(|rule| &rule.resources).take(SHOWN_MAX).map(|text| shown(text)).collect();
        let what = if resources.is_empty() {
            "objects".to_owned()
        } else {
            resources.into_iter().collect::<Vec<_>>().join(", ")
        };
        let where_ = if webhook.selects { " of what it selects" } else { "" };
        let failure = if webhook.failure.is_empty() {
            String::new()
        } else {
            format!(", on failure {}", shown(&webhook.failure))
        };
        format!(
            "{} sends {what}{where_} {to}{failure}",
            if webhook.name.is_empty() { "a webhook".to_owned() } else { shown(&webhook.name) }
        )
    }
}

fn told(
    severity: Severity,
    title: String,
    reasons: Vec<String>,
    record: &Record,
    event: &AuditEvent,
    context: &Context,
) -> Finding {
    let evidence = vec![evidence(record, event)];
    finding(&MALICIOUS_ADMISSION, severity, title, reasons, evidence, (record, event), context)
}

fn key(object: &AuditObject) -> (String, String) {
    (object.resource.clone(), bounded(&object.name))
}

fn kind(resource: &str) -> &'static str {
    match resource {
        "mutatingwebhookconfigurations" => "Mutating webhook configuration",
        "validatingwebhookconfigurations" => "Validating webhook configuration",
        "mutatingadmissionpolicies" => "Mutating admission policy",
        "mutatingadmissionpolicybindings" => "Binding of a mutating admission policy",
        "validatingadmissionpolicies" => "Validating admission policy",
        _ => "Binding of a validating admission policy",
    }
}

fn past(verb: &str) -> &'static str {
    if verb == "create" { "created" } else { "changed" }
}

fn covers(rule: &WebhookRule, group: &str, resource: &str) -> bool {
    rule.groups.iter().any(|is| is == group || is == "*")
        && rule.resources.iter().any(|is| matches!(is.as_str(), "*" | "*/*") || is == resource)
}

/// The host of a URL, without user and port.
fn host(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then(|| host.trim_end_matches('.').to_ascii_lowercase())
}

/// Whether a host is no place outside the cluster, as far as its name says.
fn is_inside(host: &str) -> bool {
    match host.parse() {
        Ok(address) => inside(address),
        Err(_) => host == "localhost" || host.ends_with(".svc") || host.ends_with(".svc.cluster.local"),
    }
}

#[cfg(test)]
mod tests;
