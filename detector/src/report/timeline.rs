//! Where the findings stand in time: positions for a drawing, in percent across and in pixels down.

use std::collections::BTreeMap;

use super::{
    coverage::Coverage,
    finding::Finding,
    time::{self, DAY, HOUR, MILLI, MINUTE, Ns, SECOND},
};
use crate::escape::escape_to;

/// Room at each end of the drawing, as a part of what lies between: beside the first and last finding, and beside the
/// ends of a whole recording.
const MARGIN: Ns = 16;
const MARGIN_WHOLE: Ns = 64;
/// A recording longer than so many times what the findings span is not drawn whole.
const ZOOM: Ns = 4;
/// Dots nearer than this are stacked, in percent: a dot's width on a telephone.
const NEAR: f64 = 2.4;
/// Most dots of a stack; those above lie on the uppermost.
const STACK: usize = 8;
/// Height of a dot, and of what a lane has besides, in pixels.
const DOT: usize = 13;
const LANE: usize = 30;
/// Most intervals of the axis.
const TICKS: Ns = 4;
/// Most pieces of what is missing that are drawn.
const MISSING_MAX: usize = 200;

pub struct Dot {
    pub number: u64,
    pub severity: &'static str,
    pub title: String,
    pub x: String,
    pub y: usize,
}

/// Findings of one technique.
pub struct Lane {
    pub technique: &'static str,
    pub label: usize,
    pub base: usize,
    pub dots: Vec<Dot>,
}

/// A stretch of the whole recording.
pub struct Band {
    pub x: String,
    pub width: String,
}

pub struct Tick {
    pub x: String,
    pub label: String,
}

pub struct Timeline {
    pub lanes: Vec<Lane>,
    pub ticks: Vec<Tick>,
    pub height: usize,
    /// First and last moment of the drawing.
    pub from: String,
    pub to: String,
    pub span: String,
    /// What part of the recording is drawn, where that is not all of it.
    pub window: Option<Band>,
    /// Where the recording lacks something.
    pub missing: Vec<Band>,
}

impl Timeline {
    /// `findings` are in the order of time. `None` when there are none.
    pub fn new(findings: &[Finding], coverage: &Coverage) -> Option<Self> {
        let (first, last) = (findings.first()?.at, findings.last()?.at);
        let (start, end) = coverage.span().unwrap_or((first, last));
        let whole = (start.min(first), end.max(last));
        let between = (last - first).max(SECOND);
        let all = whole.1 - whole.0 <= between * ZOOM;
        let (from, to) = if all { whole } else { (first, last) };
        let margin = (to - from).max(SECOND) / if all { MARGIN_WHOLE } else { MARGIN };
        let axis = Axis { from: from - margin, to: to + margin };
        let recording = Axis { from: whole.0, to: whole.1 };
        let (lanes, height) = lanes(findings, &axis);
        Some(Self {
            lanes,
            ticks: axis.ticks(),
            height,
            from: time::utc(axis.from),
            to: time::utc(axis.to),
            span: time::span(axis.to - axis.from),
            window: (!all).then(|| recording.band(axis.from, axis.to)),
            missing: coverage.missing().take(MISSING_MAX).map(|(from, to)| recording.band(from, to)).collect(),
        })
    }
}

