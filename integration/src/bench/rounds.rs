use std::time::Duration;

/// What the rounds of one measurement gave.
#[derive(Debug, Clone, Default)]
pub struct Rounds(Vec<f64>);

/// How long each of many requests took.
#[derive(Debug, Clone, Default)]
pub struct Latencies(Vec<Duration>);

impl Rounds {
    /// Adds a round.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The one in the middle; not a number if there was none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Latencies {
    /// Adds a request.
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Adds those that others have.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency that so many of a hundred requests do not exceed; zero if there was none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or_default()
    }

    /// The percentile in microseconds.
    pub fn micros(&self, percent: usize) -> f64 {
        self.percentile(percent).as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_percentiles_are_ranks() {
        let mut rounds = Rounds::default();
        assert!(rounds.median().is_nan());
        for figure in [9.0, 1.0, 5.0] {
            rounds.push(figure);
        }
        assert!((rounds.median() - 5.0).abs() < f64::EPSILON);
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), Duration::ZERO);
        for millis in (1..=200).rev() {
            latencies.push(Duration::from_millis(millis));
        }
        assert_eq!(latencies.percentile(50), Duration::from_millis(100));
        assert_eq!(latencies.percentile(99), Duration::from_millis(198));
        assert_eq!(latencies.percentile(100), Duration::from_millis(200));
    }
}
