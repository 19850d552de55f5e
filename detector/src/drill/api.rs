//! Requests to the API server that detection is about, made harmlessly: with a kubeconfig, so that the audit log has them and nothing of it
//! is forged.

use std::{fs, path::Path, process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::json;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::{PATIENCE, agent::Agent, verdict};
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
    let api = Api::open(kubeconfig).with_context(|| format!("{}", kubeconfig.display()))?;
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
            let code = api.without_credential()?.ask(Method::Get, &format!("/version?drill={id}"))?;
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
            "drill: {what} seen after {:.1} ms: {} [{}]",
            seen.after.as_secs_f64() * 1e3,
            escape(&seen.title),
            seen.severity
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
    server: String,
    roots: Vec<Certificate<'static>>,
    token: Option<String>,
    agent: ureq::Agent,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<Named<ContextOf>>,
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    is: T,
}

#[derive(Deserialize)]
struct ContextOf {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate_data: Option<String>,
    client_certificate: Option<String>,
    client_key_data: Option<String>,
    client_key: Option<String>,
}

impl Api {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let text = crate::config::file::read(path).map_err(|problem| anyhow::anyhow!(problem.what))?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).context("no kubeconfig")?;
        let context = named(config.contexts, &config.current_context, "context")?;
        let cluster = named(config.clusters, &context.cluster, "cluster")?;
        let user = named(config.users, &context.user, "user")?;
        let beside = |file: String| path.parent().unwrap_or(Path::new(".")).join(file);
        let pem = |data: Option<String>, file: Option<String>| -> anyhow::Result<Option<Vec<u8>>> {
            Ok(match (data, file) {
                (Some(data), _) => Some(BASE64_STANDARD.decode(data.trim()).context("no base64 in it")?),
                (None, Some(file)) => Some(fs::read(beside(file.clone())).context(file)?),
                (None, None) => None,
            })
        };
        let authority = pem(cluster.certificate_authority_data, cluster.certificate_authority)?;
        let roots = authority.map(|pem| certificates(&pem)).transpose()?.unwrap_or_default();
        let certificate = pem(user.client_certificate_data, user.client_certificate)?;
        let key = pem(user.client_key_data, user.client_key)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let key = PrivateKey::from_pem(&key).context("the client's key")?;
                Some(ClientCert::new_with_certs(&certificates(&certificate)?, key))
            }
            _ => None,
        };
        let token = match (user.token, user.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(file)) => Some(fs::read_to_string(beside(file.clone())).context(file)?.trim().to_owned()),
            (None, None) => None,
        };
        if client.is_none() && token.is_none() {
            bail!(
                "the user {} has neither a token nor a client certificate; plugins are not run",
                escape(&context.user)
            );
        }
        let server = cluster.server.trim_end_matches('/').to_owned();
        Ok(Self { agent: agent(&roots, client), server, roots, token })
    }

    /// The same, as anybody may ask it.
    fn without_credential(&self) -> anyhow::Result<Self> {
        let roots = self.roots.clone();
        Ok(Self { server: self.server.clone(), agent: agent(&roots, None), roots, token: None })
    }

    /// HTTP status of the answer.
    fn ask(&self, method: Method<'_>, path: &str) -> anyhow::Result<u16> {
        let url = format!("{}{path}", self.server);
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
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
        Ok(response.with_context(|| format!("asking {}", escape(&self.server)))?.status().as_u16())
    }
}

fn agent(roots: &[Certificate<'static>], client: Option<ClientCert>) -> ureq::Agent {
    let mut tls = TlsConfig::builder().client_cert(client);
    if !roots.is_empty() {
        tls = tls.root_certs(RootCerts::Specific(Arc::new(roots.to_vec())));
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

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<Certificate<'static>>> {
    let found: Result<Vec<_>, _> = parse_pem(pem).collect();
    let found = found.context("no certificate")?.into_iter().filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate.to_owned()),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        bail!("no certificate in it (-----BEGIN CERTIFICATE-----)");
    }
    Ok(found)
}

fn named<T>(all: Vec<Named<T>>, name: &str, what: &str) -> anyhow::Result<T> {
    let found = all.into_iter().find(|one| one.name == name);
    found.map(|found| found.is).with_context(|| format!("no {what} is called {}", escape(name)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn opened(text: &str) -> anyhow::Result<Api> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let path = dir.path().join("config");
        fs::write(&path, text).unwrap();
        Api::open(&path)
    }

    const CONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
        clusters: [{name: k, cluster: {server: 'https://127.0.0.1:6443/'}}]\nusers: [{name: u, user: {USER}}]\npreferences: {}\n";

    #[test]
    fn a_kubeconfig_says_whom_to_ask_and_as_whom() {
        let api = opened(&CONFIG.replace("USER", "token: abc")).unwrap();
        assert_eq!((api.server.as_str(), api.token.as_deref()), ("https://127.0.0.1:6443", Some("abc")));
        let api = opened(&CONFIG.replace("USER", "tokenFile: token")).unwrap();
        assert_eq!(api.token.as_deref(), Some("from-file"));
        assert_eq!(api.without_credential().unwrap().token, None);
    }

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
        let api = opened(&CONFIG.replace("USER", "token: abc").replace("https://127.0.0.1:6443/", &server)).unwrap();
        assert_eq!(api.ask(Method::Delete, "/api/v1/events?fieldSelector=a%3Db").unwrap(), 403);
        assert_eq!(api.ask(Method::Post(&configuration("n")), WEBHOOKS).unwrap(), 403);
        assert_eq!(api.without_credential().unwrap().ask(Method::Get, "/version").unwrap(), 403);
        let heads = heads.join().unwrap();
        assert!(heads[0].starts_with("delete /api/v1/events?fieldselector=a%3db http/1.1"), "{}", heads[0]);
        assert!(heads[1].starts_with(&format!("post {WEBHOOKS} http/1.1")), "{}", heads[1]);
        assert!(heads[1].contains("content-type: application/json"), "{}", heads[1]);
        assert!(heads[..2].iter().all(|head| head.contains("authorization: bearer abc")), "{heads:?}");
        assert!(heads[2].starts_with("get /version") && !heads[2].contains("authorization"), "{}", heads[2]);
        assert!(expect(403, "delete").unwrap_err().to_string().contains("needs the right to delete"));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (text, says) in [
            (CONFIG.replace("USER", "exec: {command: aws}"), "neither a token nor a client certificate"),
            (CONFIG.replace("USER", "token: a").replace("user: u}", "user: x}"), "no user is called x"),
            (CONFIG.replace("USER", "client-certificate-data: '?', client-key-data: '?'"), "no base64"),
            (CONFIG.replace("USER", "client-certificate: none, client-key: none"), "none"),
            ("a: b".to_owned(), "no kubeconfig"),
        ] {
            let Err(error) = opened(&text) else { panic!("{text}") };
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }
}
