//! Real receivers of alerts: rsyslog with a configuration of its own, and HTTP servers.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

pub fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "{what} did not come within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An authority (`ca.pem`), and a server `localhost` and a client that it has signed.
pub fn certificates(dir: &Path) {
    let openssl = |args: &str| {
        let made = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(made.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&made.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1";
    openssl(&format!("{new} -keyout ca.key -out ca.pem -subj /CN=authority -addext basicConstraints=critical,CA:true"));
    for (name, subject) in [("server", "localhost"), ("client", "node-1")] {
        openssl(&format!(
            "{new} -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem -subj /CN={subject} \
             -addext subjectAltName=DNS:{subject} -addext basicConstraints=critical,CA:false"
        ));
    }
}

/// A real rsyslogd: datagrams at `socket` and UDP, octet counting over TCP and TLS, each into a file of JSON lines.
pub struct Rsyslog {
    child: Child,
    dir: PathBuf,
    pub udp: u16,
    pub tcp: u16,
    pub tls: u16,
}

impl Rsyslog {
    /// Needs [`certificates`] in the directory.
    pub fn start(dir: &Path) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (tcp, tls) = (free_port(), free_port());
        let here = dir.display();
        let outputs: String = ["unix", "udp", "tcp", "tls"]
            .map(|name| {
                format!("ruleset(name=\"{name}\") {{ action(type=\"omfile\" file=\"{here}/{name}.jsonl\" template=\"line\") }}\n")
            })
            .concat();
        let config = format!(
            r#"global(workDirectory="{here}" defaultNetstreamDriverCAFile="{here}/ca.pem"
  defaultNetstreamDriverCertFile="{here}/server.pem" defaultNetstreamDriverKeyFile="{here}/server.key")
template(name="line" type="string"
  string="{{\"app\":\"%app-name:::json%\",\"host\":\"%hostname:::json%\",\"msgid\":\"%msgid:::json%\",\"pri\":\"%pri%\",\"sd\":\"%structured-data:::json%\",\"alert\":%msg%}}\n")
{outputs}
module(load="imuxsock" SysSock.Use="off")
module(load="imudp")
module(load="imtcp")
input(type="imuxsock" Socket="{here}/socket" UseSpecialParser="off" ParseHostname="on" ruleset="unix")
input(type="imudp" address="127.0.0.1" port="{udp}" ruleset="udp")
input(type="imtcp" address="127.0.0.1" port="{tcp}" ruleset="tcp")
input(type="imtcp" address="127.0.0.1" port="{tls}" ruleset="tls" StreamDriver.Name="ossl" StreamDriver.Mode="1"
  StreamDriver.AuthMode="x509/certvalid")
"#
        );
        fs::write(dir.join("rsyslog.conf"), config).unwrap();
        let mut rsyslog = Self { child: spawn(dir), dir: dir.to_owned(), udp, tcp, tls };
        rsyslog.wait();
        rsyslog
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while [self.tcp, self.tls].iter().any(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err()) {
            let ended = self.child.try_wait().unwrap();
            let said = || fs::read_to_string(self.dir.join("rsyslog.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "rsyslogd does not listen: {ended:?}: {}", said());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(self.dir.join("socket").exists());
    }

    /// Ends it without a word, with whatever it has not read.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the same addresses.
    pub fn again(&mut self) {
        let _ = fs::remove_file(self.dir.join("rsyslog.pid"));
        let _ = fs::remove_file(self.dir.join("socket"));
        self.child = spawn(&self.dir);
        self.wait();
    }

    /// What came in one way, once so many are there.
    pub fn messages(&self, way: &str, count: usize) -> Vec<Value> {
        let read = || fs::read_to_string(self.dir.join(format!("{way}.jsonl"))).unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        while read().lines().count() < count {
            assert!(Instant::now() < deadline, "{way}: {} of {count} messages came", read().lines().count());
            thread::sleep(Duration::from_millis(20));
        }
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{way}: {error}: {line}"));
        read().lines().map(parse).collect()
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let log = fs::File::create(dir.join("rsyslog.log")).unwrap();
    Command::new("/usr/sbin/rsyslogd")
        .args(["-n", "-f"])
        .arg(dir.join("rsyslog.conf"))
        .arg("-i")
        .arg(dir.join("rsyslog.pid"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("rsyslogd: {error} (`cargo xtask setup` installs rsyslog and rsyslog-openssl)"))
}

/// A request that a server took.
#[derive(Clone)]
pub struct Taken {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
    pub when: Instant,
}

/// What a server is to answer to one request: status, `Retry-After`, body.
pub type Answer = (u16, Option<&'static str>, &'static str);

#[derive(Default)]
struct Log {
    taken: Vec<Taken>,
    /// How many of the next requests fail for now.
    fails: u32,
    /// The alert that is refused for good.
    refused: Option<u64>,
    /// What the next requests are answered, before all that.
    answers: VecDeque<Answer>,
    /// Requests that were answered so, whatever the status.
    answered: Vec<Taken>,
}

/// An HTTP/1.1 server.
pub struct Http {
    pub port: u16,
    log: Arc<Mutex<Log>>,
}

impl Http {
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::<Mutex<Log>>::default();
        let shared = Arc::clone(&log);
        // It ends with the test's process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let log = Arc::clone(&shared);
                    let service = service_fn(move |request| answer(request, Arc::clone(&log)));
                    tokio::task::spawn_local(
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
                    );
                }
            });
        });
        Self { port, log }
    }

    pub fn fail(&self, fails: u32, refused: Option<u64>) {
        let mut log = self.log.lock().unwrap();
        (log.fails, log.refused) = (fails, refused);
    }

    pub fn answers(&self, answers: &[Answer]) {
        self.log.lock().unwrap().answers.extend(answers);
    }

    pub fn answered(&self) -> Vec<Taken> {
        self.log.lock().unwrap().answered.clone()
    }

    pub fn requests(&self) -> Vec<Taken> {
        self.log.lock().unwrap().taken.clone()
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.requests().into_iter().map(|request| request.body).collect()
    }
}

