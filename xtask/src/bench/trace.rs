//! What traces cost. The stream is made up, by `detector/examples/trace_bench.rs`; no privilege is needed.

use std::path::{Path, absolute};

use crate::{cargo, check, setup};

/// Measures.
///
/// # Errors
/// When it cannot be built or run.
pub fn bench(quick: bool, json: Option<&Path>) -> anyhow::Result<()> {
    setup::setup(&[])?;
    let mut bench = cargo();
    bench.args(["run", "--quiet", "--release", "--package", "detector", "--example", "trace_bench", "--"]);
    bench.arg(if quick { "100000" } else { "1000000" });
    if let Some(file) = json {
        bench.arg("--json").arg(absolute(file)?);
    }
    check(&mut bench)
}
