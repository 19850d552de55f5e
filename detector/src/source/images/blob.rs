//! Blobs of a content store: which are images, and what they say of themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

use crate::record::{ImageArrival, bounded};

/// Largest blob that is read: manifests are kilobytes; runtimes refuse more than 4 MiB.
pub const BLOB_MAX: u64 = 4 << 20;
/// Most parts of an index, and names, that a record keeps.
const CHILDREN_MAX: usize = 256;
const NAMES_MAX: usize = 16;
/// Annotations that hold a reference: containerd's, and that of the image layout, which often holds a mere tag.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Deserialize)]
struct Blob {
    #[serde(default, rename = "mediaType")]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// An image of containers/storage (CRI-O, podman), as `images.json` lists them.
#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
}

/// A manifest's or index's record; `None` for anything else: layers, configurations, what does not parse.
#[must_use]
pub fn arrival(bytes: &[u8], digest: &str, path: &str) -> Option<ImageArrival> {
    let blob: Blob = serde_json::from_slice(bytes).ok()?;
    let mut names = Names::default();
    names.add(blob.annotations.as_ref());
    let (children, layers, usual) = match (blob.manifests, blob.config.and_then(|config| config.digest), blob.layers) {
        (Some(manifests), ..) => {
            manifests.iter().for_each(|manifest| names.add(manifest.annotations.as_ref()));
            let children = manifests.into_iter().filter_map(|manifest| manifest.digest).collect::<Vec<_>>();
            (children, 0, "application/vnd.oci.image.index.v1+json")
        }
        (None, Some(config), Some(layers)) => (
            vec![config],
            u32::try_from(layers.len()).unwrap_or(u32::MAX),
            "application/vnd.oci.image.manifest.v1+json",
        ),
        _ => return None,
    };
    Some(ImageArrival {
        digest: digest.to_owned(),
        media_type: bounded(blob.media_type.as_deref().unwrap_or(usual)),
        names: names.0,
        children: children.iter().take(CHILDREN_MAX).map(|child| bounded(child)).collect(),
        layers,
        path: path.to_owned(),
        ..ImageArrival::default()
    })
}

/// The images in an `images.json`, by their ids.
///
/// # Errors
/// When it does not parse.
pub fn listed(bytes: &[u8], path: &str) -> Result<BTreeMap<String, ImageArrival>, serde_json::Error> {
    let images: Vec<Listed> = serde_json::from_slice(bytes)?;
    let record = |image: Listed| {
        let id = format!("sha256:{}", bounded(&image.id));
        let names = image.names.unwrap_or_default();
        let arrival = ImageArrival {
            digest: image.digest.map_or_else(|| id.clone(), |digest| bounded(&digest)),
            names: names.iter().take(NAMES_MAX).map(|name| bounded(name)).collect(),
            children: vec![id],
            path: path.to_owned(),
            ..ImageArrival::default()
        };
        (image.id, arrival)
    };
    Ok(images.into_iter().map(record).collect())
}

#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn add(&mut self, annotations: Option<&BTreeMap<String, String>>) {
        for name in NAMES.iter().filter_map(|key| annotations?.get(*key)) {
            let is_reference = name.contains(['/', ':']);
            let name = bounded(name);
            if is_reference && self.0.len() < NAMES_MAX && !self.0.contains(&name) {
                self.0.push(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TEXT_MAX;
    use crate::testing::Noise;

    const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:cc","size":1},
        "layers":[{"digest":"sha256:l1"},{"digest":"sha256:l2"}]}"#;
    const INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests":[{"digest":"sha256:m1","annotations":{"io.containerd.image.name":"docker.io/library/pause:9",
        "org.opencontainers.image.ref.name":"9"}},{"digest":"sha256:m2"}]}"#;

    #[test]
    fn manifests_and_indexes_are_images_and_nothing_else_is() {
        let manifest = arrival(MANIFEST.as_bytes(), "sha256:mm", "/blobs/mm").unwrap();
        assert_eq!((manifest.children, manifest.layers), (vec!["sha256:cc".to_owned()], 2));
        assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
        let index = arrival(INDEX.as_bytes(), "sha256:ii", "/blobs/ii").unwrap();
        assert_eq!(index.children, ["sha256:m1", "sha256:m2"]);
        assert_eq!(index.names, ["docker.io/library/pause:9"], "a mere tag is no name");
        for other in [
            r#"{"architecture":"amd64","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":[]}}"#,
            "{}",
            "[]",
            "not json",
            "\u{1f}\u{8b}",
            "",
        ] {
            assert_eq!(arrival(other.as_bytes(), "sha256:xx", "/x"), None, "{other}");
        }
    }

    #[test]
    fn what_an_attacker_writes_is_bounded() {
        let long = "a/".repeat(TEXT_MAX);
        let children: Vec<_> = (0..1000).map(|n| format!(r#"{{"digest":"sha256:{n}{long}"}}"#)).collect();
        let text = format!(
            r#"{{"manifests":[{}],"annotations":{{"io.containerd.image.name":"{long}"}}}}"#,
            children.join(",")
        );
        let found = arrival(text.as_bytes(), "sha256:x", "/x").unwrap();
        assert_eq!(found.children.len(), CHILDREN_MAX);
        assert!(found.children.iter().chain(&found.names).all(|text| text.len() <= TEXT_MAX));
        let deep = "[".repeat(100_000);
        assert_eq!(arrival(format!(r#"{{"layers":{deep}"#).as_bytes(), "sha256:x", "/x"), None);
    }

    #[test]
    fn any_bytes_are_an_image_or_none() {
        let mut noise = Noise(3);
        for _ in 0..5_000 {
            let mut bytes = INDEX.as_bytes().to_vec();
            let at = usize::try_from(noise.next()).unwrap() % bytes.len();
            bytes[at] = noise.next().to_le_bytes()[0];
            let _ = arrival(&bytes, "sha256:x", "/x");
            let _ = listed(&bytes, "/x");
        }
    }

    #[test]
    fn images_of_crio_are_read_from_its_list() {
        let text =
            r#"[{"id":"aa","digest":"sha256:dd","names":["registry.k8s.io/pause:3.9"],"layer":"x"},{"id":"bb"}]"#;
        let found = listed(text.as_bytes(), "/images.json").unwrap();
        assert_eq!(found["aa"].digest, "sha256:dd");
        assert_eq!(found["aa"].children, ["sha256:aa"]);
        assert_eq!(found["bb"].digest, "sha256:bb");
    }
}
