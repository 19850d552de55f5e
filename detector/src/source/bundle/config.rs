//! What an OCI configuration says that matters here.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    context::image::is_sha256,
    record::{ContainerInfo, ContainerRole, HostMount, InfoFrom, MOUNTS_MAX, PodRef, Privileges, bounded},
    risky,
};

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
    #[serde(default, deserialize_with = "mounts")]
    mounts: Mounts,
}

#[derive(Debug, Default)]
struct Mounts {
    /// Bind mounts of sensitive places.
    sensitive: Vec<HostMount>,
    /// What is mounted at `/etc/hostname`.
    hostname: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: String,
    #[serde(default, deserialize_with = "namespaces")]
    namespaces: Namespaces,
    #[serde(default)]
    seccomp: Option<IgnoredAny>,
    #[serde(default)]
    resources: Resources,
}

#[derive(Debug, Default)]
struct Namespaces {
    /// Path of the first of them that is a pid namespace; empty for a new one.
    pid: Option<String>,
    net: bool,
    ipc: bool,
    user: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Resources {
    /// Every device may be used.
    #[serde(default, deserialize_with = "all_devices")]
    devices: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Device<'a> {
    #[serde(default)]
    allow: bool,
    #[serde(default, rename = "type", borrow)]
    kind: Option<Text<'a>>,
    #[serde(default)]
    major: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct Mount<'a> {
    #[serde(default, borrow)]
    destination: Text<'a>,
    #[serde(default, borrow)]
    source: Text<'a>,
    #[serde(default, rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default, deserialize_with = "is_read_only")]
    options: Options,
}

#[derive(Debug, Default)]
struct Options {
    bind: bool,
    read_only: bool,
}

#[derive(Debug, Default, Deserialize)]
struct NamespaceConfig<'a> {
    #[serde(default, rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default, borrow)]
    path: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    capabilities: Capabilities,
    /// Where kubelet says that the cluster's API server is.
    #[serde(default, rename = "env", deserialize_with = "api_server")]
    api: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
struct Capabilities {
    #[serde(default, deserialize_with = "dangerous")]
    bounding: Vec<String>,
}

/// Those of the capabilities that runtimes give every container that are dangerous in a pod's specification.
const USUAL: [&str; 2] = ["CAP_DAC_OVERRIDE", "CAP_NET_RAW"];
/// Files that a runtime makes for each container, by where it mounts them.
const MADE: [(&str, &str); 5] = [
    ("/dev/shm", "shm"),
    ("/etc/hostname", "hostname"),
    ("/etc/resolv.conf", "resolv.conf"),
    ("/etc/hosts", "hosts"),
    ("/etc/hosts", "etc-hosts"),
];

fn namespaces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Namespaces, D::Error> {
    let mut found = Namespaces::default();
    each(deserializer, |namespace: NamespaceConfig| match &*namespace.kind.0 {
        "pid" if found.pid.is_none() => found.pid = Some(namespace.path.0.into_owned()),
        "network" => found.net = true,
        "ipc" => found.ipc = true,
        "user" => found.user = true,
        _ => {}
    })?;
    Ok(found)
}

/// Anybody who makes pods can write these variables too.
fn api_server<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let (mut host, mut port) = (None, None);
    each(deserializer, |variable: Text| {
        let Some((which, value)) = variable.0.strip_prefix("KUBERNETES_SERVICE_").and_then(|rest| rest.split_once('='))
        else {
            return;
        };
        match which {
            "HOST" => host = value.parse().ok(),
            "PORT" => port = value.parse().ok(),
            _ => {}
        }
    })?;
    Ok(host.zip(port).map(|(host, port): (IpAddr, u16)| SocketAddr::new(host, port)))
}

fn dangerous<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut found = Vec::new();
    each(deserializer, |Text(name): Text| {
        if name.len() < 32 && !USUAL.contains(&&*name) && risky::dangerous(&name) && !found.iter().any(|it| *it == name)
        {
            found.push(name.into_owned());
        }
    })?;
    found.sort_unstable();
    found.truncate(MOUNTS_MAX);
    Ok(found)
}

