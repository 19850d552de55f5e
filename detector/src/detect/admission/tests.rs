use super::*;
use crate::{
    record::{Policy, Rules},
    testing::{self, Stream},
};

const URI: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn webhook(url: Option<&str>, service: Option<&str>, resources: &[&str]) -> Webhook {
    let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Webhook {
        name: "a.example".to_owned(),
        url: url.map(str::to_owned),
        service: service.map(str::to_owned),
        rules: vec![WebhookRule { operations: list(&["CREATE"]), groups: list(&[""]), resources: list(resources) }],
        failure: "Ignore".to_owned(),
        selects: false,
    }
}

fn event(user: &str, verb: &str, name: &str, webhooks: Option<Vec<Webhook>>) -> AuditEvent {
    AuditEvent { webhooks, ..testing::audit(user, verb, &format!("{URI}/{name}")) }
}

fn push(stream: &mut Stream, event: AuditEvent) {
    stream.push(Body::Audit(Box::new(event)));
}

fn severities(stream: &Stream) -> Vec<Severity> {
    let alerts = stream.alerts();
    assert!(alerts.iter().all(|alert| alert.technique.id == "malicious-admission-controller"));
    alerts.iter().map(|alert| alert.severity).collect()
}

fn one(event: AuditEvent) -> crate::alert::Alert {
    let mut stream = Stream::new();
    push(&mut stream, event);
    let mut alerts = stream.alerts();
    assert_eq!(alerts.len(), 1);
    alerts.remove(0)
}

#[test]
fn a_webhook_outside_the_cluster_is_high_and_with_secrets_of_all_namespaces_critical() {
    let url = Some("https://user@evil.example:8443/hook?x");
    let alert = one(event("alice", "create", "w", Some(vec![webhook(url, None, &["pods"])])));
    assert_eq!(alert.severity, Severity::High);
    assert_eq!(
        alert.title,
        "Mutating webhook configuration w created by alice from 10.0.0.9, sending objects to evil.example"
    );
    assert!(alert.reasons.contains(&"it sees pods and may change them".to_owned()), "{:?}", alert.reasons);
    assert_eq!(alert.request.unwrap().name.as_deref(), Some("w"));
    let alert = one(event("alice", "create", "w", Some(vec![webhook(url, None, &["*"])])));
    assert_eq!(alert.severity, Severity::Critical);
    let narrowed = Webhook { selects: true, ..webhook(url, None, &["secrets"]) };
    assert_eq!(one(event("alice", "create", "w", Some(vec![narrowed]))).severity, Severity::High);
}

#[test]
fn where_it_sends_decides_how_bad_it_is() {
    for (url, service, severity) in [
        (Some("https://10.1.2.3/"), None, Severity::Medium),
        (Some("https://[fd00::1]:443/"), None, Severity::Medium),
        (Some("https://hook.policy.svc:443/"), None, Severity::Medium),
        (Some("https://localhost/"), None, Severity::Medium),
        (None, Some("policy/hook"), Severity::Medium),
        (Some("https://198.51.100.7/"), None, Severity::High),
        (Some("https://[2001:db8::1]/"), None, Severity::High),
        (Some("https://hook.svc.evil.example/"), None, Severity::High),
        (Some("https://10.1.2.3.evil.example/"), None, Severity::High),
        (Some("https://10.1.2.3@evil.example/"), None, Severity::High),
        (None, None, Severity::Medium),
    ] {
        let alert = one(event("alice", "create", "w", Some(vec![webhook(url, service, &["deployments"])])));
        assert_eq!(alert.severity, severity, "{url:?} {service:?}");
    }
    // The worst of several.
    let both = vec![webhook(None, Some("a/b"), &["pods"]), webhook(Some("https://evil.example/"), None, &["pods"])];
    assert_eq!(one(event("alice", "create", "w", Some(both))).severity, Severity::High);
}

#[test]
fn what_the_log_does_not_say_is_told_as_not_known() {
    let alert = one(event("alice", "patch", "w", None));
    assert_eq!(alert.severity, Severity::Medium);
    assert!(alert.reasons[0].contains("level Request"), "{:?}", alert.reasons);
    let alert = one(AuditEvent { cut: true, ..event("alice", "patch", "w", None) });
    assert_eq!(alert.severity, Severity::High, "whoever makes a request that long may have something to hide");
}

