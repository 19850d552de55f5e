//! One line of an audit log to an event. Any bytes give an event, nothing, or an error.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::record::{AUDIT_LIST_MAX, AuditEvent, AuditObject, Webhook, WebhookRule, bounded};

/// Longest line whose objects are looked into, in bytes: as a tree it takes up to sixteen times as much memory.
const OBJECTS_MAX: usize = 256 << 10;
/// Longest explanation, in characters.
const WHY_MAX: usize = 160;

/// What a line of this content says. `None` for a stage that another one follows. With `whole`, the line was longer than these bytes:
/// what comes before the objects says who did what, and is used.
///
/// # Errors
/// When it is no event, in words.
pub fn event(line: &[u8], whole: bool) -> Result<Option<AuditEvent>, String> {
    let mut head = Head::default();
    let mut json = serde_json::Deserializer::from_slice(line);
    let read = json.deserialize_map(Fields(&mut head));
    match read.and_then(|()| json.end()) {
        Ok(()) => {}
        // The verb comes behind the identity of the request, and the object behind both.
        Err(error) if !whole && error.is_eof() && head.verb.is_some() && head.source_ips.is_some() => {}
        Err(error) if error.is_eof() && !whole => {
            return Err("longer than 1 MiB, and cut before it says who did what".to_owned());
        }
        Err(error) => {
            return Err(format!(
                "no JSON of an audit event: {}",
                crate::escape::escape_to(&error.to_string(), WHY_MAX)
            ));
        }
    }
    let said = |text: &Option<String>| crate::escape::escape_to(text.as_deref().unwrap_or("none"), 40);
    if head.kind.as_deref() != Some("Event") || head.api_version.as_deref() != Some("audit.k8s.io/v1") {
        return Err(format!(
            "kind {} of {}; expected Event of audit.k8s.io/v1",
            said(&head.kind),
            said(&head.api_version)
        ));
    }
    if head.stage.as_deref() == Some("RequestReceived") {
        return Ok(None);
    }
    let mut event = head.event();
    event.cut = !whole;
    if whole && is_webhooks(&event) {
        event.webhooks = webhooks(line);
    }
    Ok(Some(event))
}

/// Whether it changes a configuration of webhooks, and not only what is known of it.
fn is_webhooks(event: &AuditEvent) -> bool {
    matches!(event.verb.as_str(), "create" | "update" | "patch")
        && event.object.as_ref().is_some_and(|object| {
            matches!(object.resource.as_str(), "mutatingwebhookconfigurations" | "validatingwebhookconfigurations")
        })
}

/// What stands before the objects, and behind them.
#[derive(Debug, Default)]
struct Head {
    kind: Option<String>,
    api_version: Option<String>,
    audit_id: Option<String>,
    stage: Option<String>,
    request_uri: Option<String>,
    verb: Option<String>,
    user: Option<User>,
    impersonated_user: Option<User>,
    source_ips: Option<Vec<String>>,
    user_agent: Option<String>,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    received: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: Option<String>,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectRef {
    resource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    api_group: Option<String>,
    subresource: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: Option<u16>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Kind,
    ApiVersion,
    #[serde(rename = "auditID")]
    AuditId,
    Stage,
    #[serde(rename = "requestURI")]
    RequestUri,
    Verb,
    User,
    ImpersonatedUser,
    #[serde(rename = "sourceIPs")]
    SourceIps,
    UserAgent,
    ObjectRef,
    ResponseStatus,
    RequestReceivedTimestamp,
    Annotations,
    #[serde(other)]
    Other,
}

/// Fills in what it has read, also when the rest cannot be.
struct Fields<'a>(&'a mut Head);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an audit event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let head = self.0;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Kind => head.kind = map.next_value()?,
                Field::ApiVersion => head.api_version = map.next_value()?,
                Field::AuditId => head.audit_id = map.next_value()?,
                Field::Stage => head.stage = map.next_value()?,
                Field::RequestUri => head.request_uri = map.next_value()?,
                Field::Verb => head.verb = map.next_value()?,
                Field::User => head.user = map.next_value()?,
                Field::ImpersonatedUser => head.impersonated_user = map.next_value()?,
                Field::SourceIps => head.source_ips = map.next_value()?,
                Field::UserAgent => head.user_agent = map.next_value()?,
                Field::ObjectRef => head.object_ref = map.next_value()?,
                Field::ResponseStatus => head.response_status = map.next_value()?,
                Field::RequestReceivedTimestamp => head.received = map.next_value()?,
                Field::Annotations => head.annotations = map.next_value()?,
                Field::Other => {
                    let _: IgnoredAny = map.next_value()?;
                }
            }
        }
        Ok(())
    }
}

