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

/// Manifests that say any of that, by directory and file name.
#[derive(Debug, Default)]
pub struct StaticPods(BTreeMap<(String, String), Manifest>);

impl StaticPods {
    /// Learns from a manifest that was there, came or changed.
    pub(super) fn learn(&mut self, change: &ManifestChange) {
        let key = (change.dir.clone(), change.name.clone());
        self.0.remove(&key);
        let Some(after) = change.after.as_ref().filter(|after| change.visible && after.unreadable.is_none()) else {
            return;
        };
        if let Parsed::Pods(pods) = manifest::parse(&after.content)
            && let Some(pod) = pods.into_iter().next()
            && !(pod.execs.is_empty() && pod.host_paths.is_empty())
            && self.0.len() < MAX
        {
            self.0.insert(key, pod);
        }
    }

    /// Of what kind this command is, if it is one that kubelet is told to run in the container, by the pod's manifest or the runtime's word.
    #[must_use]
    pub fn probe(&self, container: &Container, argv: &Argv) -> Option<&'static str> {
        if container.info.expected_execs.iter().any(|expected| argv == expected.as_slice()) {
            return Some("life-cycle hook");
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
        self.0.values().filter(|manifest| {
            let rest = pod.name.strip_prefix(manifest.name.as_str());
            manifest.namespace == pod.namespace && rest.is_some_and(|rest| rest.starts_with('-'))
        })
    }
}
