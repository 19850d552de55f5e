//! What must hold of any bytes that are read as an OCI configuration.

use std::path::Path;

use super::{
    Config,
    engine::{self, Engine},
};
use crate::{
    record::{ContainerInfo, TEXT_MAX},
    source::cri::fuzz::is_bounded,
};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const CGROUP: &str = "/kubepods.slice/kubepods-pod0a1b2c3d_0a1b_0a1b_0a1b_0a1b2c3d4e5f.slice/cri-containerd-0123.scope";

/// OCI configurations, and what engines keep beside them.
pub fn oci_config(bytes: &[u8]) {
    for engine in [Engine::Docker, Engine::Podman] {
        let mut info = ContainerInfo { id: ID.to_owned(), ..ContainerInfo::default() };
        let _ = engine::name(engine, bytes, &mut info);
        assert!(is_bounded(&info, TEXT_MAX), "{info:?}");
    }
    let Ok(config) = Config::parse(bytes) else { return };
    let _ = config.is_of(CGROUP);
    for path in ["/", "", CGROUP] {
        let info = config.info(ID, 7, path, Path::new("/run/bundle"));
        assert!(is_bounded(&info, TEXT_MAX), "{info:?}");
        assert_eq!((info.id.as_str(), info.cgroup_id), (ID, Some(7)));
    }
}

/// Configurations to begin with.
#[cfg(test)]
pub(crate) const SEEDS: [(&str, &str); 6] = [
    (
        "containerd.json",
        r#"{"ociVersion":"1.0.2","process":{"args":["/bin/app"],"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN"]}},"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-name":"app","io.kubernetes.cri.image-name":"registry.example/app:1","io.kubernetes.cri.sandbox-id":"s","io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"u"},"linux":{"cgroupsPath":"kubepods-pod0a1b2c3d_0a1b_0a1b_0a1b_0a1b2c3d4e5f.slice:cri-containerd:0123","namespaces":[{"type":"pid"},{"type":"mount","path":"/proc/7/ns/mnt"}]}}"#,
    ),
    (
        "crio.json",
        r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri-o.ContainerType":"sandbox","io.kubernetes.cri-o.Namespace":"shop","io.kubernetes.cri-o.KubeName":"web","io.kubernetes.pod.uid":"u","io.kubernetes.cri-o.ImageName":"pause:3.9","io.kubernetes.cri-o.ImageRef":"sha256:0"},"linux":{"cgroupsPath":"/kubepods/besteffort/pod1/crio-1","namespaces":[{"type":"pid","path":"/proc/77/ns/pid"}]}}"#,
    ),
    (
        "old-sandbox.json",
        r#"{"ociVersion":"1","annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-log-directory":"/var/log/pods/shop_web_u","x":{"y":[1.5e3,null,"\ud83d\ude00"]}},"linux":{"cgroupsPath":":a:b"}}"#,
    ),
    (
        "docker.json",
        r#"{"ID":"0123","Config":{"Healthcheck":{"Test":["CMD-SHELL","curl x"]},"Shell":["/bin/bash","-c"],"Image":"app:1"},"Image":"sha256:c129","Name":"/web"}"#,
    ),
    (
        "podman.json",
        r#"[{"id":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","names":["web"],"image":"f46a","metadata":"{\"image-name\":\"localhost/app:1\"}"}]"#,
    ),
    ("least.json", r#"{"ociVersion":"1","annotations":null}"#),
];
