//! What an OCI configuration says that matters here.

use std::{collections::BTreeMap, fmt, marker::PhantomData, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::record::{ContainerInfo, ContainerRole, InfoFrom, PodRef, bounded};

/// The part of `config.json` that matters here. Unknown fields are skipped without being kept.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Required by the specification: what has none is something else.
    #[serde(rename = "ociVersion")]
    _version: String,
    #[serde(default)]
    annotations: Annotations,
    #[serde(default)]
    linux: Linux,
    #[serde(default)]
    process: Process,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: String,
    /// The first of them that is a pid namespace.
    #[serde(default, rename = "namespaces", deserialize_with = "pid_namespace")]
    pid_namespace: Option<NamespaceConfig>,
}

#[derive(Debug, Default, Deserialize)]
struct NamespaceConfig {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Debug, Default, Deserialize)]
struct Capabilities {
    /// CAP_SYS_ADMIN is among them.
    #[serde(default, rename = "bounding", deserialize_with = "has_admin")]
    admin: bool,
}

fn pid_namespace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NamespaceConfig>, D::Error> {
    let mut found = None;
    each(deserializer, |namespace: NamespaceConfig| {
        if found.is_none() && namespace.kind == "pid" {
            found = Some(namespace);
        }
    })?;
    Ok(found)
}

fn has_admin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let mut found = false;
    each(deserializer, |name: String| found |= name == "CAP_SYS_ADMIN")?;
    Ok(found)
}

/// Goes through a list without keeping it: in memory it could take twenty times what it takes in the file.
fn each<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D, with: impl FnMut(T)) -> Result<(), D::Error> {
    struct Each<T, F>(F, PhantomData<T>);
    impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(item) = list.next_element()? {
                (self.0)(item);
            }
            Ok(())
        }
    }
    deserializer.deserialize_seq(Each(with, PhantomData))
}

