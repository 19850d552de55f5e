//! Traces of every technique, each recorded by a real agent (`cargo xtask golden`), tell today what they told when they were recorded. Beside the
//! acts, each has twins in it that were silent then.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use detector::detect::technique;
use serde_json::Value;

const DETECTOR: &str = env!("CARGO_BIN_EXE_detector");
/// A trace is to stay a small file, in bytes.
const TRACE_MAX: u64 = 100_000;

/// The traces, by name.
fn traces() -> Vec<(String, PathBuf)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/techniques");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let traces = files.filter(|path| path.extension().is_some_and(|is| is == "trace"));
    let mut named: Vec<_> = traces.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect();
    named.sort();
    named
}

fn said(arguments: &[&str], trace: &Path) -> Output {
    Command::new(DETECTOR).args(arguments).arg(trace).output().unwrap()
}

/// The first line in which they differ, as JSON that a person can read.
fn difference(told: &str, expected: &str) -> String {
    let pretty = |line: Option<&str>| {
        line.map_or_else(|| "nothing".to_owned(), |line| format!("{:#}", serde_json::from_str::<Value>(line).unwrap()))
    };
    let (mut told, mut expected) = (told.lines(), expected.lines());
    loop {
        let (one, other) = (told.next(), expected.next());
        if one != other || one.is_none() {
            return format!("it tells {}\nand has to tell {}", pretty(one), pretty(other));
        }
    }
}

#[test]
fn every_golden_trace_tells_what_it_told_byte_for_byte() {
    for (name, trace) in traces() {
        let output = said(&["replay", "--output", "stdout:json"], &trace);
        let told = String::from_utf8(output.stdout).unwrap();
        let expected = fs::read_to_string(trace.with_extension("ndjson")).unwrap();
        assert!(told == expected, "{name}: {}", difference(&told, &expected));
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""), "{name}");
    }
}

#[test]
fn every_technique_has_a_golden_trace_that_tells_it() {
    let mut told = BTreeSet::new();
    for (name, trace) in traces() {
        assert!(fs::metadata(&trace).unwrap().len() < TRACE_MAX, "{name}");
        let lines = fs::read_to_string(trace.with_extension("ndjson")).unwrap();
        let alerts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ids = alerts.map(|alert| alert["technique"]["id"].as_str().unwrap().to_owned());
        told.extend(ids.filter(|id| name.starts_with(id.as_str())));
    }
    let all: BTreeSet<_> = technique::ALL.iter().map(|technique| technique.id.to_owned()).collect();
    assert_eq!(told, all);
}

#[test]
fn no_golden_trace_says_where_it_was_made() {
    for (name, trace) in traces() {
        let output = said(&["trace", "dump"], &trace);
        let dump = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && dump.contains("node-1"), "{name}");
        for path in ["/home/", "/root/", "/target/", "rustup", "cargo"] {
            assert!(!dump.contains(path), "{name} has {path}");
        }
    }
}
