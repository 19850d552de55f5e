//! The CRI client beside a real containerd: an own one in a temporary directory, with real pods. Needs root, containerd, runc
//! and a C compiler; without them the test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use detector::{
    record::{ContainerInfo, ContainerRole, ImageNames, InfoFrom, PodRef},
    source::cri::{Answer, Cri, Socket},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;
use sha2::Digest as _;
use tonic::{client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// How long something may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: &str = "localhost/detector-test/pause:1";
const APP: &str = "localhost/detector-test/app:1";

/// A containerd of its own, with two images.
struct Containerd {
    dir: tempfile::TempDir,
    child: Option<Child>,
    /// Id of the app's image.
    app: String,
    tokio: tokio::runtime::Runtime,
}

impl Containerd {
    fn start() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "containerd needs root: run this as root (`sudo -E cargo xtask test`)"
        );
        for program in ["containerd", "runc"] {
            let found =
                std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(program).is_file());
            assert!(
                found,
                "{program} is not installed, and this test runs a real one. Type: cargo xtask setup (or apt-get install \
                 --no-install-recommends containerd runc)"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # Works on any file system; overlayfs does not.
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{cni}"
"#,
            root = at("root"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
            cni = at("cni")
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut containerd = Self { dir, child: None, app: String::new(), tokio };
        containerd.run();
        containerd.image(PAUSE, "{}");
        containerd.app = containerd.image(APP, r#"{"app":"1"}"#);
        containerd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Starts the process, and waits until it serves the CRI.
    fn run(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let child = Command::new("containerd").arg("--config").arg(self.path("config.toml")).stderr(log).spawn();
        self.child = Some(child.unwrap());
        let started = Instant::now();
        while let Err(error) = self.call::<_, Nothing>("RuntimeService/Version", Nothing {}) {
            let log = fs::read_to_string(self.path("log")).unwrap();
            assert!(started.elapsed() < PATIENCE, "containerd does not come up: {error:?}\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Imports an image with one program that sleeps; returns its id.
    fn image(&self, name: &str, labels: &str) -> String {
        let work = self.path("image");
        fs::create_dir(&work).unwrap();
        let at = |name: &str| work.join(name);
        fs::write(at("pause.c"), "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n").unwrap();
        done(Command::new("cc").arg("-static").arg("-o").arg(at("pause")).arg(at("pause.c")));
        done(Command::new("tar").current_dir(&work).args(["-cf", "layer.tar", "pause"]));
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/pause"],"Labels":{labels}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            sha256(&fs::read(at("layer.tar")).unwrap())
        );
        fs::write(at("config.json"), &config).unwrap();
        let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
        fs::write(at("manifest.json"), manifest).unwrap();
        let archive = self.path("image.tar");
        done(Command::new("tar").current_dir(&work).arg("-cf").arg(&archive).args([
            "manifest.json",
            "config.json",
            "layer.tar",
        ]));
        let mut import = Command::new("ctr");
        import.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io", "images", "import", "--digests"]);
        done(import.args(["--snapshotter", "native"]).arg(&archive).stdout(Stdio::null()));
        fs::remove_dir_all(&work).unwrap();
        sha256(config.as_bytes())
    }

    /// Calls the CRI as kubelet does.
    fn call<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        call: &str,
        request: Q,
    ) -> Result<A, Box<dyn std::error::Error>> {
        let path = format!("/runtime.v1alpha2.{call}").try_into()?;
        self.tokio.block_on(async {
            let channel = Endpoint::from_shared(format!("unix://{}", self.socket().display()))?.connect().await?;
            let mut grpc = Grpc::new(channel);
            grpc.ready().await?;
            Ok(grpc.unary(tonic::Request::new(request), path, ProstCodec::default()).await?.into_inner())
        })
    }

    /// Runs a pod with one container; returns the ids of the sandbox and the container.
    fn pod(&self, name: &str) -> (String, String) {
        let labels = BTreeMap::from([
            ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
            ("io.kubernetes.pod.namespace".to_owned(), "shop".to_owned()),
            ("io.kubernetes.pod.uid".to_owned(), format!("uid-{name}")),
            ("app".to_owned(), "web".to_owned()),
        ]);
        let pod = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "shop".to_owned(),
            }),
            labels: labels.clone(),
            linux: Some(LinuxPod { security: Some(Security { namespaces: Some(Namespaces { network: 2, pid: 2 }) }) }),
        };
        let sandbox: Id = self.call("RuntimeService/RunPodSandbox", RunPod { config: Some(pod.clone()) }).unwrap();
        let mut labels = labels;
        labels.insert("io.kubernetes.container.name".to_owned(), "main".to_owned());
        let hook = r#"{"exec":{"command":["/bin/drain","--now"]}}"#;
        let container = ContainerConfig {
            metadata: Some(Name { name: "main".to_owned() }),
            // As kubelet does: by its id.
            image: Some(Name { name: self.app.clone() }),
            labels,
            annotations: BTreeMap::from([("io.kubernetes.container.preStopHandler".to_owned(), hook.to_owned())]),
            linux: Some(LinuxContainer {
                security: Some(ContainerSecurity { namespaces: Some(Namespaces { network: 2, pid: 2 }) }),
            }),
        };
        let create = CreateContainer { sandbox: sandbox.id.clone(), config: Some(container), pod: Some(pod) };
        let container: Id = self.call("RuntimeService/CreateContainer", create).unwrap();
        let _: Nothing = self.call("RuntimeService/StartContainer", container.clone()).unwrap();
        (sandbox.id, container.id)
    }

    fn stop(&self, sandbox: &str) {
        let id = Id { id: sandbox.to_owned() };
        let _: Nothing = self.call("RuntimeService/StopPodSandbox", id).unwrap();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        // What runs must not outlive the test, and mounts must not keep its directory.
        if let Ok(pods) = self.call::<_, Pods>("RuntimeService/ListPodSandbox", Nothing {}) {
            for pod in pods.items {
                let _ = self.call::<_, Nothing>("RuntimeService/StopPodSandbox", pod.clone());
                let _ = self.call::<_, Nothing>("RuntimeService/RemovePodSandbox", pod);
            }
        }
        self.kill();
    }
}

fn done(command: &mut Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The thread, and what it has answered.
struct Asked {
    cri: Cri,
    got: Vec<Answer>,
}

impl Asked {
    fn new(socket: &Path) -> Self {
        Self { cri: Cri::start(vec![Socket::explicit(socket)]).unwrap(), got: Vec::new() }
    }

    /// Waits until what came is enough.
    fn until(&mut self, what: &str, enough: impl Fn(&[Answer]) -> bool) {
        let started = Instant::now();
        while !enough(&self.got) {
            assert!(started.elapsed() < PATIENCE, "{what} is missing in {:#?}", self.got);
            poll(&mut [PollFd::new(self.cri.fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8)).unwrap();
            self.cri.answers(&mut self.got);
        }
    }

    fn container(&mut self, id: &str) -> ContainerInfo {
        self.until(id, |got| find(got, id).is_some());
        find(&self.got, id).unwrap()
    }

    fn images(&mut self) -> Vec<ImageNames> {
        self.until("the images", |got| got.iter().any(|answer| matches!(answer, Answer::Images(_))));
        let images = |answer: &Answer| match answer {
            Answer::Images(images) => Some(images.clone()),
            _ => None,
        };
        self.got.iter().find_map(images).unwrap()
    }
}

fn find(got: &[Answer], id: &str) -> Option<ContainerInfo> {
    got.iter().find_map(|answer| match answer {
        Answer::Container(info) if info.id == id => Some((**info).clone()),
        _ => None,
    })
}

#[test]
fn what_a_real_containerd_says_of_pods_and_images() {
    let mut containerd = Containerd::start();
    let socket = containerd.socket();
    let mut asked = Asked::new(&socket);
    asked.until("the connection", |got| got.iter().any(|answer| matches!(answer, Answer::Connected(_))));
    let Answer::Connected(connected) = asked.got[0].clone() else { panic!("{:?}", asked.got) };
    assert_eq!((connected.api, connected.runtime.starts_with("containerd ")), ("v1", true), "{connected:?}");

    let (sandbox, container) = containerd.pod("web");
    let (gone, gone_container) = containerd.pod("gone");
    containerd.stop(&gone);
    let check = |asked: &mut Asked| {
        let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: "uid-web".into() };
        let info = asked.container(&sandbox);
        assert_eq!((info.role, info.pod.as_ref()), (ContainerRole::Sandbox, Some(&pod)));
        assert_eq!((info.image.as_deref(), info.host_pid), (Some(PAUSE), true), "{info:#?}");
        assert_eq!(info.sandbox_id.as_ref(), Some(&sandbox));
        let info = asked.container(&container);
        assert_eq!(
            (info.role, info.pod.as_ref(), info.name.as_deref()),
            (ContainerRole::Member, Some(&pod), Some("main"))
        );
        assert_eq!(info.image.as_deref(), Some(APP), "by its tag, although it was made by its id");
        assert!(info.image_digest.as_ref().is_some_and(|digest| digest.starts_with("sha256:")), "{info:#?}");
        assert_eq!(info.sandbox_id.as_ref(), Some(&sandbox));
        assert_eq!(info.labels.get("app").map(String::as_str), Some("web"));
        assert_eq!(info.expected_execs, [["/bin/drain", "--now"]]);
        assert_eq!(info.from, InfoFrom::Cri(socket.to_string_lossy().into_owned()));
        info
    };
    // One by one, and all at once: they are the same.
    asked.cri.ask_container(&sandbox);
    asked.cri.ask_container(&container);
    let alone = check(&mut asked);
    asked.got.clear();
    asked.cri.ask_all();
    let images = asked.images();
    assert_eq!(check(&mut asked), alone);
    assert_eq!((find(&asked.got, &gone), find(&asked.got, &gone_container)), (None, None), "what has ended");
    let tags: Vec<_> = images.iter().flat_map(|image| &image.tags).collect();
    assert!(tags.contains(&&PAUSE.to_owned()) && tags.contains(&&APP.to_owned()), "{images:?}");
    let app = images.iter().find(|image| image.id == containerd.app).unwrap();
    let by_digest = app.digests.first().unwrap();
    assert!(by_digest.ends_with(&format!("@{}", alone.image_digest.as_ref().unwrap())), "{app:?} {alone:?}");

    let unknown = "0".repeat(64);
    asked.cri.ask_container(&unknown);
    asked.until("the unknown one", |got| got.contains(&Answer::NotFound(unknown.clone())));
    let warned = |got: &[Answer]| got.iter().filter(|answer| matches!(answer, Answer::Warning(_))).count();
    assert_eq!(warned(&asked.got), 0, "{:?}", asked.got);

    // An update of the runtime: its pods go on, and are told anew.
    containerd.kill();
    asked.until("the end of the connection", |got| warned(got) == 1);
    asked.got.clear();
    containerd.run();
    asked.images();
    assert_eq!(check(&mut asked), alone);
}

/// Also the beginning of messages that have more fields.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// `ContainerMetadata`, and `ImageSpec`.
#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPod {
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(btree_map = "string, string", tag = "9")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "10")]
    annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}
