//! One connection to a container runtime: a unary gRPC call at a time, over HTTP/2 on its unix socket.

use std::{
    error::Error as _,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::uri::{PathAndQuery, Uri};
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::TokioIo;
use nix::{
    errno::Errno,
    sys::stat::{SFlag, fstat},
};
use prost::Message;
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{
    message::{ENTRY_MAX, VersionRequest, VersionResponse},
    socket::Socket,
};
use crate::{
    escape::escape_to,
    source::root::{Root, file_type, type_name},
};

/// Longest answer that lists something, in bytes: kubelet's own limit.
pub const LIST_MAX: usize = 16 * 1024 * 1024;
/// Longest answer about one thing, in bytes.
pub const ONE_MAX: usize = ENTRY_MAX;
/// How much a runtime may send unasked-for, in bytes: HTTP/2's windows.
const WINDOW: u32 = 256 * 1024;
/// Most of a runtime's own words that a message repeats, in characters.
const WORDS_MAX: usize = 160;

/// Both versions of the interface, the one to try first first.
const APIS: [&str; 2] = ["v1", "v1alpha2"];

/// Why a runtime could not be asked or did not say.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("there is no such file (yet). Is the runtime running?")]
    Missing,
    #[error("it is {0}, not a socket. Name the runtime's socket")]
    NoSocket(&'static str),
    #[error("nothing listens there ({0}). Is the runtime running?")]
    Refused(String),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("it is served by uid {0}, not by root, so it is not believed. To believe it, name the socket explicitly")]
    NotRoot(u32),
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no container runtime interface answers there: {0}")]
    NotCri(String),
    #[error("{call} is answered with an error, {code:?}: {words}")]
    Status { call: String, code: Code, words: String },
    #[error("{0} is answered with something that is no answer to it")]
    Garbage(String),
    #[error("{call} has more than {most} answers: the others are not taken")]
    TooMany { call: &'static str, most: usize },
}

impl Failure {
    /// Whether the connection is of no more use.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Status { .. } | Self::Garbage(_) | Self::TooMany { .. })
    }

    /// Whether the runtime says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code: Code::NotFound, .. })
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name and version as the runtime states them.
    pub runtime: String,
    /// `v1` or `v1alpha2`.
    pub api: &'static str,
}

/// A connection. Dropping it ends its tasks and closes its socket, whatever the runtime does.
pub struct Client {
    connection: Connection,
    api: &'static str,
    deadline: Duration,
    /// The tasks of the connection end when this is gone.
    _tasks: watch::Sender<()>,
}

impl Client {
    /// Connects and finds out which version of the interface is spoken. `ended` is told when the connection ends by itself.
    pub async fn connect(socket: &Socket, deadline: Duration, ended: Arc<Notify>) -> Result<(Self, Peer), Failure> {
        let mut client = timeout(deadline, Self::handshake(socket, deadline, ended))
            .await
            .unwrap_or(Err(Failure::Silent(deadline)))?;
        let request = VersionRequest { version: "0.1.0".to_owned() };
        let mut failure = Failure::Missing;
        for api in APIS {
            client.api = api;
            match client.one::<VersionResponse>("RuntimeService/Version", &request).await {
                Ok(version) => {
                    let said = format!("{} {}", version.runtime_name, version.runtime_version);
                    return Ok((client, Peer { runtime: escape_to(&said, WORDS_MAX), api }));
                }
                Err(error @ Failure::Status { code: Code::Unimplemented, .. }) => failure = error,
                Err(error) if error.is_final() => return Err(error),
                Err(error) => return Err(Failure::NotCri(error.to_string())),
            }
        }
        Err(Failure::NotCri(failure.to_string()))
    }

    async fn handshake(socket: &Socket, deadline: Duration, ended: Arc<Notify>) -> Result<Self, Failure> {
        let stream = connect(socket).await?;
        let (tasks, gone) = watch::channel(());
        let tasks_of = Tasks(gone);
        let (connection, task) = http2::Builder::new(tasks_of.clone())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Broken(words(&error.to_string())))?;
        tasks_of.execute(async move {
            // How it ended is told to the call that it interrupts.
            let _ = task.await;
            ended.notify_one();
        });
        Ok(Self { connection: Connection(connection), api: APIS[0], deadline, _tasks: tasks })
    }

    /// Whether the runtime has ended the connection.
    pub fn is_closed(&self) -> bool {
        self.connection.0.is_closed()
    }

    /// Asks for one thing (`RuntimeService/Version`).
    pub async fn one<M: Message + Default>(&self, call: &str, request: &impl Message) -> Result<M, Failure> {
        let bytes = self.call(call, request, ONE_MAX).await?;
        M::decode(bytes).map_err(|_| Failure::Garbage(call.to_owned()))
    }

    /// Asks for a list; see [`super::message::entries`].
    pub async fn list(&self, call: &str, request: &impl Message) -> Result<Bytes, Failure> {
        self.call(call, request, LIST_MAX).await
    }

    async fn call(&self, call: &str, request: &impl Message, limit: usize) -> Result<Bytes, Failure> {
        let path = PathAndQuery::try_from(format!("/runtime.{}.{call}", self.api))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let origin = Uri::from_static("http://localhost");
        let mut grpc = Grpc::with_origin(self.connection.clone(), origin).max_decoding_message_size(limit);
        let request = Request::new(Bytes::from(request.encode_to_vec()));
        match timeout(self.deadline, grpc.unary(request, path, Raw)).await {
            Err(_) => Err(Failure::Silent(self.deadline)),
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(call, &status)),
        }
    }
}

/// A status that came as one is the runtime's word; one with a source was made here, of what happened to the connection.
fn failure(call: &str, status: &Status) -> Failure {
    match status.source() {
        None => Failure::Status { call: call.to_owned(), code: status.code(), words: words(status.message()) },
        Some(source) => {
            let mut innermost = source;
            while let Some(inner) = innermost.source() {
                innermost = inner;
            }
            Failure::Broken(words(&innermost.to_string()))
        }
    }
}

fn words(text: &str) -> String {
    escape_to(text, WORDS_MAX)
}

/// Opens the socket as whoever named it sees it: links on the way lead inside that root.
async fn connect(socket: &Socket) -> Result<UnixStream, Failure> {
    let errno = |errno: Errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR => Failure::Missing,
        other => Failure::Connect(other.desc().to_owned()),
    };
    let root = Root::open(&socket.root, PathBuf::new()).map_err(errno)?;
    let fd = root.find(&socket.path).map_err(errno)?;
    let kind = file_type(&fstat(&fd).map_err(errno)?);
    if kind != SFlag::S_IFSOCK {
        return Err(Failure::NoSocket(type_name(kind)));
    }
    // By the descriptor: a path may be too long for a socket's address, and the file another one by now.
    let stream = UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd()))).await.map_err(
        |error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Failure::Refused(error.to_string()),
            _ => Failure::Connect(error.to_string()),
        },
    )?;
    let uid = stream.peer_cred().map_err(|error| Failure::Connect(error.to_string()))?.uid();
    if uid != 0 && !socket.explicit {
        return Err(Failure::NotRoot(uid));
    }
    Ok(stream)
}

/// Runs the tasks of one connection until it is dropped.
#[derive(Clone)]
struct Tasks(watch::Receiver<()>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut gone = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = gone.changed() => {}
                _ = task => {}
            }
        });
    }
}

/// hyper's sender, as what tonic sends through.
#[derive(Clone)]
struct Connection(http2::SendRequest<Body>);

impl GrpcService<Body> for Connection {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Messages as their bytes: they are decoded outside, entry by entry.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
