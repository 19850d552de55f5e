//! Images: which digests belong together, what they are called, and which are known to be pause images.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::LazyLock,
};

use crate::record::{ImageArrival, ImageNames, PauseConfig, Policy};

/// Digests that the detector ships, with their versions.
const SHIPPED: &str = include_str!("../../data/pause-digests.txt");
/// Where the shipped ones come from, and came from before.
const UPSTREAM: [&str; 3] = ["registry.k8s.io/pause", "k8s.gcr.io/pause", "gcr.io/google_containers/pause"];
/// Most images remembered of each kind; the oldest go first.
const MAX: usize = 4096;
/// How many steps lead from a configuration to its image: manifest and index, and one to spare.
const STEPS: usize = 3;

/// A shipped digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// `sha256:...` of the index.
    pub digest: String,
    pub version: &'static str,
    /// Taken from what others pin rather than from the project's own list.
    pub second_hand: bool,
}

/// Pause images of the Kubernetes project.
pub static PAUSE: LazyLock<Vec<Shipped>> = LazyLock::new(|| {
    let parse = |line: &'static str| {
        let mut fields = line.split_whitespace();
        let (version, hex) = (fields.next()?, fields.next()?);
        Some(Shipped { digest: format!("sha256:{hex}"), version, second_hand: fields.next() == Some("*") })
    };
    SHIPPED.lines().filter(|line| !line.starts_with('#')).filter_map(parse).collect()
});

/// A map that forgets its oldest keys.
#[derive(Debug)]
struct Bounded<V> {
    map: BTreeMap<String, V>,
    order: VecDeque<String>,
}

impl<V> Default for Bounded<V> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<V> Bounded<V> {
    fn insert(&mut self, key: &str, value: V) {
        if self.map.insert(key.to_owned(), value).is_none() {
            self.order.push_back(key.to_owned());
            if self.order.len() > MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
        }
    }
}

/// What is known of images.
#[derive(Debug, Default)]
pub struct Images {
    /// The user's.
    policy: BTreeSet<String>,
    /// The image that a manifest or configuration belongs to.
    parents: Bounded<String>,
    /// By the runtime's id.
    names: Bounded<ImageNames>,
    /// Names that image blobs gave themselves, by digest.
    annotated: Bounded<Vec<String>>,
    /// The images that runtimes and kubelets are told to use, by where.
    configured: BTreeMap<String, String>,
}

impl Images {
    /// What the user knows, instead of what they knew before.
    pub fn policy(&mut self, policy: &Policy) {
        self.policy = policy.pause_digests.iter().take(MAX).cloned().collect();
    }

    pub fn arrived(&mut self, image: &ImageArrival) {
        for child in &image.children {
            self.parents.insert(child, image.digest.clone());
        }
        if !image.names.is_empty() {
            // A name belongs to whom it was given last.
            for names in self.annotated.map.values_mut() {
                names.retain(|name| !image.names.contains(name));
            }
            self.annotated.insert(&image.digest, image.names.clone());
        }
    }

    pub fn named(&mut self, names: &ImageNames) {
        for other in self.names.map.values_mut() {
            other.tags.retain(|tag| !names.tags.contains(tag));
        }
        for annotated in self.annotated.map.values_mut() {
            annotated.retain(|name| !names.tags.contains(name));
        }
        self.names.insert(&digest(&names.id).unwrap_or_else(|| names.id.clone()), names.clone());
    }

    pub fn configured(&mut self, config: &PauseConfig) {
        match &config.image {
            Some(image) if self.configured.len() < MAX || self.configured.contains_key(&config.path) => {
                self.configured.insert(config.path.clone(), normal(image));
            }
            _ => {
                self.configured.remove(&config.path);
            }
        }
    }

    /// The pause image that the runtimes here are told to use, when they agree on one.
    #[must_use]
    pub fn pause(&self) -> Option<&str> {
        let mut images = self.configured.values();
        let first = images.next()?;
        images.all(|other| other == first).then_some(first)
    }

