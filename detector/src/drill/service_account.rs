//! A token that is nobody's, read harmlessly.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::{agent::Agent, say, verdict};
use crate::cli::Source;

/// Makes a directory like a kubelet's with a token volume of a pod that does not exist, and a process that says it is that kubelet; reads the
/// token, which opens nothing; and takes everything away.
///
/// # Errors
/// When they cannot be made here, or the agent does not start.
pub fn drill(source: &Source) -> anyhow::Result<ExitCode> {
    if source.no_default_dirs {
        bail!("with --no-default-dirs the agent looks for no kubelet, and so for no token: leave it out");
    }
    let place = Place::new()?;
    let mut agent = Agent::start(source)?;
    println!("drill: made a token volume of no pod in {} and read the token", place.dir.display());
    let since = Instant::now();
    // By a program that is no part of the workload: `cat`, on the host.
    let mut reader = Command::new("/bin/cat")
        .arg(&place.token)
        .stdout(Stdio::null())
        .spawn()
        .context("starting /bin/cat, which reads the token")?;
    let pid = reader.id();
    reader.wait().context("waiting for /bin/cat")?;
    // The kernel programs tell long paths from their end, so that the process says more surely which reading it is.
    let seen = agent.alert(since, |alert| {
        alert["technique"]["id"] == "container-service-account" && alert["process"]["pid"] == pid
    });
    let fine = say("reading of the token", seen, pid);
    drop(place);
    println!("drill: the volume is removed again");
    agent.stop();
    Ok(verdict(fine))
}

/// What the drill made, until it is dropped.
struct Place {
    dir: PathBuf,
    token: PathBuf,
    kubelet: Child,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        // Neither /tmp nor a kubelet's own directory: nobody else is to meet it.
        let dir = PathBuf::from(format!("/run/detector-drill-{}", std::process::id()));
        let volume = dir.join("pods/00000000-0000-4000-8000-00000000d811/volumes/kubernetes.io~projected/drill");
        let made = || -> std::io::Result<Child> {
            fs::create_dir_all(&volume)?;
            fs::write(volume.join("token"), "no token, but a drill of the detector\n")?;
            let program = dir.join("kubelet");
            fs::copy("/bin/sh", &program)?;
            let mut root = OsString::from("--root-dir=");
            root.push(&dir);
            // A shell that waits for its standard input, which ends with the drill, however that ends.
            Command::new(&program).args(["-c", "read nothing", "kubelet"]).arg(root).stdin(Stdio::piped()).spawn()
        };
        let kubelet = made().inspect_err(|_| drop(fs::remove_dir_all(&dir)));
        let kubelet = kubelet.with_context(|| format!("making a token volume in {}", dir.display()))?;
        let token = volume.join("token");
        Ok(Self { dir, token, kubelet })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.kubelet.kill();
        let _ = self.kubelet.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
