//! How much two measurements of one program differ.

use crate::Trial;
use std::collections::HashMap;

/// Measurements of programs that were measured more than once.
#[derive(Debug, Default)]
pub(crate) struct Noise {
    /// Costs by the program's identity.
    costs: HashMap<String, Vec<f64>>,
}

impl Noise {
    pub(crate) fn learn(&mut self, identity: &str, trial: &Trial) {
        if let Some(cost) = trial.cost() {
            self.costs.entry(identity.to_owned()).or_default().push(cost);
        }
    }

    /// The standard deviation of a measurement, pooled over all programs that were measured again:
    /// squared distances from each program's mean, over the measurements less the programs.
    /// `None` as long as there is none.
    pub(crate) fn deviation(&self) -> Option<f64> {
        let repeated = || self.costs.values().filter(|costs| costs.len() > 1);
        let freedom: usize = repeated().map(|costs| costs.len() - 1).sum();
        let squares: f64 = repeated()
            .map(|costs| {
                let mean = costs.iter().sum::<f64>() / costs.len() as f64;
                costs.iter().map(|cost| (cost - mean).powi(2)).sum::<f64>()
            })
            .sum();
        (freedom > 0).then(|| (squares / freedom as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Status, report::made_up::trial};

    #[test]
    fn deviations_are_pooled_over_programs() {
        let mut noise = Noise::default();
        let mut measure = |identity: &str, cost: Option<f64>| {
            let status = if cost.is_some() { Status::Discard } else { Status::Crash };
            noise.learn(identity, &trial(0, status, cost, ""));
            noise.deviation()
        };
        assert_eq!(measure("a", Some(1.0)), None);
        assert_eq!(measure("b", Some(9.0)), None);
        assert_eq!(measure("a", None), None);
        // Each a distance 1 from a mean of 2: 2 squares over 1 degree of freedom.
        assert_eq!(measure("a", Some(3.0)), Some(2f64.sqrt()));
        // Exactly repeated: 2 squares over 2.
        assert_eq!(measure("b", Some(9.0)), Some(1.0));
    }
}
