//! What is done on the host and in containers.

use std::{
    fs,
    io::Write as _,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use detector::{
    drill::{
        container::{Container, OBEYS},
        tampering::open_map,
    },
    source::kernel::objects,
};
use detector_common::object;
use nix::{
    errno::Errno,
    libc,
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    node::{Runtime, manifest},
    stage::{Stage, Who, title},
};

/// How long the agent may take to hear of a container, many times over.
const HEARD: Duration = Duration::from_secs(3);
/// How long a directory of logs may take to be found and known; machines are slow.
const FOUND: Duration = Duration::from_secs(12);
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  hostPID: true\n  containers:\n  - name: web\n    image: registry.example/web:1\n    securityContext:\n      privileged: true\n";

fn is_about(alert: &Value, file: &str, change: &str) -> bool {
    alert["file"]["change"] == change && alert["file"]["path"] == file
}

/// Manifests planted in several ways, changed and removed; and the same calls next door, reads and touches.
pub fn static_pod(stage: &mut Stage) -> anyhow::Result<()> {
    let (dir, next) = (stage.manifests.clone(), stage.dir.join("next-door"));
    let path = |name: &str| dir.join(name).display().to_string();
    for act in ["create", "rename", "link", "bind", "symlink"] {
        let name = format!("{act}.yaml");
        let pid = stage.act(act, &next, &name, POD)?;
        stage.twin_by(&format!("{act} next door"), pid);
        let pid = stage.act(act, &dir, &name, POD)?;
        stage.told(act, Who::Pid(pid), |alert| is_about(alert, &path(&name), "added"));
    }
    let pid = stage.act("read", &dir, "create.yaml", "")?;
    stage.twin_by("read", pid);
    let pid = stage.act("touch", &dir, "create.yaml", "")?;
    stage.twin_by("touch", pid);
    // What the symbolic link leads to.
    let target = fs::read_link(dir.join("symlink.yaml"))?;
    let parts = (target.parent().context("no directory")?, target.file_name().and_then(|name| name.to_str()));
    let pid = stage.act("create", parts.0, parts.1.context("no name")?, &POD.replace("web:1", "web:2"))?;
    stage.told("target", Who::Pid(pid), |alert| is_about(alert, &path("symlink.yaml"), "modified"));
    let pid = stage.act("unlink", &dir, "rename.yaml", "")?;
    stage.told("unlink", Who::Pid(pid), |alert| is_about(alert, &path("rename.yaml"), "removed"));
    Ok(())
}

/// The same under `--deny static-pod`.
pub fn static_pod_refused(stage: &mut Stage) -> anyhow::Result<()> {
    let (dir, next) = (stage.manifests.clone(), stage.dir.join("next-door"));
    for act in ["create", "rename", "link"] {
        let name = format!("{act}.yaml");
        let pid = stage.act(act, &next, &name, POD)?;
        stage.twin_by(&format!("{act} next door"), pid);
        let (pid, error) = stage.try_act(act, &dir, &name, POD)?;
        anyhow::ensure!(error.is_some(), "{act} was let through");
        stage.told(act, Who::Pid(pid), |alert| alert["blocked"] == true);
    }
    Ok(())
}

fn annotations(role: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": role,
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.image-name": "registry.example/app:1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-uid": "0a1b2c3d-0000-4000-8000-000000000001",
    })
}

/// Whether an alert is about that container.
fn of(id: &str) -> impl Fn(&Value) -> bool + 'static {
    let id = id.to_owned();
    move |alert| alert["container"]["id"] == id
}

/// A container entered past its runtime; and what its own process starts, and a look at its network.
pub fn container_exec(stage: &mut Stage) -> anyhow::Result<()> {
    let app = Container::start(&stage.app, &annotations("container"))?;
    stage.twin("the container's own programs", of(&app.id));
    let pid = app.enter(&["--only", "net", "--no-exec"])?;
    stage.twin_by("its network looked at", pid);
    for (name, how) in [
        ("entered", &[][..]),
        ("mount namespace", &["--only", "mnt"]),
        ("no exec", &["--only", "pid,mnt", "--no-exec"]),
    ] {
        let pid = app.enter(how)?;
        stage.told(name, Who::Pid(pid), of(&app.id));
    }
    Ok(())
}

