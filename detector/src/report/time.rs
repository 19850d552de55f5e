//! Wall time as people read it: UTC, to the millisecond.

use crate::{context::Context, record::BootNs};

/// Nanoseconds since the epoch. Any trace gives one, sensible or not.
pub type Ns = i128;

#[must_use]
pub fn of(time: BootNs, context: &Context) -> Ns {
    time.wall(context.start.boot_time_ns)
}

/// When an alert says that it happened; `None` when it is no time.
#[must_use]
pub fn parse(text: &str) -> Option<Ns> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_nanosecond)
}

/// `2026-01-01 00:01:40.004`; a bare number of nanoseconds when no calendar has it.
#[must_use]
pub fn utc(at: Ns) -> String {
    match jiff::Timestamp::from_nanosecond(at) {
        Ok(time) => format!("{time:.3}").replace('T', " ").trim_end_matches('Z').to_owned(),
        Err(_) => at.to_string(),
    }
}

/// Only the part of [`utc`] that a label needs whose neighbours are `step` away.
#[must_use]
pub fn label(at: Ns, step: Ns) -> String {
    let utc = utc(at);
    let part = match step {
        ..SECOND => utc.get(14..),
        SECOND..MINUTE => utc.get(11..19),
        MINUTE..DAY => utc.get(11..16),
        _ => utc.get(..10),
    };
    part.unwrap_or(&utc).to_owned()
}

/// `250 ms`, `12.5 s`, `3 min`, `2.1 h`, `4 days`.
#[must_use]
pub fn span(ns: Ns) -> String {
    // A page shows two digits of it: what a float loses is not among them.
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let of = |unit: Ns| {
        let text = format!("{:.1}", ns as f64 / unit as f64);
        text.trim_end_matches(".0").to_owned()
    };
    match ns {
        ..SECOND => format!("{} ms", of(MILLI)),
        SECOND..MINUTE => format!("{} s", of(SECOND)),
        MINUTE..HOUR => format!("{} min", of(MINUTE)),
        HOUR..DAY => format!("{} h", of(HOUR)),
        _ => format!("{} days", of(DAY)),
    }
}

pub const MILLI: Ns = 1_000_000;
pub const SECOND: Ns = 1000 * MILLI;
pub const MINUTE: Ns = 60 * SECOND;
pub const HOUR: Ns = 60 * MINUTE;
pub const DAY: Ns = 24 * HOUR;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_told_to_the_millisecond() {
        let at = parse("2026-01-01T00:01:40.004000000Z").unwrap();
        assert_eq!(utc(at), "2026-01-01 00:01:40.004");
        assert_eq!(label(at, MILLI), "01:40.004");
        assert_eq!(label(at, SECOND), "00:01:40");
        assert_eq!(label(at, HOUR), "00:01");
        assert_eq!(label(at, DAY), "2026-01-01");
        assert_eq!(parse("<script>"), None);
    }

    #[test]
    fn a_time_that_no_calendar_has_is_a_number() {
        let never = Ns::from(u64::MAX) * 1000;
        assert_eq!(utc(never), never.to_string());
        assert_eq!(label(never, MILLI), never.to_string()[14..]);
    }

    #[test]
    fn spans_have_the_unit_that_suits_them() {
        let spans = [0, 250 * MILLI, 12_500 * MILLI, 3 * MINUTE, 90 * MINUTE, 4 * DAY].map(span);
        assert_eq!(spans, ["0 ms", "250 ms", "12.5 s", "3 min", "1.5 h", "4 days"]);
    }
}
