//! `cargo xtask vm --systemd`: the Debian package on a Debian 12 in a machine, with its systemd, journald and dpkg: installed, used,
//! upgraded, removed. What is done there is `systemd.sh`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    kernels::{self, Arch, Wanted},
    listen,
};
use crate::{check, deb, root, setup};

const SERIES: &str = "6.12";
/// What Debian's essential packages lack: the first process and its programs, kill, what reads JSON.
const PACKAGES: &str = "systemd-sysv,dbus,init-system-helpers,procps,jq";
/// A tenth of the system, and of no use here.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
const UNIT: &str = "\
[Unit]
After=dbus.service
[Service]
ExecStart=/bin/sh /media/systemd.sh
";

/// Boots the system, and fails when something there is not as it should be.
///
/// # Errors
/// When the machine cannot be set up, comes to no verdict, or to a bad one.
pub fn systemd() -> anyhow::Result<()> {
    let (kernel, disk) = prepare()?;
    let started = Instant::now();
    eprintln!("==> the Debian package under systemd, kernel {}", kernel.version);
    let mut qemu = kernel.arch.machine();
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args(["-drive", &format!("if=none,id=disk,format=raw,snapshot=on,file={}", disk.display())]);
    qemu.args(["-device", "nvme,drive=disk,serial=1"]);
    let (console, results) = kernel.arch.serial_lines();
    qemu.arg("-kernel").arg(&kernel.image).arg("-append").arg(format!(
        "root=/dev/nvme0n1 rw console={console} panic=-1 lsm=landlock,lockdown,yama,bpf detector.results=/dev/{results} \
         systemd.hostname=node-1 systemd.machine_id={:032x} systemd.mask=serial-getty@{console}.service",
        1
    ));
    let (mut well, mut failed) = (0, Vec::new());
    let log = root().join("target/vm/systemd.log");
    let verdict = listen(&kernel, qemu, &log, |line| {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(said)) => {
                let name = said.get("name").and_then(Value::as_str).unwrap_or_default();
                if said.get("result").and_then(Value::as_str) == Some("well") {
                    well += 1;
                } else {
                    failed.push(name.to_owned());
                }
                eprintln!("    {line}");
            }
            _ if line.is_empty() => {}
            _ => eprintln!("    {line}"),
        }
        Ok(())
    })?;
    eprintln!("    {well} well, {} not, {:.0} s", failed.len(), started.elapsed().as_secs_f64());
    anyhow::ensure!(failed.is_empty(), "not as it should be: {}", failed.join("; "));
    anyhow::ensure!(verdict == Some(0) && well > 0, "the machine did not come to its end; see {}", log.display());
    Ok(())
}

/// The kernel, and a disk with Debian, the package and what is done with it.
fn prepare() -> anyhow::Result<(kernels::Kernel, PathBuf)> {
    let place = root().join("target/vm");
    kernels::tools(&[Arch::Amd64])?;
    let wanted = Wanted { series: SERIES.to_owned(), arch: Arch::Amd64 };
    let kernel = kernels::fetch(&[wanted], &place.join("kernels"))?.pop().context("no kernel")?;
    let system = debian(&place)?;
    let (package, disk) = (place.join("detector.deb"), place.join("systemd.ext4"));
    let program = crate::build_static(Arch::Amd64)?.join("detector");
    deb::of(program, Arch::Amd64, deb::MAINTAINER, &package)?;
    let script = place.join("systemd.sh");
    fs::write(&script, include_str!("systemd.sh"))?;
    check(Command::new("cp").arg("--sparse=always").arg(&system).arg(&disk))?;
    for (file, to) in [(&package, "/media/detector.deb"), (&script, "/media/systemd.sh")] {
        // It says what goes wrong, and ends well all the same; the machine then comes to no verdict.
        check(Command::new("debugfs").args(["-w", "-R", &format!("write {} {to}", file.display())]).arg(&disk))?;
    }
    Ok((kernel, disk))
}

/// A disk with a Debian 12 that does what `/media/systemd.sh` says; made when it is not there, or another one is.
fn debian(place: &Path) -> anyhow::Result<PathBuf> {
    let (image, recipe) = (place.join("debian-12.ext4"), place.join("debian-12.recipe"));
    let wanted = format!("{PACKAGES}\n{LEFT_OUT:?}\n{UNIT}");
    if image.exists() && fs::read_to_string(&recipe).is_ok_and(|made| made == wanted) {
        return Ok(image);
    }
    if !setup::found("mmdebstrap") {
        setup::say("installing mmdebstrap");
        setup::apt_install(&["mmdebstrap"])
            .context("(with a network, type: apt-get install --no-install-recommends mmdebstrap)")?;
    }
    setup::say("making a Debian 12 (once, some minutes)");
    let tree = place.join("debian-12");
    for left in [&tree, &image] {
        check(Command::new("rm").arg("-rf").arg(left))?;
    }
    let mut debootstrap = Command::new("mmdebstrap");
    debootstrap.args(["--quiet", "--mode=root", "--variant=essential", "--aptopt=Apt::Install-Recommends \"false\""]);
    debootstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    debootstrap.arg(format!("--include={PACKAGES}")).arg("bookworm").arg(&tree).arg("http://deb.debian.org/debian");
    check(&mut debootstrap)?;
    let units = tree.join("etc/systemd/system");
    fs::write(units.join("tried.service"), UNIT)?;
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("../tried.service", wants.join("tried.service"))?;
    let new = image.with_extension("new");
    check(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&new).arg("640M"))?;
    fs::rename(&new, &image)?;
    fs::remove_dir_all(&tree)?;
    fs::write(&recipe, wanted)?;
    Ok(image)
}