/// Annotations that runtimes make; others are somebody else's and are not kept.
#[derive(Debug, Default)]
struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = Annotations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of annotations")
            }
            fn visit_unit<E>(self) -> Result<Annotations, E> {
                Ok(Annotations::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                const OURS: [&str; 4] = ["io.kubernetes.", "io.podman.", "io.container.", "org.opencontainers."];
                let mut kept = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if kept.len() < 64 && key.len() < 128 && OURS.iter().any(|ours| key.starts_with(ours)) {
                        let value = map.next_value::<String>()?;
                        kept.insert(key, bounded(&value));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(kept))
            }
        }
        deserializer.deserialize_any(Ours)
    }
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Whether the container of this configuration lives in this cgroup: at its `cgroupsPath`, or, with the systemd driver, in the
    /// scope that `slice:prefix:name` stands for. The hierarchy may be mounted below another cgroup.
    pub fn is_of(&self, path: &str) -> bool {
        let wanted = self.linux.cgroups_path.as_str();
        let parts: Vec<_> = wanted.split(':').collect();
        match parts.as_slice() {
            [""] => true,
            [slice, prefix, name] => {
                let scope =
                    if prefix.is_empty() { format!("/{name}.scope") } else { format!("/{prefix}-{name}.scope") };
                // podman and others make a cgroup for the container below its scope.
                let above = path.strip_suffix("/container").unwrap_or(path);
                above.ends_with(&scope) && (slice.is_empty() || above.contains(&format!("/{slice}/")))
            }
            _ => {
                let wanted = wanted.trim_matches('/');
                let path = path.trim_start_matches('/');
                path == wanted || path.strip_suffix(wanted).is_some_and(|above| above.ends_with('/'))
            }
        }
    }

    pub fn info(&self, id: &str, cgroup_id: u64, path: &str, dir: &Path) -> ContainerInfo {
        let get = |key: &str| self.annotations.0.get(key).filter(|value| !value.is_empty()).cloned();
        let first = |keys: &[&str]| keys.iter().find_map(|key| get(key));
        let kind = first(&["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]);
        let role = match kind.as_deref() {
            Some("sandbox") => ContainerRole::Sandbox,
            Some("container") => ContainerRole::Member,
            _ => ContainerRole::Plain,
        };
        let pid = self.linux.pid_namespace.as_ref();
        let pod = match (
            first(&[
                "io.kubernetes.cri.sandbox-namespace",
                "io.kubernetes.pod.namespace",
                "io.kubernetes.cri-o.Namespace",
            ]),
            first(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName"]),
            first(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
        ) {
            (Some(namespace), Some(name), uid) => {
                Some(PodRef { namespace, name, uid: uid.or_else(|| pod_uid(path)).unwrap_or_default() })
            }
            // A sandbox of containerd before 1.7 names its pod by the directory of its logs alone.
            _ => get("io.kubernetes.cri.sandbox-log-directory").and_then(|logs| pod_of_logs(&logs)),
        };
        let sandbox = first(&["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"]);
        ContainerInfo {
            id: id.to_owned(),
            cgroup_id: Some(cgroup_id),
            from: InfoFrom::Bundle(dir.display().to_string()),
            role,
            name: first(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name"]),
            image: first(&[
                "io.kubernetes.cri.image-name",
                "io.kubernetes.cri.podsandbox.image-name",
                "io.kubernetes.cri-o.ImageName",
                "org.opencontainers.image.ref.name",
            ]),
            image_digest: first(&["io.kubernetes.cri-o.ImageRef", "io.kubernetes.cri-o.Image"]),
            pod,
            sandbox_id: sandbox.or_else(|| (role == ContainerRole::Sandbox).then(|| id.to_owned())),
            labels: BTreeMap::new(),
            host_pid: pid.is_none(),
            privileged: self.process.capabilities.admin,
            joins_pid_of: pid.and_then(|pid| pid.path.strip_prefix("/proc/")?.split('/').next()?.parse().ok()),
            expected_execs: Vec::new(),
            unreadable: None,
        }
    }
}

/// `/var/log/pods/<namespace>_<name>_<uid>`: none of the three can hold an underscore.
fn pod_of_logs(logs: &str) -> Option<PodRef> {
    let mut parts = logs.trim_end_matches('/').rsplit('/').next()?.splitn(3, '_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    Some(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
}

/// The pod's uid in a cgroup's path: `pod<uid>`, with underscores for dashes under the systemd driver.
fn pod_uid(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let (_, uid) = part.rsplit_once("pod").filter(|(before, _)| before.is_empty() || before.ends_with('-'))?;
        (uid.len() >= 32).then(|| uid.replace('_', "-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_namespaces_and_capabilities_those_that_matter_are_found() {
        let text = |capability: &str, namespaces: &str| {
            format!(
                r#"{{"ociVersion":"1","process":{{"capabilities":{{"bounding":["CAP_KILL","{capability}","CAP_CHOWN"]}}}},"linux":{{"namespaces":[{namespaces}]}}}}"#
            )
        };
        let info = |text: &str| Config::parse(text.as_bytes()).unwrap().info("id", 1, "/id", Path::new("/b"));
        let namespaces =
            r#"{"type":"mount","path":"/proc/3/ns/mnt"},{"type":"pid","path":"/proc/7/ns/pid"},{"type":"pid"},{}"#;
        let found = info(&text("CAP_SYS_ADMIN", namespaces));
        assert_eq!((found.privileged, found.host_pid, found.joins_pid_of), (true, false, Some(7)));
        let none = info(&text("CAP_SYS_TIME", r#"{"type":"mount"}"#));
        assert_eq!((none.privileged, none.host_pid, none.joins_pid_of), (false, true, None));
        let error = Config::parse(br#"{"ociVersion":"1","linux":{"namespaces":{}}}"#).unwrap_err();
        assert!(error.to_string().contains("expected a list"), "{error}");
    }
}
