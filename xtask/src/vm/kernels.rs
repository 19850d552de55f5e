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

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub series: String,
    /// As the package is called: `6.12.107+deb13-cloud-amd64`.
    pub version: String,
    pub image: PathBuf,
}

/// Packages of cloud kernels that the index has: series, version and package name.
fn available(apt: &Apt) -> anyhow::Result<Vec<(String, String, String)>> {
    let listed = apt.search("^linux-(image|binary)-[0-9].*-cloud-amd64$")?;
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

/// The newest kernel of each series, fetched when it is not in the cache.
///
/// # Errors
/// When a series is not in the index any more, or cannot be fetched: a kernel that silently is not tested is worse.
pub fn fetch(wanted: &[&str], cache: &Path) -> anyhow::Result<Vec<Kernel>> {
    fs::create_dir_all(cache)?;
    let mut apt = None;
    wanted
        .iter()
        .map(|wanted| {
            let place = cache.join(wanted);
            if let Some(kernel) = cached(wanted, &place) {
                return Ok(kernel);
            }
            if apt.is_none() {
                setup::say("asking Debian's package index for kernels");
                apt = Some(Apt::new(&SOURCES)?);
            }
            let apt = apt.as_ref().context("no package index")?;
            let all = available(apt)?;
            let newest = all.iter().filter(|(series, ..)| series == wanted).max_by_key(|(_, version, package)| {
                // From 6.19 on the image is in linux-binary, and linux-image is a stub.
                (numbers(version), package.starts_with("linux-binary"))
            });
            let mut known: Vec<_> = all.iter().map(|(series, ..)| series.as_str()).collect();
            known.sort_by_key(|series| numbers(series));
            known.dedup();
            let (_, version, package) = newest
                .with_context(|| format!("Debian has no kernel {wanted} any more; it has {}", known.join(", ")))?;
            setup::say(&format!("fetching kernel {version}"));
            let root = apt.unpack(package)?;
            let image = [format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")]
                .into_iter()
                .map(|path| root.join(path))
                .find(|path| path.exists())
                .with_context(|| format!("package {package} has no kernel image"))?;
            fs::create_dir_all(&place)?;
            fs::copy(&image, place.join("vmlinuz"))?;
            fs::write(place.join("version"), version)?;
            cached(wanted, &place).context("the cache does not hold what was just put there")
        })
        .collect()
}

fn cached(series: &str, place: &Path) -> Option<Kernel> {
    let version = fs::read_to_string(place.join("version")).ok()?;
    let image = place.join("vmlinuz");
    image.exists().then(|| Kernel { series: series.to_owned(), version, image })
}

/// Whether everything that booting needs is there, or could be installed.
///
/// # Errors
/// When a package cannot be installed.
pub fn tools() -> anyhow::Result<()> {
    let missing: Vec<_> = [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio")]
        .into_iter()
        .filter(|(program, _)| !setup::found(program))
        .map(|(_, package)| package)
        .chain((!busybox_is_static()).then_some("busybox-static"))
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
            ("7.3.4+deb13-cloud-amd64", Some("7.3")),
            ("6.12-cloud-amd64", None),
            ("6.1.0-0.deb11.48-cloud-amd64", None),
        ] {
            assert_eq!(series(version).as_deref(), expected, "{version}");
        }
        assert!(numbers("6.12.117+deb12") > numbers("6.12.99+deb13"));
    }
}
