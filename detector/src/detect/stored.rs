//! Who renamed something into an image store, or wrote a runtime's configuration: acts that explain what is found there.

use std::collections::VecDeque;

use detector_common::{hook, syscall, watch};

use crate::{
    alert::Evidence,
    context::image::is_sha256,
    decode::{Event, hook_name, syscall_name},
    detect::base,
    escape::escape_to,
    record::{BootNs, ProcessKey, Record},
};

/// Most acts remembered.
const MAX: usize = 1024;
/// How long, in ns: longer than the source takes to notice without being told.
const KEEP_NS: u64 = 30_000_000_000;

/// An act on a store or a configuration file.
#[derive(Clone, Debug)]
pub struct Stored {
    pub process: ProcessKey,
    pub time: BootNs,
    /// Last component of the path that it was about.
    name: String,
    seq: u64,
    kind: &'static str,
    hook: &'static str,
    detail: String,
}

impl Stored {
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        Evidence { kind: self.kind, hook: Some(self.hook), sequence: self.seq, detail: self.detail.clone() }
    }
}

/// Recent acts, oldest first.
#[derive(Debug, Default)]
pub struct StoredActs(VecDeque<Stored>);

impl StoredActs {
    /// Whether an event is of a kind that acts on stores are.
    #[must_use]
    pub fn may_be(event: &Event) -> bool {
        matches!(event, Event::Open(_) | Event::Entry(_) | Event::Path(_))
    }

    #[inline]
    pub fn observe(&mut self, record: &Record, event: &Event) {
        if Self::may_be(event) {
            self.act(record, event);
        }
    }

    fn act(&mut self, record: &Record, event: &Event) {
        let Some((kind, name, detail)) = act(event) else { return };
        let header = event.header();
        self.0.retain(|act| record.time.0.saturating_sub(act.time.0) < KEEP_NS);
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(Stored {
            process: ProcessKey::from_ns(header.tgid, header.start_ns),
            time: record.time,
            name,
            seq: record.seq,
            kind,
            hook: hook_name(header.hook),
            detail,
        });
    }

    /// The last act on what lies at `path`, by the last component alone: stores and configuration files are watched by inode,
    /// and each process has its own path to them.
    #[must_use]
    pub fn on(&self, path: &str, found: BootNs) -> Option<&Stored> {
        let name = base(path);
        self.0.iter().rev().find(|act| act.name == name && act.time <= found && found.0 - act.time.0 < KEEP_NS)
    }
}

fn act(event: &Event) -> Option<(&'static str, String, String)> {
    let shown = |path: &str| escape_to(path, 256);
    match event {
        Event::Open(open) if open.event.watch & watch::STORE != 0 => {
            Some(("open", base(&open.path).to_owned(), format!("opened for writing: {}", shown(&open.path))))
        }
        Event::Entry(entry) if entry.watch & watch::STORE != 0 => {
            let [from, to] = &entry.names;
            let arrives = matches!(entry.header.hook, hook::INODE_RENAME | hook::INODE_LINK);
            let detail = format!("{} {} -> {}", hook_name(entry.header.hook), shown(from), shown(to));
            arrives.then(|| ("entry", to.clone(), detail))
        }
        Event::Path(call) => {
            let [from, to] = &call.paths;
            let to_name = base(to);
            let of_store = call.event.watch & watch::STORE != 0;
            // Without the change hooks nothing says which inode it was: the name has to look like one of a store's.
            let may_be =
                call.event.watch == 0 && (is_sha256(to_name) || to_name == "images.json" || to_name.ends_with(".toml"));
            let two =
                matches!(u8::try_from(call.event.class), Ok(syscall::PATHS | syscall::PATHS_AT | syscall::SYMLINK_AT));
            let name = syscall_name(call.event.syscall, call.event.compat != 0).unwrap_or("rename");
            (two && (of_store || may_be))
                .then(|| ("path", to_name.to_owned(), format!("{name} {} -> {}", shown(from), shown(to))))
        }
        _ => None,
    }
}