fn lanes(findings: &[Finding], axis: &Axis) -> (Vec<Lane>, usize) {
    let mut of_technique = BTreeMap::<&'static str, Vec<&Finding>>::new();
    for finding in findings {
        of_technique.entry(finding.alert.technique.id).or_default().push(finding);
    }
    let mut top = 0;
    let mut lanes = Vec::new();
    for (technique, findings) in of_technique {
        let mut stack = (f64::NEG_INFINITY, 0);
        let places: Vec<_> = findings
            .iter()
            .map(|finding| {
                let x = axis.percent(finding.at);
                stack = if x - stack.0 < NEAR { (stack.0, (stack.1 + 1).min(STACK - 1)) } else { (x, 0) };
                (stack.0, stack.1)
            })
            .collect();
        let highest = places.iter().map(|(_, level)| *level).max().unwrap_or_default();
        let base = top + LANE + highest * DOT;
        let mut dots: Vec<_> = findings
            .iter()
            .zip(places)
            .map(|(finding, (x, level))| {
                let dot = Dot {
                    number: finding.number,
                    severity: finding.severity(),
                    title: escape_to(&finding.alert.title, 200),
                    x: format!("{x:.2}%"),
                    y: base - level * DOT,
                };
                (finding.alert.severity, dot)
            })
            .collect();
        // The worst is drawn last, on top of others.
        dots.sort_by_key(|(severity, _)| *severity);
        let dots = dots.into_iter().map(|(_, dot)| dot).collect();
        lanes.push(Lane { technique, label: top + 13, base, dots });
        top = base + DOT;
    }
    (lanes, top)
}

struct Axis {
    from: Ns,
    to: Ns,
}

impl Axis {
    /// How far from the left: 0 to 100, also for what lies outside.
    fn percent(&self, at: Ns) -> f64 {
        let (at, span) = ((at - self.from).clamp(0, self.to - self.from), (self.to - self.from).max(1));
        #[expect(clippy::cast_precision_loss, reason = "a screen has fewer pixels than a float has digits")]
        let percent = at as f64 / span as f64 * 100.0;
        percent
    }

    fn band(&self, from: Ns, to: Ns) -> Band {
        // At least as wide as can be seen.
        let width = (self.percent(to) - self.percent(from)).max(0.6);
        let x = self.percent(from).min(100.0 - width);
        Band { x: format!("{x:.2}%"), width: format!("{width:.2}%") }
    }

    /// Round times, at most five of them, none at the very edge where its label would not fit.
    fn ticks(&self) -> Vec<Tick> {
        let span = self.to - self.from;
        let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500].map(|n| n * MILLI).into_iter();
        let steps = steps.chain([1, 2, 5, 10, 15, 30].map(|n| n * SECOND));
        let steps = steps.chain([1, 2, 5, 10, 15, 30].map(|n| n * MINUTE));
        let steps = steps.chain([1, 2, 3, 6, 12].map(|n| n * HOUR)).chain([1, 2, 7, 14, 30, 90, 365].map(|n| n * DAY));
        let step = steps.into_iter().find(|step| span / step <= TICKS).unwrap_or(span / TICKS);
        let mut ticks = Vec::new();
        let mut at = (self.from.div_euclid(step) + 1) * step;
        while at < self.to {
            let x = self.percent(at);
            if (7.0..=93.0).contains(&x) {
                ticks.push(Tick { x: format!("{x:.2}%"), label: time::label(at, step) });
            }
            at += step;
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Ns = 1_767_225_600 * SECOND;

    #[test]
    fn ticks_are_few_and_round_at_every_scale() {
        for span in [SECOND, 7 * SECOND, 90 * SECOND, 3 * HOUR, 40 * DAY, 100 * 365 * DAY, 100_000 * 365 * DAY] {
            let ticks = Axis { from: AT, to: AT + span }.ticks();
            assert!((1..=5).contains(&ticks.len()), "{span}: {}", ticks.len());
        }
        let labels: Vec<_> =
            Axis { from: AT, to: AT + 7 * SECOND }.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["00:00:02", "00:00:04", "00:00:06"]);
    }

    #[test]
    fn what_lies_outside_stays_on_the_drawing() {
        let axis = Axis { from: AT, to: AT + SECOND };
        assert_eq!(
            [0, AT, AT + SECOND / 2, Ns::from(u64::MAX) * 2].map(|at| axis.percent(at)),
            [0.0, 0.0, 50.0, 100.0]
        );
        let band = Axis { from: AT, to: AT }.band(AT, AT);
        assert_eq!((band.x.as_str(), band.width.as_str()), ("0.00%", "0.60%"));
    }
}
