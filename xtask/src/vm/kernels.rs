//! Debian's kernels, found by asking the package index, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::setup::{self, Apt};

/// Where series come from, oldest distribution first. Debian's own keyring signs all of them.
const SOURCES: [(&str, &str); 5] = [
    ("http://deb.debian.org/debian-security", "bullseye-security"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", "trixie"),
    ("http://deb.debian.org/debian", "trixie-backports"),
    ("http://deb.debian.org/debian", "sid"),
];

/// The module of overlayfs.
const OVERLAY: &str = "overlay.ko";

/// What a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// As Debian calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The Rust target of statically linked programs. Only the first needs a C compiler's driver, which building here
    /// needs anyway.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The emulator, and the package that has it.
    fn emulator(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Self::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
        }
    }

    /// The emulator with what this kind of machine needs.
    pub fn machine(self) -> Command {
        let mut qemu = Command::new(self.emulator().0);
        match self {
            Self::Amd64 => qemu.args(["-machine", "q35", "-cpu", "max"]),
            // `-cpu max` is several times slower.
            Self::Arm64 => qemu.args(["-machine", "virt", "-cpu", "cortex-a72"]),
        };
        qemu
    }

    /// The kernel's names of the serial line of its log, and of the one of results.
    pub fn serial_lines(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("ttyS0", "ttyS1"),
            Self::Arm64 => ("ttyAMA0", "ttyS0"),
        }
    }

    /// Options that make standard output the second serial line.
    pub fn results(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &["-serial", "stdio"],
            // `virt` has one line of its own.
            Self::Arm64 => &["-chardev", "stdio,id=results,signal=off", "-device", "pci-serial,chardev=results"],
        }
    }
}

/// A kernel that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Such as `6.12`.
    pub series: String,
    pub arch: Arch,
}

impl Wanted {
    /// The series, and the architecture where it is not the usual one.
    pub fn name(&self) -> String {
        match self.arch {
            Arch::Amd64 => self.series.clone(),
            Arch::Arm64 => format!("{}-{}", self.series, self.arch.name()),
        }
    }
}

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As [`Wanted::name`].
    pub series: String,
    pub arch: Arch,
    /// As the package is called: `6.12.107+deb13-cloud-amd64`.
    pub version: String,
    pub image: PathBuf,
    /// The module of overlayfs, which Debian does not build in and containers' file systems are.
    pub overlay: PathBuf,
}

/// Packages of cloud kernels that the index has: series, version and package name.
fn available(apt: &Apt, arch: Arch) -> anyhow::Result<Vec<(String, String, String)>> {
    let listed = apt.search(&format!("^linux-(image|binary)-[0-9].*-cloud-{}$", arch.name()))?;
    Ok(listed
        .lines()
        .filter_map(|line| {
            let package = line.split_whitespace().next()?;
            let version = package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"))?;
            Some((series(version)?, version.to_owned(), package.to_owned()))
        })
        .collect())
}

/// `6.12` of `6.12.107+deb13-cloud-amd64`; none of `6.12-cloud-amd64`, which is a meta-package.
fn series(version: &str) -> Option<String> {
    let mut parts = version.split(['.', '-', '+']);
    let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // A backport to an older distribution (`6.1.0-0.deb11.48`) is a rebuild of the same kernel.
    let rebuilt = version.contains("~bpo") || version.contains("-0.deb");
    (number(major) && number(minor) && number(patch) && !rebuilt).then(|| format!("{major}.{minor}"))
}

/// Numbers in a version, for comparing two of them.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Debian's index for one architecture, fetched when something is first asked of it.
struct Index {
    arch: Arch,
    apt: Option<Apt>,
}

impl Index {
    fn apt(&mut self) -> anyhow::Result<&Apt> {
        if self.apt.is_none() {
            setup::say(&format!("asking Debian's package index for {}", self.arch.name()));
            self.apt = Some(Apt::new(&SOURCES, Some(self.arch.name()))?);
        }
        self.apt.as_ref().context("no package index")
    }
}

/// The newest kernel of each series, fetched when it is not in the cache.
///
/// # Errors
/// When a series is not in the index any more, or cannot be fetched: a kernel that silently is not tested is worse.
pub fn fetch(wanted: &[Wanted], cache: &Path) -> anyhow::Result<Vec<Kernel>> {
    fs::create_dir_all(cache)?;
    let mut indices = [Arch::Amd64, Arch::Arm64].map(|arch| Index { arch, apt: None });
    wanted
        .iter()
        .map(|wanted| {
            let place = cache.join(wanted.name());
            if let Some(kernel) = cached(wanted, &place) {
                return Ok(kernel);
            }
            let index = indices.iter_mut().find(|index| index.arch == wanted.arch).context("no such architecture")?;
            fetch_one(wanted, &place, index.apt()?)?;
            cached(wanted, &place).context("the cache does not hold what was just put there")
        })
        .collect()
}

