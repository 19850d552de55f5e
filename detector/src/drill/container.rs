//! A container for drills: namespaces, a cgroup and an OCI bundle, made without a container runtime, in which nothing runs.
//!
//! Each step is a process of its own, as with a real runtime: one makes the cgroup and the namespaces, one is the container's
//! first process, one enters.

use std::{
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::dropped;
use crate::source::{self, proc};

/// From the making of the cgroup to the start of what runs in it.
const CREATED: std::time::Duration = std::time::Duration::from_millis(100);

/// What the bundle of a container of the drills' pod says, as containerd writes it.
pub fn annotations() -> serde_json::Value {
    serde_json::json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "drill",
        "io.kubernetes.cri.sandbox-namespace": "detector",
        "io.kubernetes.cri.sandbox-name": "drill",
        "io.kubernetes.cri.sandbox-uid": "drill",
    })
}

/// A step of a drill.
#[derive(Debug, Subcommand)]
pub enum Step {
    /// Make a cgroup and namespaces, and start the container's first process in them
    Make(Make),
    /// Enter namespaces of a process, and execute something there that does nothing
    Enter(Enter),
    /// Execute something that does nothing, then wait until standard input ends
    Wait,
    /// Do nothing, as a pause does, but what lines on standard input say: `open`, `socket`, `process`, and where a file is put to be
    /// executed: `memory`, `nowhere`, `tmpfs`, `upper`, `lower`
    Pause,
    /// Do nothing
    Nothing,
}

#[derive(Args, Debug)]
pub struct Enter {
    pid: u32,
    /// Which namespaces, by their names in /proc/PID/ns
    #[arg(long, value_delimiter = ',', default_value = "net,uts,ipc,pid,mnt")]
    only: Vec<String>,
    /// Execute nothing
    #[arg(long)]
    no_exec: bool,
}

#[derive(Args, Debug)]
pub struct Make {
    /// The bundle, which is where the agent learns of the container
    #[arg(long)]
    bundle: PathBuf,
    /// The container's cgroup below the root of the v2 hierarchy
    #[arg(long)]
    cgroup: PathBuf,
    /// The first process is a pause that can be told to misbehave
    #[arg(long)]
    pause: bool,
    id: String,
}

/// Performs a step.
///
/// # Errors
/// When the kernel refuses it.
pub fn step(step: &Step) -> anyhow::Result<ExitCode> {
    match step {
        Step::Make(make) => container(make)?,
        Step::Enter(how) => enter(how)?,
        Step::Wait => {
            // What a container executes by itself is no entry.
            anyhow::ensure!(
                this("nothing").stdin(Stdio::null()).status()?.success(),
                "the container's own program failed"
            );
            io::stdin().read_to_end(&mut Vec::new())?;
        }
        Step::Pause => pause()?,
        Step::Nothing => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// This program. Not by its path: a mount namespace may lead that elsewhere.
pub const THIS: &str = "/proc/self/exe";

/// This program, for another step.
fn this(step: &str) -> Command {
    other(Path::new(THIS), step)
}

/// The agent's program, for a step.
fn other(program: &Path, step: &str) -> Command {
    let mut command = Command::new(program);
    command.arg0("detector").args(["drill-step", step]);
    command
}

fn container(make: &Make) -> anyhow::Result<()> {
    anyhow::ensure!(make.bundle.ends_with(&make.id), "the bundle's directory is not called like the container");
    fs::create_dir_all(&make.cgroup).with_context(|| format!("making the cgroup {}", make.cgroup.display()))?;
    // Runtimes make the cgroup when they create the container, and start it later.
    std::thread::sleep(CREATED);
    fs::write(make.cgroup.join("cgroup.procs"), std::process::id().to_string()).context("joining the cgroup")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("making namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("keeping mounts apart")?;
    // The first process in the new pid namespace; it ends when its standard input does.
    let mut first = this(if make.pause { "pause" } else { "wait" })
        .stdin(Stdio::inherit())
        .spawn()
        .context("starting the first process")?;
    println!("{}", first.id());
    io::stdout().flush()?;
    first.wait()?;
    Ok(())
}

fn pause() -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "open" => drop(fs::OpenOptions::new().write(true).open("/dev/null")?),
            // There is nobody to answer in a network namespace of its own.
            "socket" => drop(std::net::TcpStream::connect(("127.0.0.1", 9))),
            "process" => drop(this("nothing").stdin(Stdio::null()).status().context("making a process")?),
            place => dropped::execute(place)?,
        }
    }
    Ok(())
}

