//! Commands that kubelet runs in containers by itself: exec probes and life-cycle hooks, as manifests and the runtime tell.

use std::collections::BTreeMap;

use crate::{
    argv::Argv,
    context::container::Container,
    manifest::{self, Parsed},
    record::ManifestChange,
};

/// Most manifests remembered: as many as the view looks at.
const MAX: usize = 16_384;

/// What the manifests have kubelet run.
#[derive(Debug, Default)]
pub struct Probes {
    /// By directory and file name.
    manifests: BTreeMap<(String, String), manifest::Manifest>,
}

impl Probes {
    /// Learns from a manifest that was there, came or changed.
    pub fn learn(&mut self, change: &ManifestChange) {
        let key = (change.dir.clone(), change.name.clone());
        self.manifests.remove(&key);
        let Some(after) = change.after.as_ref().filter(|after| change.visible && after.unreadable.is_none()) else {
            return;
        };
        if let Parsed::Pods(pods) = manifest::parse(&after.content)
            && let Some(pod) = pods.into_iter().next().filter(|pod| !pod.execs.is_empty())
            && self.manifests.len() < MAX
        {
            self.manifests.insert(key, pod);
        }
    }

    /// What kind of command this is, if it is one that kubelet is told to run in the container.
    pub fn knows(&self, container: &Container, argv: &Argv) -> Option<&'static str> {
        if container.info.expected_execs.iter().any(|expected| argv == expected.as_slice()) {
            return Some("life-cycle hook");
        }
        let (pod, name) = (container.info.pod.as_ref()?, container.info.name.as_ref()?);
        // kubelet calls a static pod by its manifest's name and the node's.
        let is_pod = |manifest: &manifest::Manifest| {
            manifest.namespace == pod.namespace
                && pod.name.strip_prefix(manifest.name.as_str()).is_some_and(|rest| rest.starts_with('-'))
        };
        self.manifests
            .values()
            .filter(|manifest| is_pod(manifest))
            .flat_map(|manifest| &manifest.execs)
            .find(|exec| exec.container == *name && argv == exec.command.as_slice())
            .map(|exec| exec.kind)
    }
}
