//! `cargo xtask image`: the agent's image, with nothing in it but the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::json;

use crate::{
    oci::{self, Contents, File, Image},
    vm::Arch,
};

/// What `deploy/` calls it, until whoever deploys puts it into a registry of theirs.
pub const NAME: &str = concat!("localhost/detector:", env!("CARGO_PKG_VERSION"));

#[derive(clap::Args)]
pub struct Options {
    /// What kind of node it is for
    #[arg(long, value_name = "ARCH", default_value = "amd64")]
    arch: Arch,
    /// Name and tag under which the archive is loaded
    #[arg(long, default_value = NAME)]
    name: String,
    /// Write the archive to FILE
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Builds the agent and packs it; prints the image's digest and size.
///
/// # Errors
/// When it cannot be built or written.
pub fn image(options: &Options) -> anyhow::Result<()> {
    let image = make(options.arch, &options.name, &options.output)?;
    let size = fs::metadata(&image.archive)?.len() as f64 / f64::from(1 << 20);
    println!("{}  {}  {size:.2} MiB  {}", image.digest, options.name, options.output.display());
    Ok(())
}

/// Builds the agent and packs it.
///
/// # Errors
/// When it cannot be built or written.
pub fn make(arch: Arch, name: &str, archive: &Path) -> anyhow::Result<Image> {
    let program = crate::build_static(arch)?.join("detector");
    let content = fs::read(&program).with_context(|| program.display().to_string())?;
    oci::pack(
        archive,
        &Contents {
            name,
            architecture: arch.name(),
            directories: &[],
            files: &[File { path: "detector", content }],
            links: &[],
            config: json!({
                "Entrypoint": ["/detector"],
                "Cmd": ["run"],
                "Labels": {
                    "org.opencontainers.image.title": "detector",
                    "org.opencontainers.image.description": "Node-level runtime detector for Kubernetes",
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            }),
            compressed: true,
        },
    )
}
