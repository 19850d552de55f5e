//! What manifests say of static pods: which commands kubelet runs in their containers by itself, and what of the host they are given.

use std::{collections::BTreeMap, path::Path};

use crate::{
    argv::Argv,
    context::container::Container,
    manifest::{self, Manifest, Parsed},
    record::{ManifestChange, PodRef},
};

/// Most manifests remembered: as many as the view looks at.
const MAX: usize = 16_384;

/// What manifests say.
#[derive(Debug, Default)]
pub struct StaticPods {
    /// Those that say any of that, by directory and file name.
    pods: BTreeMap<(String, String), Manifest>,
    /// What the change that was learned last left.
    last: Option<Parsed>,
}

impl StaticPods {
    /// Learns from a manifest that was there, came or changed.
    pub(super) fn learn(&mut self, change: &ManifestChange) {
        let key = (change.dir.clone(), change.name.clone());
        self.pods.remove(&key);
        let after = change.after.as_ref().filter(|after| after.unreadable.is_none());
        self.last = after.map(|after| manifest::parse(&after.content));
        if change.visible
            && let Some(Parsed::Pods(pods)) = &self.last
            && let Some(pod) = pods.first()
            && !(pod.execs.is_empty() && pod.host_paths.is_empty())
            && self.pods.len() < MAX
        {
            self.pods.insert(key, pod.clone());
        }
    }

    /// What the manifest is that the record is about which was learned last; `None` where none is there that can be read.
    #[must_use]
    pub fn last(&self) -> Option<&Parsed> {
        self.last.as_ref()
    }

    /// Of what kind this command is, if it is one that kubelet or Docker is told to run in the container, by the pod's manifest or the
    /// runtime's word.
    #[must_use]
    pub fn probe(&self, container: &Container, argv: &Argv) -> Option<&'static str> {
        if container.info.expected_execs.iter().any(|expected| argv == expected.as_slice()) {
            return Some(if container.info.pod.is_some() { "life-cycle hook" } else { "health check" });
        }
        let (pod, name) = (container.info.pod.as_ref()?, container.info.name.as_ref()?);
        self.of(pod)
            .flat_map(|manifest| &manifest.execs)
            .find(|exec| exec.container == *name && argv == exec.command.as_slice())
            .map(|exec| exec.kind)
    }

    /// Whether the manifest of a container's pod gives it this file by its own path or a directory around it. One that is given
    /// the whole host, or all of `/etc` or `/var`, is not given this file on purpose.
    #[must_use]
    pub fn give(&self, container: &Container, path: &str) -> bool {
        let Some(pod) = &container.info.pod else { return false };
        let gives = |given: &String| Path::new(given).components().count() > 2 && Path::new(path).starts_with(given);
        self.of(pod).any(|manifest| manifest.host_paths.iter().any(gives))
    }

    /// kubelet calls a static pod by its manifest's name and the node's.
    fn of(&self, pod: &PodRef) -> impl Iterator<Item = &Manifest> {
        self.pods.values().filter(|manifest| {
            let rest = pod.name.strip_prefix(manifest.name.as_str());
            manifest.namespace == pod.namespace && rest.is_some_and(|rest| rest.starts_with('-'))
        })
    }
}
