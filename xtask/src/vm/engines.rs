//! `cargo xtask vm --engines`: Docker, podman and containerd 2 as Debian has them today, under a systemd that has the v2 hierarchy alone.
//! What is done there is `engines.sh`.

use super::{debian::Trial, kernels::Arch};

const TRIAL: Trial = Trial {
    name: "engines",
    suite: "sid",
    packages: "systemd-sysv,dbus,init-system-helpers,procps,jq,busybox-static,docker.io,docker-cli,podman,crun",
    // The script starts it.
    masked: &["docker.service"],
    disk: "1400M",
    memory: 2048,
    script: include_str!("engines.sh"),
};

/// Tries the engines.
///
/// # Errors
/// When something is not as it should be.
pub fn engines() -> anyhow::Result<()> {
    let kernel = TRIAL.kernel()?;
    let built = crate::build_static(Arch::Amd64)?;
    let [detector, xtask] = ["detector", "xtask"].map(|name| built.join(name));
    TRIAL.run(&kernel, &[(&detector, "detector"), (&xtask, "xtask"), (&kernel.overlay, "overlay.ko")])
}
