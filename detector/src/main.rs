//! The agent's entry point.

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    detector::cli::main(Instant::now())
}
