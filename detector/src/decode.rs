//! From the kernel's bytes to typed events. Pure; any input gives an event or an error.

mod late;

use std::borrow::Cow;

use detector_common as wire;
use zerocopy::FromBytes;

pub use crate::syscalls::name as syscall_name;
pub use late::{KernelArgv, WalkedPath};

/// A decoded kernel record.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    Exec(Exec<'a>),
    Fork(wire::Fork),
    Exit(wire::Exit),
    /// Opened for writing.
    Open(Open),
    /// Written through a descriptor older than the watch.
    Write(Open),
    /// Mapped so that it can be written.
    Map(Open),
    /// A secret, opened for reading.
    Read(Open),
    Change(wire::Change),
    Path(PathCall),
    /// A security hook: about to happen.
    Entry(Entry),
    /// Access to a protected process.
    Ptrace(wire::Ptrace),
    IoUring(wire::IoUring),
    /// A socket, by a task in a sandbox.
    Socket(wire::Socket),
    /// Use of the agent's own BPF objects.
    Bpf(wire::Bpf),
    /// A signal for the agent.
    Signal(wire::Signal),
    /// A TCP connection from or to an address of interest.
    Connection(wire::Connection),
    Cgroup {
        event: wire::Cgroup,
        path: String,
    },
    CgroupGone(wire::CgroupGone),
    /// A process was moved into a cgroup.
    CgroupMove(wire::CgroupMove),
    /// A process changed its namespaces.
    Namespaces(wire::Namespaces),
}

/// An exec with its strings.
#[derive(Clone, Debug, PartialEq)]
pub struct Exec<'a> {
    pub event: wire::Exec,
    /// Path of the executed file in its mount namespace.
    pub path: WalkedPath<'a>,
    pub argv: KernelArgv<'a>,
}

/// An open or write with its path.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub event: wire::Open,
    /// Path of the file in the acting task's mount namespace.
    pub path: String,
}

/// An act on a directory entry, an attribute or a mount point, which a security hook was asked about. Which of them
/// `header.hook` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub header: wire::Header,
    /// What the entry leads to, or the mount point; 0 when there is nothing yet.
    pub ino: u64,
    pub dir_ino: u64,
    /// Renames: what stands at the new name.
    pub to_ino: u64,
    /// Renames and links: the directory of the new name.
    pub to_dir_ino: u64,
    pub dev: u32,
    /// Flags of the watched inodes that matched.
    pub watch: u32,
    /// An LSM program refused it.
    pub denied: bool,
    /// `iattr->ia_valid` where attributes change.
    pub attributes: u32,
    /// Name of the entry, or what is mounted; then the new name, a link's target, or the mount point's name.
    pub names: [String; 2],
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

