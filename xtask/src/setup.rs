//! What a fresh machine lacks, and how it gets it. Silent and quick when nothing is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, bail};

use crate::{check, root};

/// The bpf-linker release whose LLVM is that of rustc: it links with rustc's own library.
const LINKERS: [(u32, &str); 1] = [(22, "0.10.3")];

/// What a command needs besides the tools that build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Root,
    Btf,
    /// containerd and runc: tests run a real one, in a directory of its own.
    Containerd,
    /// A browser: a test renders reports in it.
    Chromium,
    /// rsyslogd, and openssl for its certificates: tests send alerts to a real one.
    Rsyslog,
}

/// Installs what is missing, and says so; names everything that stands in the way at once.
///
/// # Errors
/// When something is missing that cannot be installed here, with what to type.
pub fn setup(needs: &[Need]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if needs.contains(&Need::Root) && !nix::unistd::geteuid().is_root() {
        missing.push(
            "not root: loading BPF programs needs it. Type: sudo -E env PATH=\"$PATH\" cargo xtask ...".to_owned(),
        );
    }
    if needs.contains(&Need::Btf) && !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(
            "no /sys/kernel/btf/vmlinux: this kernel is built without CONFIG_DEBUG_INFO_BTF. Type: nothing; use another kernel"
                .to_owned(),
        );
    }
    if !missing.is_empty() {
        bail!("cannot start:\n  - {}", missing.join("\n  - "));
    }
    compiler_tools()?;
    if needs.contains(&Need::Containerd) {
        containerd()?;
    }
    if needs.contains(&Need::Chromium) {
        chromium()?;
    }
    if needs.contains(&Need::Rsyslog) {
        rsyslog()?;
    }
    linker()?;
    core_source()
}

fn containerd() -> anyhow::Result<()> {
    if found("containerd") && found("runc") {
        return Ok(());
    }
    say("installing containerd and runc (tests run a real one)");
    apt_install(&["containerd", "runc"])
        .context("no containerd (with a network, type: apt-get install --no-install-recommends containerd runc)")
}

fn chromium() -> anyhow::Result<()> {
    if found("chromium") {
        return Ok(());
    }
    say("installing chromium (a test renders reports in it)");
    apt_install(&["chromium", "fonts-dejavu-core"]).context(
        "no chromium (with a network, type: apt-get install --no-install-recommends chromium fonts-dejavu-core)",
    )
}

fn rsyslog() -> anyhow::Result<()> {
    // Where libraries of programs lie depends on the architecture.
    let tls = || {
        fs::read_dir("/usr/lib")
            .is_ok_and(|dirs| dirs.filter_map(Result::ok).any(|dir| dir.path().join("rsyslog/lmnsd_ossl.so").exists()))
    };
    if Path::new("/usr/sbin/rsyslogd").exists() && tls() && found("openssl") {
        return Ok(());
    }
    say("installing rsyslog and openssl (tests send alerts to a real one)");
    apt_install(&["rsyslog", "rsyslog-openssl", "openssl"]).context(
        "no rsyslog (with a network, type: apt-get install --no-install-recommends rsyslog rsyslog-openssl openssl)",
    )
}

/// rustc links with a C compiler's driver.
fn compiler_tools() -> anyhow::Result<()> {
    if found("cc") {
        return Ok(());
    }
    say("installing gcc (rustc links with it)");
    apt_install(&["gcc", "libc6-dev"]).context("no C compiler (with a network, type: apt-get install gcc libc6-dev)")
}

/// bpf-linker, of the release that belongs to rustc's LLVM.
fn linker() -> anyhow::Result<()> {
    let (rustc, llvm) = rustc()?;
    let Some((_, wanted)) = LINKERS.iter().find(|(of, _)| *of == llvm) else {
        let known: Vec<_> = LINKERS.iter().map(|(llvm, _)| llvm.to_string()).collect();
        bail!(
            "rustc {rustc} has LLVM {llvm}, and no bpf-linker release for it is known here (known: {}). \
             Type: rustup toolchain install 1.95.0 && RUSTUP_TOOLCHAIN=1.95.0 cargo xtask ...",
            known.join(", ")
        );
    };
    let installed = output(Command::new("bpf-linker").arg("--version")).ok();
    if installed.as_deref().and_then(|said| said.split_whitespace().nth(1)) == Some(*wanted) {
        return Ok(());
    }
    say(&format!("installing bpf-linker {wanted}, which matches LLVM {llvm} (about two minutes, once)"));
    check(Command::new("cargo").args(["install", "--quiet", "bpf-linker", "--version", wanted, "--locked", "--force"]))
        .with_context(|| {
            format!("no bpf-linker (with a network, type: cargo install bpf-linker --version {wanted} --locked)")
        })
}

