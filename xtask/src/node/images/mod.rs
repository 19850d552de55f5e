//! Images made on the spot: an honest pause, its evil twins, and a busybox; packed as OCI archives.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::tools::Tools;
use crate::check;

/// The name that the runtime is configured with; an evil pause takes it over, as an attacker's does.
pub const PAUSE: &str = "registry.k8s.io/pause:3.9";
pub const BUSYBOX: &str = "docker.io/library/busybox:1.35";

/// An archive that `ctr images import` takes.
#[derive(Clone)]
pub struct Image {
    pub archive: PathBuf,
    /// Of its manifest: `sha256:...`.
    pub digest: String,
}

pub struct Images {
    pub pause: Image,
    /// SHA-256 of its program, in hex.
    pub pause_binary: String,
    /// Starts another program.
    pub forking: Image,
    /// Connects to somewhere.
    pub connecting: Image,
    /// Behaves, but neither it nor its program is the one that is known.
    pub other: Image,
    pub busybox: Image,
}

/// Compiles and packs all of them.
///
/// # Errors
/// When the compiler fails or a file cannot be written.
pub fn make(place: &Path, tools: &Tools) -> anyhow::Result<Images> {
    fs::create_dir_all(place)?;
    let source = place.join("pause.c");
    fs::write(&source, include_str!("pause.c"))?;
    let pause = |what: &str, flags: &[&str]| {
        let program = place.join(what);
        check(
            Command::new("gcc")
                .args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"])
                .arg(&program)
                .args(flags)
                .arg(&source),
        )?;
        let files = [File { path: "pause", content: fs::read(&program)? }];
        let archive = place.join(format!("{what}.tar"));
        pack(archive, PAUSE, &files, &[], json!({"Entrypoint": ["/pause"]}))
    };
    let busybox = fs::read(tools.busybox()).with_context(|| tools.busybox().display().to_string())?;
    Ok(Images {
        pause: pause("honest", &[])?,
        pause_binary: digest(&fs::read(place.join("honest"))?).replace("sha256:", ""),
        forking: pause("forking", &["-DEVIL_FORK"])?,
        connecting: pause("connecting", &["-DEVIL_CONNECT"])?,
        other: pause("other", &["-O0"])?,
        busybox: pack(
            place.join("busybox.tar"),
            BUSYBOX,
            &[File { path: "bin/busybox", content: busybox }],
            &["sh", "sleep", "id", "true", "cat", "cp", "test", "touch", "echo", "nsenter", "tty"],
            json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}),
        )?,
    })
}

/// An image of the same files under another name, so with another digest.
///
/// # Errors
/// When it cannot be written.
pub fn small(place: &Path, name: &str, label: &str) -> anyhow::Result<Image> {
    let file = File { path: "etc/label", content: label.as_bytes().to_vec() };
    pack(place.join(format!("{label}.tar")), name, &[file], &[], json!({"Labels": {"of": label}}))
}

struct File {
    path: &'static str,
    content: Vec<u8>,
}

/// Packs one layer of executable files, with links in `bin` to the first of them.
fn pack(
    archive: PathBuf,
    name: &str,
    files: &[File],
    links: &[&str],
    config: serde_json::Value,
) -> anyhow::Result<Image> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        entry(&mut layer, tar::EntryType::Directory, dir, &[])?;
    }
    for file in files {
        entry(&mut layer, tar::EntryType::Regular, file.path, &file.content)?;
    }
    for link in links {
        let mut header = header(tar::EntryType::Symlink, 0);
        layer.append_link(&mut header, format!("bin/{link}"), "busybox")?;
    }
    let layer = layer.into_inner()?;
    let layer_digest = digest(&layer);
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut described = descriptor(MANIFEST, &manifest);
    described["annotations"] = json!({"io.containerd.image.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [described]}))?;

    let mut whole = tar::Builder::new(Vec::new());
    entry(&mut whole, tar::EntryType::Regular, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    entry(&mut whole, tar::EntryType::Regular, "index.json", &index)?;
    for blob in [&layer, &config, &manifest] {
        let path = format!("blobs/{}", digest(blob).replace(':', "/"));
        entry(&mut whole, tar::EntryType::Regular, &path, blob)?;
    }
    fs::write(&archive, whole.into_inner()?).with_context(|| archive.display().to_string())?;
    Ok(Image { archive, digest: digest(&manifest) })
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn descriptor(media: &str, blob: &[u8]) -> serde_json::Value {
    json!({"mediaType": media, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut header = header(kind, content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_the_same_files_are_one_image_and_another_label_is_another() {
        let dir = std::env::temp_dir().join(format!("detector-images-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let one = small(&dir, "a.example/one:1", "x").unwrap();
        let two = small(&dir, "a.example/two:1", "x").unwrap();
        let other = small(&dir, "a.example/one:1", "y").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(one.digest, two.digest);
        assert_ne!(one.digest, other.digest);
    }
}
