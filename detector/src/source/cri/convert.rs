//! What a runtime says, as records: bounded, and in the one form that all runtimes' answers are brought to.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::message::{Container, Image, NODE, PodSandbox, PodSandboxStatusResponse};
use crate::record::{ContainerInfo, ContainerRole, ImageNames, InfoFrom, LABELS_MAX, PodRef, bounded};

/// Most references of each kind that are kept of an image.
const NAMES_MAX: usize = 64;
/// Most words that are kept of a command.
const WORDS_MAX: usize = 64;
/// Longest life-cycle hook that is parsed, in bytes: Kubernetes allows that much of annotations.
const HOOK_MAX: usize = 256 * 1024;

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// kubelet writes the container's `preStop` handler here, as JSON.
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";

/// A pod's container. `socket` is where it was said, `image` the runtime's references of its image.
///
/// The CRI does not say whether it has the node's pid namespace or is privileged: both are `false`.
pub fn container(said: Container, socket: &str, image: Option<&ImageNames>) -> ContainerInfo {
    let label = |key: &str| said.labels.get(key).filter(|value| !value.is_empty()).map(|value| bounded(value));
    let pod = label(POD_NAME).map(|name| PodRef {
        name,
        namespace: label(POD_NAMESPACE).unwrap_or_default(),
        uid: label(POD_UID).unwrap_or_default(),
    });
    let name = label(CONTAINER_NAME).or_else(|| some_text(&said.metadata.as_ref()?.name));
    let expected_execs = said.annotations.get(PRE_STOP).and_then(|json| hook_command(json)).into_iter().collect();
    ContainerInfo {
        image: user_image(&said, image),
        image_digest: digest(&said.image_ref, image),
        id: bounded(&said.id),
        from: InfoFrom::Cri(socket.to_owned()),
        role: ContainerRole::Member,
        name,
        pod,
        sandbox_id: some_text(&said.pod_sandbox_id),
        labels: labels(said.labels),
        expected_execs,
        ..ContainerInfo::default()
    }
}

/// A pod's sandbox. `status` is what the runtime says of it in detail, where it does.
pub fn sandbox(said: PodSandbox, status: Option<&PodSandboxStatusResponse>, socket: &str) -> ContainerInfo {
    let pod = said.metadata.map(|pod| PodRef {
        name: bounded(&pod.name),
        namespace: bounded(&pod.namespace),
        uid: bounded(&pod.uid),
    });
    let pid = status
        .and_then(|status| status.status.as_ref()?.linux.as_ref()?.namespaces.as_ref()?.options.as_ref())
        .map(|options| options.pid);
    let image = status.and_then(|status| sandbox_image(status.info.get("info")?));
    ContainerInfo {
        image_digest: image.as_deref().and_then(as_digest),
        image: image.filter(|image| as_digest(image).is_none() || image.contains('@')),
        id: bounded(&said.id),
        from: InfoFrom::Cri(socket.to_owned()),
        role: ContainerRole::Sandbox,
        pod,
        sandbox_id: Some(bounded(&said.id)),
        labels: labels(said.labels),
        host_pid: pid == Some(NODE),
        ..ContainerInfo::default()
    }
}

/// The references of an image.
pub fn image(said: Image) -> ImageNames {
    let all = |names: Vec<String>| names.iter().take(NAMES_MAX).map(|name| bounded(name)).collect();
    ImageNames {
        id: as_digest(&said.id).unwrap_or_else(|| bounded(&said.id)),
        tags: all(said.repo_tags),
        digests: all(said.repo_digests),
        pinned: said.pinned,
    }
}

/// How a container names its image, if a list of images can say more about that: by the image's id or digest.
pub fn image_key(said: &Container) -> Option<String> {
    as_digest(&said.image_ref).or_else(|| as_digest(&said.image.as_ref()?.image))
}

/// What [`image_key`] may be for containers of this image.
pub fn image_keys(image: &ImageNames) -> impl Iterator<Item = String> {
    std::iter::once(&image.id).chain(&image.digests).filter_map(|name| as_digest(name))
}

/// What the user wrote. kubelet hands the runtime the image's id, so that is often only to be had from the image's tags.
fn user_image(said: &Container, image: Option<&ImageNames>) -> Option<String> {
    let spec = said.image.as_ref();
    let stated = spec.map(|spec| &spec.user_specified_image).filter(|name| !name.is_empty());
    if let Some(name) = stated.or_else(|| spec.map(|spec| &spec.image).filter(|name| !is_id(name) && !name.is_empty()))
    {
        return Some(bounded(name));
    }
    let reference = image.and_then(|image| image.tags.first().or_else(|| image.digests.first()));
    reference.cloned().or_else(|| some_text(&spec?.image))
}

