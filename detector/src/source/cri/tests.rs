//! The thread, beside runtimes that are real servers and misbehave.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use prost::Message;
use tonic::body::Body;

use super::{
    message::{
        Container, EXITED, Image, ImageSpec, ImageStatusResponse, LinuxPodSandboxStatus, ListRequest, NODE, NOT_READY,
        Namespace, NamespaceOption, PodSandbox, PodSandboxStatus, PodSandboxStatusResponse, VersionResponse,
    },
    *,
};
use crate::record::{ContainerRole, InfoFrom};

/// How long something may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries follow one another quickly; a deadline is long enough for a slow machine.
const PACE: Pace = Pace {
    deadline: Duration::from_secs(10),
    first: Duration::from_millis(1),
    longest: Duration::from_millis(4),
    steady: Duration::from_secs(3600),
};

/// A runtime that hangs is not waited for as long.
const IMPATIENT: Pace = Pace { deadline: Duration::from_millis(300), ..PACE };

/// The thread, and what it has answered.
struct Asked {
    cri: Cri,
    got: Vec<Answer>,
}

impl Asked {
    fn new(path: &Path, pace: Pace) -> Self {
        Self::all(&[path], pace)
    }

    fn all(paths: &[&Path], pace: Pace) -> Self {
        let sockets = paths.iter().map(|path| Socket::explicit(path)).collect();
        Self { cri: Cri::start_at(sockets, pace).unwrap(), got: Vec::new() }
    }

    /// Waits until the descriptor says so and what came is enough.
    fn until(&mut self, what: &str, enough: impl Fn(&[Answer]) -> bool) {
        let started = Instant::now();
        while !enough(&self.got) {
            assert!(started.elapsed() < PATIENCE, "{what} is missing in {:#?}", self.got);
            let fd = self.cri.fd();
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
            if fds[0].any().unwrap() {
                let before = self.got.len();
                self.cri.answers(&mut self.got);
                assert!(self.got.len() > before || !enough(&self.got), "the descriptor said that there are answers");
            }
        }
    }

    fn has(&mut self, answer: &Answer) {
        self.until(&format!("{answer:?}"), |got| got.contains(answer));
    }

    fn connected(&mut self) {
        self.until("the connection", |got| got.iter().any(|answer| matches!(answer, Answer::Connected(_))));
    }

    fn warned(&mut self, of: &str) {
        self.until(of, |got| warnings(got).iter().any(|warning| warning.contains(of)));
    }

    fn containers(&self) -> Vec<&ContainerInfo> {
        let containers = self.got.iter().filter_map(|answer| match answer {
            Answer::Container(info) => Some(&**info),
            _ => None,
        });
        containers.collect()
    }
}

fn warnings(got: &[Answer]) -> Vec<&str> {
    let warnings = got.iter().filter_map(|answer| match answer {
        Answer::Warning(text) => Some(text.as_str()),
        _ => None,
    });
    warnings.collect()
}

