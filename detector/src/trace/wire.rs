//! Layouts of kernel records in version 1 of the wire: what a block's packing relies on. Frozen, unlike the structures of
//! `detector-common`, which may change: then this file gets a second version beside the first.

/// Version of the wire layout that is written. Raised with every change of a layout in `detector-common`.
pub const VERSION: u16 = 1;

/// Words (u32) of a header.
pub const HEADER: usize = 18;
/// Words of the longest fixed part: an exec's.
pub const WORDS: usize = 36;

/// Kinds whose fields are predicted one by one.
pub const EXEC: u16 = 1;
pub const FORK: u16 = 2;
pub const EXIT: u16 = 3;

/// Words of a header, by index.
pub mod header {
    pub const TIME: usize = 2;
    pub const START: usize = 4;
    pub const CGROUP: usize = 6;
    pub const TGID: usize = 8;
    pub const TID: usize = 9;
    pub const UID: usize = 10;
    pub const LOGIN_UID: usize = 11;
    pub const MNT_NS: usize = 12;
    pub const PID_NS: usize = 13;
    pub const COMM: usize = 14;
}

/// Words of a fork.
pub mod fork {
    pub const CHILD_START: usize = 18;
    pub const CHILD_TGID: usize = 20;
    pub const PARENT_START: usize = 22;
    pub const PARENT_TGID: usize = 24;
}

/// Words of an exec.
pub mod exec {
    pub const INO: usize = 18;
    pub const PARENT_START: usize = 20;
    pub const DEV: usize = 23;
    pub const TTY: usize = 26;
    pub const SHARED: usize = 30;
    pub const INNER_PID: usize = 35;
}

/// One kind's form: a fixed part, then tails.
pub struct Layout {
    /// Bytes of the fixed part.
    pub fixed: usize,
    pub tails: &'static [Tail],
}

/// What follows the fixed part.
#[derive(Clone, Copy)]
pub enum Tail {
    /// As many bytes as the u16 at this offset of the fixed part says.
    Length(usize),
    /// This many bytes, zeros at the end.
    Padded(usize),
}

impl Layout {
    pub fn words(&self) -> usize {
        self.fixed / 4
    }
}

/// The layout of a kind; `None` for one that version 1 does not have.
pub fn layout(kind: u16) -> Option<&'static Layout> {
    const fn fixed(body: usize) -> Layout {
        Layout { fixed: HEADER * 4 + body, tails: &[] }
    }
    static EXEC: Layout = Layout { fixed: 144, tails: &[Tail::Length(100), Tail::Length(102)] };
    static FORK: Layout = fixed(32);
    static EXIT: Layout = fixed(8);
    static OPEN: Layout = Layout { fixed: 120, tails: &[Tail::Length(112)] };
    static CHANGE: Layout = fixed(16);
    static PATH: Layout = Layout { fixed: 104, tails: &[Tail::Length(96), Tail::Length(98)] };
    static IO_URING: Layout = fixed(8);
    static ENTRY: Layout = Layout { fixed: 120, tails: &[Tail::Padded(256), Tail::Padded(256)] };
    static PTRACE: Layout = fixed(16);
    static SOCKET: Layout = fixed(48);
    static CGROUP: Layout = Layout { fixed: 88, tails: &[Tail::Length(84)] };
    static NAMESPACES: Layout = fixed(32);
    static CGROUP_MOVE: Layout = fixed(24);
    static CGROUP_GONE: Layout = fixed(8);
    Some(match kind {
        1 => &EXEC,
        2 => &FORK,
        3 => &EXIT,
        16 | 19 | 22 => &OPEN,
        17 => &CHANGE,
        18 => &PATH,
        20 => &IO_URING,
        21 => &ENTRY,
        23 => &PTRACE,
        24 => &SOCKET,
        32 => &CGROUP,
        33 => &NAMESPACES,
        34 => &CGROUP_MOVE,
        35 => &CGROUP_GONE,
        _ => return None,
    })
}

