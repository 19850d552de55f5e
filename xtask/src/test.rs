//! Every check, one after the other; the first that fails ends it.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::Context as _;

use crate::{
    cargo, check, manifests, node,
    setup::{self, Need},
    vm,
};

/// Runs everything.
///
/// # Errors
/// When something is missing or fails; which step it was is in the message.
pub fn test() -> anyhow::Result<()> {
    setup::setup(&[Need::Root, Need::Btf, Need::Containerd, Need::Chromium, Need::Rsyslog])?;
    let mut took = Vec::new();
    let prepared = Prepared::start()?;
    let steps = [
        ("format", with(&["fmt", "--all", "--check"])),
        ("lints", with(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"])),
        ("kernel lints", kernel_lints()),
        ("tests", with(&["test", "--quiet", "--workspace", "--exclude", "detector-ebpf", "--lib", "--bins"])),
        // Programs that the live tests start beside the agent.
        ("acts", with(&["build", "--quiet", "--package", "detector", "--bins", "--examples"])),
        (
            "evasion suite",
            with(&["run", "--quiet", "--package", "detector", "--example", "evasion", "--", "--flood", "1000000"]),
        ),
        ("entries", with(&["run", "--quiet", "--package", "detector", "--example", "entries"])),
        // One at a time: each test has an agent of its own, and they would see one another's load.
        ("live tests", with(&["test", "--package", "detector", "--test", "*", "--", "--test-threads=1"])),
    ];
    for (name, mut step) in steps {
        eprintln!("==> {name}");
        let started = Instant::now();
        check(&mut step).map_err(|error| error.context(format!("step `{name}` failed")))?;
        took.push(format!("{name} {:.0} s", started.elapsed().as_secs_f64()));
    }
    eprintln!("==> what the node and the machines need");
    let started = Instant::now();
    prepared.finish();
    took.push(format!("waiting for what was built beside {:.0} s", started.elapsed().as_secs_f64()));
    eprintln!("==> manifests");
    manifests::manifests().map_err(|error| error.context("step `manifests` failed"))?;
    eprintln!("==> private node");
    let started = Instant::now();
    node::node(&node::Options::all()).map_err(|error| error.context("step `private node` failed"))?;
    took.push(format!("private node {:.0} s", started.elapsed().as_secs_f64()));
    eprintln!("==> virtual machines");
    let started = Instant::now();
    vm::vm(&vm::Options::some()).map_err(|error| error.context("step `virtual machines` failed"))?;
    took.push(format!("virtual machines {:.0} s", started.elapsed().as_secs_f64()));
    eprintln!("==> all passed: {}", took.join(", "));
    Ok(())
}

/// Beside the first steps, in the time that they leave: Kubernetes and the static agent are built.
struct Prepared(Child);

impl Prepared {
    fn start() -> anyhow::Result<Self> {
        let mut idle = Command::new("chrt");
        idle.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("prepare").stdin(Stdio::null());
        Ok(Self(idle.spawn().context("starting chrt (Debian's util-linux)")?))
    }

    /// Waits for the end. Whatever failed fails again, with its reason, where it is needed.
    fn finish(mut self) {
        // It may have ended already.
        let _ = self.0.wait();
    }
}

impl Drop for Prepared {
    /// A step failed: nothing of this is needed.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with(args: &[&str]) -> Command {
    let mut cargo = cargo();
    cargo.args(args);
    cargo
}

/// The kernel programs are linted for their own target, with `core` built for it.
fn kernel_lints() -> Command {
    let mut clippy = with(&["clippy", "--quiet", "--package", "detector-ebpf", "--target", "bpfel-unknown-none"]);
    clippy.args(["-Z", "build-std=core", "--release", "--target-dir", "target/ebpf-lints", "--", "--deny", "warnings"]);
    clippy.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    clippy
}