/// What a runtime does when it is called.
enum Reply {
    Message(Vec<u8>),
    Status(u16, &'static str),
    /// gRPC's frame with this length in its head, and nothing behind it.
    Claim(u32),
    /// No gRPC at all.
    Page,
    Never,
}

fn message(message: &impl Message) -> Reply {
    Reply::Message(message.encode_to_vec())
}

fn list<M: Message>(entries: &[M]) -> Reply {
    let mut bytes = Vec::new();
    for entry in entries {
        prost::encoding::message::encode(1, entry, &mut bytes);
    }
    Reply::Message(bytes)
}

const NOT_FOUND: Reply = Reply::Status(5, "no such thing");
const UNIMPLEMENTED: Reply = Reply::Status(12, "unknown service");

/// A gRPC server on a socket. Dropping it closes its connections.
struct Server {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(path: &Path, reply: impl Fn(&str, &[u8]) -> Reply + Clone + Send + Sync + 'static) -> Self {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serve = async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let reply = reply.clone();
                let service = service_fn(move |request| answer(request, reply.clone()));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn answer(
    request: Request<Incoming>,
    reply: impl Fn(&str, &[u8]) -> Reply,
) -> Result<Response<Body>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let frame = |length: u32, message: &[u8]| {
        let bytes = [&[0][..], &length.to_be_bytes(), message].concat();
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        Body::new(Full::new(Bytes::from(bytes)).with_trailers(async { Some(Ok(trailers)) }))
    };
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(match reply(&path, &body[5..]) {
        Reply::Message(message) => response.body(frame(u32::try_from(message.len()).unwrap(), &message)).unwrap(),
        Reply::Claim(length) => response.body(frame(length, &[])).unwrap(),
        Reply::Status(status, words) => {
            response.header("grpc-status", status).header("grpc-message", words).body(Body::empty()).unwrap()
        }
        Reply::Page => Response::new(Body::new(Full::new(Bytes::from("<html>")))),
        Reply::Never => std::future::pending().await,
    })
}

/// A runtime that behaves: one pod with a container, and remains of another one.
fn runtime(path: &str, body: &[u8], api: &str) -> Reply {
    let Some(call) = path.strip_prefix(&format!("/runtime.{api}.")) else { return UNIMPLEMENTED };
    let wanted = || ListRequest::decode(body).unwrap().filter.map(|filter| filter.id);
    let sandbox = |id: &str, state| PodSandbox { id: id.into(), state, ..PodSandbox::default() };
    let container = |id: &str, state| Container {
        id: id.into(),
        pod_sandbox_id: "pod".into(),
        image: Some(ImageSpec { image: "a".repeat(64), ..ImageSpec::default() }),
        image_ref: "a".repeat(64),
        state,
        ..Container::default()
    };
    let image = Image { id: "a".repeat(64), repo_tags: vec!["web:1".into()], pinned: true, ..Image::default() };
    match call {
        "RuntimeService/Version" => {
            message(&VersionResponse { runtime_name: "fake\u{1b}".into(), runtime_version: "1".into() })
        }
        "RuntimeService/ListContainers" => list(&match wanted() {
            None => vec![container("old", EXITED), container("web", 1)],
            // A real one takes a part of an id for the whole.
            Some(id) if "web".starts_with(&id) => vec![container("web", 1)],
            Some(_) => vec![],
        }),
        "RuntimeService/ListPodSandbox" => list(&match wanted() {
            None => vec![sandbox("old-pod", NOT_READY), sandbox("pod", 0)],
            Some(id) if "pod".starts_with(&id) => vec![sandbox("pod", 0)],
            Some(_) => vec![],
        }),
        "RuntimeService/PodSandboxStatus" => message(&PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                linux: Some(LinuxPodSandboxStatus {
                    namespaces: Some(Namespace { options: Some(NamespaceOption { pid: NODE }) }),
                }),
            }),
            ..PodSandboxStatusResponse::default()
        }),
        "ImageService/ListImages" => list(&[image]),
        "ImageService/ImageStatus" => message(&ImageStatusResponse { image: Some(image) }),
        _ => NOT_FOUND,
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    (dir, path)
}

#[test]
fn both_versions_of_the_interface_are_spoken() {
    for api in ["v1", "v1alpha2"] {
        let (_dir, path) = socket();
        let _server = Server::start(&path, move |call, body| runtime(call, body, api));
        let mut asked = Asked::new(&path, PACE);
        let socket = path.to_string_lossy().into_owned();
        asked.has(&Answer::Connected(Connected { socket: socket.clone(), runtime: "fake\\u{1b} 1".into(), api }));
        for id in ["web", "pod", "we", ""] {
            asked.cri.ask_container(id);
        }
        asked.has(&Answer::NotFound("we".into()));
        let found = asked.containers();
        assert_eq!(found.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), ["web", "pod"]);
        assert_eq!((found[0].role, found[1].role), (ContainerRole::Member, ContainerRole::Sandbox));
        assert_eq!((found[0].image.as_deref(), found[0].from.clone()), (Some("web:1"), InfoFrom::Cri(socket)));
        assert!(found[1].host_pid);
        assert_eq!(warnings(&asked.got), [""; 0]);
    }
}

#[test]
fn everything_is_what_runs_with_the_images() {
    let (_dir, path) = socket();
    let _server = Server::start(&path, |call, body| runtime(call, body, "v1"));
    let mut asked = Asked::new(&path, PACE);
    asked.connected();
    asked.cri.ask_all();
    asked.until("the images", |got| got.iter().any(|answer| matches!(answer, Answer::Images(_))));
    let found: Vec<_> = asked.containers().iter().map(|info| (info.id.as_str(), info.image.as_deref())).collect();
    assert_eq!(found, [("pod", None), ("web", Some("web:1"))]);
    let Some(Answer::Images(images)) = asked.got.last() else { panic!("{:?}", asked.got) };
    assert_eq!((images.len(), images[0].pinned), (1, true));
}

/// What comes of a socket that is no runtime's; `listen` serves it.
fn trouble(listen: impl FnOnce(&Path) -> Box<dyn std::any::Any>, warning: &str) {
    let (_dir, path) = socket();
    let _serving = listen(&path);
    let mut asked = Asked::new(&path, IMPATIENT);
    asked.warned(warning);
    for id in ["one", "two"] {
        asked.cri.ask_container(id);
        asked.has(&Answer::Unanswered(id.into()));
    }
    // Many tries later, nothing was said twice.
    thread::sleep(PACE.longest * 20);
    asked.cri.ask_container("three");
    asked.has(&Answer::Unanswered("three".into()));
    assert_eq!(warnings(&asked.got).len(), 1, "{:#?}", asked.got);
}