impl Head {
    fn event(self) -> AuditEvent {
        let text = |text: Option<String>| text.map(|text| bounded(&text)).unwrap_or_default();
        let user = self.user.unwrap_or_default();
        let extra = |name: &str| {
            let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{name}"))?;
            values.first().map(|value| bounded(value))
        };
        let (pod, node) = (extra("pod-name"), extra("node-name"));
        let mut annotations = self.annotations.unwrap_or_default();
        let mut said =
            |name: &str| annotations.remove(&format!("authorization.k8s.io/{name}")).map(|said| bounded(&said));
        let sources: Vec<IpAddr> =
            self.source_ips.iter().flatten().filter_map(|ip| Some(ip.parse::<IpAddr>().ok()?.to_canonical())).collect();
        AuditEvent {
            id: text(self.audit_id),
            stage: text(self.stage),
            verb: text(self.verb),
            uri: text(self.request_uri),
            user: text(user.username),
            groups: groups(user.groups.unwrap_or_default()),
            uid: text(user.uid),
            impersonated: self.impersonated_user.map(|user| text(user.username)),
            pod,
            node,
            // Whoever asks may put any number of them before the one that is true.
            sources: sources[sources.len().saturating_sub(AUDIT_LIST_MAX)..].to_vec(),
            agent: text(self.user_agent),
            object: self.object_ref.map(|object| AuditObject {
                resource: text(object.resource),
                subresource: text(object.subresource),
                group: text(object.api_group),
                namespace: text(object.namespace),
                name: text(object.name),
            }),
            code: self.response_status.and_then(|status| status.code).unwrap_or_default(),
            received: text(self.received),
            decision: said("decision"),
            reason: said("reason"),
            ..AuditEvent::default()
        }
    }
}

/// Those that mean something to Kubernetes are kept whatever their number.
fn groups(groups: Vec<String>) -> Vec<String> {
    let (system, other): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.starts_with("system:"));
    system.into_iter().chain(other).take(AUDIT_LIST_MAX).map(|group| bounded(&group)).collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    response_object: Option<Configuration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    request_object: Option<Body>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Body {
    /// The object, or what is merged into it.
    Object(Configuration),
    /// A JSON patch.
    Patch(Vec<Operation>),
}

