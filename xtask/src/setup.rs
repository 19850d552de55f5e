//! What a fresh machine lacks, and how it gets it. Silent and quick when nothing is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
    linker()?;
    core_source()
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

/// Takes `library/` out of Debian's rust-src of exactly this version, without touching the system's package lists.
fn debian_rust_src(version: &str, library: &Path) -> anyhow::Result<()> {
    let work = std::env::temp_dir().join(format!("detector-rust-src-{}", std::process::id()));
    let result = debian_rust_src_in(&work, version, library);
    // Left-overs in the temporary directory are no reason to fail.
    let _ = fs::remove_dir_all(&work);
    result
}

fn debian_rust_src_in(work: &Path, version: &str, library: &Path) -> anyhow::Result<()> {
    for dir in ["lists/partial", "cache/archives/partial", "unpacked"] {
        fs::create_dir_all(work.join(dir))?;
    }
    let suites = ["trixie", "trixie-backports", "sid"];
    let sources: String = suites
        .iter()
        .map(|suite| {
            format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n")
        })
        .collect();
    fs::write(work.join("sources.list"), sources)?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(work.join("unpacked")).args(["-qq", "-oDir::Etc::sourceparts=/dev/null"]);
        apt.arg(format!("-oDir::Etc::sourcelist={}", work.join("sources.list").display()));
        apt.arg(format!("-oDir::State::Lists={}", work.join("lists").display()));
        apt.arg(format!("-oDir::Cache={}", work.join("cache").display()));
        apt.arg("-oAPT::Sandbox::User=root");
        apt
    };
    check(apt().arg("update"))?;
    let listed = output(
        Command::new("apt-cache")
            .args(["madison", "rust-src", "-oDir::Etc::sourceparts=/dev/null"])
            .arg(format!("-oDir::Etc::sourcelist={}", work.join("sources.list").display()))
            .arg(format!("-oDir::State::Lists={}", work.join("lists").display()))
            .arg(format!("-oDir::Cache={}", work.join("cache").display())),
    )?;
    let package = matching_version(&listed, version)
        .with_context(|| format!("Debian has no rust-src {version} (in {})", suites.join(", ")))?;
    check(apt().args(["download", &format!("rust-src={package}")]))?;
    let file = fs::read_dir(work.join("unpacked"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get downloaded no package")?;
    check(Command::new("dpkg").arg("-x").arg(&file).arg(work.join("unpacked/root")))?;
    let from = work.join(format!("unpacked/root/usr/src/rustc-{version}/library"));
    anyhow::ensure!(from.join("core/src/lib.rs").exists(), "the package has no {}", from.display());
    fs::create_dir_all(library.parent().unwrap_or(library))?;
    check(Command::new("cp").arg("-r").arg(&from).arg(library))
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
fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
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

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir: PathBuf| dir.join(program).is_file())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} failed: {}",
        crate::shown(command),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn say(what: &str) {
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
