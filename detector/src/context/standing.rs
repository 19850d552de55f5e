//! What stands: the records from which a stream that is already under way can be understood. They open each later segment of a
//! recording. Pure.

use std::collections::BTreeMap;

use crate::{
    context::Context,
    record::{
        Body, BootNs, ChangeKind, Components, ContainerInfo, ImageArrival, ImageNames, InodeKey, LogsChange,
        ManifestChange, NodeLogs, PauseConfig, ProcessSeed, Record, Rules, Secret, SharedNamespaces, Start, Watched,
    },
};

/// Most manifests, images and configurations of each kind that are kept.
const MAX: usize = 4_096;
/// Most bytes of manifests that are kept; of those beyond, all but the content.
const CONTENT_MAX: usize = 16 << 20;

/// The last word on everything that [`Context`] does not keep itself.
#[derive(Debug, Default)]
pub struct Standing {
    start: Option<(BootNs, Box<Start>)>,
    rules: Option<Box<Rules>>,
    watched: Option<Watched>,
    /// By directory and name, as if they were there when the agent started.
    manifests: BTreeMap<(String, String), Box<ManifestChange>>,
    content: usize,
    images: BTreeMap<String, Box<ImageArrival>>,
    names: BTreeMap<String, Box<ImageNames>>,
    pause: BTreeMap<String, Box<PauseConfig>>,
    secrets: BTreeMap<InodeKey, Box<Secret>>,
    components: Option<Box<Components>>,
    logs: BTreeMap<String, Box<NodeLogs>>,
}

impl Standing {
    /// Takes the next record of the stream.
    pub fn observe(&mut self, record: &Record) {
        match &record.body {
            Body::Start(start) => self.start = Some((record.time, start.clone())),
            Body::Config(rules) => self.rules = Some(rules.clone()),
            Body::Watched(watched) => self.watched = Some(watched.clone()),
            Body::Manifest(change) => self.manifest(record.time, change),
            Body::Image(image) => {
                let image = Box::new(ImageArrival { present: true, ..ImageArrival::clone(image) });
                keep(&mut self.images, image.digest.clone(), image);
            }
            Body::ImageNames(names) => keep(&mut self.names, names.id.clone(), names.clone()),
            Body::PauseConfig(config) => {
                let config = Box::new(PauseConfig { before: None, ..PauseConfig::clone(config) });
                keep(&mut self.pause, config.path.clone(), config);
            }
            Body::Secret(secret) if secret.gone => drop(self.secrets.remove(&secret.inode)),
            Body::Secret(secret) => keep(&mut self.secrets, secret.inode, secret.clone()),
            Body::Components(components) => self.components = Some(components.clone()),
            Body::NodeLogs(logs) => match logs.change {
                LogsChange::Watched { .. } => keep(&mut self.logs, logs.path.clone(), logs.clone()),
                LogsChange::Unwatched => drop(self.logs.remove(&logs.path)),
                LogsChange::Emptied { .. } | LogsChange::Empty { .. } | LogsChange::Removed { .. } => {}
            },
            _ => {}
        }
    }

    fn manifest(&mut self, time: BootNs, change: &ManifestChange) {
        let key = (change.dir.clone(), change.name.clone());
        let content = |change: &ManifestChange| change.after.as_ref().map_or(0, |after| after.content.len());
        if let Some(before) = self.manifests.remove(&key) {
            self.content -= content(&before);
        }
        if change.after.is_none() {
            return;
        }
        let mut standing = ManifestChange { change: ChangeKind::Present, before: None, since: time, ..change.clone() };
        if self.content + content(&standing) > CONTENT_MAX
            && let Some(after) = &mut standing.after
        {
            after.content.clear();
            after.truncated = true;
        }
        if self.manifests.len() < MAX {
            self.content += content(&standing);
            self.manifests.insert(key, Box::new(standing));
        }
    }

    /// The records, in the order in which an agent that starts yields them. All have the number `seq` of the last record of the
    /// stream before; none of them is one of the stream's own.
    #[must_use]
    pub fn records(&self, context: &Context, seq: u64, now: BootNs) -> Vec<Record> {
        let mut records = Vec::new();
        let mut push = |time, body| records.push(Record { seq, time, body });
        if let Some((time, start)) = &self.start {
            push(*time, Body::Start(start.clone()));
        }
        if let Some(rules) = &self.rules {
            push(now, Body::Config(rules.clone()));
        }
        self.pause.values().for_each(|config| push(now, Body::PauseConfig(config.clone())));
        self.images.values().for_each(|image| push(now, Body::Image(image.clone())));
        self.names.values().for_each(|names| push(now, Body::ImageNames(names.clone())));
        for (id, path) in context.cgroups.iter() {
            push(now, Body::Cgroup { id, path: path.to_owned() });
        }
        for info in context.containers.iter().map(|container| &container.info) {
            push(now, Body::Container(Box::new(ContainerInfo::clone(info))));
        }
        // What happened before they were looked at must still count as older.
        seeds(context).into_iter().for_each(|seed| push(context.seeded, Body::Process(Box::new(seed))));
        context.acting.iter().for_each(|file| push(now, Body::Executed(Box::new(file))));
        if let Some(watched) = &self.watched {
            push(now, Body::Watched(watched.clone()));
        }
        self.manifests.values().for_each(|change| push(now, Body::Manifest(change.clone())));
        self.secrets.values().for_each(|secret| push(now, Body::Secret(secret.clone())));
        if let Some(components) = &self.components {
            push(now, Body::Components(components.clone()));
        }
        self.logs.values().for_each(|logs| push(now, Body::NodeLogs(logs.clone())));
        if let Some(clients) = context.clients.standing() {
            push(now, Body::Clients(Box::new(clients)));
        }
        records
    }
}

