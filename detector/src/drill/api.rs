//! Requests to the API server that detection is about, made harmlessly: with a kubeconfig, so that the audit log has them and nothing of it
//! is forged.

use std::{path::Path, process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use ureq::tls::{RootCerts, TlsConfig};

use super::{PATIENCE, agent::Agent, kubeconfig::Kubeconfig, verdict};
use crate::{cli::Source, escape::escape, source::audit::find};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    DeleteEvents,
    Webhook,
    Anonymous,
}

/// Asks, and waits for the alert.
///
/// # Errors
/// When there is no audit log to follow, the kubeconfig cannot be used, the agent does not start or the API server refuses.
pub fn drill(act: Act, source: &Source, kubeconfig: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Some(kubeconfig) = kubeconfig else {
        bail!("this drill asks a real API server: name a kubeconfig with --kubeconfig FILE");
    };
    if source.audit_logs.is_empty() && find::logs(Path::new("/proc")).is_empty() {
        bail!(
            "no kube-apiserver that writes an audit log (--audit-log-path) runs here: run the drill on its node, or name the log with --audit-log PATH"
        );
    }
    let api = Api::open(kubeconfig)?;
    let mut agent = Agent::start(source)?;
    let id = format!("detector-drill-{}", std::process::id());
    let since = Instant::now();
    let (technique, what) = match act {
        Act::DeleteEvents => {
            let path = format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{id}");
            println!("drill: deleting the events about {id}, which does not exist");
            expect(api.ask(Method::Delete, &path)?, "deletecollection of events in default")?;
            ("delete-kubernetes-events", "deletion of events")
        }
        Act::Webhook => {
            println!("drill: making the webhook configuration {id}, which matches no resource that exists");
            expect(api.ask(Method::Post(&configuration(&id)), WEBHOOKS)?, "create of mutatingwebhookconfigurations")?;
            ("malicious-admission-controller", "webhook configuration")
        }
        Act::Anonymous => {
            println!("drill: asking for /version without any credential");
            let code = api.without_credential().ask(Method::Get, &format!("/version?drill={id}"))?;
            println!("drill: the API server answered {code}");
            ("public-api-endpoint", "request without authentication")
        }
    };
    let seen = agent.alert(since, |alert| {
        let request = &alert["request"];
        alert["technique"]["id"] == technique
            && [&request["uri"], &request["name"]]
                .iter()
                .any(|text| text.as_str().is_some_and(|text| text.contains(&id)))
    });
    if act == Act::Webhook {
        let code = api.ask(Method::Delete, &format!("{WEBHOOKS}/{id}"))?;
        if code == 200 {
            println!("drill: the webhook configuration is deleted again");
        } else {
            println!("drill: the API server answered {code} when {id} was to be deleted: delete it by hand");
        }
    }
    agent.stop();
    match &seen {
        Some(seen) => println!(
            "drill: {what} seen after {:.1} ms: {} [{}], {}",
            seen.after.as_secs_f64() * 1e3,
            escape(&seen.title),
            seen.severity,
            // Where others have connections from the same address, nobody is named.
            if seen.pid == Some(std::process::id()) {
                "by the drill's own connection"
            } else {
                "by nobody who is known"
            }
        ),
        None => println!(
            "drill: no alert for the {what} within {} s: does the audit policy log it, and is the log that of this API server?",
            PATIENCE.as_secs()
        ),
    }
    Ok(verdict(seen.is_some()))
}

const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// No resource is of that group, and 192.0.2.0/24 leads nowhere (RFC 5737).
fn configuration(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "drill.detector.example",
            "clientConfig": {"url": "https://192.0.2.1/drill"},
            "rules": [{"operations": ["CREATE"], "apiGroups": ["drill.detector.example"], "apiVersions": ["v1"], "resources": ["drills"]}],
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
        }],
    })
}

fn expect(code: u16, right: &str) -> anyhow::Result<()> {
    match code {
        200..=299 => Ok(()),
        401 | 403 => bail!("the API server answered {code}: the kubeconfig's user needs the right to {right}"),
        code => bail!("the API server answered {code}"),
    }
}

enum Method<'a> {
    Get,
    Delete,
    Post(&'a serde_json::Value),
}

/// An API server, as a kubeconfig names it.
struct Api {
    config: Kubeconfig,
    agent: ureq::Agent,
}

impl Api {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let config = Kubeconfig::load(path)?;
        Ok(Self { agent: agent(&config), config })
    }

    /// The same, as anybody may ask it.
    fn without_credential(&self) -> Self {
        let config = Kubeconfig { token: None, client: None, ..self.config.clone() };
        Self { agent: agent(&config), config }
    }

    /// HTTP status of the answer.
    fn ask(&self, method: Method<'_>, path: &str) -> anyhow::Result<u16> {
        let url = format!("{}{path}", self.config.server);
        let token = self.config.token.as_ref().map(|token| format!("Bearer {token}"));
        let response = match method {
            Method::Get | Method::Delete => {
                let request =
                    if matches!(method, Method::Get) { self.agent.get(&url) } else { self.agent.delete(&url) };
                token.iter().fold(request, |request, token| request.header("authorization", token)).call()
            }
            Method::Post(body) => {
                let request = self.agent.post(&url).header("content-type", "application/json");
                let request = token.iter().fold(request, |request, token| request.header("authorization", token));
                request.send(body.to_string())
            }
        };
        Ok(response.with_context(|| format!("asking {}", escape(&self.config.server)))?.status().as_u16())
    }
}

fn agent(config: &Kubeconfig) -> ureq::Agent {
    let mut tls =
        TlsConfig::builder().client_cert(config.client.clone()).disable_verification(config.takes_any_certificate);
    if !config.roots.is_empty() {
        tls = tls.root_certs(RootCerts::Specific(Arc::new(config.roots.clone())));
    }
    ureq::Agent::config_builder()
        .tls_config(tls.build())
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("detector-drill/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn requests_are_what_the_api_takes_and_the_token_goes_only_where_it_is_meant_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let heads = std::thread::spawn(move || {
            let mut heads = Vec::new();
            for _ in 0..3 {
                let (mut socket, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap() > 0 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                socket.read_exact(&mut vec![0; length.unwrap_or(0)]).unwrap();
                socket.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                heads.push(head);
            }
            heads
        });
        let config = Kubeconfig { server, token: Some("abc".to_owned()), ..Kubeconfig::default() };
        let api = Api { agent: agent(&config), config };
        assert_eq!(api.ask(Method::Delete, "/api/v1/events?fieldSelector=a%3Db").unwrap(), 403);
        assert_eq!(api.ask(Method::Post(&configuration("n")), WEBHOOKS).unwrap(), 403);
        assert_eq!(api.without_credential().ask(Method::Get, "/version").unwrap(), 403);
        let heads = heads.join().unwrap();
        assert!(heads[0].starts_with("delete /api/v1/events?fieldselector=a%3db http/1.1"), "{}", heads[0]);
        assert!(heads[1].starts_with(&format!("post {WEBHOOKS} http/1.1")), "{}", heads[1]);
        assert!(heads[1].contains("content-type: application/json"), "{}", heads[1]);
        assert!(heads[..2].iter().all(|head| head.contains("authorization: bearer abc")), "{heads:?}");
        assert!(heads[2].starts_with("get /version") && !heads[2].contains("authorization"), "{}", heads[2]);
        assert!(expect(403, "delete").unwrap_err().to_string().contains("needs the right to delete"));
    }
}