    /// Every digest of the image that `reference` (a name, an id, a digest) leads to: of its configuration, its manifest, its
    /// index. Empty when nothing leads anywhere.
    #[must_use]
    pub fn digests(&self, reference: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let wanted = normal(reference);
        found.extend(digest(reference));
        for (id, names) in &self.names.map {
            let called = |name: &String| normal(name) == wanted;
            let is_digest = |name: &String| digest(name).is_some_and(|digest| found.contains(&digest));
            if found.contains(id)
                || names.tags.iter().chain(&names.digests).any(called)
                || names.digests.iter().any(is_digest)
            {
                found.insert(id.clone());
                found.extend(names.digests.iter().filter_map(|name| digest(name)));
            }
        }
        for (blob, names) in &self.annotated.map {
            if names.iter().any(|name| normal(name) == wanted) {
                found.insert(blob.clone());
            }
        }
        let mut last = found.clone();
        for _ in 0..STEPS {
            last = last.iter().filter_map(|child| self.parents.map.get(child)).cloned().collect();
            found.extend(last.iter().cloned());
        }
        found
    }

    /// Whether one of these digests is of an image (not just of a configuration) and so can be compared with a list.
    #[must_use]
    pub fn comparable(&self, digests: &BTreeSet<String>) -> bool {
        let named = |digest: &String| {
            self.names.map.get(digest).is_some_and(|names| !names.digests.is_empty())
                || self.annotated.map.get(digest).is_some_and(|names| !names.is_empty())
        };
        digests.iter().any(|digest| named(digest) || self.parents.map.contains_key(digest))
    }

    /// Whether one of these is a pause image's, by the shipped list or the user's.
    #[must_use]
    pub fn known_pause(&self, digests: &BTreeSet<String>) -> bool {
        digests.iter().any(|digest| self.policy.contains(digest) || PAUSE.iter().any(|known| known.digest == *digest))
    }

    /// What an image with one of these digests is called.
    #[must_use]
    pub fn names_of(&self, digests: &BTreeSet<String>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for names in digests.iter().filter_map(|digest| self.annotated.map.get(digest)) {
            found.extend(names.iter().cloned());
        }
        for (id, names) in &self.names.map {
            let by_digest = |name: &String| digest(name).is_some_and(|digest| digests.contains(&digest));
            if digests.contains(id) || names.digests.iter().any(by_digest) {
                found.extend(names.tags.iter().cloned());
            }
        }
        found
    }

    /// Whether an image of that name would be taken for a pause image: it is called so, or a runtime is told to use it.
    #[must_use]
    pub fn like_pause(&self, name: &str) -> bool {
        let normal = normal(name);
        let last = repository(&normal).rsplit('/').next().unwrap_or_default().to_owned();
        last.split(['-', '_', '.']).any(|word| word == "pause")
            || self.configured.values().any(|configured| *configured == normal)
    }

    /// The shipped image that a reference names by the project's own registry and tag.
    #[must_use]
    pub fn upstream(&self, reference: &str) -> Option<&'static Shipped> {
        let normal = normal(reference);
        let name = normal.split('@').next().unwrap_or_default();
        let (repository, tag) = name.rsplit_once(':')?;
        PAUSE.iter().find(|known| known.version == tag && UPSTREAM.contains(&repository))
    }
}

/// The digest in a reference: `name@sha256:...`, `sha256:...`, or 64 hex digits as CRI-O writes ids.
#[must_use]
pub fn digest(reference: &str) -> Option<String> {
    let last = reference.rsplit('@').next().unwrap_or_default();
    let hex = last.strip_prefix("sha256:").unwrap_or(last);
    is_sha256(hex).then(|| format!("sha256:{hex}"))
}

/// Whether a text is a SHA-256 in lower-case hex.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A reference as runtimes list it: with its registry.
fn normal(reference: &str) -> String {
    let reference = reference.trim();
    match reference.split_once('/') {
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => reference.to_owned(),
        Some(_) => format!("docker.io/{reference}"),
        None => format!("docker.io/library/{reference}"),
    }
}