/// Does that with each connection, in a thread that is left behind.
fn each(path: &Path, mut serve: impl FnMut(UnixStream) + Send + 'static) -> Box<dyn std::any::Any> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(&mut serve));
    Box::new(())
}

#[test]
fn a_socket_that_is_not_there() {
    trouble(|_| Box::new(()), "there is no such file");
}

#[test]
fn a_file_that_is_no_socket() {
    trouble(
        |path| {
            fs::write(path, "x").unwrap();
            Box::new(())
        },
        "it is a regular file, not a socket",
    );
}

#[test]
fn a_socket_that_nobody_listens_on() {
    trouble(
        |path| {
            drop(UnixListener::bind(path).unwrap());
            Box::new(())
        },
        "nothing listens there",
    );
}

#[test]
fn a_runtime_that_accepts_and_never_answers() {
    let (_dir, path) = socket();
    let (streams, accepted) = mpsc::channel();
    let _serving = each(&path, move |stream| streams.send(stream).unwrap());
    let mut asked = Asked::new(&path, IMPATIENT);
    for _ in 0..3 {
        let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = stream.read_to_end(&mut Vec::new());
        assert!(end.is_ok(), "a connection that is given up is closed: {end:?}");
    }
    asked.warned("no answer within 300 ms");
    asked.cri.ask_container("one");
    asked.has(&Answer::Unanswered("one".into()));
    assert_eq!(warnings(&asked.got).len(), 1, "{:#?}", asked.got);
}

#[test]
fn a_runtime_that_does_not_even_accept() {
    trouble(|path| Box::new(UnixListener::bind(path).unwrap()), "no answer within 300 ms");
}

#[test]
fn a_server_of_something_else() {
    let greet = |mut stream: UnixStream| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n\0\0\0\0\0\0\0\0");
    };
    trouble(|path| each(path, greet), "the connection broke");
}

#[test]
fn a_server_that_hangs_up() {
    trouble(|path| each(path, drop), "the connection broke");
}

#[test]
fn a_grpc_server_that_is_no_runtime() {
    trouble(|path| Box::new(Server::start(path, |_, _| UNIMPLEMENTED)), "no container runtime interface answers there");
}

#[test]
fn an_http_server_that_is_no_runtime() {
    trouble(|path| Box::new(Server::start(path, |_, _| Reply::Page)), "no container runtime interface answers there");
}

#[test]
fn a_found_socket_must_be_served_by_root() {
    let (dir, path) = socket();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let bind = path.clone();
    let listener = thread::spawn(move || {
        if nix::unistd::geteuid().is_root() {
            // SAFETY: the bare system call changes this thread alone, which ends here.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 12345, 12345, 12345) }, 0);
        }
        UnixListener::bind(bind).unwrap()
    });
    let _listener = listener.join().unwrap();
    let found = Socket { explicit: false, ..Socket::explicit(&path) };
    let mut asked = Asked { cri: Cri::start_at(vec![found], PACE).unwrap(), got: Vec::new() };
    asked.warned("not by root, so it is not believed");
}

#[test]
fn a_runtime_that_comes_later_and_goes_and_comes_again() {
    let (_dir, path) = socket();
    let mut asked = Asked::new(&path, PACE);
    asked.warned("there is no such file");
    asked.cri.ask_all();
    for _ in 0..2 {
        asked.got.clear();
        let server = Server::start(&path, |call, body| runtime(call, body, "v1"));
        // Nobody asks again.
        asked.until("what runs there", |got| got.iter().any(|answer| matches!(answer, Answer::Images(_))));
        assert_eq!(asked.containers().len(), 2);
        drop(server);
        asked.until("the end", |got| !warnings(got).is_empty());
        asked.cri.ask_container("web");
        asked.has(&Answer::Unanswered("web".into()));
    }
}

#[test]
fn a_runtime_that_hangs_in_a_call_keeps_no_other_one_from_answering() {
    let (_dir, hung) = socket();
    let (_other, path) = socket();
    let _hung = Server::start(
        &hung,
        |call, body| {
            if call.ends_with("Version") { runtime(call, body, "v1") } else { Reply::Never }
        },
    );
    let _server = Server::start(&path, |call, body| runtime(call, body, "v1"));
    // Long enough that it is not asked twice.
    let pace = Pace { first: PATIENCE, longest: PATIENCE, ..IMPATIENT };
    let mut asked = Asked::all(&[&hung, &path], pace);
    asked.until("both", |got| got.iter().filter(|answer| matches!(answer, Answer::Connected(_))).count() == 2);
    for id in ["web", "pod", "other"] {
        asked.cri.ask_container(id);
    }
    asked.has(&Answer::NotFound("other".into()));
    assert_eq!(asked.containers().len(), 2);
    assert_eq!(warnings(&asked.got).len(), 1, "{:?}", asked.got);
}

