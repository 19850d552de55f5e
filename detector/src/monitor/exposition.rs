//! Prometheus' text format 0.0.4: families of samples. Our own, because it is a page of code, and a library's metrics are objects
//! that count by themselves, where these are read off what the agent counts anyway.

use std::fmt::Write as _;

/// What a metric's samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the agent.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric that the agent exports.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Ends in the unit, and in `_total` where it is a counter.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// One line.
    pub help: &'static str,
}

/// A text that grows.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a family and writes its samples: the labels' values, in the order of the metric's labels, and the value.
    pub fn family<'a, V: Into<Value>, const N: usize>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'a str; N], V)>,
    ) {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        self.head(metric);
        for (values, value) in samples {
            self.sample(metric, "", metric.labels.iter().copied().zip(values), value.into());
        }
    }

    /// A family of one sample without labels.
    pub fn one(&mut self, metric: &Metric, value: impl Into<Value>) {
        self.family(metric, [([], value)]);
    }

    /// A histogram without labels: how many observations were at most each bound, in seconds.
    pub fn histogram(&mut self, metric: &Metric, histogram: &Histogram) {
        self.head(metric);
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(histogram.counts) {
            below += count;
            self.sample(metric, "_bucket", [("le", bound.to_string().as_str())], below.into());
        }
        self.sample(metric, "_bucket", [("le", "+Inf")], histogram.count.into());
        self.sample(metric, "_sum", [], histogram.sum.into());
        self.sample(metric, "_count", [], histogram.count.into());
    }

    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, metric: &Metric) {
        let Metric { name, kind, help, .. } = metric;
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
    }

    fn sample<'a>(
        &mut self,
        metric: &Metric,
        suffix: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: Value,
    ) {
        self.0.push_str(metric.name);
        self.0.push_str(suffix);
        let mut before = '{';
        for (name, value) in labels {
            self.0.push(before);
            self.0.push_str(name);
            self.0.push_str("=\"");
            escape(&mut self.0, value);
            self.0.push('"');
            before = ',';
        }
        if before == ',' {
            self.0.push('}');
        }
        let _ = match value {
            Value::Whole(value) => writeln!(self.0, " {value}"),
            Value::Real(value) => writeln!(self.0, " {value}"),
        };
    }
}

/// A sample's value. Counts are whole to the last digit.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// What the format has to be told apart in a label's value; other control characters go, since whoever looks at it may be a terminal.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// Upper bounds of a latency's buckets, in seconds.
pub const BOUNDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Observations of a time.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// By the first bound that it was within.
    counts: [u64; BOUNDS.len()],
    count: u64,
    /// In seconds.
    sum: f64,
}

impl Histogram {
    /// Takes an observation, in ns.
    pub fn observe(&mut self, ns: u64) {
        let seconds = ns as f64 / 1e9;
        if let Some(count) = BOUNDS.iter().position(|bound| seconds <= *bound).and_then(|at| self.counts.get_mut(at)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric { name: "a_total", kind: Kind::Counter, labels: &["x", "y"], help: "Of a." };

    #[test]
    fn a_label_is_one_value_whatever_it_holds() {
        let mut text = Text::default();
        text.family(&METRIC, [(["a\"b\\c\nd", "\x1b[2J{}=,#"], u64::MAX)]);
        assert_eq!(
            text.finish(),
            "# HELP a_total Of a.\n# TYPE a_total counter\n\
             a_total{x=\"a\\\"b\\\\c\\nd\",y=\"\u{fffd}[2J{}=,#\"} 18446744073709551615\n"
        );
    }

    #[test]
    fn a_histograms_buckets_hold_what_is_below_them_and_the_last_holds_all() {
        let mut histogram = Histogram::default();
        for ns in [0, 500_000, 500_001, 3_000_000, 11_000_000_000] {
            histogram.observe(ns);
        }
        let mut text = Text::default();
        text.histogram(&Metric { name: "t_seconds", kind: Kind::Histogram, labels: &[], help: "T." }, &histogram);
        let text = text.finish();
        let of = |line: &str| {
            let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
            found.unwrap_or_else(|| panic!("no {line} in {text}")).to_owned()
        };
        for (le, count) in [("0.0005", 2), ("0.001", 3), ("0.0025", 3), ("0.005", 4), ("10", 4), ("+Inf", 5)] {
            assert_eq!(of(&format!("t_seconds_bucket{{le=\"{le}\"}}")), count.to_string(), "{le}");
        }
        assert_eq!(of("t_seconds_count"), "5");
        assert!((of("t_seconds_sum").parse::<f64>().unwrap() - 11.004_000_001).abs() < 1e-9);
    }
}