fn enter(how: &Enter) -> anyhow::Result<()> {
    for name in &how.only {
        let kind = match name.as_str() {
            "net" => CloneFlags::CLONE_NEWNET,
            "uts" => CloneFlags::CLONE_NEWUTS,
            "ipc" => CloneFlags::CLONE_NEWIPC,
            "pid" => CloneFlags::CLONE_NEWPID,
            "mnt" => CloneFlags::CLONE_NEWNS,
            _ => bail!("there is no namespace {name} to enter"),
        };
        let namespace = fs::File::open(format!("/proc/{}/ns/{name}", how.pid))?;
        setns(namespace, kind).with_context(|| format!("entering the {name} namespace of {}", how.pid))?;
    }
    if how.no_exec {
        println!("{}", std::process::id());
        return Ok(());
    }
    let mut inside = this("nothing").spawn().context("executing in the container")?;
    println!("{}", inside.id());
    anyhow::ensure!(inside.wait()?.success(), "what was executed in the container failed");
    Ok(())
}

/// An annotation of containers whose first process does what it is told.
pub const OBEYS: &str = "detector/obeys";

/// A running container. Taken down when dropped.
pub struct Container {
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
    program: PathBuf,
    maker: Child,
    bundle: PathBuf,
}

impl Container {
    /// Makes a container that its bundle describes by these annotations; its steps are performed by `program`, an agent's.
    /// [`Self::misbehave`] works on what they call a sandbox, and where they have [`OBEYS`].
    ///
    /// # Errors
    /// When there is no v2 hierarchy, or the kernel refuses a part of it.
    pub fn start(program: &Path, annotations: &serde_json::Value) -> anyhow::Result<Self> {
        Self::with(program, annotations, &serde_json::json!({}))
    }

    /// The same, whose bundle says `more`: keys of an OCI configuration, none of which is done.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with(program: &Path, annotations: &serde_json::Value, more: &serde_json::Value) -> anyhow::Result<Self> {
        let root = proc::cgroup2_root().context(
            "no cgroup v2 hierarchy is mounted: containers cannot be told apart here. Mount it: mount -t cgroup2 none DIR",
        )?;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(format!("{} {}", std::process::id(), proc::now().0));
        let id = source::hex(&digest);
        let below = format!("detector-drill-{}", std::process::id());
        let cgroup = root.join(&below).join(&id);
        let bundle = std::env::temp_dir().join(&below).join(&id);
        fs::create_dir_all(&bundle).with_context(|| format!("making {}", bundle.display()))?;
        let mut config = serde_json::json!({
            "ociVersion": "1.0.2",
            "annotations": annotations,
            "linux": {
                "cgroupsPath": format!("/{below}/{id}"),
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}],
            },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut make = other(program, "make");
        make.arg("--bundle").arg(&bundle).arg("--cgroup").arg(&cgroup).arg(&id);
        if annotations["io.kubernetes.cri.container-type"] == "sandbox" || annotations.get(OBEYS).is_some() {
            make.arg("--pause");
        }
        let mut maker = make.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("making a container")?;
        let pid = line(&mut maker);
        let mut made = Self { id, pid: 0, cgroup, program: program.to_owned(), maker, bundle };
        // When it failed, it said why, and what it left is taken away with `made`.
        made.pid = pid.context("the container did not start")?;
        Ok(made)
    }

    /// Lets the container's first process do what a pause does not ([`Step::Pause`]).
    ///
    /// # Errors
    /// When the pause is gone.
    pub fn misbehave(&mut self, how: &str) -> anyhow::Result<()> {
        let pause = self.maker.stdin.as_mut().context("the pause has no input")?;
        pause.write_all(format!("{how}\n").as_bytes()).context("telling the pause what to do")
    }

    /// Enters it, with arguments of [`Enter`]. Returns the pid of what was executed there, or of what entered when that executes
    /// nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self, how: &[&str]) -> anyhow::Result<u32> {
        let mut inside = other(&self.program, "enter");
        let mut inside =
            inside.arg(self.pid.to_string()).args(how).stdout(Stdio::piped()).spawn().context("entering")?;
        let pid = line(&mut inside);
        anyhow::ensure!(inside.wait()?.success(), "the container could not be entered");
        pid
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.maker.stdin.take());
        let _ = self.maker.wait();
        for dir in [&self.cgroup, &self.bundle] {
            let _ = fs::remove_file(dir.join("config.json"));
            remove(dir);
            // Other containers of this process may be there still.
            dir.parent().filter(|parent| !has_directories(parent)).map(remove);
        }
    }
}

fn has_directories(dir: &Path) -> bool {
    let mut entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// Removes an empty directory. A cgroup is empty only once its last process was reaped.
fn remove(dir: &Path) {
    for _ in 0..50 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
    eprintln!("{} is still in use: remove it by hand", dir.display());
}

/// The number on the first line of a child's output.
fn line(child: &mut Child) -> anyhow::Result<u32> {
    let Some(stdout) = child.stdout.as_mut() else { bail!("no output") };
    let mut line = String::new();
    io::BufReader::new(stdout).read_line(&mut line)?;
    line.trim().parse().context("no pid was printed")
}
