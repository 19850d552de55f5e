//! `cargo xtask vm --engines`: Docker, podman and containerd as Debian's releases have them, under a systemd that has the v2 hierarchy
//! alone. What is done there is `engines.sh`.

use super::{debian::Trial, kernels::Arch};

/// Releases, and where each has Docker's client: Docker 20.10 and containerd 1.6, 26 and 1.7, 28 and 2.1 as this was written.
const RELEASES: [(&str, &str); 3] = [("bookworm", ""), ("trixie", ",docker-cli"), ("sid", ",docker-cli")];
const PACKAGES: &str = "systemd-sysv,dbus,init-system-helpers,procps,jq,busybox-static,docker.io,podman,crun,\
     uidmap,dbus-user-session,libpam-systemd";

/// Tries the engines.
///
/// # Errors
/// When something is not as it should be.
pub fn engines() -> anyhow::Result<()> {
    let built = crate::build_static(Arch::Amd64)?;
    let [detector, xtask] = ["detector", "xtask"].map(|name| built.join(name));
    for (suite, client) in RELEASES {
        let trial = Trial {
            name: format!("engines-{suite}"),
            suite,
            packages: format!("{PACKAGES}{client}"),
            // The script starts it.
            masked: &["docker.service"],
            disk: "1400M",
            memory: 2048,
            script: include_str!("engines.sh"),
        };
        let kernel = trial.kernel()?;
        trial.run(&kernel, &[(&detector, "detector"), (&xtask, "xtask"), (&kernel.overlay, "overlay.ko")])?;
    }
    Ok(())
}