#[test]
fn an_answer_that_is_too_long_or_no_message_costs_only_itself() {
    let (_dir, path) = socket();
    let _server = Server::start(&path, |call, body| match call.rsplit('/').next() {
        Some("ListImages") => Reply::Claim(17 * 1024 * 1024),
        Some("ImageStatus") => Reply::Message(vec![0xff; 100]),
        Some("ListPodSandbox") => Reply::Message(vec![0xff; 100]),
        Some("ListContainers") if !body.is_empty() => runtime(call, body, "v1"),
        Some("ListContainers") => {
            let Reply::Message(good) = runtime(call, body, "v1") else { unreachable!() };
            Reply::Message([b"\x0a\x02\xff\xff", &*good].concat())
        }
        _ => runtime(call, body, "v1"),
    });
    let mut asked = Asked::new(&path, PACE);
    asked.connected();
    asked.cri.ask_all();
    asked.cri.ask_container("web");
    asked.until("it twice", |got| got.iter().filter(|answer| matches!(answer, Answer::Container(_))).count() == 2);
    let said = warnings(&asked.got).join("\n");
    assert!(said.contains("OutOfRange"), "{said}");
    assert!(said.contains("RuntimeService/ListPodSandbox is answered with something that is no answer"), "{said}");
}

#[test]
fn more_answers_than_can_wait_come_nevertheless_and_no_more_than_4096() {
    let (_dir, path) = socket();
    let _server = Server::start(&path, |call, body| match call.rsplit('/').next() {
        Some("ListContainers") => {
            let containers: Vec<_> =
                (0..5000).map(|n| Container { id: n.to_string(), ..Container::default() }).collect();
            list(&containers)
        }
        Some("ListPodSandbox" | "ListImages") => Reply::Message(Vec::new()),
        _ => runtime(call, body, "v1"),
    });
    let mut asked = Asked::new(&path, PACE);
    asked.cri.ask_all();
    asked.warned("has more than 4096 answers");
    assert_eq!(asked.containers().len(), 4096);
}

#[test]
fn questions_that_cannot_be_asked_are_bounded_and_counted() {
    let (_dir, path) = socket();
    let (calls, called) = mpsc::channel();
    let _server = Server::start(&path, move |call, body| {
        if call.ends_with("Version") {
            return runtime(call, body, "v1");
        }
        let _ = calls.send(());
        Reply::Never
    });
    let pace = Pace { first: PATIENCE, longest: PATIENCE, ..PACE };
    let mut asked = Asked::new(&path, pace);
    asked.connected();
    asked.cri.ask_container("first");
    called.recv_timeout(PATIENCE).unwrap();
    asked.cri.ask_images();
    // While the first one is being asked, nothing is taken from the queue.
    for n in 0..2 * ASKS_MAX {
        asked.cri.ask_container(&n.to_string());
        asked.cri.ask_container(&n.to_string());
    }
    assert_eq!(asked.cri.dropped(), u64::try_from(ASKS_MAX + 1).unwrap());
    asked.has(&Answer::Unanswered((2 * ASKS_MAX - 1).to_string()));
    asked.warned(&format!("{} questions to the container runtime were dropped", ASKS_MAX + 1));
    assert!(!asked.got.contains(&Answer::Unanswered("0".into())), "the oldest ones give way");
}

#[test]
fn the_end_does_not_wait_for_the_runtime_and_leaves_no_connection() {
    let (_dir, path) = socket();
    let (streams, accepted) = mpsc::channel();
    let _serving = each(&path, move |stream| streams.send(stream).unwrap());
    let cri = Cri::start_at(vec![Socket::explicit(&path)], Pace { deadline: PATIENCE * 60, ..PACE }).unwrap();
    cri.ask_all();
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    drop(cri);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = stream.read_to_end(&mut Vec::new());
    assert!(end.is_ok(), "the thread has closed its end: {end:?}");
}

#[test]
fn other_sockets_can_be_asked_from_now_on() {
    let (_dir, path) = socket();
    let (_other, second) = socket();
    let _server = Server::start(&path, |call, body| runtime(call, body, "v1"));
    let mut asked = Asked::new(&second, PACE);
    asked.warned("there is no such file");
    asked.cri.ask_all();
    asked.cri.set_sockets(vec![Socket::explicit(&path)]);
    asked.until("what runs there", |got| got.iter().any(|answer| matches!(answer, Answer::Images(_))));
}
