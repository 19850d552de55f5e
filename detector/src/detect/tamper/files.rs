//! Acts of others on the agent's own files.

use detector_common::{hook, watch};

use crate::{
    decode::{Event, hook_name, syscall_name},
    detect::base,
    record::{InodeKey, Own, OwnFile, OwnRole},
};

/// An act.
pub struct Act<'a> {
    pub role: OwnRole,
    /// The file, as far as the act names it.
    pub path: String,
    /// What was done with it, in words.
    pub verb: &'a str,
}

/// What an event does to the agent's files, when it is somebody else's. A file that goes is not known by its number any more, which
/// is soon another's.
pub fn act<'a>(event: &'a Event, own: &mut Own) -> Option<Act<'a>> {
    let header = event.header();
    if header.tgid == own.pid {
        return None;
    }
    let key = |dev, ino| InodeKey { dev, ino };
    match event {
        Event::Open(open) | Event::Write(open) | Event::Map(open) if open.event.watch & watch::OWN != 0 => {
            let (file, dir) = (key(open.event.dev, open.event.ino), key(open.event.dev, open.event.parent_ino));
            let found = own
                .files
                .iter()
                .find(|known| known.file == Some(file) || (known.dir == dir && names(known, base(&open.path))))?;
            Some(Act { role: found.role, path: open.path.clone(), verb: "opened for writing" })
        }
        Event::Entry(entry) if entry.watch & watch::OWN != 0 => {
            let dirs = [key(entry.dev, entry.dir_ino), key(entry.dev, entry.to_dir_ino)];
            let verb = match header.hook {
                hook::INODE_UNLINK => "removed",
                hook::INODE_RENAME => "renamed",
                // ATTR_SIZE. Who may read it, and when it was read, is not what it says.
                hook::INODE_SETATTR if entry.attributes & 1 << 3 != 0 => "truncated",
                hook::INODE_SETATTR => return None,
                _ => hook_name(header.hook),
            };
            entry.names.iter().find_map(|name| found(own, &dirs, name, verb))
        }
        Event::Path(call) if call.event.watch & watch::OWN != 0 => {
            let verb = match syscall_name(call.event.syscall, call.event.compat != 0) {
                Some("unlink" | "unlinkat") => "removed",
                Some("rename" | "renameat" | "renameat2") => "renamed",
                other => other.unwrap_or("changed"),
            };
            let dirs = [key(call.event.dev, call.event.ino)];
            call.paths.iter().find_map(|path| found(own, &dirs, base(path), verb))
        }
        _ => None,
    }
}

/// The agent's file of this name in one of these directories.
fn found<'a>(own: &mut Own, dirs: &[InodeKey], name: &str, verb: &'a str) -> Option<Act<'a>> {
    let mut files = own.files.iter_mut();
    let known = files.find(|known| dirs.contains(&known.dir) && !name.is_empty() && names(known, name))?;
    if matches!(verb, "removed" | "renamed") {
        known.file = None;
    }
    let dir = match &known.name {
        Some(_) => known.path.rsplit_once('/').map_or("", |(dir, _)| dir),
        None => &known.path,
    };
    Some(Act { role: known.role, path: format!("{dir}/{name}"), verb })
}

/// Whether an entry of its directory is this file: by its name, or by the link that a ConfigMap's files are behind.
fn names(known: &OwnFile, name: &str) -> bool {
    known.name.as_deref().is_none_or(|known| known == name || name == "..data")
}

#[cfg(test)]
mod tests {
    use detector_common as wire;

    use crate::{
        alert::Severity,
        record::{Body, DirState, InodeKey, Own, OwnFile, OwnRole, Start, WatchReason, Watched, WatchedDir},
        testing::{self, AGENT, Actor, Stream},
    };

    const CONFIG: InodeKey = InodeKey { dev: 8, ino: 200 };
    const ETC: InodeKey = InodeKey { dev: 8, ino: 201 };
    const TRACES: InodeKey = InodeKey { dev: 8, ino: 202 };
    const OTHER: InodeKey = InodeKey { dev: 8, ino: 203 };

