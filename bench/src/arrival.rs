//! When records of an open-loop load are due, whatever becomes of those before them.

use crate::clock::Moment;
use crate::random::Random;

/// How arrivals are spaced.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Spacing {
    /// As of many independent clients: exponential gaps.
    #[default]
    Poisson,
    /// Evenly.
    Uniform,
}

/// An endless schedule. Its times depend only on start, rate and seed, never on how the target does: a slow
/// answer delays no later arrival, so latencies taken from these times omit nothing (B7).
#[derive(Debug)]
pub struct Arrivals {
    origin: Moment,
    /// Nanoseconds from the origin to the next arrival: a sum of fractions, so that the rate is exact.
    at_nanos: f64,
    mean_gap_nanos: f64,
    spacing: Spacing,
    random: Random,
}

impl Arrivals {
    /// From `origin` on, `per_second` on average.
    ///
    /// # Panics
    /// If the rate is not a positive number.
    pub fn new(origin: Moment, per_second: f64, spacing: Spacing, seed: u64) -> Arrivals {
        assert!(per_second.is_finite() && per_second > 0.0, "a rate is a positive number");
        let mut arrivals = Arrivals {
            origin,
            at_nanos: 0.0,
            mean_gap_nanos: 1e9 / per_second,
            spacing,
            random: Random::new(seed),
        };
        arrivals.advance();
        arrivals
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Moment {
        self.origin.after_nanos(self.at_nanos as u64)
    }

    /// Takes the next one out if it is due before `limit`.
    pub fn take_before(&mut self, limit: Moment) -> Option<Moment> {
        let due = self.next_due();
        (due < limit).then(|| {
            self.advance();
            due
        })
    }

    fn advance(&mut self) {
        self.at_nanos += match self.spacing {
            Spacing::Uniform => self.mean_gap_nanos,
            Spacing::Poisson => -self.random.unit().ln() * self.mean_gap_nanos,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn count(spacing: Spacing, per_second: f64, seconds: u64) -> usize {
        let start = Moment::default();
        let mut arrivals = Arrivals::new(start, per_second, spacing, 3);
        let end = start.after(Duration::from_secs(seconds));
        core::iter::from_fn(|| arrivals.take_before(end)).count()
    }

    #[test]
    fn uniform_arrivals_keep_the_rate_exactly() {
        // The last one falls on the end, give or take a rounding.
        assert!((299..=300).contains(&count(Spacing::Uniform, 3.0, 100)));
        assert!((999_999..=1_000_000).contains(&count(Spacing::Uniform, 1e6, 1)));
    }

    #[test]
    fn poisson_arrivals_keep_the_rate_and_vary() {
        let n = count(Spacing::Poisson, 10_000.0, 100) as f64;
        assert!((n - 1e6).abs() < 5.0 * 1e3, "{n} is more than five standard deviations off");
        let mut arrivals = Arrivals::new(Moment::default(), 1e3, Spacing::Poisson, 1);
        let far = Moment::default().after(Duration::from_secs(3600));
        let times: Vec<_> = (0..1000).filter_map(|_| arrivals.take_before(far)).collect();
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1].nanos_since(w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!(deviation / mean > 0.8, "exponential gaps deviate as much as their mean");
    }

    #[test]
    fn a_slow_target_moves_no_arrival() {
        let schedule = |limits: &[u64]| {
            let mut arrivals = Arrivals::new(Moment::default(), 500.0, Spacing::Poisson, 9);
            let mut out = Vec::new();
            for limit in limits {
                let limit = Moment::default().after(Duration::from_millis(*limit));
                out.extend(core::iter::from_fn(|| arrivals.take_before(limit)));
            }
            out
        };
        assert_eq!(schedule(&[10, 20, 1000]), schedule(&[1000]));
    }
}