fn keep<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) {
    if map.len() < MAX || map.contains_key(&key) {
        map.insert(key, value);
    }
}

/// The processes that run, and those that others descend from; parents first.
fn seeds(context: &Context) -> Vec<ProcessSeed> {
    let mut seeds: Vec<_> = context
        .processes
        .iter()
        .filter(|(_, process)| process.exited.is_none() || process.is_parent())
        .map(|(key, process)| {
            let first = context.container_of(key).filter(|container| container.init == Some(key));
            ProcessSeed {
                pid: key.pid,
                start: key.start,
                parent_pid: process.parent.map_or(0, |parent| parent.pid),
                parent_start: process.parent.map(|parent| parent.start),
                exe: process.program.exe.clone(),
                argv: process.program.argv.to_vec(),
                argv_truncated: process.program.argv_truncated,
                uid: process.uid,
                login_uid: process.login_uid,
                tty: process.program.tty.as_deref().map(str::to_owned),
                cgroup_id: process.cgroup,
                mnt_ns: first.map_or(process.mnt_ns, |first| first.namespaces.mnt),
                pid_ns: process.pid_ns,
                shared: first.map_or_else(SharedNamespaces::default, |first| first.namespaces.shared),
                inner_pid: u32::from(first.is_some()),
                exited: process.exited,
                again: false,
            }
        })
        .collect();
    seeds.sort_by_key(|seed| (seed.start, seed.pid));
    // Within one tick of the clock a parent may have the higher number.
    let depth = |seed: &ProcessSeed| {
        let key = seed.key();
        context.processes.lineage(key).take_while(|(above, _)| above.start == seed.start).count()
    };
    seeds.sort_by_cached_key(|seed| (seed.start, depth(seed)));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::Pipeline,
        record::{ExecutedFile, ProcessKey},
        sink,
        testing::{self, Actor, DIR, FILE, POD, Stream, manifest},
    };

    /// A stream in which `before` happened, then `after`, split where a segment would be: the alerts of the second part live, and
    /// those of its records behind the ones that stood.
    fn both(before: impl FnOnce(&mut Stream), after: impl FnOnce(&mut Stream)) -> [Vec<String>; 2] {
        let mut stream = Stream::new();
        before(&mut stream);
        let split = stream.records.len();
        after(&mut stream);
        let (mut live, mut standing) = (Pipeline::new(), Standing::default());
        for record in &stream.records[..split] {
            live.push(record);
            standing.observe(record);
        }
        let last = &stream.records[split - 1];
        let opening = standing.records(live.context(), last.seq, last.time);
        let mut later = Pipeline::new();
        opening.iter().for_each(|record| drop(later.push(record)));
        [&mut live, &mut later].map(|pipeline| {
            let alerts = stream.records[split..].iter().flat_map(|record| pipeline.push(record));
            alerts.map(|alert| sink::json(&alert).unwrap()).collect()
        })
    }

    fn same(before: impl FnOnce(&mut Stream), after: impl FnOnce(&mut Stream)) -> Vec<String> {
        let [live, later] = both(before, after);
        assert!(!live.is_empty());
        assert_eq!(live, later);
        live
    }

    #[test]
    fn lineage_of_the_exited_and_arguments_come_along() {
        let (shell, launcher, writer) = (Actor::host(50, 10), Actor::host(60, 90), Actor::host(59, 90));
        let alerts = same(
            |stream| {
                stream.kernel(testing::fork(shell, launcher));
                stream.kernel(testing::exec(launcher, shell, "/bin/launcher", &["launcher", "x y"]));
                // Within the same tick of the clock, with a lower number than its parent.
                stream.kernel(testing::fork(launcher, writer));
                stream.kernel(testing::exec(writer, launcher, "/bin/writer", &["writer"]));
                stream.kernel(testing::exit(launcher));
                let since = stream.now();
                stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
            },
            |stream| {
                stream.kernel(testing::open(writer, FILE, DIR, "/manifests/web.yaml"));
                let since = stream.now();
                stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Modified, Some(POD), since))));
            },
        );
        assert!(alerts[0].contains("/bin/launcher") && alerts[0].contains("/sbin/init"), "{alerts:?}");
    }

    #[test]
    fn digests_of_what_acted_come_along() {
        let (shell, writer) = (Actor::host(50, 10), Actor::host(60, 90));
        let plants = |stream: &mut Stream| {
            let since = stream.now();
            stream.kernel(testing::open(writer, FILE, DIR, "/manifests/web.yaml"));
            stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Modified, Some(POD), since))));
        };
        for twice in [false, true] {
            let alerts = same(
                |stream| {
                    stream.kernel(testing::exec(writer, shell, "/bin/writer", &["writer"]));
                    let acted = stream.now();
                    for digest in ["ef", "cd"].into_iter().take(1 + usize::from(twice)) {
                        stream.push(Body::Executed(Box::new(ExecutedFile {
                            process: ProcessKey::from_ns(writer.pid, writer.start * testing::SECOND),
                            sha256: Some(digest.repeat(32)),
                            size: 1,
                            unreadable: None,
                            acted: Some(acted),
                        })));
                    }
                },
                plants,
            );
            // Of a process that was two programs it is not known which acted.
            assert_eq!(alerts[0].contains(&"ef".repeat(32)), !twice, "{alerts:?}");
        }
    }

    #[test]
    fn containers_their_first_processes_and_their_probes_come_along() {
        let (init, other) = (Actor { pid: 60, start: 90, cgroup: 7, mnt_ns: 70, pid_ns: 71 }, Actor::host(80, 95));
        let shell = Actor::host(50, 10);
        let alerts = same(
            |stream| {
                stream.kernel(testing::cgroup(shell, 7, "/kubepods/pod1/c1"));
                let member = crate::record::ContainerRole::Member;
                stream.push(Body::Container(Box::new(testing::container("c1", 7, member, "app"))));
                stream.kernel(testing::fork(shell, init));
                let shared = detector_common::Shared::default();
                stream.kernel(testing::exec_in(init, shell, "/app", &["app"], shared, 1, ""));
                // What the container itself makes is no entry, before and after.
                stream.kernel(testing::fork(init, Actor { pid: 61, start: 91, ..init }));
            },
            |stream| {
                let own = Actor { pid: 61, start: 91, ..init };
                stream.kernel(testing::exec_in(own, init, "/bin/own", &["own"], Default::default(), 2, ""));
                stream.kernel(testing::fork(shell, other));
                stream.kernel(testing::namespaces(other, 70, 71, Default::default()));
                let inside = Actor { mnt_ns: 70, pid_ns: 71, ..other };
                stream.kernel(testing::exec_in(inside, shell, "/bin/sh", &["sh"], Default::default(), 17, ""));
            },
        );
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        assert!(alerts[0].contains("web-node-1"), "{alerts:?}");
    }

    #[test]
    fn secrets_and_the_control_plane_come_along() {
        use crate::{record::InodeKey, testing_control as control};
        let cat = Actor::host(60, 90);
        let alerts = same(control::add, |stream| {
            stream.kernel(testing::fork(Actor::host(50, 10), cat));
            stream.kernel(control::read(control::KUBELET, control::TOKEN, "/v/token"));
            stream.kernel(control::read(cat, control::TOKEN, "/v/token"));
            stream.kernel(control::connect(control::API_SERVER, "10.0.0.5:2379", detector_common::endpoint::ETCD));
            stream.kernel(control::connect(cat, "10.0.0.5:2379", detector_common::endpoint::ETCD));
        });
        assert_eq!(alerts.len(), 2, "{alerts:?}");
        // One that is gone is not told any more.
        let gone = |stream: &mut Stream| {
            control::add(stream);
            let Body::Secret(mut secret) =
                control::secret(InodeKey { ino: 0, ..control::TOKEN }, crate::record::SecretKind::Token, "/v", None)
            else {
                panic!()
            };
            secret.gone = true;
            stream.push(Body::Secret(secret));
        };
        let reads = |stream: &mut Stream| stream.kernel(control::read(Actor::host(50, 10), control::TOKEN, "/v/token"));
        assert_eq!(both(gone, reads), [Vec::<String>::new(), Vec::new()]);
    }

    #[test]
    fn manifests_are_kept_within_a_bound_and_removed_ones_are_not() {
        let mut standing = Standing::default();
        let big = "x".repeat(crate::record::MANIFEST_KEEP);
        for n in 0..100 {
            let mut change = manifest(ChangeKind::Added, Some(&big), BootNs(1));
            change.name = format!("{n}.yaml");
            standing.observe(&Record { seq: 1, time: BootNs(2), body: Body::Manifest(Box::new(change)) });
        }
        assert_eq!(standing.manifests.len(), 100);
        assert!(standing.content <= CONTENT_MAX);
        assert!(standing.manifests.values().any(|kept| kept.after.as_ref().unwrap().truncated));
        for n in 0..100 {
            let mut change = manifest(ChangeKind::Removed, None, BootNs(1));
            change.name = format!("{n}.yaml");
            standing.observe(&Record { seq: 1, time: BootNs(2), body: Body::Manifest(Box::new(change)) });
        }
        assert_eq!((standing.manifests.len(), standing.content), (0, 0));
    }
}