impl Event<'_> {
    /// The acting task. For a fork: the parent. For an accepted connection: nobody.
    #[must_use]
    pub fn header(&self) -> &wire::Header {
        match self {
            Self::Exec(e) => &e.event.header,
            Self::Fork(e) => &e.header,
            Self::Exit(e) => &e.header,
            Self::Open(e) | Self::Write(e) | Self::Map(e) | Self::Read(e) => &e.event.header,
            Self::Entry(e) => &e.header,
            Self::Change(e) => &e.header,
            Self::Path(e) => &e.event.header,
            Self::Ptrace(e) => &e.header,
            Self::IoUring(e) => &e.header,
            Self::Socket(e) => &e.header,
            Self::Bpf(e) => &e.header,
            Self::Signal(e) => &e.header,
            Self::Connection(e) => &e.header,
            Self::Cgroup { event, .. } => &event.header,
            Self::CgroupGone(e) => &e.header,
            Self::CgroupMove(e) => &e.header,
            Self::Namespaces(e) => &e.header,
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
pub fn event(raw: &[u8]) -> Result<Event<'_>, DecodeError> {
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
            let path = WalkedPath::new(path, event.flags & wire::PATH_TRUNCATED != 0);
            Ok(Event::Exec(Exec { event, path, argv: KernelArgv::new(argv) }))
        }
        kind::FORK => Ok(Event::Fork(fixed(raw, kind)?.0)),
        kind::EXIT => Ok(Event::Exit(fixed(raw, kind)?.0)),
        kind::OPEN | kind::WRITE | kind::MAP | kind::READ => {
            let (event, rest) = fixed::<wire::Open>(raw, kind)?;
            let (path, _) = tail(rest, event.path_len, kind)?;
            let path = walked_path(path, event.flags & wire::PATH_TRUNCATED != 0);
            let open = Open { event, path };
            Ok(match kind {
                kind::OPEN => Event::Open(open),
                kind::WRITE => Event::Write(open),
                kind::READ => Event::Read(open),
                _ => Event::Map(open),
            })
        }
        kind::ENTRY => {
            let (event, _) = fixed::<wire::Entry>(raw, kind)?;
            let wire::Entry { header, ino, dir_ino, to_ino, to_dir_ino, dev, watch, flags, attributes, names, .. } =
                event;
            let names = names.each_ref().map(|name| c_string(name));
            let denied = flags & wire::DENIED != 0;
            Ok(Event::Entry(Entry { header, ino, dir_ino, to_ino, to_dir_ino, dev, watch, denied, attributes, names }))
        }
        kind::CHANGE => Ok(Event::Change(fixed(raw, kind)?.0)),
        kind::PATH => {
            let (event, rest) = fixed::<wire::PathCall>(raw, kind)?;
            let (first, rest) = tail(rest, event.len[0], kind)?;
            let (second, _) = tail(rest, event.len[1], kind)?;
            Ok(Event::Path(PathCall { event, paths: [c_string(first), c_string(second)] }))
        }
        kind::PTRACE => Ok(Event::Ptrace(fixed(raw, kind)?.0)),
        kind::SOCKET => Ok(Event::Socket(fixed(raw, kind)?.0)),
        kind::BPF => Ok(Event::Bpf(fixed(raw, kind)?.0)),
        kind::SIGNAL => Ok(Event::Signal(fixed(raw, kind)?.0)),
        kind::CONNECTION => Ok(Event::Connection(fixed(raw, kind)?.0)),
        kind::IO_URING => Ok(Event::IoUring(fixed(raw, kind)?.0)),
        kind::CGROUP => {
            let (event, rest) = fixed::<wire::Cgroup>(raw, kind)?;
            let (path, _) = tail(rest, event.path_len, kind)?;
            Ok(Event::Cgroup { event, path: c_string(path) })
        }
        kind::CGROUP_GONE => Ok(Event::CgroupGone(fixed(raw, kind)?.0)),
        kind::CGROUP_MOVE => Ok(Event::CgroupMove(fixed(raw, kind)?.0)),
        kind::NAMESPACES => Ok(Event::Namespaces(fixed(raw, kind)?.0)),
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
        hook::CGROUP_RMDIR => "cgroup-gone",
        hook::CGROUP_ATTACH => "cgroup-move",
        hook::NAMESPACES => "namespaces",
        hook::SOCKET_STATE => "connection",
        hook::FILE_OPEN => "file-open",
        hook::INODE_CREATE => "inode-create",
        hook::INODE_LINK => "inode-link",
        hook::INODE_SYMLINK => "inode-symlink",
        hook::INODE_UNLINK => "inode-unlink",
        hook::INODE_MKDIR => "inode-mkdir",
        hook::INODE_RMDIR => "inode-rmdir",
        hook::INODE_MKNOD => "inode-mknod",
        hook::INODE_RENAME => "inode-rename",
        hook::INODE_SETATTR => "inode-attributes",
        hook::SB_MOUNT => "mount",
        hook::MOVE_MOUNT => "move-mount",
        hook::SB_UMOUNT => "umount",
        hook::PIVOT_ROOT => "pivot-root",
        hook::MMAP_FILE => "mmap",
        hook::PTRACE => "ptrace",
        hook::SOCKET_CREATE => "socket",
        hook::SOCKET_CONNECT => "connect",
        hook::SIGNAL => "signal",
        hook::BPF => "bpf",
        hook::SYS_EXIT_GUARD => "syscall-guard",
        hook::TCP_RECEIVE => "tcp-receive",
        hook::UNIX_CONNECT => "unix-connect",
        _ => "unknown",
    }
}

fn fixed<T: FromBytes>(raw: &[u8], kind: u16) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(raw).map_err(|_| DecodeError::Short { kind, len: raw.len(), need: size_of::<T>() })
}

fn tail(raw: &[u8], len: u16, kind: u16) -> Result<(&[u8], &[u8]), DecodeError> {
    raw.split_at_checked(usize::from(len)).ok_or(DecodeError::Tail { kind, need: usize::from(len), has: raw.len() })
}

fn c_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    text(&bytes[..end]).into_owned()
}

