//! What the thread does: keeps connections, asks, and turns answers into records.

use std::{
    collections::HashMap,
    mem::Discriminant,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use prost::Message;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    Answer, Ask, Connected, Pace, Shared,
    client::{Client, Failure},
    convert,
    message::{
        self, Container, EXITED, IdFilter, Image, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListRequest,
        NOT_READY, PodSandbox, PodSandboxStatusRequest, PodSandboxStatusResponse,
    },
    socket::Socket,
};
use crate::{
    escape::escape_to,
    record::{ContainerInfo, ImageNames, bounded},
};

/// Most entries of one list that are taken.
const ENTRIES_MAX: usize = 4096;
/// Longest path that a message shows, in characters.
const PATH_MAX: usize = 160;

const LIST_CONTAINERS: &str = "RuntimeService/ListContainers";
const LIST_SANDBOXES: &str = "RuntimeService/ListPodSandbox";
const SANDBOX_STATUS: &str = "RuntimeService/PodSandboxStatus";
const LIST_IMAGES: &str = "ImageService/ListImages";
const IMAGE_STATUS: &str = "ImageService/ImageStatus";

/// Connects and answers until it is dropped.
pub async fn run(shared: &Shared, sockets: Vec<Socket>, pace: Pace) {
    let mut worker = Worker {
        shared,
        pace,
        runtimes: sockets.into_iter().map(Runtime::new).collect(),
        all: false,
        ended: Arc::new(Notify::new()),
        dropped: 0,
    };
    loop {
        worker.connect_due().await;
        let next = worker.runtimes.iter().filter(|runtime| runtime.client.is_none()).map(|runtime| runtime.next).min();
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ask = shared.next_ask() => worker.answer(ask).await,
            () = worker.ended.notified() => {}
            () = due => {}
        }
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    pace: Pace,
    runtimes: Vec<Runtime>,
    /// Everything has been asked for.
    all: bool,
    /// A connection has ended.
    ended: Arc<Notify>,
    /// How many dropped questions have been said.
    dropped: u64,
}

/// A socket, and what became of it.
struct Runtime {
    socket: Socket,
    /// The socket's path, in records.
    path: String,
    client: Option<Rc<Client>>,
    /// Since when there is a connection.
    since: Instant,
    /// When to try again, without a connection.
    next: Instant,
    /// Tries that failed in a row.
    failures: u32,
    /// The kind of trouble that was last warned of.
    said: Option<Discriminant<Failure>>,
}

impl Runtime {
    fn new(socket: Socket) -> Self {
        let now = Instant::now();
        Self { path: bounded(&socket.shown()), socket, client: None, since: now, next: now, failures: 0, said: None }
    }

    /// Notes that something failed; returns whether that is news.
    fn failed(&mut self, failure: &Failure, pace: &Pace) -> bool {
        let now = Instant::now();
        if self.client.is_some() && now.duration_since(self.since) >= pace.steady {
            // It worked for long. One that breaks again and again does not get here: it is warned of once.
            self.failures = 0;
            self.said = None;
        }
        if failure.is_final() {
            self.client = None;
            let wait = pace.first.saturating_mul(1 << self.failures.min(16)).min(pace.longest);
            self.failures = self.failures.saturating_add(1);
            self.next = now + wait;
        }
        let kind = std::mem::discriminant(failure);
        self.said.replace(kind) != Some(kind)
    }
}

