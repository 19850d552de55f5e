//! What of the host static pods are given, by their manifests.

use std::{collections::BTreeMap, path::Path};

use crate::{
    context::container::Container,
    manifest::{self, Parsed},
    record::ManifestChange,
};

/// Most manifests remembered: as many as the view looks at.
const MAX: usize = 16_384;

/// Host paths by manifest.
#[derive(Debug, Default)]
pub struct HostPaths {
    /// By directory and file name: namespace, name and paths.
    manifests: BTreeMap<(String, String), (String, String, Vec<String>)>,
}

impl HostPaths {
    /// Learns from a manifest that was there, came or changed.
    pub fn learn(&mut self, change: &ManifestChange) {
        let key = (change.dir.clone(), change.name.clone());
        self.manifests.remove(&key);
        let Some(after) = change.after.as_ref().filter(|after| change.visible && after.unreadable.is_none()) else {
            return;
        };
        if let Parsed::Pods(pods) = manifest::parse(&after.content)
            && let Some(pod) = pods.into_iter().next().filter(|pod| !pod.host_paths.is_empty())
            && self.manifests.len() < MAX
        {
            self.manifests.insert(key, (pod.namespace, pod.name, pod.host_paths));
        }
    }

    /// Whether the manifest of a container's pod gives it this file by its own path or a directory around it. One that is given
    /// the whole host, or all of `/etc` or `/var`, is not given this file on purpose.
    pub fn give(&self, container: &Container, path: &str) -> bool {
        let Some(pod) = &container.info.pod else { return false };
        let is_pod = |namespace: &str, name: &str| {
            namespace == pod.namespace && pod.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        };
        let gives = |given: &String| Path::new(given).components().count() > 2 && Path::new(path).starts_with(given);
        self.manifests.values().any(|(namespace, name, paths)| is_pod(namespace, name) && paths.iter().any(gives))
    }
}