/// What runs the fuzz targets.
///
/// # Errors
/// When it is not there and cannot be installed.
pub fn cargo_fuzz() -> anyhow::Result<()> {
    if found("cargo-fuzz") {
        return Ok(());
    }
    say("installing cargo-fuzz (about a minute, once)");
    check(Command::new("cargo").args(["install", "--quiet", "cargo-fuzz", "--locked"]))
        .context("no cargo-fuzz (with a network, type: cargo install cargo-fuzz --locked)")
}

/// The source of `core`: it is built for the BPF target.
fn core_source() -> anyhow::Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").exists() {
        return Ok(());
    }
    say("installing the source of core (rust-src)");
    let added = found("rustup")
        && Command::new("rustup")
            .args(["component", "add", "rust-src"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
    if added && library.join("core/src/lib.rs").exists() {
        return Ok(());
    }
    let (version, _) = rustc()?;
    say(&format!("rustup cannot: taking it from Debian's package rust-src {version}"));
    debian_rust_src(&version, &library).with_context(|| {
        format!("no source of core at {} (with a network, type: rustup component add rust-src)", library.display())
    })
}

/// The standard library for a target that programs are cross-built for.
///
/// # Errors
/// When it is not there and rustup cannot get it.
pub fn standard_library(target: &str) -> anyhow::Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
    if library.exists() {
        return Ok(());
    }
    say(&format!("installing the standard library for {target}"));
    let missing = || {
        format!(
            "no {}: the programs of that machine cannot be built, and nothing stands in for them \
             (with a network, type: rustup target add {target})",
            library.display()
        )
    };
    check(Command::new("rustup").args(["target", "add", target]).current_dir(root())).with_context(missing)?;
    anyhow::ensure!(library.exists(), missing());
    Ok(())
}

/// A C compiler for a target that programs are linked statically for (zstd is written in C), and how cargo is told of it.
///
/// What it compiles meets musl's library, and not that of the headers: so it must not use what only glibc has.
///
/// # Errors
/// When there is none and it cannot be installed.
pub fn static_compiler(target: &str) -> anyhow::Result<[(String, String); 2]> {
    let host = target.starts_with(std::env::consts::ARCH);
    let (compiler, package, headers) = if host {
        ("gcc", "gcc", "libc6-dev")
    } else {
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")
    };
    anyhow::ensure!(host || target.starts_with("aarch64"), "no C compiler is known here for {target}");
    if !found(compiler) {
        say(&format!("installing {package} (zstd, for {target})"));
        apt_install(&[package, headers])
            .with_context(|| format!("no {compiler} (with a network, type: apt-get install {package} {headers})"))?;
    }
    let target = target.replace('-', "_");
    let flags = "-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=0 -fno-stack-protector";
    Ok([(format!("CC_{target}"), compiler.to_owned()), (format!("CFLAGS_{target}"), flags.to_owned())])
}

/// Takes `library/` out of Debian's rust-src of exactly this version.
fn debian_rust_src(version: &str, library: &Path) -> anyhow::Result<()> {
    let suites = ["trixie", "trixie-backports", "sid"];
    let apt = Apt::new(&suites.map(|suite| ("http://deb.debian.org/debian", suite)), None)?;
    let package = matching_version(&apt.versions("rust-src")?, version)
        .with_context(|| format!("Debian has no rust-src {version} (in {})", suites.join(", ")))?;
    let from = apt.unpack(&format!("rust-src={package}"))?.join(format!("usr/src/rustc-{version}/library"));
    anyhow::ensure!(from.join("core/src/lib.rs").exists(), "the package has no {}", from.display());
    fs::create_dir_all(library.parent().unwrap_or(library))?;
    check(Command::new("cp").arg("-r").arg(&from).arg(library))
}

/// Debian's package index in a directory of its own: the system's lists and packages are not touched.
pub struct Apt {
    dir: PathBuf,
    /// Debian's name of the packages' architecture; `None` for the system's own.
    architecture: Option<&'static str>,
}

