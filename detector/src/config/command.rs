//! `detector config`: is it right, what does it come to, what may stand in it.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use jiff::Timestamp;

use super::{Config, file, show};
use crate::cli::help;

/// Check, show and describe configurations
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether a configuration is right, and where it is not
    #[command(after_help = help::CONFIG)]
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a configuration with every key, its value and what it is for
    #[command(after_help = help::CONFIG)]
    Show {
        /// The configuration file [default: none, so every key has its default]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the JSON Schema of configurations, for editors
    #[command(after_help = help::CONFIG)]
    Schema,
}

/// Does it. The exit code is 1 when the configuration is wrong.
///
/// # Errors
/// When it is wrong, or standard output is gone.
pub fn config(command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    let text = match command {
        ConfigCommand::Check { file } => {
            let config = load(file)?;
            for warning in config.expired(Timestamp::now()) {
                eprintln!("warning: {warning}");
            }
            format!("{}: fine, {} exceptions\n", file.display(), config.exceptions.len())
        }
        ConfigCommand::Show { config } => show::render(&config.as_deref().map(load).transpose()?.unwrap_or_default())?,
        ConfigCommand::Schema => serde_json::to_string_pretty(&show::schema())? + "\n",
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn load(path: &Path) -> anyhow::Result<Config> {
    Ok(file::load(path, |_| {})?.1)
}
