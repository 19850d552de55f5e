//! Who acted on logs, lately: what explains that one became shorter or went away.

use std::collections::VecDeque;

use detector_common::{hook, kind, watch};

use crate::{
    alert::Evidence,
    decode::{Event, hook_name, syscall_name},
    detect::{base, kinds},
    escape::escape_to,
    record::{BootNs, InodeKey, ProcessKey, Record},
};

/// Most acts remembered.
const MAX: usize = 512;
/// For how long, in ns.
const KEEP_NS: u64 = 30_000_000_000;
/// How long before the look that still saw what was before an act may have come, in ns: security hooks come before the act, and are
/// looked for again a moment later.
const BEFORE_NS: u64 = 1_000_000_000;
/// `O_APPEND` of `file->f_flags`, `FMODE_CREATED` of `file->f_mode` (since 4.19), `ATTR_SIZE` of `iattr->ia_valid`.
const O_APPEND: u32 = 0o2000;
const FMODE_CREATED: u32 = 1 << 20;
const ATTR_SIZE: u32 = 1 << 3;

/// The kinds of kernel records that are acts on logs.
pub fn kinds_of_acts() -> u64 {
    kinds(&[kind::OPEN, kind::WRITE, kind::MAP, kind::ENTRY, kind::PATH])
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A name was removed, or leads elsewhere.
    Names,
    /// A log was made shorter or longer.
    Sized,
    /// A log that was there was opened for writing, at its end or anywhere.
    Opened { append: bool },
}

/// An act.
#[derive(Clone, Debug)]
pub struct Act {
    pub actor: ProcessKey,
    pub time: BootNs,
    pub what: What,
    /// The file, where that is known.
    pub file: Option<InodeKey>,
    /// The directories, and for names everything else that was touched.
    pub dirs: Vec<InodeKey>,
    /// As the caller, or the directory, called it.
    pub names: [String; 2],
    pub evidence: Evidence,
}

/// The acts.
#[derive(Debug, Default)]
pub struct Acts(VecDeque<Act>);

/// What is to be explained.
pub struct Effect<'a> {
    pub file: InodeKey,
    pub dir: InodeKey,
    /// The log's, and its directory's with what is above it.
    pub name: &'a str,
    pub path: &'a str,
    /// It is shorter, and not gone.
    pub emptied: bool,
    /// When it was last seen as it was.
    pub since: BootNs,
}

impl Acts {
    /// Takes note of an act, where an event is one.
    pub fn observe(&mut self, record: &Record, event: &Event) -> Option<&Act> {
        let act = act(record, event)?;
        self.0.retain(|known| {
            let same = (known.actor, known.what, known.file) == (act.actor, act.what, act.file)
                && known.dirs == act.dirs
                && known.names == act.names;
            !same && record.time.0.saturating_sub(known.time.0) < KEEP_NS
        });
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(act);
        self.0.back()
    }

    /// The last act that explains an effect, by somebody who `may_not`, else by anybody.
    pub fn who(&self, effect: &Effect<'_>, may_not: impl Fn(ProcessKey) -> bool) -> Option<&Act> {
        let fits = |act: &&Act| {
            let in_time = act.time.0 >= effect.since.0.saturating_sub(BEFORE_NS);
            // Under another name it is as long as before.
            in_time && effect.emptied != (act.what == What::Names) && touches(act, effect)
        };
        let mut found: Vec<&Act> = self.0.iter().filter(fits).collect();
        // Whoever only adds to a log is asked last: it takes another call to make it shorter.
        found.sort_by_key(|act| (may_not(act.actor), act.what != (What::Opened { append: true }), act.time));
        found.pop()
    }
}

fn touches(act: &Act, effect: &Effect<'_>) -> bool {
    if act.file == Some(effect.file) {
        return true;
    }
    if act.what != What::Names {
        return false;
    }
    if act.dirs.contains(&effect.dir) || act.dirs.contains(&effect.file) {
        return true;
    }
    // A directory above it, or an act of which the kernel does not tell what it touched.
    act.names.iter().map(|name| base(name)).filter(|name| !name.is_empty()).any(|name| {
        let hint = act.file.is_none() && act.dirs.is_empty();
        (hint && name == effect.name) || effect.path.split('/').any(|part| part == name)
    })
}

fn act(record: &Record, event: &Event) -> Option<Act> {
    let key = |dev, ino| InodeKey { dev, ino };
    let header = event.header();
    let (what, file, dirs, names, verb) = match event {
        Event::Open(open) | Event::Write(open) | Event::Map(open) if open.event.watch & watch::OWN != 0 => {
            let wire = &open.event;
            if wire.mode & FMODE_CREATED != 0 {
                return None;
            }
            let append = wire.open_flags & O_APPEND != 0;
            let dirs = vec![key(wire.dev, wire.parent_ino)];
            let verb = if append { "opened at its end" } else { "opened for writing" };
            let names = [open.path.clone(), String::new()];
            (What::Opened { append }, Some(key(wire.dev, wire.ino)), dirs, names, verb)
        }
        Event::Entry(entry) if entry.watch & watch::OWN != 0 => {
            let (what, verb) = match header.hook {
                hook::INODE_UNLINK => (What::Names, "unlink"),
                hook::INODE_RENAME => (What::Names, "rename"),
                hook::INODE_RMDIR => (What::Names, "rmdir"),
                hook::INODE_SETATTR if entry.attributes & ATTR_SIZE != 0 => (What::Sized, "truncate"),
                _ => return None,
            };
            let file = (entry.ino != 0).then(|| key(entry.dev, entry.ino));
            let dirs = [entry.dir_ino, entry.to_dir_ino, entry.to_ino].into_iter().filter(|ino| *ino != 0);
            (what, file, dirs.map(|ino| key(entry.dev, ino)).collect(), entry.names.clone(), verb)
        }
        Event::Path(call) if call.event.watch == 0 || call.event.watch & watch::OWN != 0 => {
            let verb = syscall_name(call.event.syscall, call.event.compat != 0)?;
            let what = match verb {
                "unlink" | "unlinkat" | "rmdir" | "rename" | "renameat" | "renameat2" => What::Names,
                "truncate" | "truncate64" => What::Sized,
                _ => return None,
            };
            let touched = (call.event.ino != 0).then(|| key(call.event.dev, call.event.ino));
            if touched.is_none() && !call.paths.iter().any(|path| base(path).contains(".log")) {
                return None;
            }
            // Of a change of names the inode that is told may be the directory's.
            let (file, dirs) =
                if what == What::Names { (None, touched.into_iter().collect()) } else { (touched, Vec::new()) };
            (what, file, dirs, call.paths.clone(), verb)
        }
        _ => return None,
    };
    let kind = match event {
        Event::Entry(_) => "entry",
        Event::Path(_) => "path",
        _ => "open",
    };
    let shown: Vec<_> = names.iter().filter(|name| !name.is_empty()).map(|name| escape_to(name, 128)).collect();
    let detail = format!("{verb} {}", shown.join(" -> "));
    Some(Act {
        actor: ProcessKey::from_ns(header.tgid, header.start_ns),
        time: record.time,
        what,
        file,
        dirs,
        names,
        evidence: Evidence { kind, hook: Some(hook_name(header.hook)), sequence: record.seq, detail },
    })
}
