//! A runtime or kubelet is told to use another pause image.

use crate::{
    alert::{Evidence, File, Origin, Severity},
    context::Context,
    detect::{Finding, stored::StoredActs, technique::MALICIOUS_PAUSE},
    escape::escape_to,
    record::{PauseConfig, Record},
};

/// Longest text of others in a finding, in characters.
const SHOWN: usize = 160;

/// What a change of a configuration is worth; `None` when it is seen for the first time.
pub fn changed(record: &Record, config: &PauseConfig, acts: &StoredActs, context: &Context) -> Option<Finding> {
    let before = config.before.as_ref()?;
    let (severity, what, reason) = match (&config.image, &config.unreadable) {
        (_, Some(why)) => (
            Severity::Medium,
            "can no longer be read".to_owned(),
            format!("which pause image it names cannot be told: {}", escape_to(why, SHOWN)),
        ),
        (Some(image), None) => {
            let known = context.images.known_pause(&context.images.digests(image));
            let (severity, reason) = match context.images.upstream(image) {
                _ if known => (Severity::Medium, "the image is a known pause image".to_owned()),
                Some(upstream) => (
                    Severity::Medium,
                    format!("the name is the Kubernetes project's own, version {}", upstream.version),
                ),
                None => (
                    Severity::High,
                    "every pod that starts from now on runs this image; it is none that is known".to_owned(),
                ),
            };
            (severity, format!("now names {}", escape_to(image, SHOWN)), reason)
        }
        (None, None) => (
            Severity::Medium,
            "no longer names one".to_owned(),
            "the runtime's default is used from its next start on".to_owned(),
        ),
    };
    let act = acts.on(&config.path, record.time);
    let actor = act.map(|act| act.process);
    let mut reasons = vec![reason];
    reasons.push(match before {
        Some(image) => format!("it named {}", escape_to(image, SHOWN)),
        None => "it named none".to_owned(),
    });
    let mut severity = severity;
    if actor.is_some_and(|actor| context.origin(actor).0 == Origin::Container) {
        severity = Severity::Critical;
        reasons.insert(0, "a process in a container did it".to_owned());
    }
    let is_file = config.path.starts_with('/');
    if actor.is_none() && is_file {
        reasons.push("no hook saw who did it".to_owned());
    }
    let by = match actor.and_then(|actor| context.processes.get(actor)) {
        Some(process) => format!(" by {}", escape_to(&process.program.exe, SHOWN)),
        None => String::new(),
    };
    let mut evidence: Vec<_> = act.iter().map(|act| act.evidence()).collect();
    evidence.push(Evidence {
        kind: "pause_config",
        hook: None,
        sequence: record.seq,
        detail: escape_to(&config.path, SHOWN),
    });
    Some(Finding {
        technique: &MALICIOUS_PAUSE,
        severity,
        time: act.map_or(record.time, |act| act.time),
        title: format!("Pause image: {} {what}{by}", escape_to(&config.path, SHOWN)),
        blocked: false,
        reasons,
        actor,
        container: None,
        file: is_file.then(|| File::named(&config.path, "modified")),
        manifest: None,
        evidence,
    })
}
