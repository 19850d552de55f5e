//! What Docker and podman call a container, the image that it is of, and Docker's health check. Bundles do not say; these are files that
//! they keep beside others of the container, and that only root writes.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::each;
use crate::record::{ContainerInfo, TEXT_MAX, bounded};

/// Most words of a command that is kept.
const WORDS_MAX: usize = 64;

/// Of Docker's `config.v2.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Docker {
    name: String,
    /// Digest of the image.
    image: Option<String>,
    config: Option<DockerConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    image: Option<String>,
    healthcheck: Option<Healthcheck>,
    /// What runs a health check that is a line.
    shell: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Healthcheck {
    test: Option<Vec<String>>,
}

impl DockerConfig {
    /// What Docker executes in the container again and again.
    fn health_check(&self) -> Option<Vec<String>> {
        let test = self.healthcheck.as_ref()?.test.as_ref()?;
        let (form, command) = test.split_first()?;
        match form.as_str() {
            "CMD" => Some(command.to_vec()),
            "CMD-SHELL" => {
                let shell = self.shell.clone().unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
                Some([shell.as_slice(), command].concat())
            }
            _ => None,
        }
    }
}

/// An entry of `containers.json`, which is containers/storage's.
#[derive(Debug, Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    /// Hexadecimal digits of the image's digest.
    #[serde(default)]
    image: String,
    #[serde(default)]
    metadata: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    image_name: Option<String>,
}

/// Who keeps what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Podman,
}

/// Files that may tell of a container: Docker's beside the container's `/etc/hostname`, podman's beside all containers' bundles.
pub fn files(id: &str, bundle: &Path, hostname: Option<&Path>) -> Vec<(Engine, PathBuf)> {
    // Another `/etc/hostname` may be mounted by whoever starts the container, who does not know its id.
    let docker = hostname.and_then(Path::parent).filter(|dir| dir.ends_with(id));
    let docker = docker.map(|dir| (Engine::Docker, dir.join("config.v2.json")));
    // By the name of what it stores with: `overlay-containers`, `vfs-containers`.
    let is_storage = |dir: &&Path| dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-containers"));
    let storage = bundle.parent().filter(is_storage);
    // Those of `podman run --rm` are in a file of their own.
    let podman = storage
        .into_iter()
        .flat_map(|dir| ["containers.json", "volatile-containers.json"].map(|name| (Engine::Podman, dir.join(name))));
    podman.chain(docker.filter(|_| storage.is_none())).collect()
}

/// Whether a command can be kept. One that is cut is another command.
fn is_small(argv: &[String]) -> bool {
    argv.len() <= WORDS_MAX && argv.iter().map(String::len).sum::<usize>() <= TEXT_MAX
}

/// Adds what such a file says of the container; whether it says anything.
///
/// # Errors
/// When it is not what the engine writes.
pub fn name(engine: Engine, file: &[u8], info: &mut ContainerInfo) -> Result<bool, serde_json::Error> {
    let (name, image, digest) = match engine {
        Engine::Docker => {
            let Docker { name, image, config } = serde_json::from_slice(file)?;
            let health_check = config.as_ref().and_then(DockerConfig::health_check);
            info.expected_execs = health_check.filter(|argv| is_small(argv)).into_iter().collect();
            (name.trim_start_matches('/').to_owned(), config.and_then(|config| config.image), image)
        }
        Engine::Podman => {
            let mut found = None;
            let mut json = serde_json::Deserializer::from_slice(file);
            each(&mut json, |entry: Stored| {
                if entry.id == info.id {
                    found = Some(entry);
                }
            })?;
            let Some(Stored { names, image, metadata, .. }) = found else { return Ok(false) };
            let Some(name) = names.into_iter().next() else { return Ok(false) };
            let metadata: Metadata = serde_json::from_str(&metadata).unwrap_or_default();
            (name, metadata.image_name, Some(format!("sha256:{image}")).filter(|_| !image.is_empty()))
        }
    };
    info.name = Some(bounded(&name));
    info.image = image.as_deref().map(bounded);
    info.image_digest = digest.as_deref().map(bounded);
    Ok(true)
}