impl Worker<'_> {
    /// Notes connections that have ended, and makes those that are due.
    async fn connect_due(&mut self) {
        for index in 0..self.runtimes.len() {
            let Some(runtime) = self.runtimes.get_mut(index) else { return };
            if runtime.client.as_ref().is_some_and(|client| client.is_closed()) {
                self.trouble(index, &Failure::Broken("closed by the runtime".to_owned())).await;
                continue;
            }
            if runtime.client.is_some() || runtime.next > Instant::now() {
                continue;
            }
            match Client::connect(&runtime.socket, self.pace.deadline, Arc::clone(&self.ended)).await {
                Ok((client, peer)) => {
                    runtime.client = Some(Rc::new(client));
                    runtime.since = Instant::now();
                    let socket = runtime.path.clone();
                    let connected = Connected { socket, runtime: peer.runtime, api: peer.api };
                    self.shared.answer(Answer::Connected(connected)).await;
                    if self.all {
                        self.list_all(index).await;
                    }
                }
                Err(failure) => self.trouble(index, &failure).await,
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Container(id) => self.container(id).await,
            Ask::Images => {
                for index in 0..self.runtimes.len() {
                    if let Some(images) = self.images(index).await {
                        self.shared.answer(Answer::Images(images)).await;
                    }
                }
            }
            Ask::All => {
                self.all = true;
                for index in 0..self.runtimes.len() {
                    self.list_all(index).await;
                }
            }
            Ask::Sockets(sockets) => {
                let mut before = std::mem::take(&mut self.runtimes);
                self.runtimes = sockets
                    .into_iter()
                    .map(|socket| match before.iter().position(|runtime| runtime.socket == socket) {
                        Some(known) => before.swap_remove(known),
                        None => Runtime::new(socket),
                    })
                    .collect();
            }
        }
        self.say_dropped().await;
    }

    async fn container(&mut self, id: String) {
        let mut answered = false;
        for index in 0..self.runtimes.len() {
            let Some((client, path)) = self.up(index) else { continue };
            match container(&client, &path, &id).await {
                Ok(Some(info)) => return self.shared.answer(Answer::Container(Box::new(info))).await,
                Ok(None) => answered = true,
                Err(failure) => self.trouble(index, &failure).await,
            }
        }
        self.shared.answer(if answered { Answer::NotFound(id) } else { Answer::Unanswered(id) }).await;
    }

    /// The images of one runtime, if it is up and says.
    async fn images(&mut self, index: usize) -> Option<Vec<ImageNames>> {
        let list = self.list::<Image>(index, LIST_IMAGES, &ListRequest::default()).await?;
        let mut images = Vec::new();
        for image in list {
            match image {
                Ok(image) => images.push(convert::image(image)),
                Err(failure) => self.trouble(index, &failure).await,
            }
        }
        Some(images)
    }

    /// Sandboxes, containers and images of one runtime, if it is up.
    async fn list_all(&mut self, index: usize) {
        // A runtime may leave images to another one.
        let images = self.images(index).await.unwrap_or_default();
        self.sandboxes(index).await;
        self.containers(index, &images).await;
        if !images.is_empty() {
            self.shared.answer(Answer::Images(images)).await;
        }
        // A list of everything takes many times what comes of it.
        crate::memory::give_back();
    }

    async fn sandboxes(&mut self, index: usize) {
        let Some(list) = self.list::<PodSandbox>(index, LIST_SANDBOXES, &ListRequest::default()).await else { return };
        for sandbox in list {
            // The trouble with one sandbox may have been the end of the connection; the list is in hand.
            let details = match (&sandbox, self.up(index)) {
                (Ok(sandbox), Some((client, _))) if sandbox.state != NOT_READY => {
                    sandbox_status(&client, &sandbox.id).await
                }
                _ => Ok(None),
            };
            let details = match details {
                Ok(details) => details,
                Err(failure) => {
                    self.trouble(index, &failure).await;
                    None
                }
            };
            match sandbox {
                Ok(sandbox) if sandbox.state == NOT_READY => {}
                Ok(sandbox) => {
                    let info = convert::sandbox(sandbox, details.as_ref(), &self.path(index));
                    self.shared.answer(Answer::Container(Box::new(info))).await;
                }
                Err(failure) => self.trouble(index, &failure).await,
            }
        }
    }

    async fn containers(&mut self, index: usize, images: &[ImageNames]) {
        let Some(list) = self.list::<Container>(index, LIST_CONTAINERS, &ListRequest::default()).await else { return };
        let by_key: HashMap<String, &ImageNames> =
            images.iter().flat_map(|image| convert::image_keys(image).map(move |key| (key, image))).collect();
        for container in list {
            match container {
                Ok(container) if container.state == EXITED => {}
                Ok(container) => {
                    let image = convert::image_key(&container).and_then(|key| by_key.get(&key).copied());
                    let info = convert::container(container, &self.path(index), image);
                    self.shared.answer(Answer::Container(Box::new(info))).await;
                }
                Err(failure) => self.trouble(index, &failure).await,
            }
        }
    }

    /// The entries of a list, if the runtime is up and says.
    async fn list<M: Message + Default>(
        &mut self,
        index: usize,
        call: &'static str,
        request: &ListRequest,
    ) -> Option<impl Iterator<Item = Result<M, Failure>> + use<M>> {
        let (client, _) = self.up(index)?;
        match client.list(call, request).await {
            Ok(bytes) => Some(message::entries(bytes).enumerate().take(ENTRIES_MAX + 1).map(move |(at, entry)| {
                if at == ENTRIES_MAX {
                    return Err(Failure::TooMany { call, most: ENTRIES_MAX });
                }
                entry.map_err(|_| Failure::Garbage(call.to_owned()))
            })),
            Err(failure) => {
                self.trouble(index, &failure).await;
                None
            }
        }
    }

    /// The connection to a runtime that is up, and the path of its socket.
    fn up(&self, index: usize) -> Option<(Rc<Client>, String)> {
        let runtime = self.runtimes.get(index)?;
        Some((Rc::clone(runtime.client.as_ref()?), runtime.path.clone()))
    }

    fn path(&self, index: usize) -> String {
        self.runtimes.get(index).map(|runtime| runtime.path.clone()).unwrap_or_default()
    }

    async fn trouble(&mut self, index: usize, failure: &Failure) {
        let Some(runtime) = self.runtimes.get_mut(index) else { return };
        if runtime.failed(failure, &self.pace) {
            let path = escape_to(&runtime.path, PATH_MAX);
            self.shared.answer(Answer::Warning(format!("container runtime {path}: {failure}"))).await;
        }
    }

    /// Warns of dropped questions, once the flood is over.
    async fn say_dropped(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped == self.dropped || !super::lock(&self.shared.asks).is_empty() {
            return;
        }
        let warning = format!(
            "{} questions to the container runtime were dropped, because it answers more slowly than containers come: \
             their labels and image names are missing",
            dropped - self.dropped
        );
        self.dropped = dropped;
        self.shared.answer(Answer::Warning(warning)).await;
    }
}