/// A word of a fixed part; 0 behind its end.
pub fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.get(index * 4..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

/// Two words as one number.
pub fn long(words: &[u32; WORDS], at: usize) -> u64 {
    u64::from(words[at]) | u64::from(words[at + 1]) << 32
}

/// And the other way.
#[expect(clippy::cast_possible_truncation, reason = "the lower and the upper half")]
pub fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use detector_common as wire;
    use detector_common::kind;

    use super::*;

    /// When this fails, the layout of the agent's records was changed: traces need a new `VERSION`, and this one stays.
    #[test]
    fn version_1_is_what_the_kernel_programs_write() {
        for (kind, fixed, tails) in [
            (
                kind::EXEC,
                size_of::<wire::Exec>(),
                &[offset_of!(wire::Exec, path_len), offset_of!(wire::Exec, argv_len)][..],
            ),
            (kind::FORK, size_of::<wire::Fork>(), &[]),
            (kind::EXIT, size_of::<wire::Exit>(), &[]),
            (kind::OPEN, size_of::<wire::Open>(), &[offset_of!(wire::Open, path_len)]),
            (kind::WRITE, size_of::<wire::Open>(), &[offset_of!(wire::Open, path_len)]),
            (kind::MAP, size_of::<wire::Open>(), &[offset_of!(wire::Open, path_len)]),
            (kind::CHANGE, size_of::<wire::Change>(), &[]),
            (
                kind::PATH,
                size_of::<wire::PathCall>(),
                &[offset_of!(wire::PathCall, len), offset_of!(wire::PathCall, len) + 2],
            ),
            (kind::IO_URING, size_of::<wire::IoUring>(), &[]),
            (kind::ENTRY, offset_of!(wire::Entry, names), &[256, 256]),
            (kind::PTRACE, size_of::<wire::Ptrace>(), &[]),
            (kind::SOCKET, size_of::<wire::Socket>(), &[]),
            (kind::CGROUP, size_of::<wire::Cgroup>(), &[offset_of!(wire::Cgroup, path_len)]),
            (kind::NAMESPACES, size_of::<wire::Namespaces>(), &[]),
            (kind::CGROUP_MOVE, size_of::<wire::CgroupMove>(), &[]),
            (kind::CGROUP_GONE, size_of::<wire::CgroupGone>(), &[]),
        ] {
            let known = layout(kind).unwrap();
            let ends: Vec<_> = known.tails.iter().map(|(Tail::Length(at) | Tail::Padded(at))| *at).collect();
            assert_eq!((known.fixed, &ends[..]), (fixed, tails), "kind {kind}");
            assert!(known.fixed.is_multiple_of(4) && known.words() <= WORDS);
        }
        assert_eq!(size_of::<wire::Entry>(), 120 + 512);
        assert_eq!((kind::EXEC, kind::FORK, kind::EXIT), (EXEC, FORK, EXIT));
        for (at, word) in [
            (offset_of!(wire::Header, len), 1),
            (offset_of!(wire::Header, time_ns), header::TIME),
            (offset_of!(wire::Header, start_ns), header::START),
            (offset_of!(wire::Header, cgroup), header::CGROUP),
            (offset_of!(wire::Header, tgid), header::TGID),
            (offset_of!(wire::Header, tid), header::TID),
            (offset_of!(wire::Header, uid), header::UID),
            (offset_of!(wire::Header, login_uid), header::LOGIN_UID),
            (offset_of!(wire::Header, mnt_ns), header::MNT_NS),
            (offset_of!(wire::Header, pid_ns), header::PID_NS),
            (offset_of!(wire::Header, comm), header::COMM),
            (size_of::<wire::Header>(), HEADER),
            (offset_of!(wire::Fork, child_start_ns), fork::CHILD_START),
            (offset_of!(wire::Fork, child_tgid), fork::CHILD_TGID),
            (offset_of!(wire::Fork, parent_start_ns), fork::PARENT_START),
            (offset_of!(wire::Fork, parent_tgid), fork::PARENT_TGID),
            (offset_of!(wire::Exec, ino), exec::INO),
            (offset_of!(wire::Exec, parent_start_ns), exec::PARENT_START),
            (offset_of!(wire::Exec, dev), exec::DEV),
            (offset_of!(wire::Exec, tty), exec::TTY),
            (offset_of!(wire::Exec, shared), exec::SHARED),
            (offset_of!(wire::Exec, inner_pid), exec::INNER_PID),
        ] {
            assert_eq!(at, word * 4);
        }
    }
}
