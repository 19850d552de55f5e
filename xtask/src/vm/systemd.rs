//! `cargo xtask vm --systemd`: the Debian package on a Debian 12 in a machine, with its systemd, journald and dpkg: installed, used,
//! upgraded, removed. What is done there is `systemd.sh`.

use super::{debian::Trial, kernels::Arch, place};
use crate::deb;

/// The first process and its programs, kill, what reads JSON.
const PACKAGES: &str = "systemd-sysv,dbus,init-system-helpers,procps,jq";

/// Tries the package.
///
/// # Errors
/// When something is not as it should be.
pub fn systemd() -> anyhow::Result<()> {
    let trial = Trial {
        name: "systemd".to_owned(),
        suite: "bookworm",
        packages: PACKAGES.to_owned(),
        masked: &[],
        disk: "640M",
        memory: 1024,
        script: include_str!("systemd.sh"),
    };
    let kernel = trial.kernel()?;
    let package = place().join("detector.deb");
    let program = crate::build_static(Arch::Amd64)?.join("detector");
    deb::of(program, Arch::Amd64, deb::MAINTAINER, &package)?;
    trial.run(&kernel, &[(&package, "detector.deb")])
}