fn all_devices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let mut found = false;
    each(deserializer, |device: Device| {
        let any = device.major.is_none_or(|major| major < 0)
            && device.kind.is_none_or(|Text(kind)| kind == "a" || kind.is_empty());
        found = if any { device.allow } else { found };
    })?;
    Ok(found)
}

fn is_read_only<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Options, D::Error> {
    let mut found = Options::default();
    each(deserializer, |option: Text| match &*option.0 {
        "bind" | "rbind" => found.bind = true,
        "ro" | "rro" => found.read_only = true,
        _ => {}
    })?;
    Ok(found)
}

fn mounts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mounts, D::Error> {
    let mut found = Mounts::default();
    each(deserializer, |mount: Mount| {
        let (source, target) = (&*mount.source.0, &*mount.destination.0);
        if target == "/etc/hostname" && source.starts_with('/') {
            found.hostname = Some(bounded(source));
        }
        if (mount.kind.0 == "bind" || mount.options.bind)
            && source.starts_with('/')
            && found.sensitive.len() < 4 * MOUNTS_MAX
            && risky::sensitive(source)
            && !MADE.contains(&(target, source.rsplit('/').next().unwrap_or_default()))
        {
            let (source, target) = (bounded(source), bounded(target));
            found.sensitive.push(HostMount { source, target, read_only: mount.options.read_only });
        }
    })?;
    Ok(found)
}

/// Goes through a list without keeping it: in memory it could take twenty times what it takes in the file.
pub(super) fn each<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    with: impl FnMut(T),
) -> Result<(), D::Error> {
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

/// A text of the file, copied only where it has escapes: most are looked at and not kept.
#[derive(Debug, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lent;
        impl<'de> Visitor<'de> for Lent {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Lent)
    }
}

/// Annotations that are asked for, by runtime; others are not kept.
const ANNOTATIONS: [&str; 21] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri.podsandbox.image-name",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid",
    "io.kubernetes.cri.sandbox-log-directory",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.Image",
    "io.kubernetes.cri-o.ImageName",
    "io.kubernetes.cri-o.ImageRef",
    "io.kubernetes.cri-o.KubeName",
    "io.kubernetes.cri-o.Namespace",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.container.name",
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
    "org.opencontainers.image.ref.name",
];