impl Apt {
    /// Fetches the index of these archives and suites.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn new(sources: &[(&str, &str)], architecture: Option<&'static str>) -> anyhow::Result<Self> {
        Self::of(&["deb"], sources, architecture)
    }

    /// Fetches the index of source packages too.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn with_sources(sources: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::of(&["deb", "deb-src"], sources, None)
    }

    fn of(kinds: &[&str], sources: &[(&str, &str)], architecture: Option<&'static str>) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("detector-apt-{}-{number}", std::process::id()));
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let lines: String = sources
            .iter()
            .flat_map(|source| kinds.iter().map(move |kind| (kind, source)))
            .map(|(kind, (archive, suite))| {
                format!("{kind} [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {archive} {suite} main\n")
            })
            .collect();
        fs::write(dir.join("sources.list"), lines)?;
        let apt = Self { dir, architecture };
        check(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.args(["-oDir::Etc::sourceparts=/dev/null", "-oAPT::Sandbox::User=root"]);
        for (option, path) in
            [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")]
        {
            apt.arg(format!("-o{option}={}", self.dir.join(path).display()));
        }
        if let Some(architecture) = self.architecture {
            apt.arg(format!("-oAPT::Architecture={architecture}"));
            apt.arg(format!("-oAPT::Architectures={architecture}"));
        }
        apt
    }

    /// `apt-cache search --names-only`.
    ///
    /// # Errors
    /// When it fails.
    pub fn search(&self, pattern: &str) -> anyhow::Result<String> {
        output(self.command("apt-cache").args(["search", "--names-only", pattern]))
    }

    fn versions(&self, package: &str) -> anyhow::Result<String> {
        output(self.command("apt-cache").args(["madison", package]))
    }

    /// Downloads a package (`name` or `name=version`) and unpacks it into a directory, which is returned.
    ///
    /// # Errors
    /// When it cannot be downloaded or unpacked.
    pub fn unpack(&self, package: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(package);
        fs::create_dir_all(&dir)?;
        check(self.command("apt-get").current_dir(&dir).args(["-qq", "download", package]))?;
        let file = fs::read_dir(&dir)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .context("apt-get downloaded no package")?;
        let root = dir.join("root");
        check(Command::new("dpkg").arg("-x").arg(&file).arg(&root))?;
        Ok(root)
    }

    /// Downloads a source package and unpacks it, patched, into a directory below `place`, which is returned.
    ///
    /// # Errors
    /// When it cannot be downloaded or unpacked.
    pub fn source(&self, package: &str, place: &Path) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(place)?;
        let mut source = self.command("apt-get");
        source.args(["-qq", "source", "--only-source", package]).current_dir(place).stdout(Stdio::null());
        check(&mut source)?;
        fs::read_dir(place)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.is_dir())
            .with_context(|| format!("apt-get unpacked no source of {package}"))
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Left-overs in the temporary directory are no reason to fail.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The package version in `apt-cache madison` output that is this upstream version.
fn matching_version(listed: &str, version: &str) -> Option<String> {
    listed
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|package| package.strip_prefix(version).is_some_and(|rest| rest.starts_with(['+', '-', '~'])))
        .map(str::to_owned)
}

/// Version of rustc and the major version of its LLVM.
fn rustc() -> anyhow::Result<(String, u32)> {
    let said = output(Command::new("rustc").arg("-vV").current_dir(root())).context(
        "no Rust toolchain (type: apt-get install rustup && rustup default stable; or see https://rustup.rs)",
    )?;
    parse_rustc(&said).with_context(|| format!("`rustc -vV` says neither its release nor its LLVM:\n{said}"))
}

fn parse_rustc(said: &str) -> Option<(String, u32)> {
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("release:")?.to_owned(), field("LLVM version:")?.split('.').next()?.parse().ok()?))
}

/// Installs Debian packages, with the system's own lists, refreshed when they do not know a package.
pub fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-qq", "--yes", "--no-install-recommends"]).args(packages);
        apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        apt
    };
    if check(&mut install()).is_ok() {
        return Ok(());
    }
    check(Command::new("apt-get").args(["update", "-qq"]))?;
    check(&mut install())
}

pub fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir: PathBuf| dir.join(program).is_file())
}

pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} failed, {}: {}",
        crate::shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

pub fn say(what: &str) {
    eprintln!("==> {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_and_its_llvm_are_read() {
        let said = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(parse_rustc(said), Some(("1.95.0".to_owned(), 22)));
        assert_eq!(parse_rustc("release: 1.95.0\n"), None);
    }

    #[test]
    fn only_exactly_this_version_of_the_package_will_do() {
        let listed =
            " rust-src | 1.96.0+dfsg1-1 | x\n rust-src | 1.95.0+dfsg1-1~bpo13+1 | x\n rust-src | 1.95.01-1 | x\n";
        assert_eq!(matching_version(listed, "1.95.0").as_deref(), Some("1.95.0+dfsg1-1~bpo13+1"));
        assert_eq!(matching_version(listed, "1.9"), None);
    }
}