async fn answer(request: Request<Incoming>, log: Arc<Mutex<Log>>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let header =
        |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
    let headers = request.headers().iter().map(header).collect();
    let body = request.into_body().collect().await?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let mut log = log.lock().unwrap();
    let taken = Taken { path, headers, body, when: Instant::now() };
    if let Some((status, wait, body)) = log.answers.pop_front() {
        log.answered.push(taken);
        let mut response = Response::builder().status(status).header("content-type", "application/json");
        if let Some(wait) = wait {
            response = response.header("retry-after", wait);
        }
        return Ok(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap());
    }
    let status = if log.fails > 0 {
        log.fails -= 1;
        StatusCode::SERVICE_UNAVAILABLE
    } else if log.refused.is_some_and(|number| taken.body.to_string().contains(&format!("\"alert {number}\""))) {
        StatusCode::BAD_REQUEST
    } else {
        log.taken.push(taken);
        StatusCode::OK
    };
    let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
    *response.status_mut() = status;
    Ok(response)
}

/// A server that wants a client certificate of the authority.
fn demanding(dir: &Path) -> Arc<ServerConfig> {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&read("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}

/// A syslog server over TLS 1.3 that wants a client certificate of the authority: what it was sent, and how many it refused.
pub struct Demanding {
    pub port: u16,
    log: Arc<Mutex<(String, usize)>>,
}

impl Demanding {
    pub fn start(dir: &Path) -> Self {
        let config = demanding(dir);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::<Mutex<(String, usize)>>::default();
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket.unwrap());
                let mut buffer = [0; 4096];
                loop {
                    match tls.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => shared.lock().unwrap().0.push_str(&String::from_utf8_lossy(&buffer[..length])),
                        Err(_) => {
                            shared.lock().unwrap().1 += 1;
                            // Closed in good order, so that why arrives.
                            let _ = tls.sock.shutdown(std::net::Shutdown::Write);
                            let _ = std::io::copy(&mut tls.sock, &mut std::io::sink());
                            break;
                        }
                    }
                }
            }
        });
        Self { port, log }
    }

    pub fn refused(&self) -> usize {
        self.log.lock().unwrap().1
    }

    pub fn text(&self) -> String {
        self.log.lock().unwrap().0.clone()
    }
}

/// A server that wants a client certificate of the authority and answers 200 to one request a connection.
pub struct Https {
    pub port: u16,
}

impl Https {
    pub fn start(dir: &Path) -> Self {
        let config = demanding(dir);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket.unwrap());
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                // A client that does not trust us ends before the request does.
                while !is_whole(&request) {
                    match tls.read(&mut buffer) {
                        Ok(length) if length > 0 => request.extend_from_slice(&buffer[..length]),
                        _ => break,
                    }
                }
                if is_whole(&request) {
                    let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                }
            }
        });
        Self { port }
    }
}

/// Whether an HTTP request has the body that its header says.
fn is_whole(request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}
