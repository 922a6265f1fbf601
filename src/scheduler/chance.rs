//! Chance that depends on nothing but its seed and what it is asked for: in whatever order agents
//! ask, a run with the same seed is the same.

use std::time::Duration;

use super::Distribution;

/// A number from 0 up to 1, for this seed and these places.
pub fn unit(seed: u64, places: [u64; 3]) -> f64 {
    let mut state = seed;
    for place in places {
        state = mix(state ^ mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    }
    // 53 bits are what such a number holds.
    (state >> 11) as f64 / (1_u64 << 53) as f64
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Distribution {
    /// The span for a number from 0 up to 1.
    pub fn at(&self, unit: f64) -> Duration {
        match *self {
            Distribution::Constant(span) => span,
            Distribution::Uniform { least, most } => {
                least + most.saturating_sub(least).mul_f64(unit)
            }
            Distribution::Exponential(mean) => mean.mul_f64((-(1.0 - unit).ln()).min(10.0)),
        }
    }

    /// The longest that can come.
    pub fn most(&self) -> Duration {
        match *self {
            Distribution::Constant(span) => span,
            Distribution::Uniform { most, .. } => most,
            Distribution::Exponential(mean) => mean * 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(distribution: Distribution) -> f64 {
        let spans = (0..10_000).map(|n| distribution.at(unit(7, [n, 0, 0])).as_secs_f64());
        spans.sum::<f64>() / 10_000.0
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_places_and_differs_for_others() {
        assert_eq!(unit(7, [1, 2, 3]), unit(7, [1, 2, 3]));
        for other in [unit(8, [1, 2, 3]), unit(7, [2, 1, 3]), unit(7, [1, 2, 4])] {
            assert_ne!(unit(7, [1, 2, 3]), other);
        }
    }

    #[test]
    fn distributions_have_the_means_and_bounds_that_they_say() {
        let second = Duration::from_secs(1);
        assert_eq!(mean(Distribution::Constant(second)), 1.0);
        let uniform = Distribution::Uniform { least: second, most: second * 3 };
        assert!((mean(uniform) - 2.0).abs() < 0.05);
        assert!((mean(Distribution::Exponential(second)) - 1.0).abs() < 0.05);
        assert!(Distribution::Exponential(second).at(1.0 - f64::EPSILON) <= second * 10);
    }
}