/// A container or sandbox by its id.
async fn container(client: &Client, path: &str, id: &str) -> Result<Option<ContainerInfo>, Failure> {
    let filter = ListRequest { filter: Some(IdFilter { id: id.to_owned() }) };
    // Runtimes take a part of an id for the whole.
    let containers = client.list(LIST_CONTAINERS, &filter).await?;
    let container = message::entries::<Container>(containers).take(ENTRIES_MAX).flatten().find(|said| said.id == id);
    if let Some(said) = container {
        let image = image_names(client, &said).await?;
        return Ok(Some(convert::container(said, path, image.as_ref())));
    }
    let sandboxes = client.list(LIST_SANDBOXES, &filter).await?;
    let sandbox = message::entries::<PodSandbox>(sandboxes).take(ENTRIES_MAX).flatten().find(|said| said.id == id);
    let Some(said) = sandbox else { return Ok(None) };
    let details = sandbox_status(client, id).await?;
    Ok(Some(convert::sandbox(said, details.as_ref(), path)))
}

/// The references of a container's image; `None` when the runtime has none, or no images at all.
async fn image_names(client: &Client, container: &Container) -> Result<Option<ImageNames>, Failure> {
    let spec = container.image.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
    let image = if container.image_ref.is_empty() { spec } else { container.image_ref.clone() };
    let request = ImageStatusRequest { image: Some(ImageSpec { image, ..ImageSpec::default() }) };
    match client.one::<ImageStatusResponse>(IMAGE_STATUS, &request).await {
        Ok(response) => Ok(response.image.map(convert::image)),
        Err(failure) if failure.is_final() => Err(failure),
        Err(_) => Ok(None),
    }
}

/// Details of a sandbox; `None` when it has gone meanwhile.
async fn sandbox_status(client: &Client, id: &str) -> Result<Option<PodSandboxStatusResponse>, Failure> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    match client.one(SANDBOX_STATUS, &request).await {
        Ok(status) => Ok(Some(status)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}
