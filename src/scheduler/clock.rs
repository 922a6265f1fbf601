//! A scheduler's clock.

/// A scheduler's clock: the true one, with its skew and drift.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// How far it is ahead at the epoch, nanoseconds.
    pub skew: i64,
    /// By how much it runs too fast, parts in a million.
    pub drift_ppm: i64,
}

impl Clock {
    /// What it shows at a true time; both in nanoseconds since the epoch.
    pub fn shows(self, time: u64) -> u64 {
        let drift = i128::from(time) * i128::from(self.drift_ppm) / 1_000_000;
        let shown = i128::from(time) + drift + i128::from(self.skew);
        u64::try_from(shown.max(0)).unwrap_or(u64::MAX)
    }

    /// The first true time at which it shows at least this.
    pub fn when(self, shown: u64) -> u64 {
        let since = i128::from(shown) - i128::from(self.skew);
        let rate = 1_000_000 + i128::from(self.drift_ppm);
        let time = (since * 1_000_000).div_euclid(rate) + 1;
        // Rounding may be one off.
        let time = u64::try_from(time.max(0)).unwrap_or(u64::MAX);
        if time > 0 && self.shows(time - 1) >= shown { time - 1 } else { time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_its_skew_and_drift() {
        let second = 1_000_000_000;
        let ahead = Clock { skew: 50_000_000, drift_ppm: 0 };
        assert_eq!(ahead.shows(second), second + 50_000_000);
        assert_eq!(ahead.when(second), second - 50_000_000);
        let fast = Clock { skew: 0, drift_ppm: 1_000 };
        assert_eq!(fast.shows(second), second + 1_000_000);
    }

    #[test]
    fn a_clock_shows_a_time_first_when_it_says_so() {
        for skew in [-70_000_001, 0, 333] {
            for drift_ppm in [-500, 0, 37] {
                let clock = Clock { skew, drift_ppm };
                for shown in [0, 1, 999, 1_000_000_007, 86_400_000_000_000] {
                    let when = clock.when(shown);
                    assert!(clock.shows(when) >= shown, "{clock:?} {shown}");
                    assert!(when == 0 || clock.shows(when - 1) < shown.max(1), "{clock:?} {shown}");
                }
            }
        }
    }
}
