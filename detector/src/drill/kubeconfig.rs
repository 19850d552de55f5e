//! Whom a kubeconfig says to ask, and as whom. Nothing that it names is executed.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;
use ureq::tls::{Certificate, ClientCert, PrivateKey};

use crate::{
    config::file::{Problem, place, read, yaml},
    escape::escape_to,
};

/// Longest name in a message, in characters.
const NAME: usize = 80;

/// An API server, and how to ask it.
#[derive(Clone, Debug, Default)]
pub struct Kubeconfig {
    /// URL, without a slash at its end.
    pub server: String,
    /// Authorities of its certificate; empty for those that the web has.
    pub roots: Vec<Certificate<'static>>,
    pub takes_any_certificate: bool,
    pub token: Option<String>,
    pub client: Option<ClientCert>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: Option<Spanned<String>>,
    contexts: Option<Vec<ContextEntry>>,
    clusters: Option<Vec<ClusterEntry>>,
    users: Option<Vec<UserEntry>>,
}

#[derive(Deserialize)]
struct ContextEntry {
    name: String,
    context: ContextOf,
}

#[derive(Deserialize)]
struct ContextOf {
    cluster: Spanned<String>,
    user: Spanned<String>,
}

#[derive(Deserialize)]
struct ClusterEntry {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct UserEntry {
    name: Spanned<String>,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Spanned<String>,
    #[serde(default)]
    certificate_authority_data: Option<Spanned<String>>,
    #[serde(default)]
    certificate_authority: Option<Spanned<String>>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    tls_server_name: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    proxy_url: Option<Spanned<IgnoredAny>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<Spanned<String>>,
    #[serde(rename = "tokenFile")]
    token_file: Option<Spanned<String>>,
    client_certificate_data: Option<Spanned<String>>,
    client_certificate: Option<Spanned<String>>,
    client_key_data: Option<Spanned<String>>,
    client_key: Option<Spanned<String>>,
    username: Option<Spanned<IgnoredAny>>,
    #[serde(rename = "as")]
    impersonates: Option<Spanned<IgnoredAny>>,
    exec: Option<Spanned<IgnoredAny>>,
    auth_provider: Option<Spanned<IgnoredAny>>,
}

/// Where it is said, what it is called, and the text.
type Pem<'a> = (&'a Spanned<String>, String, Vec<u8>);

/// Says where in the kubeconfig something is wrong.
struct Said<'a> {
    path: &'a Path,
}

impl Said<'_> {
    fn problem<T>(&self, at: Option<&Spanned<T>>, what: impl Into<String>) -> Problem {
        let place = place(at.map(|at| at.referenced));
        Problem { file: self.path.display().to_string(), place, what: what.into() }
    }

    /// What is given by itself, in base64, or by the file that holds it; files are named from where the kubeconfig lies.
    fn pem<'s>(
        &self,
        key: &str,
        data: Option<&'s Spanned<String>>,
        file: Option<&'s Spanned<String>>,
    ) -> Result<Option<Pem<'s>>, Problem> {
        if let Some(data) = data {
            let key = format!("{key}-data");
            let text: String = data.value.split_ascii_whitespace().collect();
            let pem = BASE64_STANDARD
                .decode(text)
                .map_err(|error| self.problem(Some(data), format!("{key}: no base64: {error}")))?;
            return Ok(Some((data, key, pem)));
        }
        let Some(file) = file else { return Ok(None) };
        Ok(Some((file, format!("{key} {}", escape_to(&file.value, 256)), self.file(key, file)?.into_bytes())))
    }

    fn file(&self, key: &str, file: &Spanned<String>) -> Result<String, Problem> {
        let path: PathBuf = self.path.parent().unwrap_or(Path::new(".")).join(&file.value);
        read(&path).map_err(|error| {
            let what = error.what.replace("; expected a configuration file", "");
            self.problem(Some(file), format!("{key} {}: {what}", escape_to(&path.to_string_lossy(), 256)))
        })
    }
}

