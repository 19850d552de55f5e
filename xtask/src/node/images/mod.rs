//! Images made on the spot: an honest pause, its evil twins, and a busybox; packed as OCI archives.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;
use serde_json::json;

use super::tools::Tools;
use crate::{
    check,
    oci::{self, Contents, File, digest},
};

pub use crate::oci::Image;

/// The name that the runtime is configured with; an evil pause takes it over, as an attacker's does.
pub const PAUSE: &str = "registry.k8s.io/pause:3.9";
pub const BUSYBOX: &str = "docker.io/library/busybox:1.35";

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
        pack(&archive, PAUSE, &files, &[], json!({"Entrypoint": ["/pause"]}))
    };
    let source = place.join("memfd.c");
    fs::write(&source, include_str!("memfd.c"))?;
    let memfd = place.join("memfd");
    check(Command::new("gcc").args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"]).arg(&memfd).arg(&source))?;
    let memfd = fs::read(&memfd)?;
    let busybox = fs::read(tools.busybox()).with_context(|| tools.busybox().display().to_string())?;
    Ok(Images {
        pause: pause("honest", &[])?,
        pause_binary: digest(&fs::read(place.join("honest"))?).replace("sha256:", ""),
        forking: pause("forking", &["-DEVIL_FORK"])?,
        connecting: pause("connecting", &["-DEVIL_CONNECT"])?,
        other: pause("other", &["-O0"])?,
        busybox: pack(
            &place.join("busybox.tar"),
            BUSYBOX,
            &[File { path: "bin/busybox", content: busybox }, File { path: "bin/memfd", content: memfd }],
            &[
                "sh", "sleep", "id", "true", "cat", "cp", "test", "touch", "echo", "nsenter", "tty", "wget", "kill",
                "seq", "date",
            ],
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
    pack(&place.join(format!("{label}.tar")), name, &[file], &[], json!({"Labels": {"of": label}}))
}

/// Packs one layer of executable files, with links in `bin` to the first of them.
fn pack(
    archive: &Path,
    name: &str,
    files: &[File],
    links: &[&str],
    config: serde_json::Value,
) -> anyhow::Result<Image> {
    let links: Vec<_> = links.iter().map(|link| format!("bin/{link}")).collect();
    oci::pack(
        archive,
        &Contents {
            name,
            architecture: "amd64",
            directories: &["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"],
            files,
            links: &links.iter().map(|link| (link.as_str(), "busybox")).collect::<Vec<_>>(),
            config,
            compressed: false,
        },
    )
}
