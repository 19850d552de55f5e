//! `/metrics` for Prometheus, `/healthz`, `/readyz` and `/livez` for probes: a small HTTP server in a thread of its own.
//!
//! It reads what the loop has published and nothing else, so that whoever asks, however often, holds nothing back. What a client may
//! take is bounded: connections in all and from one address, the size of a request, and the time that it has.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::LocalSet};

use crate::confine::{self, Files};

use super::{
    Published, metrics,
    verdict::{self, Question},
};

/// Most connections at a time; one more is closed at once.
const CONNECTIONS: usize = 64;
/// Most connections from one address: one that hangs must not keep the probes of kubelet out.
const OF_ONE: usize = 8;
/// How long a client may take over the head of its request.
const HEAD: Duration = Duration::from_secs(5);
/// And how long over everything.
const WHOLE: Duration = Duration::from_secs(10);
/// Largest head of a request.
const HEAD_MAX: usize = 16 << 10;

/// Listens, and answers from a thread of its own for as long as the process lives. Yields the address, which has a port also where
/// any was asked for.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) fn start(listen: SocketAddr, published: Arc<Published>) -> io::Result<SocketAddr> {
    let bound = TcpListener::bind(listen).or_else(|error| match listen.ip() {
        // A kernel without IPv6: all addresses are those of IPv4.
        IpAddr::V6(ip) if ip.is_unspecified() && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, listen.port()))
        }
        _ => Err(error),
    });
    let listener = bound?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        confine::thread(&Files::default());
        LocalSet::new().block_on(&runtime, async {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => serve(&listener, &published).await,
                Err(error) => eprintln!("degraded: metrics: {error}; nobody is answered"),
            }
        });
    })?;
    Ok(address)
}

async fn serve(listener: &tokio::net::TcpListener, published: &Arc<Published>) {
    let open = Rc::<RefCell<Open>>::default();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, say: others may be given back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(seat) = Seat::take(&open, peer.ip().to_canonical()) else { continue };
        let published = Arc::clone(published);
        tokio::task::spawn_local(async move {
            // What goes wrong with one client is that client's trouble.
            let _ = tokio::time::timeout(WHOLE, connection(stream, published)).await;
            drop(seat);
        });
    }
}

async fn connection(stream: TcpStream, published: Arc<Published>) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request: Request<Incoming>| {
                let answer = respond(request.method(), request.uri().path(), &published);
                async move { Ok::<_, Infallible>(answer) }
            }),
        )
        .await
}

const TEXT: &str = "text/plain; charset=utf-8";

/// The answer to a request; what it carries besides is not read.
fn respond(method: &Method, path: &str, published: &Published) -> Response<Full<Bytes>> {
    let question = match path {
        "/metrics" => None,
        "/healthz" => Some(Question::Health),
        "/readyz" => Some(Question::Ready),
        "/livez" => Some(Question::Live),
        _ => {
            let what = "there is /metrics, /healthz, /readyz and /livez\n";
            return response(StatusCode::NOT_FOUND, TEXT, what.to_owned());
        }
    };
    if method != Method::GET && method != Method::HEAD {
        let mut answer = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET it\n".to_owned());
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let (snapshot, silent) = published.look();
    let Some(question) = question else {
        return response(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            metrics::render(&snapshot, silent, &published.own.read()),
        );
    };
    let (fine, answer) = verdict::answer(question, &snapshot, silent);
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&answer) {
        Ok(body) => response(status, "application/json", body + "\n"),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// Connections by address.
type Open = BTreeMap<IpAddr, usize>;

/// A connection's place; given back when it is dropped.
struct Seat {
    open: Rc<RefCell<Open>>,
    peer: IpAddr,
}

impl Seat {
    fn take(open: &Rc<RefCell<Open>>, peer: IpAddr) -> Option<Self> {
        let mut seats = open.borrow_mut();
        if seats.values().sum::<usize>() >= CONNECTIONS || seats.get(&peer).is_some_and(|taken| *taken >= OF_ONE) {
            return None;
        }
        *seats.entry(peer).or_default() += 1;
        Some(Self { open: Rc::clone(open), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.open.borrow_mut();
        if let Some(taken) = seats.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    use super::*;
    use crate::monitor::Snapshot;

    fn server() -> (SocketAddr, Arc<Published>) {
        let published = Arc::new(Published::new());
        let address = start("127.0.0.1:0".parse().unwrap(), Arc::clone(&published)).unwrap();
        (address, published)
    }

    fn connect(to: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// The whole answer to these bytes.
    fn ask(to: SocketAddr, request: &[u8]) -> String {
        let mut stream = connect(to);
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A server that closes while bytes of ours are on their way resets the connection.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn probes_are_answered_by_what_was_published_last() {
        let (address, published) = server();
        let get = |path: &str| ask(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert!(get("/readyz").starts_with("HTTP/1.1 503 "), "{}", get("/readyz"));
        assert!(get("/livez").starts_with("HTTP/1.1 200 "));
        published.publish(Snapshot { started: true, ..Snapshot::default() });
        assert!(get("/readyz").starts_with("HTTP/1.1 200 "));
        let well = get("/healthz");
        assert!(well.starts_with("HTTP/1.1 200 ") && well.contains("\"status\":\"ok\""), "{well}");
        published.publish(Snapshot { started: true, stopping: true, ..Snapshot::default() });
        let ill = get("/healthz?verbose");
        assert!(ill.starts_with("HTTP/1.1 503 ") && ill.contains("\"reasons\":[\"it is stopping\"]"), "{ill}");
        let metrics = get("/metrics");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("\ndetector_healthy 0\n"), "{metrics}");
    }

    #[test]
    fn requests_that_are_none_are_refused_and_the_next_is_answered() {
        let (address, _) = server();
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * HEAD_MAX));
        for (request, status) in [
            ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "405"),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("\x16\x03\x01\x02\x00\x01\r\n\r\n", "400"),
            (&long, "4"),
            ("", ""),
        ] {
            if request.is_empty() {
                drop(connect(address));
                continue;
            }
            let answer = ask(address, request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.40}: {answer:.80}");
        }
        let head = ask(address, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn a_client_that_hangs_is_given_up_and_more_of_them_are_not_taken() {
        let (address, _) = server();
        let mut hanging: Vec<_> = (0..OF_ONE + 3).map(|_| connect(address)).collect();
        for stream in &mut hanging {
            // What is closed already may say so.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
        }
        // Every one of them comes to its end without another byte.
        for stream in &mut hanging {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        assert!(ask(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let open = Rc::<RefCell<Open>>::default();
        let of = |last: u8| IpAddr::from([10, 0, 0, last]);
        let seats: Vec<_> = (0..20).filter_map(|_| Seat::take(&open, of(1))).collect();
        assert_eq!(seats.len(), OF_ONE);
        assert!(Seat::take(&open, of(2)).is_some());
        drop(seats);
        assert!(open.borrow().is_empty());
        let all: Vec<_> = (0..=255).filter_map(|last| Seat::take(&open, of(last))).collect();
        assert_eq!(all.len(), CONNECTIONS);
    }
}
