//! The part of the container runtime interface (`runtime.v1`) that scenarios need, over containerd's socket.

use std::path::Path;

use anyhow::Context as _;
use http::uri::PathAndQuery;
use tonic::{Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Version {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<SandboxSecurityContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "3")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
    #[prost(string, tag = "4")]
    target_id: String,
}

/// `NamespaceMode`: each container its own, or that of another container.
const CONTAINER: i32 = 1;
const NODE: i32 = 2;
const TARGET: i32 = 3;

/// Requests and replies whose only field of interest is a string with tag 1: container ids, image references.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
}

/// Connects, waits for a line on standard input, has a container execute a command, and prints what that said.
///
/// # Errors
/// When the runtime refuses.
pub fn exec_sync(socket: &Path, container: &str, command: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut cri, _) = runtime.block_on(Cri::connect(socket))?;
    println!("connected");
    std::io::stdin().read_line(&mut String::new())?;
    let request = ExecSyncRequest { container_id: container.to_owned(), cmd: command.to_vec() };
    let said: ExecSyncResponse = runtime.block_on(cri.call("RuntimeService/ExecSync", request))?;
    println!("{}", String::from_utf8_lossy(&said.stdout).trim_end());
    Ok(())
}

/// Runs a pod `shop/<pod>` in the node's network, with one container `app`; prints that one's id.
///
/// # Errors
/// When the runtime refuses.
pub fn run_pod(socket: &Path, pod: &str, image: &str, command: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let container = runtime.block_on(async {
        let (mut cri, _) = Cri::connect(socket).await?;
        let sandbox = cri.run_sandbox(pod).await?;
        let container = cri.create(&sandbox, "app", image, &command, None).await?;
        cri.start(&container).await?;
        anyhow::Ok(container)
    })?;
    println!("{container}");
    Ok(())
}

/// `ContainerState`: it has ended.
const EXITED: i32 = 2;

/// The pod that a container is made in, as its sandbox is known to the runtime.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub name: String,
    pub uid: String,
    pub namespace: String,
    /// The pod's cgroup, which its containers are made in.
    pub cgroup: String,
}

impl Sandbox {
    fn config(&self) -> PodSandboxConfig {
        let Self { name, uid, namespace, cgroup, .. } = self.clone();
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name, uid, namespace }),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: cgroup, security_context: None }),
        }
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub struct Cri {
    channel: Grpc<Channel>,
}

impl Cri {
    /// Connects, and asks for the runtime's name and version.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(socket: &Path) -> anyhow::Result<(Self, String)> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let mut cri = Self { channel: Grpc::new(endpoint.connect().await?) };
        let version: Version = cri.call("RuntimeService/Version", Nothing {}).await?;
        Ok((cri, format!("{} {}", version.runtime_name, version.runtime_version)))
    }

    /// Runs the sandbox of a pod in the node's network.
    async fn run_sandbox(&mut self, name: &str) -> anyhow::Result<Sandbox> {
        let mut sandbox = Sandbox {
            id: String::new(),
            name: name.to_owned(),
            uid: "0d1c9c1e-5f0e-4f57-9d0c-6f4f5d1c3a52".to_owned(),
            namespace: "shop".to_owned(),
            cgroup: String::new(),
        };
        let mut config = sandbox.config();
        let namespaces = NamespaceOption { network: NODE, pid: CONTAINER, ..NamespaceOption::default() };
        let security_context = Some(SandboxSecurityContext { namespace_options: Some(namespaces) });
        config.linux = Some(LinuxPodSandboxConfig { security_context, ..LinuxPodSandboxConfig::default() });
        let request = RunPodSandboxRequest { config: Some(config) };
        sandbox.id = self.call::<_, Id>("RuntimeService/RunPodSandbox", request).await?.id;
        Ok(sandbox)
    }

    /// Creates a container in a pod; `target` is the container whose processes it is to see. Returns its id.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn create(
        &mut self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
        target: Option<&str>,
    ) -> anyhow::Result<String> {
        let namespaces = NamespaceOption {
            pid: if target.is_some() { TARGET } else { CONTAINER },
            target_id: target.unwrap_or_default().to_owned(),
            ..NamespaceOption::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
                image: Some(ImageSpec { image: image.to_owned() }),
                command: command.iter().map(|&word| word.to_owned()).collect(),
                linux: Some(LinuxContainerConfig {
                    security_context: Some(SecurityContext { namespace_options: Some(namespaces) }),
                }),
            }),
            sandbox_config: Some(sandbox.config()),
        };
        Ok(self.call::<_, Id>("RuntimeService/CreateContainer", request).await?.id)
    }

    /// # Errors
    /// When the runtime cannot start it.
    pub async fn start(&mut self, id: &str) -> anyhow::Result<()> {
        self.call::<_, Nothing>("RuntimeService/StartContainer", Id { id: id.to_owned() }).await.map(drop)
    }

    /// Waits until a container has ended by itself; returns its exit code.
    ///
    /// # Errors
    /// When the runtime does not know it, or it does not end.
    pub async fn ended(&mut self, id: &str) -> anyhow::Result<i32> {
        for _ in 0..6000 {
            let asked = Id { id: id.to_owned() };
            let answer: ContainerStatusResponse = self.call("RuntimeService/ContainerStatus", asked).await?;
            if let Some(status) = answer.status.filter(|status| status.state == EXITED) {
                return Ok(status.exit_code);
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        anyhow::bail!("container {id} does not end");
    }

    /// Kills a container if it runs, and removes it.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn remove(&mut self, id: &str) -> anyhow::Result<()> {
        self.call::<_, Nothing>("RuntimeService/RemoveContainer", Id { id: id.to_owned() }).await.map(drop)
    }

    /// Pulls an image; returns its reference.
    ///
    /// # Errors
    /// When it cannot be pulled.
    pub async fn pull(&mut self, image: &str) -> anyhow::Result<String> {
        let request = ImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
        Ok(self.call::<_, Id>("ImageService/PullImage", request).await?.id)
    }

    /// Removes an image under all its names. Its content goes some time after that.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn remove_image(&mut self, image: &str) -> anyhow::Result<()> {
        let request = ImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
        self.call::<_, Nothing>("ImageService/RemoveImage", request).await.map(drop)
    }

    async fn call<Q, A>(&mut self, method: &str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.channel.ready().await.context("containerd's socket")?;
        let path: PathAndQuery = format!("/runtime.v1.{method}").parse()?;
        let reply = self.channel.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        Ok(reply.with_context(|| format!("CRI {method}"))?.into_inner())
    }
}
