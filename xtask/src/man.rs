//! `cargo xtask man`: the manual's pages and the shells' completions, from the command line itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{cargo, check};

#[derive(clap::Args)]
pub struct Options {
    /// Write them into DIR
    #[arg(short, long, value_name = "DIR", default_value = "target/man")]
    output: PathBuf,
}

/// Writes them; prints where each would be installed.
///
/// # Errors
/// When they cannot be made.
pub fn man(options: &Options) -> anyhow::Result<()> {
    generate(&options.output)?;
    for (path, file) in installed(&options.output)? {
        println!("{}: /{path}", file.display());
    }
    Ok(())
}

/// Writes them into a directory, by an example of the agent's package: what makes them is no part of the agent.
///
/// # Errors
/// When the example cannot be built or run.
pub fn generate(dir: &Path) -> anyhow::Result<()> {
    crate::setup::setup(&[])?;
    let dir = std::path::absolute(dir)?;
    check(cargo().args(["run", "--quiet", "--package", "detector", "--example", "manual", "--"]).arg(dir))
}

/// Where a Debian system looks for each of the files in a directory that [`generate`] made; those of the manual are compressed there.
///
/// # Errors
/// When the directory cannot be read.
pub fn installed(dir: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut installed = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = match name.as_str() {
            "detector.bash" => "usr/share/bash-completion/completions/detector".to_owned(),
            "_detector" => "usr/share/zsh/vendor-completions/_detector".to_owned(),
            "detector.fish" => "usr/share/fish/vendor_completions.d/detector.fish".to_owned(),
            page if page.ends_with(".1") => format!("usr/share/man/man1/{page}.gz"),
            _ => continue,
        };
        installed.push((path, file));
    }
    installed.sort();
    Ok(installed)
}
