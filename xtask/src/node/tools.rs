//! The node's programs: Debian's containerd, runc, CNI plugins and registry, unpacked and never installed, and a kubelet
//! built from Debian's source package. All of it is kept below `target/node`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::Context as _;

use crate::{
    check, root,
    setup::{self, Apt},
};

/// Debian 12: its containerd 1.6 speaks the CRI version of its kubelet 1.20.
const SOURCES: [(&str, &str); 2] =
    [("http://deb.debian.org/debian", "bookworm"), ("http://deb.debian.org/debian-security", "bookworm-security")];
const PACKAGES: [&str; 5] = ["containerd", "runc", "containernetworking-plugins", "docker-registry", "busybox-static"];
/// What kubelet is built with, and not kept.
const GO: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];
/// Programs of the system that bringing a node up takes, with their packages.
const SYSTEM: [(&str, &str); 5] =
    [("gcc", "gcc"), ("curl", "curl"), ("ip", "iproute2"), ("nsenter", "util-linux"), ("dpkg-source", "dpkg-dev")];

/// Where the programs are.
pub struct Tools {
    /// Unpacked packages: `usr/bin/containerd`, `usr/lib/cni`, ...
    pub root: PathBuf,
    pub kubelet: PathBuf,
}

impl Tools {
    /// A `PATH` with the node's programs first.
    pub fn path(&self) -> String {
        let inherited = std::env::var("PATH").unwrap_or_default();
        let own = |dir: &str| self.root.join(dir).display().to_string();
        format!("{}:{}:{inherited}:/usr/sbin:/sbin", own("usr/bin"), own("usr/sbin"))
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("usr/bin").join(name)
    }

    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

/// Fetches and builds what is not there yet.
///
/// # Errors
/// When something cannot be had here, with what to type.
pub fn tools() -> anyhow::Result<Tools> {
    system()?;
    let place = root().join("target/node");
    fs::create_dir_all(&place)?;
    let place = place.canonicalize()?;
    let tools = Tools { root: place.join("tools"), kubelet: place.join("kubelet") };
    if !tools.root.exists() {
        setup::say(&format!("fetching {} (Debian 12's; unpacked, not installed)", PACKAGES.join(", ")));
        let apt = Apt::new(&SOURCES, None).context("Debian's package index (a network is needed, once)")?;
        let partial = place.join("tools.partial");
        unpack(&apt, &PACKAGES, &partial)?;
        fs::rename(&partial, &tools.root)?;
    }
    if !tools.kubelet.exists() {
        build_kubelet(&place, &tools.kubelet).context("building kubelet")?;
    }
    Ok(tools)
}

fn system() -> anyhow::Result<()> {
    let overlay = || fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("overlay"));
    if !overlay() {
        // Where it is a module, and mounting does not load it.
        let _ = Command::new("modprobe").arg("overlay").status();
        anyhow::ensure!(
            overlay(),
            "this kernel has no overlay file system. Type: modprobe overlay; or use another kernel"
        );
    }
    let mut missing: Vec<_> =
        SYSTEM.into_iter().filter(|(program, _)| !setup::found(program)).map(|(_, package)| package).collect();
    if !Path::new("/usr/include/stdlib.h").exists() {
        missing.push("libc6-dev");
    }
    if missing.is_empty() {
        return Ok(());
    }
    setup::say(&format!("installing {}", missing.join(", ")));
    setup::apt_install(&missing)
        .with_context(|| format!("(with a network, type: apt-get install {})", missing.join(" ")))
}

/// Unpacks packages over one another into a new directory.
fn unpack(apt: &Apt, packages: &[&str], into: &Path) -> anyhow::Result<()> {
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::create_dir_all(into)?;
    for package in packages {
        let from = apt.unpack(package)?;
        check(Command::new("cp").arg("-a").arg(from.join(".")).arg(into))?;
    }
    Ok(())
}

/// Kubelet is in no binary package; Debian's source package has it with all that it imports.
fn build_kubelet(place: &Path, kubelet: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    setup::say("building kubelet from Debian's source package kubernetes (about five CPU minutes, once)");
    let build = place.join("build");
    if build.exists() {
        fs::remove_dir_all(&build)?;
    }
    let apt = Apt::with_sources(&SOURCES).context("Debian's package index (a network is needed, once)")?;
    unpack(&apt, &GO, &build.join("go"))?;
    let source = apt.source("kubernetes", &build.join("source"))?;
    let gopath = build.join("gopath");
    let package = gopath.join("src/k8s.io/kubernetes");
    fs::create_dir_all(gopath.join("src/k8s.io"))?;
    fs::rename(&source, &package)?;
    let goroot = build.join("go/usr/lib/go-1.19");
    let version = "-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v1.20.2";
    let partial = place.join("kubelet.partial");
    check(
        Command::new(goroot.join("bin/go"))
            .args([
                "build",
                "-trimpath",
                "-tags",
                "providerless dockerless",
                "-ldflags",
                &format!("-s -w {version}"),
                "-o",
            ])
            .arg(&partial)
            .arg("./cmd/kubelet")
            .current_dir(&package)
            .envs([("GOROOT", &goroot), ("GOPATH", &gopath), ("GOCACHE", &build.join("cache"))])
            // The source tree is older than modules, and complete: nothing is to be fetched.
            .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("CGO_ENABLED", "0"), ("GOPROXY", "off")]),
    )?;
    fs::rename(&partial, kubelet)?;
    fs::remove_dir_all(&build)?;
    setup::say(&format!("kubelet is built, in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}
