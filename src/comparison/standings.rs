//! Who is ahead, by how much, and whether that can be told from luck.

use super::progress::Progress;
use crate::record::Trial;
use crate::statistics::{Estimate, mean};
use std::{cmp::Ordering, fmt};

/// The result of a comparison. Printed, it is a table, the leads, and a verdict on each.
///
/// Gains are what was gained on the baseline, in bits per byte or in the unit of the objective;
/// positive is better. The baseline is the same source for all contenders of a repetition, so its
/// cost is taken to be the mean of all its measurements there.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Standings {
    /// Trials beyond the baseline that every contender was granted.
    pub rounds: usize,
    /// How often everything was repeated under another seed.
    pub repetitions: usize,
    /// The unit of all gains.
    pub unit: String,
    /// The leader first: sorted by mean gain.
    pub contenders: Vec<Standing>,
    /// The leader's lead over each of the others, in their order.
    pub leads: Vec<Lead>,
}

/// How one contender did: means over the repetitions.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Standing {
    /// The contender's.
    pub name: String,
    /// Trials beyond the baseline; fewer than were granted where it had nothing left to propose.
    pub trials: f64,
    /// How many of them were kept.
    pub kept: f64,
    /// Trials that came to nothing, a repetition.
    pub crashed: f64,
    /// The score of the best trial.
    pub best: f64,
    /// What a night came to.
    pub gain: f64,
    /// The gain of the best so far, averaged over the night's trials. Of two contenders that get
    /// equally far, the one that is there sooner has more of it.
    pub mean_gain: f64,
    /// Per hour of wall clock, proposing included. `None` where nobody looked at the clock.
    pub gain_per_hour: Option<f64>,
}

/// How far the leader is ahead of another contender: means over the repetitions, each of which
/// compares two nights with the same seed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Lead {
    /// The better one.
    pub leader: String,
    /// The one that it is compared with.
    pub other: String,
    /// The difference in mean gain, by which progress is judged.
    pub mean_gain: Estimate,
    /// The difference in what a night came to, per trial. With a single repetition, the interval is
    /// a bootstrap's within this night.
    pub gain_per_trial: Estimate,
    /// The difference per hour of wall clock, proposing included.
    pub gain_per_hour: Option<Estimate>,
    /// How probable it is that the leader is ahead in a repetition: the share of those in which it
    /// was, ties halved.
    pub superiority: f64,
}

/// How sure a comparison is to call nobody faster who is not.
const CONFIDENCE: f64 = 0.95;

impl Standings {
    /// The standings after `rounds` trials beyond the baseline, from the ledgers by repetition and
    /// contender. `None` where a baseline is missing, or there is nothing beyond.
    pub(super) fn of(names: &[&str], ledgers: &[Vec<&[Trial]>], rounds: usize) -> Option<Self> {
        let measured = &ledgers.first()?.first()?.first()?.measurement;
        let unit = match measured.val_bpb {
            Some(_) => "bits per byte",
            None => measured.name_of_score(),
        };
        let repetitions: Option<Vec<_>> =
            ledgers.iter().map(|ledgers| repetition(ledgers, rounds)).collect();
        let repetitions = repetitions?;
        let mut results: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| Nights {
                name,
                nights: repetitions.iter().map(|all| &all[n]).collect(),
            })
            .collect();
        let mean_gain = |nights: &Nights<'_>| nights.mean(Progress::mean_gain);
        results.sort_by(|a, b| mean_gain(b).total_cmp(&mean_gain(a)));
        let (leader, others) = results.split_first()?;
        // Whoever leads was picked by these very numbers, so the doubt is shared out over all pairs
        // (Bonferroni): with that, all intervals hold at once.
        let pairs = (names.len() * (names.len() - 1) / 2).max(1);
        let confidence = 1.0 - (1.0 - CONFIDENCE) / pairs as f64;
        let leads = others.iter().map(|other| Lead::of(leader, other, confidence)).collect();
        Some(Self {
            rounds,
            repetitions: repetitions.len(),
            unit: unit.to_owned(),
            contenders: results.iter().map(Standing::of).collect(),
            leads,
        })
    }
}

/// The progress of each contender in one repetition.
fn repetition(ledgers: &[&[Trial]], rounds: usize) -> Option<Vec<Progress>> {
    let baselines: Option<Vec<_>> = ledgers.iter().map(|trials| trials.first()?.cost()).collect();
    let baseline = mean(&baselines?);
    ledgers.iter().map(|trials| Progress::of(trials, rounds, baseline)).collect()
}

