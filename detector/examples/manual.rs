//! Writes the manual pages and the shells' completions of the command line into a directory: `manual DIR`.
//!
//! An example, and not a command of the agent, which needs no generator of manuals.

use std::{
    env,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, builder::Resettable};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use detector::cli::Cli;

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(env::args_os().nth(1).context("usage: manual DIR")?);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "detector", &dir)?;
    }
    Ok(())
}

/// A page for the command, and for each below it: `detector-trace-dump.1`. Hidden ones have none.
fn pages(command: &Command, dir: &Path) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, dir)?;
    }
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let page =
        Man::new(command.clone().after_help(Resettable::Reset)).source(concat!("detector ", env!("CARGO_PKG_VERSION")));
    let mut file = BufWriter::new(File::create(dir.join(page.get_filename()))?);
    page.render_title(&mut file)?;
    page.render_name_section(&mut file)?;
    page.render_synopsis_section(&mut file)?;
    page.render_description_section(&mut file)?;
    page.render_options_section(&mut file)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        page.render_subcommands_section(&mut file)?;
    }
    let (examples, status) = examples.split_once("\n\n").unwrap_or((&examples, ""));
    let mut roff = Roff::default();
    roff.control("SH", ["EXAMPLES"]);
    // Lines as they are.
    roff.control("nf", []);
    for line in examples.lines().skip(1) {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["NOTES"]);
    for line in status.lines() {
        if line.starts_with("Exit status") {
            roff.control("PP", []);
        }
        roff.text([roman(line)]);
    }
    roff.to_writer(&mut file)?;
    Ok(file.flush()?)
}
