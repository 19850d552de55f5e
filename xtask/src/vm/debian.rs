//! A Debian with its systemd in a machine, on which a script is run that says what is well.

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
    kernels::{self, Arch, Kernel, Wanted},
    listen, place,
};
use crate::{check, setup};

const SERIES: &str = "6.12";
/// A tenth of the system, and of no use here.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
const UNIT: &str = "\
[Unit]
After=dbus.service
[Service]
ExecStart=/bin/sh /media/tried.sh
";

/// What is tried, and on what.
pub struct Trial {
    pub name: String,
    /// The distribution, by its name.
    pub suite: &'static str,
    /// What Debian's essential packages lack.
    pub packages: String,
    /// Units that cannot be started before the script unmasks them.
    pub masked: &'static [&'static str],
    /// The disk's size, and the machine's memory in MiB.
    pub disk: &'static str,
    pub memory: u32,
    /// What is done, behind `machine.sh`.
    pub script: &'static str,
}

impl Trial {
    /// The kernel that it is tried on.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn kernel(&self) -> anyhow::Result<Kernel> {
        kernels::tools(&[Arch::Amd64])?;
        let wanted = Wanted { series: SERIES.to_owned(), arch: Arch::Amd64 };
        kernels::fetch(&[wanted], &place().join("kernels"))?.pop().context("no kernel")
    }

    /// Boots the system with these files in `/media`, and fails when something there is not as it should be.
    ///
    /// # Errors
    /// When the machine cannot be set up, comes to no verdict, or to a bad one.
    pub fn run(&self, kernel: &Kernel, files: &[(&Path, &str)]) -> anyhow::Result<()> {
        let disk = self.disk(files)?;
        let started = Instant::now();
        eprintln!("==> {} on Debian {}, kernel {}", self.name, self.suite, kernel.version);
        let mut qemu = kernel.arch.machine();
        qemu.args(["-accel", "tcg", "-m", &self.memory.to_string(), "-smp", "2"]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.args(["-drive", &format!("if=none,id=disk,format=raw,snapshot=on,file={}", disk.display())]);
        qemu.args(["-device", "nvme,drive=disk,serial=1"]);
        let (console, results) = kernel.arch.serial_lines();
        let line = format!(
            "root=/dev/nvme0n1 rw console={console} panic=-1 lsm=landlock,lockdown,yama,bpf detector.results=/dev/{results} \
             systemd.hostname=node-1 systemd.machine_id={:032x} systemd.mask=serial-getty@{console}.service",
            1
        );
        qemu.arg("-kernel").arg(&kernel.image).arg("-append").arg(line);
        let (mut well, mut failed) = (0, Vec::new());
        let log = place().join(format!("{}.log", self.name));
        let verdict = listen(kernel, qemu, &log, |line| {
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

    /// A disk with the system, what is tried and these files.
    fn disk(&self, files: &[(&Path, &str)]) -> anyhow::Result<PathBuf> {
        let system = self.system()?;
        let script = place().join(format!("{}.sh", self.name));
        fs::write(&script, [include_str!("machine.sh"), self.script].concat())?;
        let disk = place().join(format!("{}.ext4", self.name));
        check(Command::new("cp").arg("--sparse=always").arg(&system).arg(&disk))?;
        for (file, to) in files.iter().chain(&[(script.as_path(), "tried.sh")]) {
            // It says what goes wrong, and ends well all the same; the machine then comes to no verdict.
            check(
                Command::new("debugfs").args(["-w", "-R", &format!("write {} /media/{to}", file.display())]).arg(&disk),
            )?;
        }
        Ok(disk)
    }

    /// A disk with a Debian that does what `/media/tried.sh` says; made when it is not there, or another one is.
    fn system(&self) -> anyhow::Result<PathBuf> {
        let Self { name, suite, packages, .. } = self;
        let (image, recipe) =
            (place().join(format!("{name}-debian.ext4")), place().join(format!("{name}-debian.recipe")));
        let wanted = format!("{suite}\n{packages}\n{:?}\n{}\n{LEFT_OUT:?}\n{UNIT}", self.masked, self.disk);
        if image.exists() && fs::read_to_string(&recipe).is_ok_and(|made| made == wanted) {
            return Ok(image);
        }
        if !setup::found("mmdebstrap") {
            setup::say("installing mmdebstrap");
            setup::apt_install(&["mmdebstrap"])
                .context("(with a network, type: apt-get install --no-install-recommends mmdebstrap)")?;
        }
        setup::say(&format!("making a Debian {suite} (once, some minutes)"));
        let tree = place().join(format!("{name}-debian"));
        for left in [&tree, &image] {
            check(Command::new("rm").arg("-rf").arg(left))?;
        }
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.args(["--quiet", "--mode=root", "--variant=essential"]);
        // A mirror of a distribution that changes day by day may be one of some weeks ago.
        for option in ["Apt::Install-Recommends", "Acquire::Check-Valid-Until"] {
            debootstrap.arg(format!("--aptopt={option} \"false\""));
        }
        debootstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        debootstrap.arg(format!("--include={packages}")).arg(suite).arg(&tree).arg("http://deb.debian.org/debian");
        check(&mut debootstrap)?;
        let units = tree.join("etc/systemd/system");
        fs::write(units.join("tried.service"), UNIT)?;
        for unit in self.masked {
            symlink("/dev/null", units.join(unit))?;
        }
        let wants = units.join("multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        symlink("../tried.service", wants.join("tried.service"))?;
        let new = image.with_extension("new");
        check(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&new).arg(self.disk))?;
        fs::rename(&new, &image)?;
        fs::remove_dir_all(&tree)?;
        fs::write(&recipe, wanted)?;
        Ok(image)
    }
}
