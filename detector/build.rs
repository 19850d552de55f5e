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
    .context("building the kernel programs; `cargo xtask setup` installs what that needs")?;
    let programs = Path::new(&env::var("OUT_DIR")?).join("detector-ebpf");
    let slim = without_debug(&fs::read(&programs)?).context("the kernel programs are no whole ELF file")?;
    Ok(fs::write(programs, slim)?)
}

/// An ELF file of the kernel programs without what only a debugger reads, which is most of it. Every section keeps its number, so that
/// what refers to others by number stays true.
///
/// `None` when it is no little-endian ELF file of 64 bits, or ends early.
fn without_debug(elf: &[u8]) -> Option<Vec<u8>> {
    /// `Elf64_Ehdr` and `Elf64_Shdr`.
    const FILE_HEADER: usize = 64;
    const SECTION_HEADER: usize = 64;
    /// `sh_type` of a section without content in the file.
    const NOBITS: [u8; 4] = 8_u32.to_le_bytes();
    let word = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    // e_shoff, e_shnum, e_shstrndx.
    let (headers, count, names) = (usize::try_from(word(elf, 40)?).ok()?, half(60)?, half(62)?);
    let header = |index: usize| elf.get(headers + index * SECTION_HEADER..)?.get(..SECTION_HEADER);
    // sh_offset, sh_size.
    let content = |header: &[u8]| {
        let at = usize::try_from(word(header, 24)?).ok()?;
        elf.get(at..)?.get(..usize::try_from(word(header, 32)?).ok()?)
    };
    let names = content(header(names)?)?;
    let mut slim = elf.get(..FILE_HEADER)?.to_vec();
    let mut table = Vec::with_capacity(count * SECTION_HEADER);
    for index in 0..count {
        let mut header = header(index)?.to_vec();
        let name = names.get(usize::try_from(word(&header, 0)? & 0xffff_ffff).ok()?..)?;
        if name.starts_with(b".debug") || name.starts_with(b".rel.debug") {
            // SHT_NULL, and no content.
            header[4..8].fill(0);
            header[24..40].fill(0);
        } else if header[4..8] != NOBITS {
            let content = content(&header)?;
            slim.resize(slim.len().next_multiple_of(16), 0);
            header[24..32].copy_from_slice(&u64::try_from(slim.len()).ok()?.to_le_bytes());
            slim.extend_from_slice(content);
        }
        table.extend_from_slice(&header);
    }
    slim.resize(slim.len().next_multiple_of(16), 0);
    let at = u64::try_from(slim.len()).ok()?;
    slim[40..48].copy_from_slice(&at.to_le_bytes());
    slim.extend_from_slice(&table);
    Some(slim)
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
