//! `cargo xtask fuzz`: any bytes, at everything that reads bytes of others.

use std::{fs, process::Command};

use anyhow::Context as _;

use crate::{check, root, setup};

/// Most memory that a target may take, in MiB: a block of a trace takes up to 32 MiB twice, and what it is compared with as well.
const MEMORY: u32 = 512;
/// Most that it may take at once.
const ALLOCATION: u32 = 128;
/// Longest input, in bytes.
const LENGTH: u32 = 16 << 10;

#[derive(clap::Args)]
pub struct Options {
    /// What to fuzz: trace_reader, record_decode, manifest, oci_config, cri, audit [default: all, one after the other]
    target: Option<String>,
    /// How long, for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// none is twice as fast and counts memory as it is; address finds what unsafe code does wrong
    #[arg(long, default_value = "none", value_parser = ["none", "address"])]
    sanitizer: String,
}

/// Fuzzes. What was found is in `fuzz/artifacts`: mend it, and add it to the target's `fuzz/seeds`, which a unit test reads.
///
/// # Errors
/// When it cannot be built, or something was found.
pub fn fuzz(options: &Options) -> anyhow::Result<()> {
    setup::setup(&[])?;
    setup::cargo_fuzz()?;
    let mut targets: Vec<_> = fs::read_dir(root().join("fuzz/fuzz_targets"))?
        .filter_map(|file| Some(file.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    targets.sort();
    if let Some(target) = &options.target {
        anyhow::ensure!(targets.contains(target), "no target {target:?}; there are {}", targets.join(", "));
        targets.retain(|known| known == target);
    }
    for target in targets {
        setup::say(&format!("fuzzing {target} for {} s", options.seconds));
        let mut run = cargo_fuzz("run", &options.sanitizer);
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(root().join(&corpus))?;
        run.args([&target, &corpus, &seeds, "--"]);
        run.arg(format!("-max_total_time={}", options.seconds));
        run.arg(format!("-rss_limit_mb={}", MEMORY * if options.sanitizer == "none" { 1 } else { 4 }));
        run.arg(format!("-malloc_limit_mb={ALLOCATION}"));
        run.args([&format!("-max_len={LENGTH}"), "-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
        check(&mut run).with_context(|| {
            format!(
                "{target}: what it was is above, and the bytes are in fuzz/artifacts/{target}. Once it is mended, \
                 add them to fuzz/seeds/{target}"
            )
        })?;
    }
    Ok(())
}

fn cargo_fuzz(what: &str, sanitizer: &str) -> Command {
    let mut fuzz = Command::new("cargo");
    fuzz.current_dir(root()).args(["fuzz", what, "--sanitizer", sanitizer]);
    // What it builds with is unstable in name alone: the stable compiler has all of it.
    fuzz.env("RUSTC_BOOTSTRAP", "1");
    fuzz
}
