//! OCI archives, made without any container tool: one layer, and the same bytes for the same files.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An archive that `ctr images import`, `podman load` and skopeo take.
#[derive(Clone)]
pub struct Image {
    pub archive: PathBuf,
    /// Of its manifest: `sha256:...`.
    pub digest: String,
}

/// An executable file of root.
pub struct File {
    pub path: &'static str,
    pub content: Vec<u8>,
}

/// What an image is made of.
pub struct Contents<'a> {
    /// `registry/repository:tag`.
    pub name: &'a str,
    /// As OCI calls it: `amd64`, `arm64`.
    pub architecture: &'a str,
    pub directories: &'a [&'a str],
    pub files: &'a [File],
    /// Symbolic links: pairs of where and what to.
    pub links: &'a [(&'a str, &'a str)],
    /// `config` of the image's configuration.
    pub config: Value,
    /// Whether the layer is compressed: what is carried over networks is.
    pub compressed: bool,
}

/// Writes an image as an archive.
///
/// # Errors
/// When it cannot be written.
pub fn pack(archive: &Path, contents: &Contents) -> anyhow::Result<Image> {
    let plain = layer(contents)?;
    let diff_id = digest(&plain);
    let (layer, kind) = if contents.compressed {
        // No name and no time of a file is put in.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&plain)?;
        (gzip.finish()?, format!("{LAYER}+gzip"))
    } else {
        (plain, LAYER.to_owned())
    };
    let config = serde_json::to_vec(&json!({
        "architecture": contents.architecture,
        "os": "linux",
        "config": contents.config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(&kind, &layer)],
    }))?;
    let mut described = descriptor(MANIFEST, &manifest);
    let tag = contents.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    described["annotations"] =
        json!({"io.containerd.image.name": contents.name, "org.opencontainers.image.ref.name": tag});
    described["platform"] = json!({"architecture": contents.architecture, "os": "linux"});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [described]}))?;

    let mut whole = tar::Builder::new(Vec::new());
    entry(&mut whole, tar::EntryType::Regular, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    entry(&mut whole, tar::EntryType::Regular, "index.json", &index)?;
    let mut blobs = [&layer, &config, &manifest].map(|blob| (digest(blob), blob));
    blobs.sort();
    for (digest, blob) in blobs {
        entry(&mut whole, tar::EntryType::Regular, &format!("blobs/{}", digest.replace(':', "/")), blob)?;
    }
    fs::write(archive, whole.into_inner()?).with_context(|| archive.display().to_string())?;
    Ok(Image { archive: archive.to_owned(), digest: digest(&manifest) })
}

fn layer(contents: &Contents) -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in contents.directories {
        entry(&mut layer, tar::EntryType::Directory, dir, &[])?;
    }
    for file in contents.files {
        entry(&mut layer, tar::EntryType::Regular, file.path, &file.content)?;
    }
    for (at, to) in contents.links {
        layer.append_link(&mut header(tar::EntryType::Symlink, 0), at, to)?;
    }
    Ok(layer.into_inner()?)
}

fn descriptor(media: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media, "digest": digest(blob), "size": blob.len()})
}

/// `sha256:` and hex digits.
pub fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut header = header(kind, content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}

/// Of root, executable, and from 1970.
fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn contents<'a>(name: &'a str, files: &'a [File], compressed: bool) -> Contents<'a> {
        Contents {
            name,
            architecture: "amd64",
            directories: &["bin/"],
            files,
            links: &[("bin/sh", "program")],
            config: json!({"Entrypoint": ["/bin/program"]}),
            compressed,
        }
    }

    fn program(content: &[u8]) -> [File; 1] {
        [File { path: "bin/program", content: content.to_vec() }]
    }

    #[test]
    fn the_same_files_are_the_same_image_whatever_it_is_called_and_others_are_another() {
        let dir = tempfile::tempdir().unwrap();
        let pack =
            |name, content: &[u8]| pack(&dir.path().join("x"), &contents(name, &program(content), true)).unwrap();
        assert_eq!(pack("a.example/one:1", b"x").digest, pack("a.example/two:1", b"x").digest);
        assert_ne!(pack("a.example/one:1", b"x").digest, pack("a.example/one:1", b"y").digest);
    }

    #[test]
    fn an_archive_is_the_same_bytes_twice() {
        let dir = tempfile::tempdir().unwrap();
        let files = program(&[7; 100_000]);
        let [one, two] = ["one", "two"].map(|name| {
            let path = dir.path().join(name);
            pack(&path, &contents("a.example/one:1", &files, true)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1100));
            fs::read(path).unwrap()
        });
        assert!(one == two, "archives differ");
    }

    /// Everything that a reader relies on: names of blobs are their digests, sizes are true, the layer unpacks to its
    /// `diff_id`, and what is in it is there.
    #[test]
    fn every_blob_has_the_digest_and_size_that_it_is_named_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let image = pack(&path, &contents("a.example:5000/one:1", &program(b"\x7fELF"), true)).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(fs::File::open(&path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), bytes);
        }
        let blob = |described: &Value| {
            let named = described["digest"].as_str().unwrap();
            let bytes = &files[&format!("blobs/{}", named.replace(':', "/"))];
            assert_eq!(digest(bytes), named);
            assert_eq!(described["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest.as_str());
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1");
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(blob(&manifest["layers"][0]).as_slice()).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let mut layer = tar::Archive::new(layer.as_slice());
        let inside: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (
                    entry.path().unwrap().to_string_lossy().into_owned(),
                    header.mode().unwrap(),
                    header.uid().unwrap(),
                    header.mtime().unwrap(),
                )
            })
            .collect();
        let of_root = |path: &str| (path.to_owned(), 0o755, 0, 0);
        assert_eq!(inside, [of_root("bin/"), of_root("bin/program"), of_root("bin/sh")]);
    }
}
