//! A joint normal distribution of a few unknowns.

use super::effects::log_normal;
use serde::{Deserialize, Serialize};

/// Means and covariances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Normal {
    mean: Vec<f64>,
    /// Row by row.
    covariance: Vec<f64>,
}

impl Normal {
    pub(super) fn new<const N: usize>(mean: [f64; N], covariance: [[f64; N]; N]) -> Self {
        Self { mean: mean.into(), covariance: covariance.concat() }
    }

    /// One more unknown, of mean zero, that has nothing to do with the others.
    pub(super) fn push(&mut self, variance: f64) {
        let size = self.mean.len();
        let mut covariance = vec![0.0; (size + 1) * (size + 1)];
        for (row, values) in self.covariance.chunks_exact(size).enumerate() {
            covariance[row * (size + 1)..][..size].copy_from_slice(values);
        }
        self.mean.push(0.0);
        self.covariance = covariance;
        self.forget(size, variance);
    }

    /// Puts another unknown in the place of one: of mean zero, and nothing to do with the others.
    pub(super) fn forget(&mut self, place: usize, variance: f64) {
        let size = self.mean.len();
        self.mean[place] = 0.0;
        for other in 0..size {
            self.covariance[place * size + other] = 0.0;
            self.covariance[other * size + place] = 0.0;
        }
        self.covariance[place * size + place] = variance;
    }

    /// Mean and variance of a weighted sum of unknowns, which are given by their places.
    pub(super) fn sum(&self, terms: &[(usize, f64)]) -> (f64, f64) {
        let mean = terms.iter().map(|&(place, weight)| weight * self.mean[place]).sum();
        let along = self.covariance_with(terms);
        let variance = terms.iter().map(|&(place, weight)| weight * along[place]).sum();
        (mean, variance)
    }

    fn covariance_with(&self, terms: &[(usize, f64)]) -> Vec<f64> {
        let size = self.mean.len();
        let rows = self.covariance.chunks_exact(size);
        rows.map(|row| terms.iter().map(|&(place, weight)| weight * row[place]).sum()).collect()
    }

    /// Learns that a sum of unknowns, and noise of variance `noise`, came to `value`. Returns how
    /// much one more would have moved each mean, and the logarithm of the density of `value`.
    pub(super) fn learn(
        &mut self,
        terms: &[(usize, f64)],
        value: f64,
        noise: f64,
    ) -> (Vec<f64>, f64) {
        let (mean, variance) = self.sum(terms);
        let (surprise, total) = (value - mean, variance + noise);
        let along = self.covariance_with(terms);
        let gain: Vec<f64> = along.iter().map(|covariance| covariance / total).collect();
        for (mean, gain) in self.mean.iter_mut().zip(&gain) {
            *mean += gain * surprise;
        }
        self.widen(&along, -1.0 / total);
        (gain, log_normal(surprise, total))
    }

    /// All unknowns move by the same unknown amount of this variance, each as many times as
    /// `direction` says.
    pub(super) fn widen(&mut self, direction: &[f64], variance: f64) {
        let size = self.mean.len();
        for (row, first) in self.covariance.chunks_exact_mut(size).zip(direction) {
            for (value, second) in row.iter_mut().zip(direction) {
                *value += first * second * variance;
            }
        }
    }

    pub(super) fn shift(&mut self, place: usize, by: f64) {
        self.mean[place] += by;
    }

    /// How many unknowns there are.
    pub(super) fn len(&self) -> usize {
        self.mean.len()
    }

    /// The normal distribution with the moments of a mixture, whose shares sum to one.
    pub(super) fn mixed<const N: usize>(cases: [(f64, Self); N]) -> Self {
        let size = cases[0].1.len();
        let mut mixed = Self { mean: vec![0.0; size], covariance: vec![0.0; size * size] };
        for (share, case) in &cases {
            for (sum, mean) in mixed.mean.iter_mut().zip(&case.mean) {
                *sum += share * mean;
            }
            for (sum, covariance) in mixed.covariance.iter_mut().zip(&case.covariance) {
                *sum += share * covariance;
            }
        }
        for (share, case) in &cases {
            let apart: Vec<_> = case.mean.iter().zip(&mixed.mean).map(|(a, b)| a - b).collect();
            mixed.widen(&apart, *share);
        }
        mixed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_of_a_sum_tell_what_conditional_distributions_say() {
        // x ~ N(1, 4), y ~ N(0, 9), independent; x + y + noise of variance 3 came to 5.
        let mut normal = Normal::new([1.0], [[4.0]]);
        normal.push(9.0);
        let (gain, log_density) = normal.learn(&[(0, 1.0), (1, 1.0)], 5.0, 3.0);
        // Of 16 in all, x has 4 and y has 9.
        assert_eq!(gain, [0.25, 0.5625]);
        assert_eq!(normal.mean, [2.0, 2.25]);
        assert_eq!(normal.covariance, [3.0, -2.25, -2.25, 9.0 - 81.0 / 16.0]);
        assert!((log_density - log_normal(4.0, 16.0)).abs() < 1e-15);
        assert_eq!(normal.sum(&[(0, 1.0), (1, -1.0)]), (-0.25, 3.0 + 3.9375 + 4.5));
        normal.forget(1, 9.0);
        assert_eq!(normal.sum(&[(0, 1.0), (1, 1.0)]), (2.0, 12.0));
    }

    #[test]
    fn a_mixture_is_as_wide_as_its_parts_and_the_distance_between_them() {
        let at = |mean: f64| Normal::new([mean, 0.0], [[1.0, 0.5], [0.5, 2.0]]);
        let mixed = Normal::mixed([(0.25, at(0.0)), (0.75, at(4.0))]);
        assert_eq!(mixed, Normal::new([3.0, 0.0], [[4.0, 0.5], [0.5, 2.0]]));
    }
}
