//! The agent as a library: sources, the record stream, the pipeline behind it, sinks.
//!
//! Sources do I/O and yield [`record::Record`]s. Everything behind them is a pure function of that stream.

/// As the standard library's, which ends the process when nobody reads its messages any more: journald that was stopped would end
/// the agent, and so could whoever holds the other end of a pipe.
macro_rules! eprintln {
    ($($said:tt)*) => {{
        use std::io::Write as _;
        // Whom should it be told?
        let _ = writeln!(std::io::stderr(), $($said)*);
    }};
}

pub mod alert;
pub mod argv;
pub mod cli;
pub mod config;
pub mod confine;
pub mod context;
pub mod decode;
pub mod detect;
pub mod doctor;
pub mod drill;
pub mod escape;
pub mod explain;
#[cfg(feature = "export")]
pub mod export;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod manifest;
pub mod matrix;
mod memory;
pub mod monitor;
mod nearest;
mod opener;
pub mod pipeline;
pub mod record;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod risky;
pub mod run;
pub mod sink;
pub mod source;
pub mod syscalls;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_control;
pub mod trace;
pub mod triage;
mod yaml;