/// The digest that the reference was resolved to, else the image's id.
fn digest(image_ref: &str, image: Option<&ImageNames>) -> Option<String> {
    let by_digest = || image?.digests.iter().find_map(|name| as_digest(name));
    if image_ref.contains('@') { as_digest(image_ref) } else { by_digest().or_else(|| as_digest(image_ref)) }
}

/// `sha256:<64 hex digits>` of `name@sha256:...`, `sha256:...`, or an id without its algorithm (CRI-O).
fn as_digest(name: &str) -> Option<String> {
    let digest = name.rsplit_once('@').map_or(name, |(_, digest)| digest);
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| format!("sha256:{}", hex.to_ascii_lowercase()))
}

/// Whether an image is named by its id alone.
fn is_id(name: &str) -> bool {
    !name.contains('@') && as_digest(name).is_some()
}

/// The command of a life-cycle hook: `{"exec":{"command":["sh","-c","..."]}}`.
fn hook_command(json: &str) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Handler {
        exec: Option<Exec>,
    }
    #[derive(Deserialize)]
    struct Exec {
        #[serde(default)]
        command: Vec<String>,
    }
    if json.len() > HOOK_MAX {
        return None;
    }
    let command = serde_json::from_str::<Handler>(json).ok()?.exec?.command;
    (!command.is_empty()).then(|| command.iter().take(WORDS_MAX).map(|word| bounded(word)).collect())
}

/// The image of a sandbox, out of the JSON that containerd and CRI-O give when asked for details.
fn sandbox_image(json: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        image: Option<String>,
    }
    some_text(&serde_json::from_str::<Info>(json).ok()?.image?)
}

fn labels(said: BTreeMap<String, String>) -> BTreeMap<String, String> {
    // kubelet's own last: they are in fields already.
    let (own, others): (Vec<_>, Vec<_>) = said.into_iter().partition(|(key, _)| key.starts_with("io.kubernetes."));
    others.into_iter().chain(own).take(LABELS_MAX).map(|(key, value)| (bounded(&key), bounded(&value))).collect()
}

fn some_text(said: &str) -> Option<String> {
    (!said.is_empty()).then(|| bounded(said))
}

#[cfg(test)]
mod tests {
    use super::super::message::{
        ContainerMetadata, ImageSpec, LinuxPodSandboxStatus, Namespace, NamespaceOption, PodSandboxMetadata,
        PodSandboxStatus,
    };
    use super::*;
    use crate::record::TEXT_MAX;

