//! A webhook outside of the cluster: it lets everything pass, as an attacker's does, and keeps what it is told.

use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    api::{OUTSIDER, outside},
    daemons::{Node, confined, place},
};

/// Where it listens.
const PORT: u16 = 8443;
/// What one request may be long.
const LONGEST: usize = 1 << 20;

/// Ended when this is dropped.
pub struct Receiver {
    server: Child,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Starts it, in the network namespace of somebody outside.
    ///
    /// # Errors
    /// When openssl does not start.
    pub fn start(node: &Node) -> anyhow::Result<Self> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", outside().display())).args(["--", "openssl", "s_server", "-quiet"]);
        command.args(["-accept", &format!("{OUTSIDER}:{PORT}"), "-cert"]).arg(place("api/outsider.crt"));
        command.arg("-key").arg(place("api/outsider.key"));
        let mut server = confined(&node.tools, &command)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting openssl")?;
        let (mut asked, mut answer) =
            (server.stdout.take().context("no output")?, server.stdin.take().context("no input")?);
        let told = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&told);
        thread::spawn(move || {
            let (mut bytes, mut part) = (Vec::new(), vec![0; 16 << 10]);
            // Ends with the server.
            while let Ok(count @ 1..) = asked.read(&mut part) {
                bytes.extend_from_slice(&part[..count]);
                if let Some(review) = request(&bytes) {
                    bytes.clear();
                    // The API server may have given up meanwhile: then nobody wants the answer.
                    let _ = allow(&mut answer, &review);
                    keep.lock().unwrap_or_else(PoisonError::into_inner).push(review);
                } else if bytes.len() > LONGEST {
                    bytes.clear();
                }
            }
        });
        Ok(Self { server, told })
    }

    /// Its URL, for a configuration of webhooks.
    pub fn url() -> String {
        format!("https://{OUTSIDER}:{PORT}/mutate")
    }

    /// Whether it was told something that contains these words.
    pub fn was_told(&self, words: &str) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().any(|review| review.to_string().contains(words))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It has ended by itself, then.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The review that is asked for, once the request is there as a whole.
fn request(bytes: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.get(text.find("POST ")?..)?.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    serde_json::from_str(body.get(..length)?).ok()
}

fn allow(to: &mut ChildStdin, review: &Value) -> std::io::Result<()> {
    let answer = json!({
        "apiVersion": review["apiVersion"], "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": true},
    })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
    write!(to, "{head} {}\r\n\r\n{answer}", answer.len())?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_when_it_is_there_as_a_whole() {
        let whole = b"POST /mutate HTTP/1.1\r\nHost: x\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(request(whole), Some(json!({"a": 1})));
        assert_eq!(request(&whole[..whole.len() - 1]), None);
        assert_eq!(request(&whole[..20]), None);
    }
}
