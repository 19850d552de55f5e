//! Builds the kernel programs, for the target that the agent is built for, and lists the pages of `detector explain`.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    pages().context("listing docs/techniques")?;
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

/// Every page by its file's name, which is a technique's id: a new one is found without being named anywhere.
fn pages() -> anyhow::Result<()> {
    let dir = fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/techniques"))?;
    println!("cargo:rerun-if-changed={}", dir.display());
    let mut pages: Vec<_> = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let mut list = String::new();
    for page in &pages {
        let id = page.file_stem().context("a page without a name")?.to_string_lossy();
        writeln!(list, "({id:?}, include_str!({:?})),", page.to_str().context("a path that is no UTF-8")?)?;
    }
    let to = Path::new(&env::var("OUT_DIR")?).join("pages.rs");
    Ok(fs::write(to, format!("&[\n{list}]\n"))?)
}