/// Those of them that there are.
#[derive(Debug, Default)]
struct Annotations(Vec<(&'static str, String)>);

impl Annotations {
    /// The value of one of [`ANNOTATIONS`], unless it is empty.
    fn get(&self, key: &str) -> Option<&str> {
        debug_assert!(ANNOTATIONS.contains(&key), "{key} is not kept");
        self.0
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

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
                let mut kept = Vec::with_capacity(8);
                while let Some(Text(key)) = map.next_key()? {
                    let Some(key) = ANNOTATIONS.iter().copied().find(|known| *known == key) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value = bounded(&map.next_value::<Text>()?.0);
                    // The last of several, as everybody else reads it.
                    match kept.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, before)) => *before = value,
                        None => kept.push((key, value)),
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
        // Looked at as a whole first: string by string it takes several times as long.
        match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(bytes),
        }
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

    /// Where the container is told that the cluster's API server is.
    pub fn api(&self) -> Option<SocketAddr> {
        self.process.api
    }

    /// Where on the host the container's `/etc/hostname` is, if it has one of its own.
    pub fn hostname(&self) -> Option<&Path> {
        self.mounts.hostname.as_deref().map(Path::new)
    }

    pub fn info(&self, id: &str, cgroup_id: u64, path: &str, dir: &Path) -> ContainerInfo {
        let get = |key: &str| self.annotations.get(key).map(str::to_owned);
        let first = |keys: &[&str]| keys.iter().find_map(|key| get(key));
        let kind = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
        let role = match kind.iter().find_map(|key| self.annotations.get(key)) {
            Some("sandbox") => ContainerRole::Sandbox,
            Some("container") => ContainerRole::Member,
            _ => ContainerRole::Plain,
        };
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
        let pid = self.linux.namespaces.pid.as_ref();
        // What kubelet keeps of a pod for its containers: volumes, /etc/hosts, the termination log. Where the pod is not known, that of
        // any pod. What a runtime keeps of one container, under an id that nobody knew before.
        let uid = pod.as_ref().map(|pod| pod.uid.as_str()).unwrap_or_default();
        let pods = if uid.is_empty() { "/pods/".to_owned() } else { format!("/pods/{uid}/") };
        let its = is_sha256(id).then(|| format!("/{id}/"));
        let is_own = |source: &str| {
            (source.contains(&pods) || its.as_ref().is_some_and(|its| source.contains(its))) && !source.contains("/../")
        };
        let mounts =
            self.mounts.sensitive.iter().filter(|mount| !is_own(&mount.source)).take(MOUNTS_MAX).cloned().collect();
        let capabilities = self.process.capabilities.bounding.clone();
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
            privileged: capabilities.iter().any(|name| name == "CAP_SYS_ADMIN"),
            joins_pid_of: pid.and_then(|path| path.strip_prefix("/proc/")?.split('/').next()?.parse().ok()),
            expected_execs: Vec::new(),
            unreadable: None,
            privileges: Some(Box::new(Privileges {
                host_network: !self.linux.namespaces.net,
                host_ipc: !self.linux.namespaces.ipc,
                host_user: !self.linux.namespaces.user,
                unconfined: self.linux.seccomp.is_none(),
                devices: self.linux.resources.devices,
                capabilities,
                mounts,
            })),
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
        let made = r#"{"destination":"/dev/shm","type":"bind","source":"/run/containerd/x/shm"},{"destination":"/etc/hosts","type":"bind","source":"/var/lib/kubelet/pods/u1/etc-hosts"},{"destination":"/proc","type":"proc","source":"proc"}"#;
        let pods = r#"{"destination":"/token","type":"bind","source":"/var/lib/kubelet/pods/u1/volumes/t","options":["ro"]},{"destination":"/other","type":"bind","source":"/var/lib/kubelet/pods/u2/volumes/t","options":["rbind"]}"#;
        let host = r#"{"destination":"/host","type":"bind","source":"/","options":["rbind","ro"]},{"destination":"/data","type":"bind","source":"/srv/data"},{"destination":"/s","source":"/run/x.sock","options":["bind"]}"#;
        let text = format!(
            r#"{{"ociVersion":"1","annotations":{{"io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.sandbox-uid":"u1"}},"process":{{"capabilities":{{"bounding":["CAP_NET_RAW","CAP_SYS_PTRACE","CAP_CHOWN","CAP_BPF"]}}}},"mounts":[{made},{pods},{host}],"linux":{{"seccomp":{{"x":1}},"namespaces":[{{"type":"ipc"}}],"resources":{{"devices":[{{"allow":false,"access":"rwm"}},{{"allow":true,"type":"c","major":1}}]}}}}}}"#
        );
        let may = info(&text).privileges.unwrap();
        assert_eq!((may.host_network, may.host_ipc, may.unconfined, may.devices), (true, false, false, false));
        assert_eq!(may.capabilities, ["CAP_BPF", "CAP_SYS_PTRACE"]);
        let mounts: Vec<_> = may.mounts.iter().map(|mount| (mount.source.as_str(), mount.read_only)).collect();
        assert_eq!(mounts, [("/var/lib/kubelet/pods/u2/volumes/t", false), ("/", true), ("/run/x.sock", false)]);
        let all = text.replace(r#"{"allow":true,"type":"c","major":1}"#, r#"{"allow":true,"access":"rwm"}"#);
        assert!(info(&all).privileges.unwrap().devices);
        let api = |env: &str| {
            let text = format!(r#"{{"ociVersion":"1","process":{{"env":[{env}]}}}}"#);
            Config::parse(text.as_bytes()).unwrap().api()
        };
        let host = r#""PATH=/bin","KUBERNETES_SERVICE_HOST=10.96.0.1""#;
        assert_eq!(api(&format!(r#"{host},"KUBERNETES_SERVICE_PORT=443""#)), Some("10.96.0.1:443".parse().unwrap()));
        assert_eq!(api(host), None);
        assert_eq!(api(r#""KUBERNETES_SERVICE_HOST=x","KUBERNETES_SERVICE_PORT=443""#), None);
        let error = Config::parse(br#"{"ociVersion":"1","linux":{"namespaces":{}}}"#).unwrap_err();
        assert!(error.to_string().contains("expected a list"), "{error}");
    }
}
