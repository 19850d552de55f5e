//! Images that come into a store of this node: `supply-chain-compromise`, and `malicious-pause-container` for one that is
//! called like a pause image and is none that is known.
//!
//! An index and the manifests below it are one image, and one finding, told once its parts have come.

use std::collections::{BTreeSet, VecDeque};

use globset::GlobMatcher;

use crate::{
    alert::{Evidence, File, Origin, Severity},
    context::{Context, image::Images},
    decode::Event,
    detect::{
        Detector, Finding,
        stored::StoredActs,
        supply_chain::{allows, patterns},
        technique::{MALICIOUS_PAUSE, SUPPLY_CHAIN},
    },
    escape::escape_to,
    record::{Body, BootNs, ImageArrival, Record},
};

/// How long after its last part an image is told of, in ns: by then the runtime has a name for it.
const SETTLE_NS: u64 = 1_500_000_000;
/// Most images of which parts are awaited; one more, and the oldest is told of.
const PENDING_MAX: usize = 64;
/// Most images remembered after they were told of, for parts that come late.
const TOLD_MAX: usize = 1024;
/// Most records of one image that are evidence, and names that are shown.
const EVIDENCE_MAX: usize = 16;
const NAMES_MAX: usize = 4;

/// Joins the parts of images.
#[derive(Debug, Default)]
pub struct ImageArrivals {
    acts: StoredActs,
    pending: VecDeque<Group>,
    /// Digests of images that were told of, and of their parts.
    told: VecDeque<BTreeSet<String>>,
    /// Patterns of images that may run; empty when any may.
    allowed: Vec<GlobMatcher>,
}

/// An image of which at least one part has come.
#[derive(Debug)]
struct Group {
    parts: Vec<(u64, BootNs, ImageArrival)>,
    digests: BTreeSet<String>,
    last: BootNs,
}

impl Detector for ImageArrivals {
    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        // Every record, since time passes with each; nearly always there is nothing that waits for it.
        if self.pending.is_empty() && event.is_some_and(|event| !StoredActs::may_be(event)) {
            return Vec::new();
        }
        match &record.body {
            Body::Start(start) => self.allowed = patterns(&start.policy),
            Body::Config(rules) => self.allowed = patterns(&rules.policy),
            _ => {}
        }
        if let Some(event) = event {
            self.acts.observe(record, event);
        }
        if let Body::Image(image) = &record.body
            && !image.present
        {
            self.arrived(record, image);
        }
        let mut findings = Vec::new();
        while let Some(first) = self.pending.front() {
            let settled = record.time.0.saturating_sub(first.last.0) >= SETTLE_NS;
            if !settled && self.pending.len() <= PENDING_MAX {
                break;
            }
            let Some(group) = self.pending.pop_front() else { break };
            findings.extend(self.tell(&group, context));
            if self.told.len() >= TOLD_MAX {
                self.told.pop_front();
            }
            self.told.push_back(group.digests);
        }
        findings
    }
}

impl ImageArrivals {
    fn arrived(&mut self, record: &Record, image: &ImageArrival) {
        let own: BTreeSet<_> = std::iter::once(&image.digest).chain(&image.children).cloned().collect();
        // A part of an image that was told of, or an image around one: nothing new.
        if let Some(told) = self.told.iter_mut().find(|told| !told.is_disjoint(&own)) {
            told.extend(own);
            return;
        }
        let joined = self.pending.iter().position(|group| !group.digests.is_disjoint(&own));
        let mut group = joined.and_then(|at| self.pending.remove(at)).unwrap_or_else(|| Group {
            parts: Vec::new(),
            digests: BTreeSet::new(),
            last: record.time,
        });
        group.digests.extend(own);
        group.last = record.time;
        if group.parts.len() < EVIDENCE_MAX {
            group.parts.push((record.seq, record.time, image.clone()));
        }
        self.pending.push_back(group);
    }