    fn node() -> Stream {
        let mut stream = Stream::new();
        let file = |role, path: &str, dir, file, name: Option<&str>| OwnFile {
            role,
            path: path.to_owned(),
            dir,
            file,
            name: name.map(str::to_owned),
        };
        let files = vec![
            file(OwnRole::Configuration, "/etc/d/config.yaml", ETC, Some(CONFIG), Some("config.yaml")),
            file(OwnRole::Traces, "/var/lib/d", TRACES, None, None),
        ];
        let Body::Start(start) = testing::start() else { unreachable!() };
        let own = Some(Box::new(Own { pid: AGENT, files }));
        stream.push(Body::Start(Box::new(Start { own, ..*start })));
        stream
    }

    /// An open of `file` in `dir`, of which one is the agent's.
    fn open(actor: Actor, file: InodeKey, dir: InodeKey, path: &str) -> bytes::Bytes {
        own(&testing::open(actor, file, dir, path), std::mem::offset_of!(wire::Open, watch))
    }

    fn entry(actor: Actor, hook: u16, dir: InodeKey, names: [&str; 2]) -> bytes::Bytes {
        own(&testing::entry(actor, hook, [OTHER, dir], names), std::mem::offset_of!(wire::Entry, watch))
    }

    fn own(raw: &[u8], at: usize) -> bytes::Bytes {
        let mut raw = raw.to_vec();
        raw[at..at + 4].copy_from_slice(&wire::watch::OWN.to_ne_bytes());
        raw.into()
    }

    fn told(stream: &Stream) -> Vec<(Severity, String)> {
        stream.alerts().into_iter().map(|alert| (alert.severity, alert.title)).collect()
    }

    #[test]
    fn who_writes_or_removes_the_agents_files_is_named_and_the_agent_itself_is_not() {
        let mut stream = node();
        let agent = Actor::host(AGENT, 5);
        stream.kernel(open(agent, OTHER, TRACES, "/var/lib/d/1.trace"));
        stream.kernel(entry(agent, wire::hook::INODE_UNLINK, TRACES, ["1.trace", ""]));
        // Its configuration's neighbour.
        stream.kernel(open(Actor::host(50, 10), OTHER, ETC, "/etc/d/other.yaml"));
        assert_eq!(told(&stream), []);
        stream.kernel(open(Actor::host(50, 10), CONFIG, OTHER, "/mnt/config.yaml"));
        stream.kernel(entry(Actor::host(50, 10), wire::hook::INODE_UNLINK, TRACES, ["1.trace", ""]));
        assert_eq!(
            told(&stream),
            [
                (
                    Severity::Medium,
                    "The detector's configuration: /mnt/config.yaml opened for writing by /bin/bash".to_owned()
                ),
                (Severity::High, "The detector's traces: /var/lib/d/1.trace removed by /bin/bash".to_owned()),
            ]
        );
    }

    #[test]
    fn what_uses_the_number_of_a_configuration_that_was_replaced_is_silent() {
        let mut stream = node();
        let shell = Actor::host(50, 10);
        stream.kernel(entry(shell, wire::hook::INODE_RENAME, ETC, ["config.yaml.new", "config.yaml"]));
        stream.wait(3600 * testing::SECOND);
        stream.kernel(open(shell, CONFIG, OTHER, "/tmp/anything"));
        stream.kernel(open(shell, OTHER, ETC, "/etc/d/config.yaml"));
        let of = "The detector's configuration: /etc/d/config.yaml";
        assert_eq!(
            told(&stream),
            [
                (Severity::Medium, format!("{of} renamed by /bin/bash")),
                (Severity::Medium, format!("{of} opened for writing by /bin/bash")),
            ]
        );
    }

    #[test]
    fn a_config_map_that_a_kubelet_changes_is_low() {
        let mut stream = node();
        let dir = WatchedDir {
            path: "/manifests".to_owned(),
            reason: WatchReason::KubeletFlag,
            kubelet_pid: Some(50),
            state: DirState::Missing,
        };
        stream.push(Body::Watched(Watched { dirs: vec![dir] }));
        stream.kernel(entry(Actor::host(50, 10), wire::hook::INODE_RENAME, ETC, ["..data_tmp", "..data"]));
        assert_eq!(
            told(&stream),
            [(Severity::Low, "The detector's configuration: /etc/d/..data renamed by /bin/bash".to_owned())]
        );
    }
}
