//! Connections to syslog servers and to journald.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{
    format::syslog::frame,
    handed,
    remote::{Peer, Trouble},
};

/// How long connecting, and sending to somebody who does not read, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the receiver may take to end the connection after us.
const GOODBYE: Duration = Duration::from_secs(2);
/// No receiver answers. So what was sent may be lost with the connection in which it was on its way: what is younger than this
/// is sent again over the next one.
const SETTLES: Duration = Duration::from_secs(1);
/// Messages of one sending.
const BATCH: usize = 128;

/// Datagrams to a socket of this host: syslog's or journald's.
pub(super) struct Unix {
    path: PathBuf,
    /// The socket, and which file it is connected to.
    socket: Option<(UnixDatagram, Bound)>,
    sent: u64,
    /// It takes files instead of what is longer than a datagram may be.
    files: bool,
}

/// A bound socket's file. An inode's number may be used again at once; its birth tells them apart.
type Bound = (u64, u64, Option<SystemTime>);

impl Unix {
    pub fn new(path: PathBuf) -> Self {
        Self { path, socket: None, sent: 0, files: false }
    }

    pub fn journald(path: PathBuf) -> Self {
        Self { files: true, ..Self::new(path) }
    }

    fn file(&self) -> io::Result<Bound> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        fs::metadata(&self.path).map(|file| (file.dev(), file.ino(), file.created().ok())).map_err(named)
    }
}

impl Peer for Unix {
    fn batch(&self) -> usize {
        BATCH
    }

    fn settles(&self) -> Duration {
        SETTLES
    }

    fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), Trouble> {
        let socket = match &self.socket {
            Some((socket, _)) => socket,
            None => {
                let file = self.file()?;
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket.connect(&self.path)?;
                self.sent = 0;
                &self.socket.insert((socket, file)).0
            }
        };
        for message in messages {
            match socket.send(message) {
                // It counts as nothing, and is unread for as long as anything is.
                Err(error) if self.files && is_too_long(&error) => handed::over(socket, message)?,
                sent => {
                    datagram(sent)?;
                    self.sent += message.len() as u64;
                }
            }
        }
        Ok(())
    }

    fn sent(&mut self) -> io::Result<(u64, u64)> {
        let file = self.file()?;
        let Some((socket, connected)) = &self.socket else { return Ok((0, 0)) };
        // A receiver that has ended took what it had not read with it; another may stand in its place.
        socket.connect(&self.path)?;
        if file != *connected {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the receiver has been replaced"));
        }
        // Datagrams count with their overhead, so this many at most are unread.
        Ok((self.sent, self.sent.saturating_sub(unsent(socket)?)))
    }

    fn abort(&mut self) {
        self.socket = None;
    }

    /// A receiver that is there has read everything soon.
    fn close(&mut self) -> bool {
        let deadline = Instant::now() + GOODBYE;
        loop {
            match self.sent() {
                Ok((sent, arrived)) if sent == arrived => return true,
                Ok(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                _ => return false,
            }
        }
    }
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EMSGSIZE)
}

/// What became of one datagram of a sending.
fn datagram(result: io::Result<usize>) -> Result<(), Trouble> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_too_long(&error) => Err(Trouble::Refused("longer than a datagram may be".to_owned())),
        Err(error) => Err(Trouble::Away(error)),
    }
}

/// Datagrams over the network: nobody tells what arrives, except when the host answers that nobody listens.
pub(super) struct Udp {
    host: String,
    port: u16,
    socket: Option<UdpSocket>,
    sent: u64,
}

impl Udp {
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, socket: None, sent: 0 }
    }
}

impl Peer for Udp {
    fn batch(&self) -> usize {
        BATCH
    }

    fn settles(&self) -> Duration {
        SETTLES
    }

    fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), Trouble> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = first_of(&self.host, self.port, |address| {
                    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                    socket.connect(address).map(|()| socket)
                })?;
                socket.set_write_timeout(Some(PATIENCE))?;
                self.sent = 0;
                self.socket.insert(socket)
            }
        };
        for message in messages {
            datagram(socket.send(message))?;
            self.sent += message.len() as u64;
        }
        Ok(())
    }

    fn sent(&mut self) -> io::Result<(u64, u64)> {
        match self.socket.as_ref().map(UdpSocket::take_error).transpose()?.flatten() {
            Some(error) => Err(error),
            None => Ok((self.sent, self.sent)),
        }
    }

    fn abort(&mut self) {
        self.socket = None;
    }

    fn close(&mut self) -> bool {
        self.sent().is_ok()
    }
}

/// The connection to the first of a host's addresses that takes one, or why the last did not.
fn first_of<T>(host: &str, port: u16, connect: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match connect(address) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Framed messages over TCP, with TLS or without.
pub(super) struct Stream {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

enum Connection {
    Plain(Counted),
    Tls(Box<StreamOwned<ClientConnection, Counted>>),
}

/// A socket that counts what is written to it.
struct Counted {
    socket: TcpStream,
    sent: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.socket.write(bytes)?;
        self.sent += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl Connection {
    fn counted(&self) -> &Counted {
        match self {
            Self::Plain(counted) => counted,
            Self::Tls(tls) => &tls.sock,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(counted) => counted.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(counted) => counted.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Reads what the receiver says, which is nothing of interest; true when it has ended the connection.
    fn has_ended(&mut self) -> io::Result<bool> {
        loop {
            match self.read(&mut [0; 1024]) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Stream {
    pub fn new(host: String, port: u16, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { host, port, tls, connection: None }
    }

    fn connect(&self) -> io::Result<Connection> {
        self.greet(first_of(&self.host, self.port, |address| TcpStream::connect_timeout(&address, PATIENCE))?)
    }

    fn greet(&self, socket: TcpStream) -> io::Result<Connection> {
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // A peer that is gone without a word is noticed after so many milliseconds, and not after a quarter of an hour.
        setsockopt(&socket, sockopt::TcpUserTimeout, &20_000)?;
        let counted = Counted { socket, sent: 0 };
        let Some(config) = &self.tls else { return Ok(Connection::Plain(counted)) };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(client, counted);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Connection::Tls(Box::new(tls)))
    }
}

impl Peer for Stream {
    fn batch(&self) -> usize {
        BATCH
    }

    fn settles(&self) -> Duration {
        SETTLES
    }

    fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), Trouble> {
        if self.connection.is_none() {
            self.connection = Some(self.connect()?);
        }
        let mut frames = Vec::new();
        messages.iter().for_each(|message| frame(message, &mut frames));
        match &mut self.connection {
            Some(connection) => Ok(connection.write(&frames)?),
            None => Ok(()),
        }
    }

    fn sent(&mut self) -> io::Result<(u64, u64)> {
        let Some(connection) = &mut self.connection else { return Ok((0, 0)) };
        connection.counted().socket.set_nonblocking(true)?;
        let ended = connection.has_ended();
        connection.counted().socket.set_nonblocking(false)?;
        if ended? {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the receiver has closed the connection"));
        }
        let counted = connection.counted();
        Ok((counted.sent, counted.sent.saturating_sub(unsent(&counted.socket)?)))
    }

    fn abort(&mut self) {
        self.connection = None;
    }

    /// A receiver that has seen the end has read everything before it.
    fn close(&mut self) -> bool {
        let Some(mut connection) = self.connection.take() else { return false };
        if let Connection::Tls(tls) = &mut connection {
            tls.conn.send_close_notify();
            if tls.flush().is_err() {
                return false;
            }
        }
        let socket = &connection.counted().socket;
        let shut = socket.shutdown(Shutdown::Write).and_then(|()| socket.set_read_timeout(Some(GOODBYE)));
        shut.is_ok() && connection.has_ended().unwrap_or(false)
    }
}

/// Bytes that were sent into a socket and have not arrived: for TCP, not been acknowledged; for local sockets, not been read.
fn unsent(socket: &impl AsFd) -> io::Result<u64> {
    nix::ioctl_read_bad!(outq, nix::libc::TIOCOUTQ, nix::libc::c_int);
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes one int.
    unsafe { outq(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
