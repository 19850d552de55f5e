//! From the kernel's bytes to typed events. Pure; any input gives an event or an error.

use detector_common as wire;
use zerocopy::FromBytes;

pub use crate::syscalls::name as syscall_name;

/// A decoded kernel record.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Exec(Exec),
    Fork(wire::Fork),
    Exit(wire::Exit),
    /// Opened for writing.
    Open(Open),
    /// Written through a descriptor older than the watch.
    Write(Open),
    Change(wire::Change),
    Path(PathCall),
    IoUring(wire::IoUring),
    Cgroup {
        event: wire::Cgroup,
        path: String,
    },
}

/// An exec with its strings.
#[derive(Clone, Debug, PartialEq)]
pub struct Exec {
    pub event: wire::Exec,
    /// Path of the executed file in its mount namespace.
    pub path: String,
    pub argv: Vec<String>,
}

/// An open or write with its path.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub event: wire::Open,
    /// Path of the file in the acting task's mount namespace.
    pub path: String,
}

/// A path system call with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct PathCall {
    pub event: wire::PathCall,
    /// As the caller passed them; empty when the call has none, or they could not be read.
    pub paths: [String; 2],
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("record of {len} bytes is shorter than the {need} that its kind {kind} needs")]
    Short { kind: u16, len: usize, need: usize },
    #[error("unknown record kind {0}: the trace is from a newer version, or damaged")]
    UnknownKind(u16),
    #[error("record of kind {kind} says it has {says} bytes and has {has}")]
    Length { kind: u16, says: usize, has: usize },
    #[error("record of kind {kind}: a tail of {need} bytes does not fit into {has}")]
    Tail { kind: u16, need: usize, has: usize },
}

impl Event {
    /// The acting task. For a fork: the parent.
    #[must_use]
    pub fn header(&self) -> &wire::Header {
        match self {
            Self::Exec(e) => &e.event.header,
            Self::Fork(e) => &e.header,
            Self::Exit(e) => &e.header,
            Self::Open(e) | Self::Write(e) => &e.event.header,
            Self::Change(e) => &e.header,
            Self::Path(e) => &e.event.header,
            Self::IoUring(e) => &e.header,
            Self::Cgroup { event, .. } => &event.header,
        }
    }
}

/// The header alone: enough for a source to see what it has.
///
/// # Errors
/// [`DecodeError::Short`] when there are fewer bytes than a header has.
pub fn header(raw: &[u8]) -> Result<wire::Header, DecodeError> {
    fixed::<wire::Header>(raw, raw.first_chunk().map_or(0, |kind| u16::from_ne_bytes(*kind))).map(|(header, _)| header)
}

/// Decodes one record.
///
/// # Errors
/// When the bytes are not a whole record of a known kind.
pub fn event(raw: &[u8]) -> Result<Event, DecodeError> {
    use wire::kind;
    let header = header(raw)?;
    let kind = header.kind;
    let says = header.len as usize;
    // The ring buffer rounds up to 8 bytes; a record may be shorter than its slot but never longer.
    if says > raw.len() {
        return Err(DecodeError::Length { kind, says, has: raw.len() });
    }
    let raw = &raw[..says];
    match kind {
        kind::EXEC => {
            let (event, rest) = fixed::<wire::Exec>(raw, kind)?;
            let (path, rest) = tail(rest, event.path_len, kind)?;
            let (argv, _) = tail(rest, event.argv_len, kind)?;
            let path = walked_path(path, event.flags & wire::PATH_TRUNCATED != 0);
            Ok(Event::Exec(Exec { event, path, argv: split_argv(argv) }))
        }
        kind::FORK => Ok(Event::Fork(fixed(raw, kind)?.0)),
        kind::EXIT => Ok(Event::Exit(fixed(raw, kind)?.0)),
        kind::OPEN | kind::WRITE => {
            let (event, rest) = fixed::<wire::Open>(raw, kind)?;
            let (path, _) = tail(rest, event.path_len, kind)?;
            let path = walked_path(path, event.flags & wire::PATH_TRUNCATED != 0);
            let open = Open { event, path };
            Ok(if kind == kind::OPEN { Event::Open(open) } else { Event::Write(open) })
        }
        kind::CHANGE => Ok(Event::Change(fixed(raw, kind)?.0)),
        kind::PATH => {
            let (event, rest) = fixed::<wire::PathCall>(raw, kind)?;
            let (first, rest) = tail(rest, event.len[0], kind)?;
            let (second, _) = tail(rest, event.len[1], kind)?;
            Ok(Event::Path(PathCall { event, paths: [c_string(first), c_string(second)] }))
        }
        kind::IO_URING => Ok(Event::IoUring(fixed(raw, kind)?.0)),
        kind::CGROUP => {
            let (event, rest) = fixed::<wire::Cgroup>(raw, kind)?;
            let (path, _) = tail(rest, event.path_len, kind)?;
            Ok(Event::Cgroup { event, path: c_string(path) })
        }
        _ => Err(DecodeError::UnknownKind(kind)),
    }
}

/// Name of a hook number, as doctor and alerts show it.
#[must_use]
pub fn hook_name(hook: u16) -> &'static str {
    use wire::hook;
    match hook {
        hook::EXEC => "exec",
        hook::FORK => "fork",
        hook::EXIT => "exit",
        hook::SYS_EXIT => "syscall",
        hook::CTIME_SET => "inode-change-set",
        hook::CTIME_XCHG => "inode-change-exchange",
        hook::CTIME_SKIP => "inode-change-repeat",
        hook::IO_URING_SUBMIT => "io_uring",
        hook::CGROUP_MKDIR => "cgroup",
        _ => "unknown",
    }
}

/// Splits NUL-separated arguments, as the kernel keeps them.
#[must_use]
pub fn split_argv(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}

fn fixed<T: FromBytes>(raw: &[u8], kind: u16) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(raw).map_err(|_| DecodeError::Short { kind, len: raw.len(), need: size_of::<T>() })
}

fn tail(raw: &[u8], len: u16, kind: u16) -> Result<(&[u8], &[u8]), DecodeError> {
    raw.split_at_checked(usize::from(len)).ok_or(DecodeError::Tail { kind, need: usize::from(len), has: raw.len() })
}

fn c_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The kernel walks from the leaf to the root: components come NUL-terminated and in reverse.
fn walked_path(bytes: &[u8], truncated: bool) -> String {
    let mut path = String::with_capacity(bytes.len() + 4);
    if truncated {
        path.push_str("...");
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    for component in bytes.rsplit(|b| *b == 0).filter(|c| !c.is_empty()) {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(component));
    }
    if path.is_empty() {
        path.push('/');
    }
    path
}
