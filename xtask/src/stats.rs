//! Medians and spreads.

use serde::Serialize;

/// The middle of some samples, and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    /// First and third quartile.
    pub low: f64,
    pub high: f64,
    pub samples: usize,
}

impl Spread {
    /// `None` without samples.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: percentile(&sorted, 50.0)?,
            low: percentile(&sorted, 25.0)?,
            high: percentile(&sorted, 75.0)?,
            samples: sorted.len(),
        })
    }
}

/// The nearest-rank percentile of sorted samples; `None` without samples.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a rank between 0 and the last index")]
    let rank = (percent / 100.0 * last as f64).round() as usize;
    sorted.get(rank.min(last)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        let spread = Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!((spread.median, spread.low, spread.high, spread.samples), (3.0, 2.0, 4.0, 5));
        assert_eq!(Spread::of([]), None);
        assert_eq!(percentile(&[1.0, 2.0], 99.0), Some(2.0));
    }
}
