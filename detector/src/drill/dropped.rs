//! Programs that lie where no image puts them, executed by a container's own process. They do nothing.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::container::THIS;

/// Puts this program somewhere, executes it there, and takes it away.
///
/// # Errors
/// When the kernel refuses, or the program fails.
pub fn execute(place: &str) -> anyhow::Result<()> {
    match place {
        "memory" => memory(),
        "nowhere" => nowhere(),
        "tmpfs" => in_tmpfs(|dir| run(&copied(&dir.join("program"))?)),
        "upper" => in_tmpfs(|dir| overlay(dir, true)),
        "lower" => in_tmpfs(|dir| overlay(dir, false)),
        other => bail!("a pause cannot {other}"),
    }
}

fn memory() -> anyhow::Result<()> {
    let memory: OwnedFd = memfd_create("drill", MFdFlags::MFD_CLOEXEC).context("making a file in memory")?;
    let mut to = File::from(memory);
    io::copy(&mut File::open(THIS)?, &mut to)?;
    run(&by_descriptor(&to))
}

fn nowhere() -> anyhow::Result<()> {
    let path = copied(&temporary("program"))?;
    let file = File::open(&path)?;
    fs::remove_file(&path)?;
    run(&by_descriptor(&file))
}

/// An overlay whose program lies in its upper layer, where a running container's files do, or in its lower one, as an image's.
fn overlay(dir: &Path, upper: bool) -> anyhow::Result<()> {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir.join(name))?;
    }
    if !upper {
        copied(&dir.join("lower/program"))?;
    }
    let at = |name: &str| dir.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let merged = dir.join("merged");
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mounting an overlay")?;
    let program = merged.join("program");
    let done = if upper { copied(&program).and_then(|program| run(&program)) } else { run(&program) };
    umount2(&merged, MntFlags::MNT_DETACH)?;
    done
}

/// In a directory in memory, which only this container's mount namespace has.
fn in_tmpfs(with: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let dir = temporary("tmpfs");
    fs::create_dir(&dir)?;
    let done = mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting a tmpfs");
    let done = done.and_then(|()| {
        let done = with(&dir);
        umount2(&dir, MntFlags::MNT_DETACH)?;
        done
    });
    fs::remove_dir(&dir)?;
    done
}

fn temporary(name: &str) -> PathBuf {
    // Its pid may be anybody's else in another namespace; the link in /proc is of the namespace that all share.
    let me = fs::read_link("/proc/self").unwrap_or_default();
    std::env::temp_dir().join(format!("detector-drill-{}-{name}", me.display()))
}

/// This program, copied.
fn copied(to: &Path) -> anyhow::Result<PathBuf> {
    fs::copy(THIS, to).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(to.to_owned())
}

fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn run(program: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    let status = command.arg0("detector").args(["drill-step", "nothing"]).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("executing {}", program.display()))?;
    anyhow::ensure!(status.success(), "{} failed", program.display());
    Ok(())
}
