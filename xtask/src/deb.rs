//! `cargo xtask deb`: the agent as a Debian package, by dpkg-deb.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{check, man, root, setup::output, vm::Arch};

const NAME: &str = "detector";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What administrators change, and upgrades leave alone.
const CONFIGURATION: &str = "etc/detector/config.yaml";
pub const MAINTAINER: &str = "The detector developers <root@localhost>";

#[derive(clap::Args)]
pub struct Options {
    /// What kind of node it is for
    #[arg(long, value_name = "ARCH", default_value = "amd64")]
    arch: Arch,
    /// Who vouches for the package: Name <address>
    #[arg(long, value_name = "WHO", default_value = MAINTAINER)]
    maintainer: String,
    /// Write the package to FILE
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Builds the agent and packs it; prints the package's SHA-256.
///
/// # Errors
/// When it cannot be built or packed.
pub fn deb(options: &Options) -> anyhow::Result<()> {
    let program = crate::build_static(options.arch)?.join("detector");
    of(program, options.arch, &options.maintainer, &options.output)?;
    print!("{}", output(Command::new("sha256sum").arg(&options.output))?);
    Ok(())
}

/// Packs an agent that is built.
///
/// # Errors
/// When it cannot be packed.
pub fn of(program: PathBuf, arch: Arch, maintainer: &str, to: &Path) -> anyhow::Result<()> {
    let manual = root().join("target/man");
    man::generate(&manual)?;
    pack(&Package { program, manual, arch, maintainer, time: time()? }, &root().join("target/deb"), to)
}

/// What goes into a package beside what is in `deploy/`.
struct Package<'a> {
    program: PathBuf,
    /// The directory of the manual's pages and the shells' completions.
    manual: PathBuf,
    arch: Arch,
    maintainer: &'a str,
    /// Of every file, in seconds since 1970, so that the same source gives the same package.
    time: u64,
}

/// `SOURCE_DATE_EPOCH`, or when the last commit was made.
fn time() -> anyhow::Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()))
            .context("when the source was made (without git, set SOURCE_DATE_EPOCH)")?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is no number of seconds: {text:?}"))
}

/// Lays the files out below `tree`, and packs them.
fn pack(package: &Package, tree: &Path, to: &Path) -> anyhow::Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| tree.display().to_string())?;
    }
    let deploy = root().join("deploy");
    let read = |path: PathBuf| fs::read(&path).with_context(|| path.display().to_string());
    let debian = |name: &str| read(deploy.join("debian").join(name));
    let doc = format!("usr/share/doc/{NAME}");
    let date = output(Command::new("date").args(["--utc", "-R", &format!("--date=@{}", package.time)]))?;
    let changes = format!(
        "{NAME} ({VERSION}) unstable; urgency=medium\n\n  * See README.md, and CHANGELOG.md of the source.\n\n -- {}  {date}",
        package.maintainer
    );
    let mut files = vec![
        (format!("usr/bin/{NAME}"), 0o755, read(package.program.clone())?),
        (format!("lib/systemd/system/{NAME}.service"), 0o644, read(deploy.join("detector.service"))?),
        // An output's URL may hold a secret.
        (CONFIGURATION.to_owned(), 0o640, debian("config.yaml")?),
        (format!("{doc}/copyright"), 0o644, debian("copyright")?),
        (format!("{doc}/README.md"), 0o644, read(deploy.join("README.md"))?),
        (format!("{doc}/changelog.gz"), 0o644, gzip(changes.as_bytes())?),
        (format!("usr/share/lintian/overrides/{NAME}"), 0o644, debian("lintian-overrides")?),
    ];
    for (path, file) in man::installed(&package.manual)? {
        let content = read(file)?;
        let content = if path.ends_with(".gz") { gzip(&content)? } else { content };
        files.push((path, 0o644, content));
    }
    let mut sums = String::new();
    let mut size = 0;
    for (path, mode, content) in &files {
        write(&tree.join(path), *mode, content)?;
        size += content.len().div_ceil(1024);
        if !path.starts_with("etc/") {
            let sum = output(Command::new("md5sum").arg(path).current_dir(tree))?;
            sums += &sum;
        }
    }
    let control = format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: {}\nMaintainer: {}\nInstalled-Size: {size}\n\
         Pre-Depends: init-system-helpers (>= 1.54~)\nSection: admin\nPriority: optional\n\
         Description: Node-level runtime detector for Kubernetes\n \
         Sees, in the kernel, static pods being planted, commands executed in\n \
         containers from outside, and pause images that do more than pause; and\n \
         says which process of which pod did it.\n \
         .\n \
         The agent runs beside kubelet, and needs neither a kernel module nor the\n \
         API server. It takes a kernel with BTF.\n",
        package.arch.name(),
        package.maintainer,
    );
    write(&tree.join("DEBIAN/control"), 0o644, control.as_bytes())?;
    write(&tree.join("DEBIAN/md5sums"), 0o644, sums.as_bytes())?;
    write(&tree.join("DEBIAN/conffiles"), 0o644, format!("/{CONFIGURATION}\n").as_bytes())?;
    for script in ["postinst", "prerm", "postrm"] {
        write(&tree.join("DEBIAN").join(script), 0o755, &debian(script)?)?;
    }
    // Whatever the umask was.
    check(Command::new("find").arg(tree).args(["-type", "d", "-exec", "chmod", "755", "{}", "+"]))?;
    check(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group", "-Zxz"])
            .arg(tree)
            .arg(to)
            .env("SOURCE_DATE_EPOCH", package.time.to_string())
            .stdout(std::io::stderr()),
    )
}

/// Without name and time.
fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

/// A file in directories of its own.
fn write(path: &Path, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().context("a file without directory")?;
    fs::create_dir_all(dir)?;
    fs::write(path, content).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_the_same_bytes_twice_and_says_what_it_is_and_whose_its_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, b"\x7fELF").unwrap();
        let manual = dir.path().join("manual");
        fs::create_dir(&manual).unwrap();
        for name in ["detector.1", "detector-run.1", "detector.bash", "_detector", "detector.fish", "notes"] {
            fs::write(manual.join(name), name).unwrap();
        }
        let package =
            Package { program, manual, arch: Arch::Arm64, maintainer: "A B <a@b.example>", time: 1_700_000_000 };
        let [one, two] = ["one", "two"].map(|name| {
            let to = dir.path().join(format!("{name}.deb"));
            pack(&package, &dir.path().join("target").join(name), &to).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1100));
            to
        });
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "packages differ");
        let said = |option: &str| output(Command::new("dpkg-deb").arg(option).arg(&one)).unwrap();
        let field = |name: &str| output(Command::new("dpkg-deb").arg("--field").arg(&one).arg(name)).unwrap();
        assert_eq!(field("Architecture").trim(), "arm64");
        assert_eq!(field("Version").trim(), VERSION);
        let listed = said("--contents");
        for line in listed.lines() {
            assert!(line.contains(" root/root "), "{line}");
        }
        for wanted in [
            "-rwxr-xr-x root/root         4 2023-11-14 22:13 ./usr/bin/detector\n",
            "-rw-r----- root/root ",
            " ./etc/detector/config.yaml\n",
            " ./usr/share/man/man1/detector.1.gz\n",
            " ./usr/share/man/man1/detector-run.1.gz\n",
            " ./usr/share/bash-completion/completions/detector\n",
            " ./usr/share/zsh/vendor-completions/_detector\n",
            " ./usr/share/fish/vendor_completions.d/detector.fish\n",
        ] {
            assert!(listed.contains(wanted), "{wanted:?} is not in\n{listed}");
        }
    }
}
