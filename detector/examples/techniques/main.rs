//! Every technique of the matrix, done for real beside one agent, each with benign twins that look like it.
//!
//! `techniques [ARGUMENT OF detector run]...` does them all but those that other suites are for, and prints a line of JSON for each act and
//! each twin, like the evasion suite.
//! `techniques --record DIR SCENE` does those of one scene beside an agent that records, and leaves `SCENE.trace` in DIR, and what was
//! told meanwhile as `SCENE.ndjson`: golden traces are made so. `techniques --list` names the scenes.
//!
//! Needs root, and a node on which nobody else acts: a virtual machine (`cargo xtask vm`, `cargo xtask golden`).

mod control_plane;
mod host;
mod node;
mod stage;
#[path = "../suite/mod.rs"]
mod suite;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Parser;
use detector::drill::container::{self, Step};

use stage::{Plan, Stage};

/// What is done for one technique.
struct Scene {
    name: &'static str,
    technique: &'static str,
    /// In the table of results, behind what the other suites do.
    number: u64,
    /// What it needs beside the agent.
    needs: Needs,
    /// No other suite does it.
    in_suite: bool,
    /// Arguments of the agent.
    arguments: &'static [&'static str],
    play: fn(&mut Stage) -> anyhow::Result<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// Programs called like a container runtime, with its store and its configuration.
    Runtime,
    /// Programs called like kubelet, kube-apiserver and etcd, which listen like them.
    ControlPlane,
}

const fn scene(
    technique: &'static str,
    number: u64,
    needs: Needs,
    play: fn(&mut Stage) -> anyhow::Result<()>,
) -> Scene {
    Scene { name: technique, technique, number, needs, in_suite: true, arguments: &[], play }
}

/// Tokens come last: what the same session connects to afterwards is taken for their use.
const SCENES: [Scene; 13] = [
    Scene { in_suite: false, ..scene("static-pod", 1, Needs::Nothing, host::static_pod) },
    Scene {
        name: "static-pod-refused",
        in_suite: false,
        arguments: &["--deny", "static-pod"],
        ..scene("static-pod", 1, Needs::Nothing, host::static_pod_refused)
    },
    Scene { in_suite: false, ..scene("container-exec", 26, Needs::Nothing, host::container_exec) },
    scene("malicious-pause-container", 27, Needs::Runtime, host::pause),
    scene("supply-chain-compromise", 28, Needs::Runtime, host::supply_chain),
    scene("malicious-operator", 29, Needs::Nothing, host::operator),
    scene("delete-kubernetes-events", 30, Needs::ControlPlane, control_plane::delete_events),
    Scene {
        name: "delete-kubernetes-events-logs",
        ..scene("delete-kubernetes-events", 30, Needs::Nothing, host::pod_logs)
    },
    scene("malicious-admission-controller", 31, Needs::ControlPlane, control_plane::admission),
    scene("public-api-endpoint", 32, Needs::ControlPlane, control_plane::public_api),
    scene("detector-tampering", 33, Needs::Nothing, host::tampering),
    Scene {
        name: "container-service-account-used",
        ..scene("container-service-account", 34, Needs::ControlPlane, control_plane::token_use)
    },
    scene("container-service-account", 34, Needs::ControlPlane, control_plane::service_account),
];

/// A step of a container that this program makes of itself: the agent's program is larger than any pause.
#[derive(Parser)]
#[command(name = "drill-step")]
struct Steps {
    #[command(subcommand)]
    step: Step,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "drill-step") {
        let steps = Steps::parse_from(std::iter::once("drill-step".into()).chain(args));
        return container::step(&steps.step);
    }
    Ok(ExitCode::from(u8::from(!run()?)))
}

fn run() -> anyhow::Result<bool> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|first| first.to_str()) {
        Some("--list") => {
            SCENES.iter().for_each(|scene| println!("{}", scene.name));
            Ok(true)
        }
        Some("--record") => {
            let [_, dir, name, rest @ ..] = args.as_slice() else { bail!("usage: techniques --record DIR SCENE") };
            let scene = SCENES.iter().find(|scene| name == scene.name);
            let scene = scene.with_context(|| format!("there is no scene {}: see --list", name.display()))?;
            record(Path::new(dir), scene, rest)
        }
        _ => {
            let scenes: Vec<_> = SCENES.iter().filter(|scene| scene.in_suite).collect();
            let mut stage = Stage::start(&plan(&scenes, &args), None)?;
            for scene in scenes {
                stage.scene(scene.number, scene.technique);
                (scene.play)(&mut stage).with_context(|| format!("scene {}", scene.name))?;
            }
            Ok(stage.finish()?.fine)
        }
    }
}

fn plan(scenes: &[&Scene], args: &[OsString]) -> Plan {
    let needs = |what| scenes.iter().any(|scene| scene.needs == what);
    let more = scenes.iter().flat_map(|scene| scene.arguments.iter().map(OsString::from));
    Plan {
        runtime: needs(Needs::Runtime),
        control_plane: needs(Needs::ControlPlane),
        arguments: args.iter().cloned().chain(more).collect(),
    }
}

/// One scene, recorded.
fn record(dir: &Path, scene: &Scene, args: &[OsString]) -> anyhow::Result<bool> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let traces = dir.join(format!("{}.traces", scene.name));
    let mut stage = Stage::start(&plan(&[scene], args), Some(&traces))?;
    stage.scene(scene.number, scene.technique);
    (scene.play)(&mut stage)?;
    let done = stage.finish()?;
    let segments = fs::read_dir(&traces)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let mut segments = segments.iter().filter(|path| path.extension().is_some_and(|is| is == "trace"));
    let (Some(trace), None) = (segments.next(), segments.next()) else {
        bail!("the recording is not one segment: {}", traces.display());
    };
    fs::rename(trace, dir.join(format!("{}.trace", scene.name)))?;
    fs::write(dir.join(format!("{}.ndjson", scene.name)), done.told)?;
    fs::remove_dir_all(&traces)?;
    Ok(done.fine)
}
