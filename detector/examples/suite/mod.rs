//! What suites that do acts beside one agent have in common.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::Context as _;

/// Performs an act of `program`, which is `act`, in a directory; `text` is its input. Yields the pid that did it, and what it says when it
/// fails.
pub fn act(program: &Path, act: &str, dir: &Path, name: &str, text: &str) -> anyhow::Result<(u32, Option<String>)> {
    let mut child = Command::new(program)
        .args([OsStr::new(act), dir.as_os_str(), OsStr::new(name)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    child.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((pid, (!output.status.success()).then_some(error)))
}

/// The lines that `parse` takes, as they come.
pub fn lines<T: Send + 'static>(
    from: impl Read + Send + 'static,
    parse: impl Fn(&str) -> Option<T> + Send + 'static,
) -> Receiver<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if let Some(parsed) = parse(&line)
                && send.send(parsed).is_err()
            {
                break;
            }
        }
    });
    receive
}
