//! Requests to OTLP receivers and webhooks.

use std::{fs, io, sync::Arc, time::Duration};

use jiff::{Timestamp, fmt::rfc2822};
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
/// Longest that a receiver is left alone because it asks for it: an alert that comes in a day is none.
const LONGEST: Duration = Duration::from_secs(300);
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
        let wait =
            response.headers().get("retry-after").and_then(|value| retry_after(value.to_str().ok()?, Timestamp::now()));
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
            _ => {
                let error = io::Error::other(format!("the receiver answers {}", response.status()));
                Err(match wait {
                    Some(wait) => Trouble::Busy(error, wait),
                    None => Trouble::Away(error),
                })
            }
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

/// How long `Retry-After` asks to wait: seconds, or a date (RFC 9110). Bounded, since it comes from outside.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let seconds = match value.parse() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(rfc2822::parse(value).ok()?.timestamp().as_second() - now.as_second()).unwrap_or(0),
    };
    Some(Duration::from_secs(seconds).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = "2026-11-24T23:09:41.9Z".parse().unwrap();
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Tue, 24 Nov 2026 23:10:11 GMT", Some(30)),
            // It has passed.
            ("Tue, 24 Nov 2026 23:09:00 GMT", Some(0)),
            ("18446744073709551615", Some(300)),
            ("Mon, 24 Nov 2036 23:10:11 GMT", Some(300)),
            ("99999999999999999999", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
