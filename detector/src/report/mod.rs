//! One page for an incident responder: what happened on this node, as a replayed trace tells it.
//!
//! The page is a file without anything outside it. Whatever comes from the trace is text between tags and nothing else:
//! never in an address, a style or a script, rarely in an attribute; see [`text::Visibly`].

mod content;
mod coverage;
mod finding;
#[cfg(test)]
mod story;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod time;
mod timeline;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, Write},
};

use askama::Template;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use crate::{
    alert::{Alert, Severity, Technique},
    pipeline::Pipeline,
    record::Record,
};
use coverage::Coverage;
use finding::{Finding, Recent};
use timeline::Timeline;

/// Most findings that a page shows.
const FINDINGS_MAX: usize = 1000;
/// Most bytes that the findings of a page keep in memory.
const BYTES_MAX: usize = 16 << 20;
/// So many findings or fewer are all open from the beginning.
const OPEN_MAX: usize = 3;

pub(crate) const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Collects what the page shows, in bounded memory however long the trace is.
#[derive(Default)]
pub struct Report {
    coverage: Coverage,
    recent: Recent,
    /// The worst first, of the same severity the earliest; so the last is the first to go.
    findings: BTreeMap<(Reverse<Severity>, u64), Finding>,
    /// What the findings take.
    bytes: usize,
    alerts: u64,
    severities: BTreeMap<Reverse<Severity>, u64>,
    techniques: BTreeMap<&'static str, (Technique, u64)>,
}

impl Report {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record of the stream, which `pipeline` has taken already, and the alerts that it completed.
    pub fn observe(&mut self, record: &Record, alerts: &[Alert], pipeline: &Pipeline) {
        self.coverage.observe(record, pipeline);
        self.recent.observe(record);
        self.told(record, alerts, pipeline);
    }

    /// Takes alerts that were told behind this record, the last one.
    pub fn told(&mut self, record: &Record, alerts: &[Alert], pipeline: &Pipeline) {
        for alert in alerts {
            self.alerts += 1;
            *self.severities.entry(Reverse(alert.severity)).or_default() += 1;
            self.techniques.entry(alert.technique.id).or_insert_with(|| (alert.technique.clone(), 0)).1 += 1;
            self.keep(Finding::new(self.alerts, alert, &self.recent, record, pipeline.context()));
        }
    }

    /// Says what the reader of the trace could not read, in words: a damaged part, a missing end.
    pub fn incomplete(&mut self, what: &str) {
        self.coverage.unread(what);
    }

    fn keep(&mut self, finding: Finding) {
        self.bytes += finding.bytes();
        self.findings.insert((Reverse(finding.alert.severity), finding.number), finding);
        while self.findings.len() > FINDINGS_MAX || self.bytes > BYTES_MAX {
            let Some((_, gone)) = self.findings.pop_last() else { break };
            self.bytes -= gone.bytes();
        }
    }

    /// Writes the page.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self, out: impl Write) -> io::Result<()> {
        let mut findings: Vec<_> = self.findings.into_values().collect();
        findings.sort_by_key(|finding| (finding.at, finding.number));
        let page = Page {
            policy: policy(),
            style: STYLE,
            script: SCRIPT,
            timeline: Timeline::new(&findings, &self.coverage),
            open: findings.len() <= OPEN_MAX,
            dropped: self.alerts - findings.len() as u64,
            alerts: self.alerts,
            severities: self.severities.into_iter().map(|(worst, count)| (finding::word(worst.0), count)).collect(),
            techniques: self.techniques.into_values().collect(),
            coverage: self.coverage,
            findings,
        };
        let mut out = io::BufWriter::new(out);
        page.write_into(&mut out)?;
        out.flush()
    }
}

/// The page's own style and script are known by their hashes; nothing else is allowed.
pub(crate) fn policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page {
    policy: String,
    style: &'static str,
    script: &'static str,
    coverage: Coverage,
    alerts: u64,
    /// The worst first.
    severities: Vec<(&'static str, u64)>,
    techniques: Vec<(Technique, u64)>,
    timeline: Option<Timeline>,
    findings: Vec<Finding>,
    /// Whether the findings are open from the beginning.
    open: bool,
    /// Alerts that the page does not show.
    dropped: u64,
}

impl Page {
    /// The worst severity that there is.
    fn worst(&self) -> &'static str {
        self.severities.first().map_or("none", |(severity, _)| severity)
    }
}
