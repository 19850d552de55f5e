//! When to try again: exponential, bounded, with jitter so that a thousand nodes do not come back at once. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// How long to wait after one more failure. `random` is from 0 to 1.
    pub fn fail(&mut self, random: f64) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.0.min(16)).min(LONGEST);
        self.0 = self.0.saturating_add(1);
        whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.fail(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.fail(0.0), FIRST / 2);
    }

    #[test]
    fn waits_differ_by_up_to_a_half_and_never_overflow() {
        for random in [0.0, 0.3, 1.0, f64::INFINITY] {
            let mut backoff = Backoff(u32::MAX);
            assert!((LONGEST / 2..=LONGEST).contains(&backoff.fail(random)));
        }
    }
}
