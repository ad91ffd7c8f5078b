//! A sequential test with paired seeds: the rule of whoever repeats what looks promising.
//!
//! A candidate that measured better is measured again, and the incumbent with it, under another
//! seed, until the mean gain is beyond the noise or the patience is over.

/// So many standard errors are beyond the noise: one-sided, 5 % of changes without effect pass the
/// first look.
const BEYOND: f64 = 1.65;

/// Measurements of a candidate at most.
const MOST: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    Discard,
    /// Nobody knows yet.
    Again,
}

/// From gains, each the difference of two measurements with this noise.
pub(super) fn verdict(gains: &[f64], noise: f64) -> Verdict {
    let count = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / count;
    if mean > 0.0 && mean >= BEYOND * noise * (2.0 / count).sqrt() {
        Verdict::Keep
    } else if mean > 0.0 && gains.len() < MOST {
        Verdict::Again
    } else {
        Verdict::Discard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_noise_is_decided_and_the_rest_measured_again() {
        for (gains, expected) in [
            (&[3.0][..], Verdict::Keep),
            (&[2.0], Verdict::Again),
            (&[-0.1], Verdict::Discard),
            // 1.65 sqrt(2/2) = 1.65, and 1.65 sqrt(2/3) = 1.35.
            (&[2.0, 1.4], Verdict::Keep),
            (&[2.0, 1.0], Verdict::Again),
            (&[2.0, -2.5], Verdict::Discard),
            (&[2.0, 1.0, 1.2], Verdict::Keep),
            (&[2.0, 1.0, 0.9], Verdict::Discard),
            (&[2.0, f64::NEG_INFINITY], Verdict::Discard),
        ] {
            assert_eq!(verdict(gains, 1.0), expected, "{gains:?}");
        }
    }
}