/// A reference without its digest and its tag.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn arrival(digest: &str, children: &[String]) -> ImageArrival {
        ImageArrival { digest: digest.to_owned(), children: children.to_vec(), ..ImageArrival::default() }
    }

    #[test]
    fn the_shipped_list_is_whole() {
        assert_eq!(PAUSE.len(), 12);
        assert!(PAUSE.iter().all(|known| digest(&known.digest).is_some()));
        let second_hand: Vec<_> = PAUSE.iter().filter(|known| known.second_hand).map(|known| known.version).collect();
        assert_eq!(second_hand, ["3.1", "3.10", "3.10.1", "3.10.2"]);
    }

    #[test]
    fn a_configuration_is_known_by_the_index_that_it_came_with() {
        let mut images = Images::default();
        let index = PAUSE[8].digest.clone();
        assert!(!images.known_pause(&images.digests(&sha('c'))));
        images.arrived(&arrival(&index, &[sha('a'), sha('b')]));
        images.arrived(&arrival(&sha('b'), &[sha('c')]));
        assert!(images.known_pause(&images.digests(&sha('c'))));
        assert!(images.known_pause(&images.digests(&"c".repeat(64))), "CRI-O's spelling");
        assert!(!images.known_pause(&images.digests(&sha('d'))));
    }

    #[test]
    fn an_image_is_found_by_any_of_its_names() {
        let mut images = Images::default();
        let digests = vec![format!("registry.example/pause@{}", sha('1'))];
        images.named(&ImageNames {
            id: sha('c'),
            tags: vec!["docker.io/library/pause:9".to_owned()],
            digests: digests.clone(),
            pinned: true,
        });
        for name in ["pause:9", "docker.io/library/pause:9", &digests[0], &sha('c'), &sha('1')] {
            let found = images.digests(name);
            assert!(found.contains(&sha('c')) && found.contains(&sha('1')), "{name}: {found:?}");
            assert!(images.comparable(&found));
        }
        assert!(images.digests("pause:8").is_empty());
        assert_eq!(images.names_of(&[sha('1')].into()), ["docker.io/library/pause:9".to_owned()].into());
    }

    #[test]
    fn a_tag_that_was_given_to_another_image_leads_to_that_one_alone() {
        let named = |id: char, digest: char| ImageNames {
            id: sha(id),
            tags: vec!["registry.k8s.io/pause:3.9".to_owned()],
            digests: vec![format!("registry.k8s.io/pause@{}", sha(digest))],
            pinned: true,
        };
        let mut images = Images::default();
        images.named(&named('c', '1'));
        images.named(&named('d', '2'));
        assert_eq!(images.digests("registry.k8s.io/pause:3.9"), [sha('d'), sha('2')].into());
        let arrived = |c| ImageArrival { names: vec!["x/pause:1".to_owned()], ..arrival(&sha(c), &[]) };
        images.arrived(&arrived('5'));
        images.arrived(&arrived('6'));
        assert_eq!(images.digests("x/pause:1"), [sha('6')].into());
    }

    #[test]
    fn names_that_pass_for_pause() {
        let mut images = Images::default();
        for name in [
            "registry.k8s.io/pause:3.9",
            "rancher/mirrored-pause:3.6",
            "k8s.gcr.io/pause-amd64",
            "pause",
            "localhost:5000/pause",
        ] {
            assert!(images.like_pause(name), "{name}");
        }
        for name in ["nginx", "pause.example/web:1", "pauses:1", "x/pausefish", "registry/pause/web"] {
            assert!(!images.like_pause(name), "{name}");
        }
        let path = "/etc/containerd/config.toml".to_owned();
        images.configured(&PauseConfig { path, image: Some("evil/infra:1".to_owned()), ..PauseConfig::default() });
        assert!(images.like_pause("docker.io/evil/infra:1"));
    }

    #[test]
    fn the_projects_own_names_are_told_from_those_that_look_alike() {
        let images = Images::default();
        assert_eq!(images.upstream("registry.k8s.io/pause:3.9").map(|known| known.version), Some("3.9"));
        for name in [
            "registry.k8s.io/pause:9.9",
            "registry.k8s.io.evil.example/pause:3.9",
            "pause:3.9",
            "x/registry.k8s.io/pause:3.9",
        ] {
            assert_eq!(images.upstream(name), None, "{name}");
        }
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let mut images = Images::default();
        for n in 0..=MAX {
            images.arrived(&arrival(&format!("sha256:{n:064x}"), &[format!("sha256:{:064x}", n + 1_000_000)]));
        }
        assert_eq!((images.parents.map.len(), images.parents.order.len()), (MAX, MAX));
    }
}