/// One contender's progress, by repetition.
struct Nights<'a> {
    name: &'a str,
    nights: Vec<&'a Progress>,
}

impl Nights<'_> {
    fn mean(&self, figure: impl Fn(&Progress) -> f64) -> f64 {
        mean(&self.nights.iter().map(|night| figure(night)).collect::<Vec<_>>())
    }
}

impl Standing {
    fn of(results: &Nights<'_>) -> Self {
        let rates: Option<Vec<_>> =
            results.nights.iter().map(|night| night.gain_per_hour()).collect();
        Self {
            name: results.name.to_owned(),
            trials: results.mean(|night| night.trials as f64),
            kept: results.mean(|night| night.kept as f64),
            crashed: results.mean(|night| night.crashed as f64),
            best: results.mean(|night| night.best),
            gain: results.mean(Progress::gain),
            mean_gain: results.mean(Progress::mean_gain),
            gain_per_hour: rates.map(|rates| mean(&rates)),
        }
    }
}

impl Lead {
    fn of(leader: &Nights<'_>, other: &Nights<'_>, confidence: f64) -> Self {
        let pairs = || leader.nights.iter().zip(&other.nights);
        let paired = |figure: fn(&Progress) -> f64| {
            let differences: Vec<_> = pairs().map(|(a, b)| figure(a) - figure(b)).collect();
            Estimate::over_repetitions(&differences, confidence)
        };
        let rates: Option<Vec<_>> =
            pairs().map(|(a, b)| Some(a.gain_per_hour()? - b.gain_per_hour()?)).collect();
        let points = pairs().map(|(a, b)| match a.mean_gain().total_cmp(&b.mean_gain()) {
            Ordering::Greater => 1.0,
            Ordering::Equal => 0.5,
            Ordering::Less => 0.0,
        });
        Self {
            leader: leader.name.to_owned(),
            other: other.name.to_owned(),
            mean_gain: paired(Progress::mean_gain),
            gain_per_trial: match (&leader.nights[..], &other.nights[..]) {
                ([ours], [theirs]) => {
                    let steps = ours.steps().zip(theirs.steps()).map(|(a, b)| a - b);
                    Estimate::within_a_night(&steps.collect::<Vec<_>>(), confidence)
                }
                _ => paired(Progress::gain_per_trial),
            },
            gain_per_hour: rates.map(|rates| Estimate::over_repetitions(&rates, confidence)),
            superiority: mean(&points.collect::<Vec<_>>()),
        }
    }

    /// Whether the leader makes faster progress beyond reasonable doubt. Never so after a single
    /// repetition.
    pub fn is_decided(&self) -> bool {
        self.mean_gain.is_positive()
    }
}

impl fmt::Display for Standings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, repetitions, unit, contenders, leads } = self;
        let names = contenders.iter().map(|standing| standing.name.chars().count());
        let width = names.max().unwrap_or_default().max("contender".len());
        writeln!(
            f,
            "{:width$} {:>6} {:>6} {:>7} {:>12} {:>10} {:>10} {:>10}",
            "contender", "trials", "kept", "crashed", "best", "gain", "mean gain", "gain/hour"
        )?;
        for standing in contenders {
            let Standing { name, trials, kept, crashed, best, gain, mean_gain, .. } = standing;
            let rate = standing.gain_per_hour.map_or("-".to_owned(), |rate| format!("{rate:+.6}"));
            writeln!(
                f,
                "{name:width$} {trials:>6.1} {kept:>6.1} {crashed:>7.1} {best:>12.6} \
                 {gain:>+10.6} {mean_gain:>+10.6} {rate:>10}"
            )?;
        }
        let nights = if *repetitions == 1 { "night" } else { "nights" };
        writeln!(f, "\nmeans over {repetitions} {nights} of {rounds} trials; gains in {unit}")?;
        writeln!(f, "mean gain: the gain of the best so far, averaged over the night's trials")?;
        leads.iter().try_for_each(|lead| self.explain(lead, f))?;
        writeln!(f)?;
        leads.iter().try_for_each(|lead| writeln!(f, "{}", self.verdict(lead)))
    }
}