/// Pauses that do what no pause does, another pause image in the runtime's configuration, and one that arrives; and an honest pause, the
/// same configuration written again.
pub fn pause(stage: &mut Stage) -> anyhow::Result<()> {
    let honest = Container::start(&stage.app, &annotations("sandbox"))?;
    stage.twin("a pause that pauses", of(&honest.id));
    let acts = [("open", "open"), ("socket", "socket"), ("process", "fork")];
    let start = |act| anyhow::Ok((act, Container::start(&stage.app, &annotations("sandbox"))?));
    let sandboxes = acts.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
    // What a sandbox does before the agent has heard of it is no pause's act.
    thread::sleep(HEARD);
    for ((act, evidence), mut sandbox) in sandboxes {
        sandbox.misbehave(act)?;
        let is_its = of(&sandbox.id);
        let shows = |alert: &Value| {
            alert["evidence"].as_array().is_some_and(|all| all.iter().any(|one| one["kind"] == evidence))
        };
        stage.told(&format!("a pause: {act}"), Who::Pid(sandbox.pid), |alert| is_its(alert) && shows(alert));
    }
    let config = stage.store()?.config.clone();
    let same = Runtime::configuration("registry.k8s.io/pause:3.9");
    let pid = stage.act("create", &stage.dir, "config.toml", &format!("{same}# no other\n"))?;
    stage.twin_by("the same pause image configured", pid);
    let pid = stage.act("create", &stage.dir, "config.toml", &Runtime::configuration("registry.example/pause:1"))?;
    stage.told("another pause image configured", Who::Pid(pid), |alert| {
        alert["file"]["path"] == *config.to_string_lossy()
    });
    let (text, digest) = manifest("registry.k8s.io/pause:3.9");
    let pid = stage.act("move", &stage.store()?.blobs, &digest, &text)?;
    stage.told("a pause image of an unknown digest arrives", Who::Pid(pid), |alert| {
        title(alert).starts_with("Pause image of an unknown")
    });
    Ok(())
}

/// What a container executes that was not in its image, and an image that arrives; and the image's own program, and a layer.
pub fn supply_chain(stage: &mut Stage) -> anyhow::Result<()> {
    let mut all = annotations("container");
    all[OBEYS] = "".into();
    let mut app = Container::start(&stage.app, &all)?;
    stage.twin("its image's program", of(&app.id));
    // A module, which may not be loaded here.
    let overlay = fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\toverlay\n"));
    app.misbehave(if overlay { "lower" } else { "process" })?;
    let places =
        [("memory", "memfd:drill"), ("nowhere", "-program"), ("tmpfs", "tmpfs/program"), ("upper", "merged/program")];
    // Before 5.11 the types of modules are not told, and so not which layer a file lies in.
    let module = fs::read_to_string("/proc/modules")?.lines().any(|line| line.starts_with("overlay "));
    let told = overlay && (!module || Path::new("/sys/kernel/btf/overlay").exists());
    for (place, path) in places.into_iter().filter(|(place, _)| told || *place != "upper") {
        app.misbehave(place)?;
        let (is_its, first) = (of(&app.id), app.pid);
        stage.told(&format!("from {place}"), Who::Somebody, |alert| {
            is_its(alert)
                && alert["file"]["path"].as_str().is_some_and(|file| file.ends_with(path))
                && alert["process"]["ancestors"][0]["pid"] == first
        });
    }
    let blobs = stage.store()?.blobs.clone();
    let (text, digest) = manifest("registry.example/web:1");
    let pid = stage.act("move", &blobs, &"ab".repeat(32), "no manifest")?;
    stage.twin_by("a layer arrives", pid);
    let pid = stage.act("move", &blobs, &digest, &text)?;
    stage.told("an image arrives", Who::Pid(pid), |alert| title(alert).contains("registry.example/web:1"));
    Ok(())
}

/// Containers that have the node; and an ordinary one.
pub fn operator(stage: &mut Stage) -> anyhow::Result<()> {
    let ordinary = Container::start(&stage.app, &annotations("container"))?;
    stage.twin("an ordinary container", of(&ordinary.id));
    let (root, socket) = (("/", "/host"), ("/run/containerd/containerd.sock", "/run/containerd.sock"));
    for (name, (source, target)) in [("debug", root), ("builder", socket)] {
        let mut annotations = annotations("container");
        annotations["io.kubernetes.cri.container-name"] = name.into();
        let mounts =
            json!({"mounts": [{"destination": target, "type": "bind", "source": source, "options": ["rbind"]}]});
        let app = Container::with(&stage.app, &annotations, &mounts)?;
        stage.told(&format!("a container with {source}"), Who::Pid(app.pid), of(&app.id));
    }
    Ok(())
}

