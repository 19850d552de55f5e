//! The messages of the container runtime interface, as far as they are used: field numbers are those of `runtime.v1` and of
//! `runtime.v1alpha2`, which agree on every field here, so that one set serves both.
//!
//! They are declared by hand rather than taken from the crate `k8s-cri`: that one needs `protoc` at build time, always
//! brings gRPC's server and axum along, and has every message twice, once for each version.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Longest entry of a list that is taken, in bytes. Kubernetes allows 256 KiB of annotations.
pub const ENTRY_MAX: usize = 1024 * 1024;

/// `CONTAINER_EXITED`.
pub const EXITED: i32 = 2;
/// `SANDBOX_NOTREADY`.
pub const NOT_READY: i32 = 1;
/// `NamespaceMode::NODE`.
pub const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub struct VersionRequest {
    #[prost(string, tag = "1")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct VersionResponse {
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

/// `ListContainersRequest` and `ListPodSandboxRequest`; without a filter `ListImagesRequest` as well.
#[derive(Clone, PartialEq, Message)]
pub struct ListRequest {
    #[prost(message, optional, tag = "1")]
    pub filter: Option<IdFilter>,
}

/// `ContainerFilter` and `PodSandboxFilter`.
#[derive(Clone, PartialEq, Message)]
pub struct IdFilter {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// An entry of `ListContainersResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    pub image: Option<ImageSpec>,
    #[prost(string, tag = "5")]
    pub image_ref: String,
    #[prost(int32, tag = "6")]
    pub state: i32,
    #[prost(btree_map = "string, string", tag = "8")]
    pub labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "9")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
    /// Only in v1, from newer kubelets through newer runtimes.
    #[prost(string, tag = "18")]
    pub user_specified_image: String,
}

/// An entry of `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<PodSandboxMetadata>,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
    /// When it is asked for (`verbose`): text under names that are the runtime's own.
    #[prost(btree_map = "string, string", tag = "2")]
    pub info: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    #[prost(message, optional, tag = "6")]
    pub linux: Option<LinuxPodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxStatus {
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<Namespace>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Namespace {
    #[prost(message, optional, tag = "2")]
    pub options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// An entry of `ListImagesResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
    #[prost(bool, tag = "8")]
    pub pinned: bool,
}

/// An entry of a list, or the rest of the list, that is too long or no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The entries (field 1) of a list response, one decoded at a time: a whole response decoded at once could take a hundred
/// times its own size, for an entry may be two bytes long.
///
/// After an `Err` of one entry the next ones follow; what is no message at all is an `Err` and the end.
pub fn entries<M: Message + Default>(message: Bytes) -> impl Iterator<Item = Result<M, Unreadable>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        while rest.has_remaining() {
            match next_entry(&mut rest) {
                Ok(Some(entry)) if entry.len() > ENTRY_MAX => return Some(Err(Unreadable)),
                Ok(Some(entry)) => return Some(M::decode(entry).map_err(|_| Unreadable)),
                Ok(None) => {}
                Err(error) => {
                    rest.clear();
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

/// The next field, if it is an entry.
fn next_entry(rest: &mut Bytes) -> Result<Option<Bytes>, Unreadable> {
    let (tag, wire_type) = decode_key(rest).map_err(|_| Unreadable)?;
    if tag != 1 || wire_type != WireType::LengthDelimited {
        skip_field(wire_type, tag, rest, DecodeContext::default()).map_err(|_| Unreadable)?;
        return Ok(None);
    }
    let length = usize::try_from(decode_varint(rest).map_err(|_| Unreadable)?).unwrap_or(usize::MAX);
    if length > rest.remaining() {
        return Err(Unreadable);
    }
    Ok(Some(rest.split_to(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&[u8]]) -> Bytes {
        let mut bytes = Vec::new();
        for entry in entries {
            prost::encoding::encode_key(1, WireType::LengthDelimited, &mut bytes);
            prost::encoding::encode_varint(entry.len() as u64, &mut bytes);
            bytes.extend_from_slice(entry);
        }
        Bytes::from(bytes)
    }

    #[test]
    fn a_broken_entry_costs_no_other_one() {
        let image = Image { id: "sha256:1".into(), pinned: true, ..Image::default() };
        let good = image.encode_to_vec();
        let long = vec![0; ENTRY_MAX + 1];
        let found: Vec<_> = entries::<Image>(list(&[&good, b"\xff\xff", &long, b"", &good])).map(Result::ok).collect();
        assert_eq!(found, [Some(image.clone()), None, None, Some(Image::default()), Some(image)]);
    }

    #[test]
    fn any_bytes_end() {
        let mut all = list(&[b"\x0a\x01x"]).to_vec();
        all.extend_from_slice(b"\x12\x00\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        for end in 0..=all.len() {
            for flipped in 0..end {
                let mut bytes = all[..end].to_vec();
                bytes[flipped] ^= 0xff;
                assert!(entries::<Container>(Bytes::from(bytes)).count() <= end);
            }
        }
    }
}