/// Text from outside, what is no UTF-8 replaced. Nearly all of it is: looking for that first takes half as long.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
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
        path.push_str(&text(component));
    }
    if path.is_empty() {
        path.push('/');
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::InodeKey,
        testing::{self, Actor, DIR, FILE, Noise},
        testing_control as control,
    };

    fn every_kind() -> Vec<bytes::Bytes> {
        let (shell, child) = (Actor::host(50, 10), Actor::host(60, 20));
        vec![
            testing::exec(child, shell, "/usr/bin/env", &["env", "", "x=1"]),
            testing::fork(shell, child),
            testing::exit(child),
            testing::open(child, FILE, DIR, "/etc/kubernetes/manifests/a.yaml"),
            testing::change(child, FILE, 1),
            testing::rename(child, Some(InodeKey { dev: 1, ino: 2 }), "a", "/b"),
            testing::io_uring(child),
            testing::entry(child, wire::hook::INODE_RENAME, [FILE, DIR], ["a", "b"]),
            testing::cgroup(child, 9, "/kubepods/x"),
            testing::cgroup_gone(child, 9),
            testing::cgroup_move(shell, child, 9),
            testing::bpf(child, 14, wire::object::MAP, 5),
            testing::signal(child, 9, 0),
            testing::namespaces(child, 77, 78, wire::Shared { net: 79, ..wire::Shared::default() }),
            control::read(child, FILE, "/run/token"),
            control::connect(child, "10.0.0.1:443", wire::endpoint::API),
            control::accept("[2001:db8::7]:5000", "10.0.0.5:6443"),
        ]
    }

    #[test]
    fn every_kind_says_what_was_written() {
        let raws = every_kind();
        let events: Vec<_> = raws.iter().map(|raw| event(raw).unwrap()).collect();
        let Event::Exec(exec) = &events[0] else { panic!("{events:?}") };
        assert_eq!(&*exec.path, "/usr/bin/env");
        assert!(*exec.argv == ["env", "", "x=1"][..]);
        let Event::Fork(fork) = &events[1] else { panic!("{events:?}") };
        assert_eq!((fork.header.tgid, fork.child_tgid), (50, 60));
        let Event::Open(open) = &events[3] else { panic!("{events:?}") };
        assert_eq!(open.path, "/etc/kubernetes/manifests/a.yaml");
        let Event::Path(call) = &events[5] else { panic!("{events:?}") };
        assert_eq!(call.paths, ["a", "/b"]);
        let Event::Entry(entry) = &events[7] else { panic!("{events:?}") };
        assert_eq!((entry.ino, entry.dir_ino, &entry.names), (FILE.ino, DIR.ino, &["a".to_owned(), "b".to_owned()]));
        let Event::Cgroup { event, path } = &events[8] else { panic!("{events:?}") };
        assert_eq!((event.id, path.as_str()), (9, "/kubepods/x"));
        let Event::CgroupMove(moved) = &events[10] else { panic!("{events:?}") };
        assert_eq!((moved.header.tgid, moved.target_tgid, moved.id), (50, 60, 9));
        let Event::Bpf(bpf) = &events[11] else { panic!("{events:?}") };
        assert_eq!((bpf.command, bpf.object, bpf.id), (14, wire::object::MAP, 5));
        let Event::Signal(signal) = &events[12] else { panic!("{events:?}") };
        assert_eq!((signal.signal, signal.code, signal.target_tgid), (9, 0, testing::AGENT));
        let Event::Namespaces(entered) = &events[13] else { panic!("{events:?}") };
        assert_eq!((entered.mnt, entered.pid_children, entered.shared.net), (77, 78, 79));
        let Event::Read(read) = &events[14] else { panic!("{events:?}") };
        assert_eq!((read.event.watch, read.path.as_str()), (wire::watch::READ, "/run/token"));
        let Event::Connection(made) = &events[15] else { panic!("{events:?}") };
        assert_eq!(crate::record::sense::address(&made.remote, made.remote_port), "10.0.0.1:443");
        let Event::Connection(accepted) = &events[16] else { panic!("{events:?}") };
        assert_eq!(accepted.act, wire::connection::ACCEPT);
        assert_eq!(crate::record::sense::address(&accepted.remote, accepted.remote_port), "[2001:db8::7]:5000");
    }

    #[test]
    fn a_record_cut_anywhere_is_an_error_and_padding_is_none() {
        for raw in every_kind() {
            for len in 0..raw.len() {
                assert!(event(&raw[..len]).is_err(), "{len} bytes of {raw:?}");
            }
            let padded = [&raw[..], &[0; 7]].concat();
            assert_eq!(event(&padded), event(&raw));
        }
    }

    #[test]
    fn a_length_that_lies_is_an_error() {
        for raw in every_kind() {
            let mut short = raw.to_vec();
            short[4..8].copy_from_slice(&71_u32.to_ne_bytes());
            assert!(matches!(event(&short), Err(DecodeError::Short { len: 71, .. })), "{:?}", event(&short));
            let mut long = raw.to_vec();
            long[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
            assert!(matches!(event(&long), Err(DecodeError::Length { .. })));
        }
        let mut unknown = every_kind()[2].to_vec();
        unknown[..2].copy_from_slice(&999_u16.to_ne_bytes());
        assert_eq!(event(&unknown), Err(DecodeError::UnknownKind(999)));
    }

    #[test]
    fn any_bytes_are_an_event_or_an_error() {
        let mut noise = Noise(1);
        let kinds = every_kind();
        for (round, kind) in kinds.iter().cycle().take(20_000).enumerate() {
            let mut raw = kind.to_vec();
            for _ in 0..1 + round % 5 {
                let at = usize::try_from(noise.next()).unwrap() % raw.len();
                raw[at] = noise.next().to_le_bytes()[0];
            }
            let _ = event(&raw);
        }
    }

    #[test]
    fn paths_are_put_together_from_the_leaf() {
        assert_eq!(walked_path(b"a.yaml\0manifests\0etc\0", false), "/etc/manifests/a.yaml");
        assert_eq!(walked_path(b"a.yaml\0deep\0", true), ".../deep/a.yaml");
        assert_eq!(walked_path(b"", false), "/");
        assert_eq!(walked_path(b"a\xff\0", false), "/a\u{fffd}");
    }
}