#[derive(Debug, Deserialize)]
struct Operation {
    #[serde(default)]
    path: String,
    #[serde(default)]
    value: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Webhooks(Vec<WebhookJson>),
    Webhook(Box<WebhookJson>),
    Other(IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Configuration {
    webhooks: Option<Vec<WebhookJson>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WebhookJson {
    name: Option<String>,
    client_config: Option<ClientConfig>,
    rules: Option<Vec<RuleJson>>,
    failure_policy: Option<String>,
    namespace_selector: Option<BTreeMap<String, IgnoredAny>>,
    object_selector: Option<BTreeMap<String, IgnoredAny>>,
    // Of a patch whose value is the client's configuration itself.
    url: Option<String>,
    service: Option<ServiceJson>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientConfig {
    url: Option<String>,
    service: Option<ServiceJson>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceJson {
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuleJson {
    operations: Option<Vec<String>>,
    api_groups: Option<Vec<String>>,
    resources: Option<Vec<String>>,
}

/// What the webhooks are afterwards: as the answer says, else as far as the request does.
fn webhooks(line: &[u8]) -> Option<Vec<Webhook>> {
    if line.len() > OBJECTS_MAX {
        return None;
    }
    let answered = serde_json::from_slice::<Response>(line).ok().and_then(|line| line.response_object?.webhooks);
    let webhooks = answered.or_else(|| match serde_json::from_slice::<Request>(line).ok()?.request_object? {
        Body::Object(configuration) => configuration.webhooks,
        Body::Patch(operations) => patched(operations),
    })?;
    Some(webhooks.into_iter().take(AUDIT_LIST_MAX).map(webhook).collect())
}

fn patched(operations: Vec<Operation>) -> Option<Vec<WebhookJson>> {
    let mut found = Vec::new();
    for Operation { path, value } in operations {
        match value {
            Some(Value::Text(url)) if path.ends_with("/clientConfig/url") => {
                found.push(WebhookJson { url: Some(url), ..WebhookJson::default() });
            }
            Some(Value::Webhooks(webhooks)) if path == "/webhooks" => found.extend(webhooks),
            Some(Value::Webhook(webhook))
                if path.starts_with("/webhooks/")
                    && (webhook.client_config.is_some() || webhook.url.is_some() || webhook.service.is_some()) =>
            {
                found.push(*webhook);
            }
            _ => {}
        }
    }
    (!found.is_empty()).then_some(found)
}

fn webhook(json: WebhookJson) -> Webhook {
    let client = json.client_config.unwrap_or_default();
    let list = |list: Option<Vec<String>>| -> Vec<String> {
        list.unwrap_or_default().iter().take(AUDIT_LIST_MAX).map(|text| bounded(text)).collect()
    };
    let selects = |selector: &Option<BTreeMap<String, IgnoredAny>>| selector.as_ref().is_some_and(|of| !of.is_empty());
    Webhook {
        name: bounded(&json.name.unwrap_or_default()),
        url: client.url.or(json.url).map(|url| bounded(&url)),
        service: client.service.or(json.service).map(|service| {
            bounded(&format!("{}/{}", service.namespace.unwrap_or_default(), service.name.unwrap_or_default()))
        }),
        selects: selects(&json.namespace_selector) || selects(&json.object_selector),
        rules: json
            .rules
            .unwrap_or_default()
            .into_iter()
            .take(AUDIT_LIST_MAX)
            .map(|rule| WebhookRule {
                operations: list(rule.operations),
                groups: list(rule.api_groups),
                resources: list(rule.resources),
            })
            .collect(),
        failure: bounded(&json.failure_policy.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-apiserver 1.20 writes it.
    const DELETE: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"5f","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/events?x=1","verb":"deletecollection","user":{"username":"alice","uid":"7","groups":["dev","system:authenticated"],"extra":{"authentication.kubernetes.io/pod-name":["web-1"]}},"sourceIPs":["198.51.100.7","::ffff:10.0.0.9"],"userAgent":"kubectl/v1.20.2","objectRef":{"resource":"events","namespace":"shop","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2026-11-25T10:00:00.000001Z","stageTimestamp":"2026-11-25T10:00:00.100000Z","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed"}}"#;

    #[test]
    fn what_detection_needs_is_taken() {
        let found = event(DELETE.as_bytes(), true).unwrap().unwrap();
        assert_eq!((found.user.as_str(), found.verb.as_str(), found.code), ("alice", "deletecollection", 200));
        assert_eq!(found.groups, ["system:authenticated", "dev"]);
        assert_eq!(found.sources, ["198.51.100.7", "10.0.0.9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!((found.pod.as_deref(), found.node.as_deref()), (Some("web-1"), None));
        let object = found.object.unwrap();
        assert_eq!((object.resource.as_str(), object.namespace.as_str()), ("events", "shop"));
        assert_eq!(found.decision.as_deref(), Some("allow"));
        assert_eq!(found.received, "2026-11-25T10:00:00.000001Z");
        assert_eq!(event(DELETE.replace("ResponseComplete", "RequestReceived").as_bytes(), true), Ok(None));
    }

    #[test]
    fn what_is_no_event_says_what_it_is() {
        for (line, says) in [
            ("", "no JSON of an audit event: EOF"),
            ("{", "no JSON of an audit event: EOF"),
            ("null", "no JSON of an audit event: invalid type: null"),
            ("[1]", "no JSON of an audit event: invalid type: sequence"),
            ("\u{1b}[2J", "no JSON of an audit event: expected value"),
            ("{}", "kind none of none; expected Event of audit.k8s.io/v1"),
            (r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1"}"#, "kind Event of audit.k8s.io/v1beta1"),
            (&format!("{DELETE}{DELETE}"), "no JSON of an audit event: trailing characters"),
            (&DELETE.replace("\"alice\"", "7"), "no JSON of an audit event: invalid type: integer `7`"),
        ] {
            let why = event(line.as_bytes(), true).unwrap_err();
            assert!(why.starts_with(says), "{why}");
        }
    }

    /// Whoever may send large objects may not hide behind them.
    #[test]
    fn a_line_that_is_too_long_says_who_did_what_as_far_as_it_was_read() {
        let long = DELETE.replace(
            r#""requestReceivedTimestamp""#,
            &format!(r#""requestObject":{{"x":"{}"}},"requestReceivedTimestamp""#, "y".repeat(1000)),
        );
        let (head, _) = long.split_at(long.find("yyy").unwrap() + 5);
        let found = event(head.as_bytes(), false).unwrap().unwrap();
        assert!(found.cut && found.webhooks.is_none());
        assert_eq!((found.user.as_str(), found.code), ("alice", 200));
        assert!(event(&head.as_bytes()[..200], false).unwrap_err().starts_with("longer than 1 MiB"));
        assert!(event(head.as_bytes(), true).is_err());
    }

    /// Nothing that is nested takes stack.
    #[test]
    fn objects_may_be_nested_as_deep_as_they_like() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let line = DELETE.replace(r#""responseStatus""#, &format!(r#""requestObject":{deep},"responseStatus""#));
        assert_eq!(event(line.as_bytes(), true).unwrap().unwrap().user, "alice");
    }

    fn configured(rest: &str) -> Option<Vec<Webhook>> {
        let line = DELETE
            .replace(r#""resource":"events""#, r#""resource":"mutatingwebhookconfigurations""#)
            .replace("deletecollection", "patch")
            .replace(r#""requestReceivedTimestamp""#, &format!(r#"{rest},"requestReceivedTimestamp""#));
        event(line.as_bytes(), true).unwrap().unwrap().webhooks
    }

    #[test]
    fn webhooks_are_read_from_the_answer_the_object_and_patches() {
        let object = r#"{"webhooks":[{"name":"a.b","clientConfig":{"url":"https://x/","caBundle":"eA=="},"rules":[{"operations":["*"],"apiGroups":[""],"apiVersions":["v1"],"resources":["secrets"],"scope":"*"}],"failurePolicy":"Ignore","namespaceSelector":{},"objectSelector":{}}]}"#;
        let [one] = &configured(&format!(r#""requestObject":{object}"#)).unwrap()[..] else { panic!() };
        assert_eq!((one.url.as_deref(), one.failure.as_str(), one.selects), (Some("https://x/"), "Ignore", false));
        assert_eq!(one.rules[0].resources, ["secrets"]);
        let service = object.replace(r#""url":"https://x/""#, r#""service":{"namespace":"n","name":"s"}"#);
        let both = configured(&format!(r#""requestObject":{object},"responseObject":{service}"#)).unwrap();
        assert_eq!(both[0].service.as_deref(), Some("n/s"), "the answer says what it came to");
        for patch in [
            r#"[{"op":"replace","path":"/webhooks/0/clientConfig/url","value":"https://x/"}]"#,
            r#"[{"op":"test","path":"/a","value":{"b":1}},{"op":"replace","path":"/webhooks/0/clientConfig","value":{"url":"https://x/"}}]"#,
            r#"[{"op":"add","path":"/webhooks/-","value":{"name":"z","clientConfig":{"url":"https://x/"}}}]"#,
            r#"[{"op":"add","path":"/webhooks","value":[{"name":"z","clientConfig":{"url":"https://x/"}}]}]"#,
        ] {
            let found = configured(&format!(r#""requestObject":{patch}"#)).unwrap_or_else(|| panic!("{patch}"));
            assert_eq!(found[0].url.as_deref(), Some("https://x/"), "{patch}");
        }
        assert_eq!(configured(r#""responseObject":{"kind":"Status"}"#), None);
    }

    #[test]
    fn everything_is_bounded_and_the_last_address_is_kept() {
        let many = |one: &str| vec![format!("\"{one}\""); 5000].join(",");
        let line = DELETE
            .replace(r#""198.51.100.7""#, &many("198.51.100.7"))
            .replace(r#""dev""#, &many("dev"))
            .replace("alice", &"ä".repeat(5000));
        let found = event(line.as_bytes(), true).unwrap().unwrap();
        assert_eq!((found.sources.len(), found.groups.len()), (AUDIT_LIST_MAX, AUDIT_LIST_MAX));
        assert_eq!(found.sources.last().unwrap().to_string(), "10.0.0.9");
        assert_eq!(found.groups[0], "system:authenticated");
        assert!(found.user.len() <= 1024);
    }
}