    fn hex(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn spec(image: &str) -> Option<ImageSpec> {
        Some(ImageSpec { image: image.to_owned(), user_specified_image: String::new() })
    }

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_container_with_its_pod_and_its_hook() {
        let said = Container {
            id: "c1".into(),
            pod_sandbox_id: "s1".into(),
            metadata: Some(ContainerMetadata { name: "from-metadata".into() }),
            labels: map(&[
                (POD_NAME, "web"),
                (POD_NAMESPACE, "shop"),
                (POD_UID, "u"),
                (CONTAINER_NAME, "main"),
                ("app", "x"),
            ]),
            annotations: map(&[(PRE_STOP, r#"{"exec":{"command":["sh","-c","sleep 1"]}}"#)]),
            ..Container::default()
        };
        let info = container(said, "/run/x.sock", None);
        assert_eq!(info.pod, Some(PodRef { name: "web".into(), namespace: "shop".into(), uid: "u".into() }));
        assert_eq!((info.name.as_deref(), info.sandbox_id.as_deref()), (Some("main"), Some("s1")));
        assert_eq!((info.role, info.from), (ContainerRole::Member, InfoFrom::Cri("/run/x.sock".into())));
        assert_eq!(info.labels.get("app").map(String::as_str), Some("x"));
        assert_eq!(info.expected_execs, [["sh", "-c", "sleep 1"]]);
    }

    #[test]
    fn the_users_reference_of_an_image_however_the_runtime_says_it() {
        let (id, repo) = (hex('a'), hex('b'));
        let names = ImageNames {
            id: format!("sha256:{id}"),
            tags: vec!["docker.io/library/web:1".into()],
            digests: vec![format!("docker.io/library/web@sha256:{repo}")],
            pinned: false,
        };
        let repo_digest = Some(format!("sha256:{repo}"));
        // (image of the spec, user's own, reference) to (image, digest).
        let by_tag = Some("docker.io/library/web:1".to_owned());
        let cases = [
            (format!("sha256:{id}"), "", format!("sha256:{id}"), by_tag.clone()),
            (id.clone(), "", id.clone(), by_tag),
            (id.clone(), "web:1", id.clone(), Some("web:1".to_owned())),
            ("web".to_owned(), "", format!("web@sha256:{repo}"), Some("web".to_owned())),
        ];
        for (image, user, image_ref, want) in cases {
            let spec = ImageSpec { image, user_specified_image: user.to_owned() };
            let said = Container { image: Some(spec), image_ref, ..Container::default() };
            let info = container(said, "", Some(&names));
            assert_eq!((info.image, info.image_digest), (want, repo_digest.clone()));
        }
        // Nothing known but the id.
        let said = Container { image: spec(&id), image_ref: id.clone(), ..Container::default() };
        assert_eq!(image_key(&said), Some(format!("sha256:{id}")));
        let info = container(said, "", None);
        assert_eq!((info.image, info.image_digest), (Some(id.clone()), Some(format!("sha256:{id}"))));
    }

    #[test]
    fn a_sandbox_with_its_image_and_pid_namespace() {
        let said = PodSandbox {
            id: "s1".into(),
            metadata: Some(PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "shop".into() }),
            ..PodSandbox::default()
        };
        let status = PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                linux: Some(LinuxPodSandboxStatus {
                    namespaces: Some(Namespace { options: Some(NamespaceOption { pid: NODE }) }),
                }),
            }),
            info: map(&[("info", r#"{"pid":7,"image":"registry.k8s.io/pause:3.9","runtimeSpec":{"x":[]}}"#)]),
        };
        let info = sandbox(said.clone(), Some(&status), "");
        assert_eq!(info.image.as_deref(), Some("registry.k8s.io/pause:3.9"));
        assert!(info.host_pid);
        assert_eq!((info.role, info.sandbox_id.as_deref()), (ContainerRole::Sandbox, Some("s1")));
        assert_eq!(info.pod.map(|pod| pod.name).as_deref(), Some("web"));
        // Details that cannot be read cost nothing else.
        let broken = PodSandboxStatusResponse { info: map(&[("info", "{")]), ..PodSandboxStatusResponse::default() };
        let info = sandbox(said, Some(&broken), "");
        assert_eq!((info.image, info.host_pid), (None, false));
    }

    #[test]
    fn hooks_that_are_no_commands() {
        for json in ["", "{", "[]", r#"{"exec":null}"#, r#"{"exec":{}}"#, r#"{"httpGet":{"path":"/"}}"#] {
            assert_eq!(hook_command(json), None, "{json}");
        }
        let deep = format!(r#"{{"exec":{}}}"#, "[".repeat(100_000));
        assert_eq!(hook_command(&deep), None, "nested without end");
        let long = format!(r#"{{"exec":{{"command":["{}"]}}}}"#, "x".repeat(HOOK_MAX));
        assert_eq!(hook_command(&long), None, "longer than it can be");
        let many = format!(r#"{{"exec":{{"command":["{}"]}}}}"#, ["x"; 1000].join("\",\""));
        assert_eq!(hook_command(&many).unwrap().len(), WORDS_MAX);
    }

    #[test]
    fn nothing_is_longer_than_a_record_keeps() {
        let long = "ä".repeat(TEXT_MAX);
        let said = Container {
            id: long.clone(),
            labels: (0..1000).map(|i| (format!("{i}{long}"), long.clone())).collect(),
            image: spec(&long),
            ..Container::default()
        };
        let info = container(said, "", None);
        assert_eq!(info.labels.len(), LABELS_MAX);
        assert!(info.labels.iter().all(|(key, value)| key.len() <= TEXT_MAX && value.len() <= TEXT_MAX));
        assert!(info.id.len() <= TEXT_MAX && info.image.unwrap().len() <= TEXT_MAX);
        let names = image(Image { repo_tags: vec![long.clone(); 1000], repo_digests: vec![long], ..Image::default() });
        assert_eq!(names.tags.len(), NAMES_MAX);
        assert!(names.digests[0].len() <= TEXT_MAX);
    }
}
