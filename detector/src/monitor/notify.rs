//! What systemd is told: that the agent is ready, how it is, and that its loop still steps (`sd_notify(3)`).
//!
//! The protocol is one datagram a message, so that this is all of it. Nothing waits: what the socket does not take is told again with
//! the next step.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

use crate::escape::escape_to;

/// Longest status, in characters.
const STATUS_MAX: usize = 200;
/// Most bytes of states that wait to be taken.
const STATES_MAX: usize = 4096;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    /// States that were not taken yet, a line each.
    states: String,
    status: String,
    /// The latest status was not taken yet.
    owes_status: bool,
    owes_step: bool,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    /// Half of the time after which the service manager believes that the agent hangs.
    every: Duration,
    next: Instant,
}

impl Notify {
    /// Whom `NOTIFY_SOCKET` names; nobody where it is not set.
    ///
    /// # Errors
    /// When it is set and cannot be reached.
    pub fn of_environment() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let mut notify = Self::to(&name)?;
        // One that is meant for another process is not ours.
        let meant = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let limit = env::var("WATCHDOG_USEC").ok().filter(|_| meant).and_then(|usec| usec.parse().ok());
        notify.watchdog = limit
            .filter(|usec| *usec > 0)
            .map(|usec: u64| Watchdog { every: Duration::from_micros(usec) / 2, next: Instant::now() });
        Ok(notify)
    }

    /// The socket of this name: a path, or an abstract one that begins with `@`.
    fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name; expected /PATH or @NAME")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), ..Self::default() })
    }

    /// It has started, or has taken a new configuration.
    pub fn ready(&mut self, status: &str) {
        self.state("READY=1\n");
        self.status(status);
    }

    /// It is about to take a new configuration.
    pub fn reloading(&mut self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Into::into);
        self.state(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", now.as_micros()));
        self.flush();
    }

    pub fn stopping(&mut self) {
        self.state("STOPPING=1\n");
        self.flush();
    }

    /// How it is, in words; told when it changes.
    pub fn status(&mut self, status: &str) {
        let status = escape_to(status, STATUS_MAX);
        self.owes_status |= status != self.status;
        self.status = status;
        self.flush();
    }

    /// The loop has made a step.
    pub fn stepped(&mut self, now: Instant) {
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            watchdog.next = now + watchdog.every;
            self.owes_step = true;
        }
        self.flush();
    }

    fn state(&mut self, lines: &str) {
        // A manager that has taken nothing for so many reloads does not read.
        if self.socket.is_some() && self.states.len() < STATES_MAX {
            self.states.push_str(lines);
        }
    }

    fn flush(&mut self) {
        let mut message = self.states.clone();
        if self.owes_status {
            message.push_str(&format!("STATUS={}\n", self.status));
        }
        if self.owes_step {
            message.push_str("WATCHDOG=1\n");
        }
        let Some(socket) = self.socket.as_ref().filter(|_| !message.is_empty()) else { return };
        match socket.send(message.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) => {
                self.states.clear();
                (self.owes_status, self.owes_step) = (false, false);
            }
            Err(error) => {
                eprintln!("degraded: NOTIFY_SOCKET: {error}; the service manager is told nothing more");
                self.socket = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 8192];
        socket.recv(&mut bytes).map_or_else(|_| String::new(), |len| String::from_utf8(bytes[..len].to_vec()).unwrap())
    }

    fn pair() -> (tempfile::TempDir, UnixDatagram, Notify) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let notify = Notify::to(path.as_os_str()).unwrap();
        (dir, socket, notify)
    }

    #[test]
    fn a_status_is_one_line_and_told_when_it_changes() {
        let (_dir, socket, mut notify) = pair();
        notify.ready("12 hooks");
        assert_eq!(read(&socket), "READY=1\nSTATUS=12 hooks\n");
        notify.status("12 hooks");
        assert_eq!(read(&socket), "");
        notify.status("a\nSTOPPING=1");
        let said = read(&socket);
        assert!(said.starts_with("STATUS=a") && said.matches('\n').count() == 1, "{said:?}");
    }

    #[test]
    fn what_is_not_taken_is_told_later_and_never_waited_for() {
        let (_dir, socket, mut notify) = pair();
        // Until the socket's queue is full.
        let mut sent = 0;
        while !notify.owes_status {
            notify.status(&format!("status {sent}"));
            sent += 1;
        }
        notify.ready("ready");
        for _ in 0..10_000 {
            notify.reloading();
        }
        assert!(notify.states.len() < 2 * STATES_MAX);
        while !read(&socket).is_empty() {}
        notify.stepped(Instant::now());
        let said = read(&socket);
        assert!(said.starts_with("READY=1\nRELOADING=1\n") && said.ends_with("STATUS=ready\n"), "{said:?}");
        assert_eq!(read(&socket), "");
    }

    #[test]
    fn the_watchdog_is_told_at_half_its_time_and_only_by_steps() {
        let (_dir, socket, mut notify) = pair();
        let start = Instant::now();
        notify.watchdog = Some(Watchdog { every: Duration::from_secs(15), next: start });
        for (after, told) in [(0, true), (14, false), (15, true), (29, false), (90, true)] {
            notify.stepped(start + Duration::from_secs(after));
            assert_eq!(read(&socket) == "WATCHDOG=1\n", told, "after {after} s");
        }
    }

    #[test]
    fn a_service_manager_that_went_away_is_no_trouble() {
        let (dir, socket, mut notify) = pair();
        drop((dir, socket));
        notify.ready("fine");
        assert!(notify.socket.is_none());
        notify.ready("fine");
        assert!(Notify::to(OsStr::new("relative")).is_err());
        assert!(Notify::to(OsStr::new("/nonexistent/notify")).is_err());
    }
}