/// A pod's log emptied, removed and overwritten; and written and rotated as the runtime and kubelet do it.
pub fn pod_logs(stage: &mut Stage) -> anyhow::Result<()> {
    let logs = stage.logs.join("shop_web_0a1b2c3d-0000-4000-8000-000000000001/app");
    fs::create_dir_all(&logs)?;
    let line = "2026-11-25T10:00:00.000000000Z stdout F a line\n";
    for name in ["0.log", "1.log", "2.log"] {
        fs::write(logs.join(name), line.repeat(50))?;
    }
    // What was there when the directory was found counts.
    thread::sleep(FOUND);
    let me = std::process::id();
    let append = |name| fs::OpenOptions::new().append(true).create(true).open(logs.join(name));
    append("0.log")?.write_all(line.as_bytes())?;
    fs::rename(logs.join("0.log"), logs.join("0.log.20261125-101112"))?;
    append("0.log")?.write_all(line.repeat(50).as_bytes())?;
    stage.twin_by("a log that grows and is rotated", me);
    thread::sleep(FOUND);
    let of = "Log of app of pod shop/web ";
    let pid = stage.act("truncate", &logs, "1.log", "")?;
    // `truncate(2)` opens nothing: where neither a security hook nor one of change times sees it, the log says it alone. So it does where
    // an overloaded machine lost the act.
    stage.told("a log emptied", Who::Perhaps(pid), |alert| title(alert).starts_with(&format!("{of}emptied")));
    let pid = stage.act("move", &logs, "2.log", "nothing\n")?;
    stage.told("a log replaced", Who::Perhaps(pid), |alert| title(alert).starts_with(&format!("{of}replaced")));
    Ok(())
}

/// `bpf(2)` on a map: its command, and the address of a key and a value.
fn map_call(command: i32, map: &impl std::os::fd::AsRawFd) -> anyhow::Result<()> {
    let (key, value) = ([0_u64; 8], [0_u64; 8]);
    // `union bpf_attr`: map_fd, key, value, flags. Only BPF_MAP_UPDATE_ELEM has a value.
    let value = if command == 2 { value.as_ptr() as u64 } else { 0 };
    let attributes = [u64::try_from(map.as_raw_fd())?, key.as_ptr() as u64, value, 0];
    // SAFETY: the attributes and what they point to are as long as any map's here, and the call does not keep them.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    Errno::result(done).with_context(|| format!("bpf command {command}"))?;
    Ok(())
}

/// The agent's maps opened and changed, the agent stopped and traced; and the same done to what is not the agent's.
pub fn tampering(stage: &mut Stage) -> anyhow::Result<()> {
    let (agent, me) = (stage.agent(), std::process::id());
    // Maps were accounted there before 5.11.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    // BPF_MAP_CREATE of type array, keys of 4, values of 8 bytes, 1 entry.
    let attributes = [2_u32, 4, 8, 1, 0, 0, 0, 0];
    // SAFETY: the attributes are as long as is said, and the call does not keep them.
    let own = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) };
    let own = i32::try_from(Errno::result(own).context("making a map")?)?;
    // SAFETY: the kernel just gave this descriptor, and nobody else has it.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    map_call(2, &own)?;
    let id = objects("self").into_iter().find(|(kind, _)| *kind == object::MAP).context("no map of one's own")?.1;
    drop(open_map(id)?);
    stage.twin("one's own map", move |alert| alert["process"]["pid"] == me && alert["evidence"][0]["kind"] == "bpf");
    let mut other = Command::new(&stage.reach).arg("listen").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let pid = stage.act("seize", &stage.dir, &other.id().to_string(), "")?;
    stage.twin_by("another traced", pid);
    other.kill()?;
    other.wait()?;
    stage.twin("another killed, and the agent ended by who started it", move |alert| {
        alert["process"]["pid"] == me && alert["evidence"][0]["kind"] == "signal"
    });

    // One that takes any key: a hash table.
    let maps = objects(&agent.to_string()).into_iter().filter(|(kind, _)| *kind == object::MAP);
    let map = maps.map(|(_, id)| id).find_map(|id| {
        let map = open_map(id).ok()?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
        (info.contains("map_type:\t1\n") && info.contains("key_size:\t4\n")).then_some((id, map))
    });
    let (id, map) = map.context("the agent has no hash table")?;
    stage.told("a map opened", Who::Pid(me), |alert| title(alert).contains(" opened by "));
    map_call(2, &map)?;
    map_call(3, &map)?;
    stage.told("a map changed", Who::Pid(me), |alert| {
        title(alert).starts_with(&format!("The detector's map {id} changed by "))
    });
    let target = Pid::from_raw(i32::try_from(agent)?);
    kill(target, Signal::SIGSTOP)?;
    kill(target, Signal::SIGCONT)?;
    stage.told("stopped", Who::Pid(me), |alert| title(alert).contains("is sent SIGSTOP by "));
    let pid = stage.act("seize", &stage.dir, &agent.to_string(), "")?;
    stage.told("traced", Who::Pid(pid), |alert| title(alert).contains("opened for tracing or writing by "));
    Ok(())
}