impl Standings {
    fn explain(&self, lead: &Lead, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lead { leader, other, mean_gain, gain_per_trial, gain_per_hour, superiority } = lead;
        let (method, source) = match self.repetitions {
            1 => ("", "  bootstrap within this night, silent on others"),
            _ => (", Student's t over seeds", ""),
        };
        let together = if self.leads.len() > 1 { " for all pairs at once" } else { "" };
        writeln!(f, "\n{leader} over {other}, with 95% intervals{together}{method}")?;
        writeln!(f, "  mean gain      {mean_gain}")?;
        writeln!(f, "  gain per trial {gain_per_trial}{source}")?;
        if let Some(gain_per_hour) = gain_per_hour {
            writeln!(f, "  gain per hour  {gain_per_hour}")?;
        }
        writeln!(f, "  ahead in       {:.0}% of the nights", superiority * 100.0)
    }

    fn verdict(&self, lead: &Lead) -> String {
        let Lead { leader, other, mean_gain, .. } = lead;
        if lead.is_decided() {
            let unit = &self.unit;
            format!("{leader} makes faster progress than {other}: {mean_gain} {unit} of mean gain")
        } else if self.repetitions == 1 {
            format!(
                "undecided between {leader} and {other}: one night each cannot tell a better \
                 contender from a lucky one; repeat it under other seeds"
            )
        } else {
            format!(
                "undecided between {leader} and {other}: the difference may be luck; more \
                 repetitions narrow its interval"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Status, made_up::trial};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A night of an hour whose best so far stood at these costs.
    fn night(costs: &[f64]) -> Vec<Trial> {
        let mut best = f64::INFINITY;
        let mut trials = Vec::new();
        for (number, &cost) in costs.iter().enumerate() {
            let status = if cost < best { Status::Keep } else { Status::Discard };
            best = best.min(cost);
            let mut trial = trial(number, status, Some(cost), "");
            trial.measurement.total_seconds = Some(3600.0 / (costs.len() - 1) as f64);
            trials.push(trial);
        }
        trials
    }

    /// `nights[repetition][contender]`
    fn standings(names: &[&str], nights: &[Vec<Vec<Trial>>]) -> Standings {
        let ledgers: Vec<Vec<_>> =
            nights.iter().map(|nights| nights.iter().map(Vec::as_slice).collect()).collect();
        Standings::of(names, &ledgers, nights[0][0].len() - 1).unwrap()
    }

    #[test]
    fn clear_differences_are_decided() {
        let standings = standings(
            &["slow", "fast"],
            &[
                vec![night(&[1.0, 1.0, 0.9]), night(&[1.0, 0.8, 0.8])],
                vec![night(&[1.1, 1.1, 1.0]), night(&[1.1, 0.9, 0.91])],
                vec![night(&[1.2, 1.2, 1.11]), night(&[1.2, 1.0, 0.99])],
            ],
        );
        assert_eq!(standings.contenders[0].name, "fast");
        let lead = &standings.leads[0];
        assert!(lead.is_decided() && lead.superiority == 1.0, "{standings}");
        assert_eq!(
            standings.to_string(),
            "\
contender trials   kept crashed         best       gain  mean gain  gain/hour
fast         2.0    1.3     0.0     0.896667  +0.203333  +0.201667  +0.203333
slow         2.0    1.0     0.0     1.003333  +0.096667  +0.048333  +0.096667

means over 3 nights of 2 trials; gains in bits per byte
mean gain: the gain of the best so far, averaged over the night's trials

fast over slow, with 95% intervals, Student's t over seeds
  mean gain      +0.153333 (+0.138991 to +0.167676)
  gain per trial +0.053333 (+0.038991 to +0.067676)
  gain per hour  +0.106667 (+0.077982 to +0.135351)
  ahead in       100% of the nights

fast makes faster progress than slow: +0.153333 (+0.138991 to +0.167676) bits per byte of mean gain
"
        );
    }

    #[test]
    fn one_night_decides_nothing() {
        let nights = [vec![night(&[1.0, 0.6, 0.4, 0.3]), night(&[1.0, 1.0, 1.0, 0.9])]];
        let standings = standings(&["fast", "slow"], &nights);
        let lead = &standings.leads[0];
        assert!(!lead.is_decided());
        assert_eq!(lead.mean_gain.interval, None);
        assert!(lead.gain_per_trial.interval.is_some());
        let text = standings.to_string();
        assert!(text.contains("undecided between fast and slow: one night each"), "{text}");
        assert!(text.contains("bootstrap within this night"), "{text}");
    }

    #[test]
    fn the_baseline_is_one_for_all() {
        // The first contender's baseline was measured lower, by noise; both end at 0.5.
        let nights = [vec![night(&[0.75, 0.5]), night(&[1.25, 0.5])]];
        let standings = standings(&["a", "b"], &nights);
        assert_eq!(standings.leads[0].mean_gain.mean, 0.0);
        assert_eq!(standings.contenders[1].gain, 0.5);
    }

    #[test]
    fn without_a_round_there_are_no_standings() {
        let baselines = [night(&[1.0]), night(&[1.0])];
        assert_eq!(
            Standings::of(&["a", "b"], &[baselines.iter().map(Vec::as_slice).collect()], 0),
            None
        );
        assert_eq!(Standings::of(&["a", "b"], &[vec![&baselines[0], &[]]], 1), None);
        assert_eq!(Standings::of(&[], &[], 1), None);
    }

    /// Whose trials help with this chance, by an exponential gain around this mean.
    #[derive(Clone, Copy)]
    struct Skill {
        chance: f64,
        gain: f64,
    }

    impl Skill {
        /// What the mean gain is on average: the trial k of n counts for n - k + 1 of them.
        fn mean_gain(self, trials: usize) -> f64 {
            self.chance * self.gain * (trials + 1) as f64 / 2.0
        }

        /// A night under a seed that makes gains `luck` times as large.
        fn night(self, trials: usize, luck: f64, rng: &mut ChaCha8Rng) -> Vec<Trial> {
            let mut costs = vec![2.0];
            for number in 0..trials {
                let helps = rng.random_bool(self.chance);
                let gain = -(1.0 - rng.random::<f64>()).ln() * self.gain * luck;
                costs.push(costs[number] - if helps { gain } else { 0.0 });
            }
            night(&costs)
        }
    }

    /// Standings of a first and a second contender, and so on, with these skills, again and again.
    fn simulated(skills: &[Skill], repetitions: usize, count: usize) -> Vec<Standings> {
        let mut rng = ChaCha8Rng::seed_from_u64(repetitions as u64);
        let mut repetition = || {
            // What a seed does, it does to all.
            let luck = rng.random_range(0.5..1.5);
            skills.iter().map(|skill| skill.night(TRIALS, luck, &mut rng)).collect()
        };
        let mut comparison = || (0..repetitions).map(|_| repetition()).collect::<Vec<_>>();
        let names = &["first", "second", "third"][..skills.len()];
        (0..count).map(|_| standings(names, &comparison())).collect()
    }

    const TRIALS: usize = 20;

    #[test]
    fn the_interval_covers_the_truth_in_95_of_100_comparisons() {
        let skills = [Skill { chance: 0.3, gain: 0.02 }, Skill { chance: 0.2, gain: 0.02 }];
        let truth = skills[0].mean_gain(TRIALS) - skills[1].mean_gain(TRIALS);
        for repetitions in [2, 3, 5, 10] {
            let comparisons = simulated(&skills, repetitions, 1000);
            let covers = |standings: &&Standings| {
                let lead = &standings.leads[0];
                let truth = if lead.leader == "first" { truth } else { -truth };
                lead.mean_gain.interval.is_some_and(|(low, high)| low <= truth && truth <= high)
            };
            let covered = comparisons.iter().filter(covers).count();
            // Three standard deviations of a count of 1000 at 95% are 21.
            assert!((929..=971).contains(&covered), "{repetitions}: {covered} of 1000");
        }
    }

    #[test]
    fn equal_contenders_are_called_undecided() {
        let skills = [Skill { chance: 0.3, gain: 0.02 }; 3];
        for (contenders, repetitions) in [(2, 2), (2, 3), (2, 5), (2, 10), (3, 3), (3, 5)] {
            let comparisons = simulated(&skills[..contenders], repetitions, 1000);
            let undecided = |standings: &&Standings| !standings.leads.iter().any(Lead::is_decided);
            let undecided = comparisons.iter().filter(undecided).count();
            assert!(undecided >= 929, "{contenders}, {repetitions}: {undecided} of 1000");
        }
    }

    #[test]
    fn a_large_difference_is_found() {
        let skills = [Skill { chance: 0.1, gain: 0.02 }, Skill { chance: 0.6, gain: 0.02 }];
        let comparisons = simulated(&skills, 5, 200);
        let found = comparisons
            .iter()
            .filter(|one| one.contenders[0].name == "second" && one.leads[0].is_decided());
        let found = found.count();
        assert!(found > 150, "{found} of 200");
    }
}