/// cert-manager's cainjector renews certificates, operators install their own webhooks.
#[test]
fn an_operator_that_looks_after_its_own_is_low_once_and_then_silent() {
    let operator = "system:serviceaccount:cert-manager:cainjector";
    let own = Some(vec![webhook(None, Some("cert-manager/webhook"), &["certificates", "secrets"])]);
    let mut stream = Stream::new();
    push(&mut stream, event(operator, "update", "w", own.clone()));
    assert_eq!(severities(&stream), [Severity::Low]);
    for verb in ["update", "patch", "patch"] {
        push(&mut stream, event(operator, verb, "w", own.clone()));
    }
    assert_eq!(severities(&stream).len(), 1, "nothing changed but a certificate");
    // The same account, and somebody else's service or a URL.
    for changed in
        [webhook(None, Some("other/webhook"), &["pods"]), webhook(Some("https://evil.example/"), None, &["pods"])]
    {
        push(&mut stream, event(operator, "patch", "w", Some(vec![changed])));
    }
    assert_eq!(severities(&stream), [Severity::Low, Severity::Medium, Severity::High]);
    let acting = AuditEvent { impersonated: Some("x".to_owned()), ..event(operator, "create", "v", own) };
    push(&mut stream, acting);
    assert_eq!(severities(&stream).last(), Some(&Severity::High), "secrets, and not the operator itself");
}

#[test]
fn a_configuration_that_is_made_again_after_it_was_deleted_is_told_again() {
    let mut stream = Stream::new();
    let same = || Some(vec![webhook(None, Some("policy/hook"), &["pods"])]);
    push(&mut stream, event("alice", "create", "w", same()));
    push(&mut stream, event("alice", "delete", "w", None));
    push(&mut stream, event("alice", "create", "w", same()));
    assert_eq!(severities(&stream).len(), 2);
}

#[test]
fn what_the_policy_allows_is_low_by_where_it_sends_and_not_by_its_name() {
    let mut stream = Stream::new();
    let policy = Policy {
        admission_webhooks: vec!["https://policy.example/**".to_owned(), "policy/*".to_owned(), "trusted".to_owned()],
        ..Policy::default()
    };
    stream.push(Body::Config(Box::new(Rules { policy, ..Rules::default() })));
    for (name, url, service) in [
        ("a", Some("https://policy.example/a/b"), None),
        ("b", None, Some("policy/hook")),
        ("trusted", Some("https://policy.example.evil.example/"), None),
        ("d", Some("https://evil.example/https://policy.example/"), None),
    ] {
        push(&mut stream, event("alice", "create", name, Some(vec![webhook(url, service, &["secrets"])])));
    }
    assert_eq!(severities(&stream), [Severity::Low, Severity::Low, Severity::Critical, Severity::Critical]);
}

#[test]
fn refusals_and_rehearsals_are_low_and_reads_are_silent() {
    let hook = || Some(vec![webhook(Some("https://evil.example/"), None, &["secrets"])]);
    assert_eq!(one(AuditEvent { code: 403, ..event("alice", "create", "w", hook()) }).severity, Severity::Low);
    let dry = AuditEvent { uri: format!("{URI}?dryRun=All"), ..event("alice", "create", "w", hook()) };
    let mut stream = Stream::new();
    push(&mut stream, dry);
    push(&mut stream, event("alice", "create", "w", hook()));
    assert_eq!(severities(&stream), [Severity::Low, Severity::Critical], "a rehearsal makes nothing known");
    let mut stream = Stream::new();
    for verb in ["get", "list", "watch", "delete"] {
        push(&mut stream, event("alice", verb, "w", None));
    }
    push(&mut stream, AuditEvent { code: 409, ..event("alice", "create", "w", hook()) });
    push(&mut stream, testing::audit("alice", "create", "/apis/example.com/v1/mutatingwebhookconfigurations/w"));
    assert_eq!(stream.alerts(), []);
}

#[test]
fn admission_policies_are_low() {
    let uri = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/p";
    let alert = one(testing::audit("alice", "create", uri));
    assert_eq!(alert.severity, Severity::Low);
    assert_eq!(alert.title, "Validating admission policy p created by alice from 10.0.0.9");
}
