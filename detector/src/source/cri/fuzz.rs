//! What must hold of any bytes that a container runtime may answer.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde_json::Value;

use super::{
    convert,
    message::{Container, Image, ImageStatusResponse, PodSandbox, PodSandboxStatusResponse, VersionResponse, entries},
};
use crate::record::TEXT_MAX;

/// Most entries of anything that a record keeps of a container or an image, kubelet's own fields counted.
const ENTRIES: usize = 64;

/// Answers of a container runtime, of each kind that is asked for.
pub fn cri(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut image = None;
    for said in list::<Image>(&bytes) {
        let names = convert::image(said);
        assert!(is_bounded(&names, TEXT_MAX), "{names:?}");
        assert!(convert::image_keys(&names).all(|key| key.len() == "sha256:".len() + 64));
        image = Some(names);
    }
    for said in list::<Container>(&bytes) {
        assert!(convert::image_key(&said).is_none_or(|key| key.starts_with("sha256:")));
        for image in [None, image.as_ref()] {
            let info = convert::container(said.clone(), "socket", image);
            assert!(is_bounded(&info, TEXT_MAX), "{info:?}");
        }
    }
    let status = same::<PodSandboxStatusResponse>(&bytes);
    for said in list::<PodSandbox>(&bytes).into_iter().chain([PodSandbox::default()]) {
        let info = convert::sandbox(said, status.as_ref(), "socket");
        assert!(is_bounded(&info, TEXT_MAX), "{info:?}");
    }
    same::<VersionResponse>(&bytes);
    if let Some(image) = same::<ImageStatusResponse>(&bytes).and_then(|response| response.image) {
        assert!(is_bounded(&convert::image(image), TEXT_MAX));
    }
}

fn list<M: Message + Default + PartialEq + Debug>(bytes: &Bytes) -> Vec<M> {
    let all: Vec<_> = entries::<M>(bytes.clone()).collect();
    assert!(all.len() <= bytes.len(), "more entries than bytes");
    let all: Vec<M> = all.into_iter().flatten().collect();
    all.iter().for_each(|entry| drop(same::<M>(&entry.encode_to_vec())));
    all
}

/// A message; what it holds is written and read as itself.
fn same<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    assert_eq!(M::decode(&message.encode_to_vec()[..]).as_ref(), Ok(&message));
    Some(message)
}

/// Whether no text in it is longer, and no list or map.
pub(crate) fn is_bounded(value: &impl Serialize, most: usize) -> bool {
    fn is_short(value: &Value, most: usize) -> bool {
        match value {
            Value::String(text) => text.len() <= most,
            Value::Array(items) => items.len() <= ENTRIES && items.iter().all(|item| is_short(item, most)),
            Value::Object(fields) => {
                fields.len() <= ENTRIES && fields.iter().all(|(key, field)| key.len() <= most && is_short(field, most))
            }
            _ => true,
        }
    }
    serde_json::to_value(value).is_ok_and(|value| is_short(&value, most))
}

/// Answers to begin with.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use super::message::{
        ContainerMetadata, ImageSpec, LinuxPodSandboxStatus, NODE, Namespace, NamespaceOption, PodSandboxMetadata,
        PodSandboxStatus,
    };
    let map = |entries: &[(&str, &str)]| {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let hex = "0123456789abcdef".repeat(4);
    let container = Container {
        id: "c1".into(),
        pod_sandbox_id: "s1".into(),
        metadata: Some(ContainerMetadata { name: "main".into() }),
        image: Some(ImageSpec { image: format!("sha256:{hex}"), user_specified_image: "web:1".into() }),
        image_ref: format!("web@sha256:{hex}"),
        state: 1,
        labels: map(&[("io.kubernetes.pod.name", "web"), ("io.kubernetes.pod.namespace", "shop"), ("app", "x")]),
        annotations: map(&[("io.kubernetes.container.preStopHandler", r#"{"exec":{"command":["sh","-c","x"]}}"#)]),
    };
    let sandbox = PodSandbox {
        id: "s1".into(),
        metadata: Some(PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "shop".into() }),
        state: 1,
        labels: map(&[("a", "b")]),
    };
    let options = Some(NamespaceOption { pid: NODE });
    let status = PodSandboxStatusResponse {
        status: Some(PodSandboxStatus {
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
        }),
        info: map(&[("info", r#"{"image":"registry.k8s.io/pause:3.9","runtimeSpec":{"x":[]}}"#)]),
    };
    let image = Image {
        id: hex.clone(),
        repo_tags: vec!["web:1".into(), "web:2".into()],
        repo_digests: vec![format!("web@sha256:{hex}")],
        pinned: true,
    };
    let version = VersionResponse { runtime_name: "containerd".into(), runtime_version: "1.7".into() };
    vec![
        ("containers", listed(&[container.encode_to_vec(), container.encode_to_vec()])),
        ("sandboxes", listed(&[sandbox.encode_to_vec(), b"\xff\xff".to_vec(), sandbox.encode_to_vec()])),
        ("images", listed(&[image.encode_to_vec()])),
        ("status", status.encode_to_vec()),
        ("image", ImageStatusResponse { image: Some(image) }.encode_to_vec()),
        ("version", version.encode_to_vec()),
    ]
}

#[cfg(test)]
fn listed(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        prost::encoding::bytes::encode(1, entry, &mut bytes);
    }
    bytes
}