fn fetch_one(wanted: &Wanted, place: &Path, apt: &Apt) -> anyhow::Result<()> {
    let all = available(apt, wanted.arch)?;
    let newest = all.iter().filter(|(series, ..)| *series == wanted.series).max_by_key(|(_, version, package)| {
        // From 6.19 on the image is in linux-binary, and linux-image is a stub.
        (numbers(version), package.starts_with("linux-binary"))
    });
    let mut known: Vec<_> = all.iter().map(|(series, ..)| series.as_str()).collect();
    known.sort_by_key(|series| numbers(series));
    known.dedup();
    let (_, version, package) = newest.with_context(|| {
        let (series, arch) = (&wanted.series, wanted.arch.name());
        format!("Debian has no kernel {series} for {arch} any more; it has {}", known.join(", "))
    })?;
    setup::say(&format!("fetching kernel {version}"));
    let root = apt.unpack(package)?;
    let image = [format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")]
        .into_iter()
        .map(|path| root.join(path))
        .find(|path| path.exists())
        .with_context(|| format!("package {package} has no kernel image"))?;
    // From 6.19 on modules are in a package of their own.
    let with_modules = match package.strip_prefix("linux-binary-") {
        Some(version) => apt.unpack(&format!("linux-modules-{version}"))?,
        None => root,
    };
    let overlay = overlay(&with_modules, version).with_context(|| format!("{package} has no module overlay"))?;
    fs::create_dir_all(place)?;
    fs::copy(&image, place.join("vmlinuz"))?;
    fs::write(place.join(OVERLAY), overlay)?;
    fs::write(place.join("version"), version)?;
    Ok(())
}

/// The module, as it is loaded.
fn overlay(root: &Path, version: &str) -> anyhow::Result<Vec<u8>> {
    for modules in ["lib/modules", "usr/lib/modules"] {
        let module = root.join(modules).join(version).join("kernel/fs/overlayfs").join(OVERLAY);
        if module.exists() {
            return Ok(fs::read(&module)?);
        }
        let packed = module.with_extension("ko.xz");
        if packed.exists() {
            let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(&packed).output()?;
            anyhow::ensure!(unpacked.status.success(), "xz cannot unpack {}", packed.display());
            return Ok(unpacked.stdout);
        }
    }
    anyhow::bail!("no {OVERLAY} below {}", root.display())
}

fn cached(wanted: &Wanted, place: &Path) -> Option<Kernel> {
    let version = fs::read_to_string(place.join("version")).ok()?;
    let (image, overlay) = (place.join("vmlinuz"), place.join(OVERLAY));
    let whole = image.exists() && overlay.exists();
    whole.then(|| Kernel { series: wanted.name(), arch: wanted.arch, version, image, overlay })
}

/// A statically linked busybox for a machine.
///
/// # Errors
/// When Debian's package cannot be had.
pub fn busybox(arch: Arch, cache: &Path) -> anyhow::Result<PathBuf> {
    if arch == Arch::Amd64 {
        return Ok(PathBuf::from("/bin/busybox"));
    }
    let cached = cache.join(format!("busybox-{}", arch.name()));
    if !cached.exists() {
        let apt = Apt::new(&SOURCES, Some(arch.name()))?;
        setup::say(&format!("fetching busybox for {}", arch.name()));
        let root = apt.unpack(&format!("busybox-static:{}", arch.name()))?;
        let program = ["usr/bin/busybox", "bin/busybox"].map(|path| root.join(path));
        let program = program.iter().find(|path| path.exists()).context("package busybox-static has no busybox")?;
        fs::create_dir_all(cache)?;
        fs::copy(program, &cached)?;
    }
    Ok(cached)
}

/// Whether everything that booting needs is there, or could be installed.
///
/// # Errors
/// When a package cannot be installed.
pub fn tools(arches: &[Arch]) -> anyhow::Result<()> {
    let missing: Vec<_> = [("cpio", "cpio"), ("mke2fs", "e2fsprogs"), ("xz", "xz-utils")]
        .into_iter()
        .chain(arches.iter().map(|arch| arch.emulator()))
        .filter(|(program, _)| !setup::found(program))
        .map(|(_, package)| package)
        .chain((arches.contains(&Arch::Amd64) && !busybox_is_static()).then_some("busybox-static"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    setup::say(&format!("installing {}", missing.join(", ")));
    setup::apt_install(&missing)
        .with_context(|| format!("(with a network, type: apt-get install {})", missing.join(" ")))
}

fn busybox_is_static() -> bool {
    Command::new("ldd").arg("/bin/busybox").output().is_ok_and(|said| {
        let said = [said.stdout, said.stderr].concat();
        String::from_utf8_lossy(&said).contains("not a dynamic executable")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_kernel_and_none_of_what_is_no_kernel() {
        for (version, expected) in [
            ("5.10.0-46-cloud-amd64", Some("5.10")),
            ("6.12.117+deb12-cloud-amd64", Some("6.12")),
            ("6.12.117+deb13-cloud-arm64", Some("6.12")),
            ("7.3.4+deb13-cloud-amd64", Some("7.3")),
            ("6.12-cloud-amd64", None),
            ("6.1.0-0.deb11.48-cloud-amd64", None),
        ] {
            assert_eq!(series(version).as_deref(), expected, "{version}");
        }
        assert!(numbers("6.12.117+deb12") > numbers("6.12.99+deb13"));
    }
}
