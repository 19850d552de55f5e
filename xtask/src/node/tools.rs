//! The node's programs: Debian's containerd, runc, CNI plugins, registry and etcd, unpacked and never installed, and kubelet,
//! API server, controller manager and kubectl, built from Debian's source package. All of it is kept below `target/node`.

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
/// What keeps an API server's objects, and its client; what rotates logs.
const CLUSTER: [&str; 4] = ["etcd-server", "etcd-client", "logrotate", "libpopt0"];
const PACKAGES: [&str; 5] = ["containerd", "runc", "containernetworking-plugins", "docker-registry", "busybox-static"];
/// What Kubernetes' programs are built with, and not kept.
const GO: [&str; 3] = ["golang-1.19-go", "golang-1.19-src", "golang-github-modern-go-reflect2-dev"];
/// A library of which the source package has a version older than Go 1.18: programs with it crash at random, when they write maps as
/// JSON. Debian's own package of it is newer.
const REFLECT: &str = "github.com/modern-go/reflect2";
/// Where its source believes to be.
const PACKAGE: &str = "k8s.io/kubernetes";
const KUBELET: &str = "kubelet";
/// The programs of Kubernetes that a node with an API server has beside kubelet.
const CONTROL_PLANE: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kubectl"];
/// Programs of the system that bringing a node up takes, with their packages.
const SYSTEM: [(&str, &str); 6] = [
    ("gcc", "gcc"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("dpkg-source", "dpkg-dev"),
    ("openssl", "openssl"),
];

/// Where the programs are.
pub struct Tools {
    /// Unpacked packages: `usr/bin/containerd`, `usr/lib/cni`, ...
    pub root: PathBuf,
    /// What is built, and the packages that only a node with an API server has.
    place: PathBuf,
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

    pub fn kubelet(&self) -> PathBuf {
        self.kubernetes(KUBELET)
    }

    /// A program that is built from Kubernetes' source: kubelet, or one that only a node with an API server has.
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.place.join("kubernetes").join(name)
    }

    /// A file of the packages that only a node with an API server has.
    pub fn packaged(&self, path: &str) -> PathBuf {
        self.place.join("cluster").join(path)
    }

    /// `etcd` or `etcdctl`, where the node has an API server.
    pub fn etcd(&self, name: &str) -> PathBuf {
        self.packaged("usr/bin").join(name)
    }

    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

/// Fetches and builds what is not there yet; with an API server, what that takes too.
///
/// # Errors
/// When something cannot be had here, with what to type.
pub fn tools(with_api: bool) -> anyhow::Result<Tools> {
    system()?;
    let place = root().join("target/node");
    fs::create_dir_all(place.join("kubernetes"))?;
    let place = place.canonicalize()?;
    let tools = Tools { root: place.join("tools"), place };
    packages(&PACKAGES, &tools.root)?;
    let mut wanted = vec![KUBELET];
    if with_api {
        packages(&CLUSTER, &tools.place.join("cluster"))?;
        wanted.extend(CONTROL_PLANE);
    }
    wanted.retain(|name| !tools.kubernetes(name).exists());
    if !wanted.is_empty() {
        build(&tools, &wanted).with_context(|| format!("building {}", wanted.join(", ")))?;
    }
    Ok(tools)
}

/// Debian packages unpacked into a directory, unless it is there.
fn packages(packages: &[&str], into: &Path) -> anyhow::Result<()> {
    if into.exists() {
        return Ok(());
    }
    setup::say(&format!("fetching {} (Debian 12's; unpacked, not installed)", packages.join(", ")));
    let apt = Apt::new(&SOURCES, None).context("Debian's package index (a network is needed, once)")?;
    let partial = into.with_extension("partial");
    unpack(&apt, packages, &partial)?;
    Ok(fs::rename(&partial, into)?)
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

/// These programs are in no binary package; Debian's source package has them with all that they import.
fn build(tools: &Tools, programs: &[&str]) -> anyhow::Result<()> {
    let started = Instant::now();
    let what = programs.join(", ");
    setup::say(&format!("building {what} from Debian's source package kubernetes (about two CPU minutes each, once)"));
    let build = tools.place.join("build");
    if build.exists() {
        fs::remove_dir_all(&build)?;
    }
    let apt = Apt::with_sources(&SOURCES).context("Debian's package index (a network is needed, once)")?;
    unpack(&apt, &GO, &build.join("go"))?;
    let source = apt.source("kubernetes", &build.join("source"))?;
    let gopath = build.join("gopath");
    let package = gopath.join("src").join(PACKAGE);
    fs::create_dir_all(gopath.join("src/k8s.io"))?;
    fs::rename(&source, &package)?;
    let reflect = package.join("vendor").join(REFLECT);
    fs::remove_dir_all(&reflect)?;
    fs::rename(build.join("go/usr/share/gocode/src").join(REFLECT), &reflect)?;
    let goroot = build.join("go/usr/lib/go-1.19");
    let inside = |program: &Path| {
        let mut command = Command::new(program);
        command.current_dir(&package);
        command.envs([("GOROOT", &goroot), ("GOPATH", &gopath), ("GOCACHE", &build.join("cache"))]);
        // The source tree is older than modules, and complete: nothing is to be fetched.
        command.envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("CGO_ENABLED", "0"), ("GOPROXY", "off")]);
        command.env("PATH", format!("{}:{}", goroot.join("bin").display(), std::env::var("PATH").unwrap_or_default()));
        command
    };
    let go = goroot.join("bin/go");
    if programs.contains(&"kube-apiserver") {
        let generator = build.join("openapi-gen");
        check(inside(&go).args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen"))?;
        check(&mut openapi(inside(&generator), &package)?)
            .context("generating the API server's OpenAPI definitions")?;
    }
    let mut flags = "-s -w".to_owned();
    // Each program says the version of one of these, and to the API server's clients that of another.
    for of in ["vendor/k8s.io/component-base/version", "vendor/k8s.io/client-go/pkg/version", "pkg/version"] {
        for (key, value) in [("gitVersion", "v1.20.2"), ("gitMajor", "1"), ("gitMinor", "20")] {
            flags += &format!(" -X {PACKAGE}/{of}.{key}={value}");
        }
    }
    for program in programs {
        let done = tools.kubernetes(program);
        let partial = done.with_extension("partial");
        check(
            inside(&go)
                .args(["build", "-trimpath", "-tags", "providerless dockerless", "-ldflags", &flags, "-o"])
                .arg(&partial)
                .arg(format!("./cmd/{program}")),
        )?;
        fs::rename(&partial, &done)?;
    }
    fs::remove_dir_all(&build)?;
    setup::say(&format!("{what}: built, in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// The one generated file that the source package lacks: without it the API server cannot tell what fields objects have. As
/// `make gen_openapi` makes it: of all packages with a file that asks for it.
fn openapi(mut generator: Command, package: &Path) -> anyhow::Result<Command> {
    let mut asking = Command::new("grep");
    asking.args(["-Rl", "--include=*.go", "--exclude=*_test.go", "--exclude=zz_generated*"]);
    asking.args(["^ *// *+k8s:openapi-gen=", "cmd", "pkg", "plugin", "vendor/k8s.io"]).current_dir(package);
    let files = setup::output(&mut asking)?;
    let packages: std::collections::BTreeSet<_> = files
        .lines()
        .filter(|file| !["/code-generator/", "/sample-apiserver/", "/testdata/"].iter().any(|part| file.contains(part)))
        .filter_map(|file| Some(format!("{PACKAGE}/{}", file.rsplit_once('/')?.0)))
        .collect();
    generator.arg("-i").arg(packages.into_iter().collect::<Vec<_>>().join(","));
    generator.args(["-p", &format!("{PACKAGE}/pkg/generated/openapi"), "-O", "zz_generated.openapi"]);
    generator.args(["-h", "hack/boilerplate/boilerplate.generatego.txt", "-r", "violations"]);
    Ok(generator)
}
