//! `cargo xtask golden`: traces of every technique, each recorded by a real agent in a machine in which nothing else happens.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{Arch, SOME, Wanted, lines, prepare};
use crate::{build_as, check, root};

/// Longest trace that is kept in the repository, in bytes.
const TRACE_MAX: usize = 100_000;

#[derive(clap::Args)]
pub struct Options {
    /// Scenes of `detector/examples/techniques` to record again; those that have no trace where none is named
    scenes: Vec<String>,
    /// Record nothing; write down anew what the traces that are there tell, after detection was changed on purpose
    #[arg(long, conflicts_with = "scenes")]
    retell: bool,
}

/// Records, or tells again.
///
/// # Errors
/// When the machine cannot be set up, an act is missed or a twin told, or a trace is too long.
pub fn golden(options: &Options) -> anyhow::Result<()> {
    let place = root().join("detector/tests/golden/techniques");
    fs::create_dir_all(&place)?;
    if options.retell {
        return retell(&place);
    }
    let (kernels, machines) = prepare(&[Wanted { series: SOME[1].to_owned(), arch: Arch::Amd64 }])?;
    let scenes = if options.scenes.is_empty() { missing(&machines, &place)? } else { options.scenes.clone() };
    if scenes.is_empty() {
        eprintln!("every scene has its trace; name those that are to be recorded again");
        return Ok(());
    }
    let arguments = format!("detector.golden={}", scenes.join(","));
    let verdict = lines(kernels.first().context("no kernel")?, &machines, &arguments, &["-smp", "2"], |line| {
        let Some(file) = line.strip_prefix("golden ") else {
            eprintln!("    {line}");
            return Ok(());
        };
        let (name, content) = file.split_once(' ').context("a file without content")?;
        let content = BASE64_STANDARD.decode(content).with_context(|| format!("the content of {name}"))?;
        anyhow::ensure!(!content.is_empty(), "{name} is empty");
        anyhow::ensure!(content.len() < TRACE_MAX, "{name} has {} bytes, more than {TRACE_MAX}", content.len());
        // Names come from the machine, which runs what was built here.
        let name = Path::new(name).file_name().context("no name")?;
        eprintln!("==> {}: {} bytes", name.display(), content.len());
        fs::write(place.join(name), content)?;
        Ok(())
    })?;
    anyhow::ensure!(verdict == Some(0), "an act was missed, or a twin told");
    Ok(())
}

/// Scenes without a trace.
fn missing(machines: &Path, place: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(machines.join("root/suite/examples/techniques")).arg("--list").output()?;
    let names = String::from_utf8(output.stdout)?;
    let there = |name: &str| place.join(format!("{name}.trace")).exists();
    Ok(names.lines().filter(|name| !there(name)).map(str::to_owned).collect())
}

fn retell(place: &Path) -> anyhow::Result<()> {
    let detector = build_as("debug")?;
    let files = fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    for trace in files.iter().filter(|path| path.extension().is_some_and(|is| is == "trace")) {
        let told = fs::File::create(trace.with_extension("ndjson"))?;
        check(Command::new(&detector).args(["replay", "--output", "stdout:json"]).arg(trace).stdout(told))?;
    }
    Ok(())
}
