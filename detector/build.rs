//! Builds the kernel programs, for the target that the agent is built for.

use std::env;

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let ebpf = concat!(env!("CARGO_MANIFEST_DIR"), "/../detector-ebpf");
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../detector-common/src"));
    // `core` is not shipped for the BPF target. Building it is an unstable feature, which a stable compiler allows for
    // the crates built below and, by way of this build script alone, for nothing else.
    // SAFETY: the build script has one thread.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    aya_build::build_ebpf(
        [Package { name: "detector-ebpf", root_dir: ebpf, ..Default::default() }],
        Toolchain::Custom(&toolchain),
    )
    .context("building the kernel programs; `cargo xtask setup` installs what that needs")
}