    fn tell(&self, group: &Group, context: &Context) -> Option<Finding> {
        let images: &Images = &context.images;
        if images.known_pause(&group.digests) {
            return None;
        }
        let is_child = |digest: &String| group.parts.iter().any(|(.., part)| part.children.contains(digest));
        let (_, found, top) =
            group.parts.iter().find(|(.., part)| !is_child(&part.digest)).or_else(|| group.parts.first())?;
        let mut names: BTreeSet<String> = images.names_of(&group.digests);
        names.extend(group.parts.iter().flat_map(|(.., part)| part.names.iter().cloned()));
        let pause = names.iter().find(|name| images.like_pause(name)).cloned();
        let act = self
            .acts
            .on(&top.path, *found)
            .or_else(|| group.parts.iter().find_map(|(_, found, part)| self.acts.on(&part.path, *found)));
        let actor = act.map(|act| act.process);
        let mut reasons = Vec::new();
        let mut severity = Severity::Low;
        if let Some(name) = &pause {
            reasons.push(format!(
                "it is called like a pause image and its digest is none that is known: {}",
                match images.upstream(name) {
                    Some(known) => format!("{} is {}", known.version, known.digest),
                    None => "name one that is yours with --pause-digest".to_owned(),
                }
            ));
        }
        // Without a name there is nothing but digests to compare, which few policies have: what runs of it is judged when it runs.
        let candidates: BTreeSet<_> = names.union(&group.digests).cloned().collect();
        if !self.allowed.is_empty() && !names.is_empty() && !allows(&self.allowed, &candidates) {
            severity = Severity::Medium;
            reasons.push("no pattern of images.allow is like its names or digests".to_owned());
        }
        if let Some(why) = group.parts.iter().find_map(|(.., part)| part.unreadable.as_deref()) {
            severity = Severity::Medium;
            reasons.push(escape_to(why, 256));
        }
        if actor.is_some_and(|actor| context.origin(actor).0 == Origin::Container) {
            severity = Severity::High;
            reasons.insert(0, "a process in a container put it there".to_owned());
        }
        if actor.is_none() {
            reasons.push("no hook saw who put it there".to_owned());
        }
        let shown: Vec<_> = names.iter().take(NAMES_MAX).map(|name| escape_to(name, 128)).collect();
        let called = if shown.is_empty() { escape_to(&top.digest, 80) } else { shown.join(", ") };
        let by = match actor.and_then(|actor| context.processes.get(actor)) {
            Some(process) => format!(" by {}", escape_to(&process.program.exe, 128)),
            None => String::new(),
        };
        let what = if pause.is_some() { "Pause image of an unknown digest" } else { "Image" };
        let mut evidence: Vec<_> = act.iter().map(|act| act.evidence()).collect();
        evidence.extend(group.parts.iter().map(|(sequence, _, part)| Evidence {
            kind: "image",
            hook: None,
            sequence: *sequence,
            detail: format!("{} {}", escape_to(&part.media_type, 80), escape_to(&part.digest, 80)),
        }));
        Some(Finding {
            technique: if pause.is_some() { &MALICIOUS_PAUSE } else { &SUPPLY_CHAIN },
            severity,
            time: act.map_or(*found, |act| act.time),
            title: format!("{what} came to this node: {called}{by}"),
            blocked: false,
            reasons,
            actor,
            container: None,
            file: Some(File {
                sha256: top.digest.strip_prefix("sha256:").map(str::to_owned),
                ..File::named(&top.path, "added")
            }),
            manifest: None,
            evidence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        context::image::PAUSE,
        record::{ImageNames, Policy, Rules},
        testing::{self, Actor, DIR, FILE, SECOND, Stream},
    };
    use detector_common as wire;

    fn sha(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn part(digest: &str, children: &[&str]) -> Body {
        Body::Image(Box::new(ImageArrival {
            digest: digest.to_owned(),
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            children: children.iter().map(|child| (*child).to_owned()).collect(),
            path: format!("/blobs/sha256/{}", digest.trim_start_matches("sha256:")),
            ..ImageArrival::default()
        }))
    }

    /// A rename into the store, as a security hook saw it.
    fn renamed(actor: Actor, digest: &str) -> bytes::Bytes {
        let to = digest.trim_start_matches("sha256:");
        let mut raw = testing::entry(actor, wire::hook::INODE_RENAME, [FILE, DIR], ["data", to]).to_vec();
        let at = std::mem::offset_of!(wire::Entry, watch);
        raw[at..at + 4].copy_from_slice(&wire::watch::STORE.to_ne_bytes());
        raw.into()
    }

    fn told(stream: &mut Stream) -> Vec<crate::alert::Alert> {
        stream.wait(3 * SECOND);
        stream.push(Body::Tick);
        stream.alerts()
    }

    #[test]
    fn an_index_and_its_manifest_are_one_image_and_who_stored_it_is_named() {
        for order in [[0, 1], [1, 0]] {
            let mut stream = Stream::new();
            let parts = [(sha('1'), sha('2')), (sha('2'), sha('3'))];
            for at in order {
                let (digest, child) = &parts[at];
                stream.kernel(renamed(Actor::host(50, 10), digest));
                stream.push(part(digest, &[child]));
                stream.wait(SECOND);
            }
            let alerts = told(&mut stream);
            assert_eq!(alerts.len(), 1);
            assert_eq!((alerts[0].technique.id, alerts[0].severity), ("supply-chain-compromise", Severity::Low));
            assert_eq!(alerts[0].title, format!("Image came to this node: {} by /bin/bash", sha('1')));
            assert_eq!(alerts[0].file.as_ref().unwrap().sha256.as_deref(), Some("1".repeat(64).as_str()));
            // A part that comes late belongs to what was told.
            stream.push(part(&sha('2'), &[&sha('3')]));
            assert_eq!(told(&mut stream).len(), 1);
        }
    }

    #[test]
    fn two_images_are_two() {
        let mut stream = Stream::new();
        stream.push(part(&sha('1'), &[&sha('2')]));
        stream.push(part(&sha('4'), &[&sha('5')]));
        let alerts = told(&mut stream);
        assert_eq!(alerts.len(), 2);
        assert_eq!(alerts[0].process, None);
    }

    #[test]
    fn a_known_pause_image_is_silent_and_what_is_only_called_so_is_told() {
        let named = |id: &str, digest: &str| {
            Body::ImageNames(Box::new(ImageNames {
                id: id.to_owned(),
                tags: vec!["registry.k8s.io/pause:3.9".to_owned()],
                digests: vec![format!("registry.k8s.io/pause@{digest}")],
                pinned: false,
            }))
        };
        let mut stream = Stream::new();
        let known = PAUSE[8].digest.clone();
        stream.push(part(&known, &[&sha('2')]));
        stream.push(part(&sha('2'), &[&sha('3')]));
        stream.push(named(&sha('3'), &known));
        assert_eq!(told(&mut stream), []);
        let mut stream = Stream::new();
        stream.push(part(&sha('7'), &[&sha('8')]));
        stream.push(part(&sha('8'), &[&sha('9')]));
        stream.push(named(&sha('9'), &sha('7')));
        let alerts = told(&mut stream);
        assert_eq!((alerts[0].technique.id, alerts[0].severity), ("malicious-pause-container", Severity::Low));
        assert_eq!(alerts[0].title, "Pause image of an unknown digest came to this node: registry.k8s.io/pause:3.9");
        assert!(alerts[0].reasons[0].contains(&known), "{:?}", alerts[0].reasons);
    }

    #[test]
    fn an_image_that_policy_does_not_allow_is_medium_and_others_stay_low() {
        for (allowed, severity) in [("registry.example/**", Severity::Low), ("registry.k8s.io/**", Severity::Medium)] {
            let mut stream = Stream::new();
            let policy = Policy { images_allow: vec![allowed.to_owned()], ..Policy::default() };
            stream.push(Body::Config(Box::new(Rules { policy, ..Rules::default() })));
            stream.push(part(&sha('1'), &[&sha('2')]));
            stream.push(Body::ImageNames(Box::new(ImageNames {
                id: sha('2'),
                tags: vec!["registry.example/web:1".to_owned()],
                ..ImageNames::default()
            })));
            let alerts = told(&mut stream);
            assert_eq!(alerts.iter().map(|alert| alert.severity).collect::<Vec<_>>(), [severity]);
        }
    }

    #[test]
    fn what_was_there_before_the_agent_has_not_come() {
        let mut stream = Stream::new();
        let Body::Image(image) = part(&sha('1'), &[]) else { unreachable!() };
        stream.push(Body::Image(Box::new(ImageArrival { present: true, ..*image })));
        assert_eq!(told(&mut stream), []);
    }

    #[test]
    fn more_images_than_the_bound_are_told_early_and_none_is_lost() {
        let mut stream = Stream::new();
        for n in 0..200 {
            stream.push(part(&format!("sha256:{n:064}"), &[]));
        }
        let early = stream.alerts().len();
        assert!(early >= 200 - PENDING_MAX - 1, "{early}");
        assert_eq!(told(&mut stream).len(), 200);
    }
}
