//! The node's container runtimes, asked through the CRI for what bundles and image stores do not say.
//!
//! Nothing here waits: questions go to the client's thread, answers are taken when they have come.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd as _, RawFd},
    path::{Path, PathBuf},
};

use crate::{
    record::{Body, BootNs, ContainerInfo, ImageNames, InfoFrom},
    source::cri::{self, Answer, Cri},
};

/// When to look for sockets again after a kubelet or runtime started, in ns: it makes its socket a while later.
const LOOK_AFTER_NS: [u64; 3] = [1_000_000_000, 5_000_000_000, 30_000_000_000];
/// When to ask for names after an image arrived, in ns: its manifest comes first, its layers take what they take, its name comes last.
const NAMES_AFTER_NS: [u64; 5] = [500_000_000, 2_000_000_000, 10_000_000_000, 60_000_000_000, 300_000_000_000];
/// When to ask again for a container that no runtime knows, in ns: a sandbox has its cgroup before its runtime lists it.
const AGAIN_AFTER_NS: [u64; 4] = [250_000_000, 1_000_000_000, 4_000_000_000, 15_000_000_000];
/// Most containers that are asked for again.
const AGAIN_MAX: usize = 1024;
/// Most images whose names are remembered.
const IMAGES_MAX: usize = 4096;

/// The runtimes of this node.
pub struct Runtimes {
    cri: Cri,
    /// Sockets that the user names; empty to look for them.
    explicit: Vec<PathBuf>,
    proc: PathBuf,
    /// When to look for sockets, and when to ask for images.
    look_at: BTreeSet<BootNs>,
    names_at: BTreeSet<BootNs>,
    /// Containers that no runtime knew yet: when to ask again, and how often that was.
    again: BTreeMap<String, (BootNs, usize)>,
    /// What was told of each image.
    names: BTreeMap<String, ImageNames>,
}

impl Runtimes {
    /// Finds the sockets, and asks for everything that is there.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn start(explicit: &[PathBuf], proc: &Path) -> io::Result<Self> {
        let cri = Cri::start(cri::sockets(explicit, proc))?;
        cri.ask_all();
        Ok(Self {
            cri,
            explicit: explicit.to_vec(),
            proc: proc.to_owned(),
            look_at: BTreeSet::new(),
            names_at: BTreeSet::new(),
            again: BTreeMap::new(),
            names: BTreeMap::new(),
        })
    }

    /// Readable when answers have come.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.cri.fd().as_raw_fd()
    }

    /// A container appeared: ask for what its bundle did not say.
    pub fn appeared(&mut self, info: &ContainerInfo) {
        let is_a_pods = info.pod.is_some() || info.from == InfoFrom::Nothing;
        if is_a_pods {
            self.again.remove(&info.id);
            self.cri.ask_container(&info.id);
        }
    }

    /// A kubelet or a runtime was started: there may be other sockets soon.
    pub fn look_again(&mut self, now: BootNs) {
        self.look_at.extend(LOOK_AFTER_NS.map(|after| BootNs(now.0.saturating_add(after))));
    }

    /// An image arrived: it will be given names.
    pub fn image_arrived(&mut self, now: BootNs) {
        self.names_at.extend(NAMES_AFTER_NS.map(|after| BootNs(now.0.saturating_add(after))));
        // A flood of images asks no more often than a few.
        while self.names_at.len() > 4 * NAMES_AFTER_NS.len() {
            self.names_at.pop_first();
        }
    }

    /// When there is something to do although no answer came.
    #[must_use]
    pub fn deadline(&self) -> BootNs {
        let first = |times: &BTreeSet<BootNs>| times.first().copied();
        let again = self.again.values().map(|(at, _)| *at).filter(|at| at.0 != 0).min();
        first(&self.look_at).into_iter().chain(first(&self.names_at)).chain(again).min().unwrap_or(BootNs(u64::MAX))
    }

    /// Asks what is due, and yields what was answered.
    pub fn poll(&mut self, now: BootNs, warnings: &mut Vec<String>) -> Vec<Body> {
        if take_due(&mut self.look_at, now) {
            self.cri.set_sockets(cri::sockets(&self.explicit, &self.proc));
        }
        if take_due(&mut self.names_at, now) {
            self.cri.ask_images();
        }
        for (id, (at, _)) in self.again.iter_mut().filter(|(_, (at, _))| at.0 != 0 && *at <= now) {
            // Until it is answered.
            *at = BootNs(0);
            self.cri.ask_container(id);
        }
        let mut answers = Vec::new();
        self.cri.answers(&mut answers);
        let mut bodies = Vec::new();
        for answer in answers {
            match answer {
                Answer::Container(info) => {
                    self.again.remove(&info.id);
                    bodies.push(Body::Container(info));
                }
                Answer::NotFound(id) | Answer::Unanswered(id) => self.ask_again(id, now),
                Answer::Images(images) => bodies.extend(images.into_iter().filter_map(|image| self.named(image))),
                Answer::Warning(warning) => warnings.push(warning),
                Answer::Connected(_) => {}
            }
        }
        bodies
    }

    /// A container that no runtime knows may be one that its runtime does not list yet.
    fn ask_again(&mut self, id: String, now: BootNs) {
        let tried = self.again.get(&id).map_or(0, |(_, tried)| *tried);
        match AGAIN_AFTER_NS.get(tried) {
            Some(after) if tried > 0 || self.again.len() < AGAIN_MAX => {
                self.again.insert(id, (BootNs(now.0.saturating_add(*after)), tried + 1));
            }
            _ => {
                self.again.remove(&id);
            }
        }
    }

    /// An image's names, when they are not what was told before.
    fn named(&mut self, image: ImageNames) -> Option<Body> {
        if self.names.get(&image.id) == Some(&image) {
            return None;
        }
        while self.names.len() >= IMAGES_MAX && !self.names.contains_key(&image.id) {
            self.names.pop_first();
        }
        self.names.insert(image.id.clone(), image.clone());
        Some(Body::ImageNames(Box::new(image)))
    }
}

/// Whether something was due; it no longer is.
fn take_due(times: &mut BTreeSet<BootNs>, now: BootNs) -> bool {
    let mut due = false;
    while times.first().is_some_and(|first| *first <= now) {
        times.pop_first();
        due = true;
    }
    due
}