impl Kubeconfig {
    /// Reads a kubeconfig, and the files that its current context names.
    ///
    /// # Errors
    /// When it cannot be used, with the place and what to do.
    pub fn load(path: &Path) -> Result<Self, Problem> {
        let said = Said { path };
        let text = read(path).map_err(|problem| Problem {
            what: problem.what.replace("expected a configuration file", "expected a kubeconfig"),
            ..problem
        })?;
        let file: File = yaml(&path.display().to_string(), &text)?;
        let Some(current) = file.current_context.as_ref().filter(|name| !name.value.is_empty()) else {
            return Err(said.problem(
                file.current_context.as_ref(),
                "no current-context; expected a kubeconfig with one: kubectl config use-context NAME sets it",
            ));
        };
        let name = |name: &str| escape_to(name, NAME);
        let context = file.contexts.unwrap_or_default().into_iter().find(|one| one.name == current.value);
        let Some(ContextEntry { context, .. }) = context else {
            return Err(said.problem(Some(current), format!("no context is called {}", name(&current.value))));
        };
        let cluster = file.clusters.unwrap_or_default().into_iter().find(|one| one.name == context.cluster.value);
        let Some(ClusterEntry { cluster, .. }) = cluster else {
            let what = format!("no cluster is called {}", name(&context.cluster.value));
            return Err(said.problem(Some(&context.cluster), what));
        };
        let user = file.users.unwrap_or_default().into_iter().find(|one| one.name.value == context.user.value);
        let Some(UserEntry { name: user_name, user }) = user else {
            let what = format!("no user is called {}", name(&context.user.value));
            return Err(said.problem(Some(&context.user), what));
        };
        for (key, found) in [("tls-server-name", &cluster.tls_server_name), ("proxy-url", &cluster.proxy_url)] {
            if found.is_some() {
                let what = format!("{key} is not supported; name a server that can be asked directly, by its own name");
                return Err(said.problem(found.as_ref(), what));
            }
        }
        let server = server(&cluster.server.value).map_err(|what| said.problem(Some(&cluster.server), what))?;
        let user = user.unwrap_or_default();
        let roots = match said.pem(
            "certificate-authority",
            cluster.certificate_authority_data.as_ref(),
            cluster.certificate_authority.as_ref(),
        )? {
            Some((at, key, pem)) => roots(&pem).map_err(|what| said.problem(Some(at), format!("{key}: {what}")))?,
            None => Vec::new(),
        };
        let client = client(&said, &user)?;
        let token = token(&said, &user)?;
        if client.is_none() && token.is_none() {
            let instead = "expected a token, a tokenFile, or a client-certificate and a client-key";
            for (key, found) in [("exec", &user.exec), ("auth-provider", &user.auth_provider)] {
                if found.is_some() {
                    let what = format!(
                        "user {}: {key}: plugins are not run; {instead} (kubectl create token NAME prints a token)",
                        name(&user_name.value)
                    );
                    return Err(said.problem(found.as_ref(), what));
                }
            }
            if user.username.is_some() {
                let what = format!("names with passwords are not supported, by API servers neither; {instead}");
                return Err(said.problem(user.username.as_ref(), what));
            }
            return Err(
                said.problem(Some(&user_name), format!("user {} has no credential; {instead}", name(&user_name.value)))
            );
        }
        if user.impersonates.is_some() {
            let what = "as: the drill acts as nobody else; expected a user of its own";
            return Err(said.problem(user.impersonates.as_ref(), what));
        }
        if server.starts_with("http:") && client.is_some() && token.is_none() {
            return Err(said.problem(Some(&cluster.server), "a client certificate needs https://"));
        }
        Ok(Self { server, roots, takes_any_certificate: cluster.insecure_skip_tls_verify, token, client })
    }
}

/// A URL to which paths can be appended.
fn server(text: &str) -> Result<String, String> {
    let expected = "expected https://HOST:PORT";
    let url = url::Url::parse(text).map_err(|error| format!("server: {error}; {expected}"))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err(format!("server: no address of an API server; {expected}"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(format!("server: more than an address; {expected}"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn token(said: &Said<'_>, user: &User) -> Result<Option<String>, Problem> {
    let (at, key, token) = match (&user.token, &user.token_file) {
        (Some(token), _) if !token.value.is_empty() => (token, "token", token.value.clone()),
        (_, Some(file)) => (file, "tokenFile", said.file("tokenFile", file)?.trim().to_owned()),
        _ => return Ok(None),
    };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(said.problem(Some(at), format!("{key}: no token; expected letters, digits and dots")));
    }
    Ok(Some(token))
}

fn client(said: &Said<'_>, user: &User) -> Result<Option<ClientCert>, Problem> {
    let certificate =
        said.pem("client-certificate", user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
    let key = said.pem("client-key", user.client_key_data.as_ref(), user.client_key.as_ref())?;
    let ((at, name, pem), (key_at, key_name, key_pem)) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => return Ok(None),
        (Some((at, ..)), None) => return Err(said.problem(Some(at), "a client-certificate without its client-key")),
        (None, Some((at, ..))) => return Err(said.problem(Some(at), "a client-key without its client-certificate")),
    };
    let chain = certificates(&pem).map_err(|what| said.problem(Some(at), format!("{name}: {what}")))?;
    let no_key = |what: String| said.problem(Some(key_at), format!("{key_name}: {what}"));
    let der = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| no_key(format!("no private key: {error}; expected -----BEGIN PRIVATE KEY-----")))?;
    // What does not fit together must not come as far as a connection.
    CertifiedKey::from_der(chain.clone(), der, &ring::default_provider())
        .map_err(|error| no_key(format!("it does not fit {name}: {error}")))?;
    let key = PrivateKey::from_pem(&key_pem).map_err(|error| no_key(error.to_string()))?;
    Ok(Some(ClientCert::new_with_certs(&shared(&chain), key)))
}

fn roots(pem: &[u8]) -> Result<Vec<Certificate<'static>>, String> {
    let chain = certificates(pem)?;
    let mut store = RootCertStore::empty();
    for certificate in &chain {
        store.add(certificate.clone()).map_err(|error| format!("no certificate of an authority: {error}"))?;
    }
    Ok(shared(&chain))
}

fn shared(chain: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    chain.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate; expected -----BEGIN CERTIFICATE-----".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("no certificate: {error}")),
    }
}

#[cfg(test)]
mod tests;
