//! Requests to OTLP receivers and webhooks.

use std::{fs, io, sync::Arc, time::Duration};

use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::{
    format::otlp,
    remote::{Peer, Trouble},
    spec::{self, Http, HttpBody},
    tls,
};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER: u64 = 64 << 10;
/// Log records of one OTLP request.
const RECORDS: usize = 256;

pub(super) struct Client {
    agent: ureq::Agent,
    to: Http,
    batch: usize,
    open: &'static str,
    close: &'static str,
}

impl Client {
    /// # Errors
    /// When a certificate, key or header cannot be read.
    pub fn new(to: Http) -> io::Result<Self> {
        let mut trust = TlsConfig::builder();
        if let Some(ca) = &to.tls.ca {
            let certificates: Vec<_> =
                tls::certificates(ca)?.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
            trust = trust.root_certs(RootCerts::Specific(Arc::new(certificates)));
        }
        if let Some((cert, key)) = &to.tls.client {
            let chain: Vec<_> =
                tls::certificates(cert)?.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
            // Read once more by this name: the library keeps its own type of keys.
            tls::key(key)?;
            let key = PrivateKey::from_pem(&fs::read(key)?).map_err(io::Error::other)?;
            trust = trust.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
        }
        let agent = ureq::Agent::config_builder()
            .tls_config(trust.build())
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            // A redirect would lose the body, or send it to somebody else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("detector/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let (batch, open, close) = match to.body {
            HttpBody::Otlp => (RECORDS, otlp::OPEN, otlp::CLOSE),
            HttpBody::Webhook { batch: 1, .. } => (1, "", ""),
            HttpBody::Webhook { batch, .. } => (batch, "[", "]"),
        };
        let client = Self { agent, to, batch, open, close };
        client.secrets()?;
        Ok(client)
    }

    /// The headers of the file that may change.
    fn secrets(&self) -> io::Result<Vec<(String, String)>> {
        let Some(path) = &self.to.header_file else { return Ok(Vec::new()) };
        let named = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines.map(|(at, line)| spec::header(line).map_err(|why| named(format!("line {}: {why}", at + 1)))).collect()
    }
}

impl Peer for Client {
    fn batch(&self) -> usize {
        self.batch
    }

    fn settles(&self) -> Duration {
        Duration::ZERO
    }

    fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), Trouble> {
        let body = [self.open.as_bytes(), &messages.join(&b','), self.close.as_bytes()].concat();
        let mut request = self.agent.post(&self.to.url).header("content-type", "application/json");
        for (name, value) in self.to.headers.iter().chain(&self.secrets()?) {
            request = request.header(name, value);
        }
        let mut response = request.send(&body[..]).map_err(io::Error::other)?;
        // Read to its end, so that the connection is used again.
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(ANSWER).read_to_vec().unwrap_or_default();
        match status {
            200..=299 => match self.to.body {
                HttpBody::Otlp => {
                    otlp::refused(&answer).map_or(Ok(()), |(count, why)| Err(Trouble::Partly(count, why)))
                }
                HttpBody::Webhook { .. } => Ok(()),
            },
            // Only these say that it is the alert; everything else may be mended where it is received.
            400 | 413 | 422 => Err(Trouble::Refused(format!("{status} {}", String::from_utf8_lossy(&answer)))),
            _ => Err(Trouble::Away(io::Error::other(format!("the receiver answers {}", response.status())))),
        }
    }

    fn sent(&mut self) -> io::Result<(u64, u64)> {
        Ok((0, 0))
    }

    fn abort(&mut self) {}

    fn close(&mut self) -> bool {
        true
    }
}
