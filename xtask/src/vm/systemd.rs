//! `cargo xtask vm --systemd`: the Debian package on a Debian 12 in a machine, with its systemd, journald and dpkg: installed, used,
//! upgraded, removed. What is done there is `systemd.sh`.

use super::{
    debian::{Trial, place},
    kernels::Arch,
};
use crate::deb;

const TRIAL: Trial = Trial {
    name: "systemd",
    suite: "bookworm",
    // The first process and its programs, kill, what reads JSON.
    packages: "systemd-sysv,dbus,init-system-helpers,procps,jq",
    masked: &[],
    disk: "640M",
    memory: 1024,
    script: include_str!("systemd.sh"),
};

/// Tries the package.
///
/// # Errors
/// When something is not as it should be.
pub fn systemd() -> anyhow::Result<()> {
    let kernel = TRIAL.kernel()?;
    let package = place().join("detector.deb");
    let program = crate::build_static(Arch::Amd64)?.join("detector");
    deb::of(program, Arch::Amd64, deb::MAINTAINER, &package)?;
    TRIAL.run(&kernel, &[(&package, "detector.deb")])
}
