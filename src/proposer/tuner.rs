//! The built-in tuner: changes a few annotated constants of the incumbent at a time.

use super::{
    Brief, Proposal, ProposeError, Proposer,
    constants::Value,
    knobs::{self, Domain, Knob},
};
use crate::{
    hash::sha256,
    record::{Outcome, Trial},
};
use rand::{
    SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashSet, VecDeque};
use tpe::{TpeOptimizer, histogram_estimator, parzen_estimator, range::RangeError};

/// Searches the constants that carry a `// search:` comment, without any language model.
///
/// A constant at the source's top level is searched when its line ends in one of
///
/// ```text
/// const MATRIX_LR: f64 = 0.02; // Muon      search: log 1e-3..1e-1
/// const WARMDOWN: f64 = 0.5;   //           search: uniform 0..1
/// const DEPTH: usize = 4;      // layers    search: choice 2 4 6
/// ```
///
/// Every proposal moves one to three of them away from the incumbent's values, to where a
/// tree-structured Parzen estimator (Bergstra et al. 2011), looking at the trials around the
/// incumbent, expects the most. Trials that the race stopped count with the cost that it foresaw, crashed
/// ones as worse than all others, and no source is proposed twice.
#[derive(Debug)]
pub struct Tuner {
    seed: u64,
    observations: VecDeque<Observation>,
    /// SHA-256 of every source in the history, as far as it has been read.
    tried: HashSet<String>,
    /// Whether somebody else has proposed any of them.
    has_company: bool,
    /// How much of the history that is.
    read: usize,
}

/// What became of a source with these constants.
#[derive(Debug)]
struct Observation {
    /// As long as nobody has needed its constants: a study that is only looked at needs none.
    unread: Option<String>,
    constants: BTreeMap<String, Value>,
    /// What was foreseen, of a trial that the race stopped; infinite for a crash.
    cost: f64,
}

/// How many knobs a proposal changes: one of these. A single knob cannot spoil much, several get
/// somewhere sooner.
const KNOBS_AT_ONCE: [usize; 5] = [1, 1, 2, 2, 3];

/// How far a knob moves at once, as a share of its range. The incumbent is rarely far off, and an
/// estimator that sees only its surroundings spends no trials elsewhere.
const RADIUS: f64 = 0.2;

/// The latest trials are looked at, as many as this: the incumbent's surroundings are theirs.
const OBSERVATIONS: usize = 1000;

/// Draws before the search for something untried turns systematic.
const DRAWS: usize = 200;

impl Tuner {
    /// A tuner whose proposals follow from this seed, the study's, and what it observed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            observations: VecDeque::new(),
            tried: HashSet::new(),
            has_company: false,
            read: 0,
        }
    }
}

impl Proposer for Tuner {
    fn name(&self) -> &str {
        "tuner"
    }

    fn check(&self, edited: &str, baseline: &str) -> Result<(), ProposeError> {
        knobs_of(edited, baseline).map(drop).map_err(ProposeError::Unable)
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        let knobs = knobs_of(brief.edited, brief.source);
        // Where somebody else writes sources too, the next one may be better to turn.
        self.read(brief.history, brief.proposer);
        let hopeless = if self.has_company { ProposeError::Failed } else { ProposeError::Unable };
        let knobs = knobs.map_err(hopeless)?;
        for observation in &mut self.observations {
            if let Some(source) = observation.unread.take() {
                observation.constants = knobs::values(&source);
            }
        }
        let draft = Draft { source: brief.source, knobs: &knobs, tried: &self.tried };

        // Nothing lives from one proposal to the next but the observations, so that a study which
        // was interrupted proposes what it would have proposed.
        let mut rng = ChaCha8Rng::seed_from_u64(brief.seed);
        rng.set_stream(self.seed);
        let estimators: Result<Vec<_>, _> = knobs.iter().map(|knob| self.estimator(knob)).collect();
        let mut estimators = estimators.map_err(|error| ProposeError::Failed(error.to_string()))?;
        let mut order: Vec<usize> = (0..knobs.len()).collect();
        for _ in 0..DRAWS {
            let count = KNOBS_AT_ONCE.choose(&mut rng).map_or(1, |&count| count.min(knobs.len()));
            let (chosen, _) = order.partial_shuffle(&mut rng, count);
            let mut texts: Vec<_> = knobs.iter().map(|knob| knob.value.text.clone()).collect();
            for &mut knob in chosen {
                texts[knob] = another(&knobs[knob], &mut estimators[knob], &mut rng);
            }
            if let Some(proposal) = draft.proposal(&texts) {
                return Ok(proposal);
            }
        }
        draft.first_untried().ok_or(ProposeError::Exhausted)
    }

    fn observe(&mut self, trial: &Trial, source: &str) {
        // A refused source was never run, and one that was disturbed might as well not have been.
        if !matches!(trial.outcome, Outcome::Refused | Outcome::Disturbed) {
            let foreseen = || trial.forecast.map(|forecast| forecast.cost);
            let cost = trial.cost().or_else(foreseen).filter(|cost| !cost.is_nan());
            self.observations.push_back(Observation {
                unread: Some(source.to_owned()),
                constants: BTreeMap::new(),
                cost: cost.unwrap_or(f64::INFINITY),
            });
            if self.observations.len() > OBSERVATIONS {
                self.observations.pop_front();
            }
        }
    }
}

impl Tuner {
    /// What the history has that was not there the last time.
    fn read(&mut self, history: &[Trial], name: &str) {
        for trial in history.get(self.read..).unwrap_or_default() {
            if trial.outcome != Outcome::Disturbed {
                self.tried.insert(trial.source_sha256.clone());
            }
            let is_own = trial.proposer == name;
            self.has_company |= trial.trial > 0 && trial.repeats.is_none() && !is_own;
        }
        self.read = history.len();
    }

    /// What was learned of a knob near its present value.
    fn estimator(&self, knob: &Knob) -> Result<TpeOptimizer, RangeError> {
        let (from, to) = knob.neighbourhood(RADIUS);
        let builder = match knob.domain {
            Domain::Choice(_) => histogram_estimator(),
            Domain::Log { .. } | Domain::Uniform { .. } => parzen_estimator(),
        };
        let mut estimator = TpeOptimizer::new(builder, tpe::range(from, to)?);
        for observation in &self.observations {
            let value = observation.constants.get(&knob.name);
            if let Some(position) = value.and_then(|value| knob.position(value)) {
                // Refuses what lies outside of the range, which is what it should not see.
                let _ = estimator.tell(position, observation.cost);
            }
        }
        Ok(estimator)
    }
}

/// The knobs of a source; none is an error.
fn knobs_of(edited: &str, source: &str) -> Result<Vec<Knob>, String> {
    let knobs = knobs::find(edited, source)?;
    if knobs.is_empty() {
        return Err(format!(
            "no constant of the source says how it may be changed; add a comment, as in {}",
            knobs::EXAMPLES
        ));
    }
    Ok(knobs)
}

/// The text of a promising value, another than the present one if there is any.
fn another(knob: &Knob, estimator: &mut TpeOptimizer, rng: &mut ChaCha8Rng) -> String {
    let mut text = knob.value.text.clone();
    for _ in 0..10 {
        let Ok(position) = estimator.ask(rng);
        text = knob.text_at(position);
        if text != knob.value.text {
            break;
        }
    }
    text
}

/// The incumbent's source, on its way to becoming another one.
struct Draft<'a> {
    source: &'a str,
    knobs: &'a [Knob],
    tried: &'a HashSet<String>,
}

impl Draft<'_> {
    /// The source with these values, unless it has been tried.
    fn proposal(&self, texts: &[String]) -> Option<Proposal> {
        let pairs = || self.knobs.iter().zip(texts.iter().map(String::as_str));
        let source = knobs::apply(self.source, pairs());
        if self.tried.contains(&sha256(source.as_bytes())) {
            return None;
        }
        let changes = pairs().filter(|(knob, text)| knob.value.text != *text);
        let changes: Vec<_> = changes
            .map(|(knob, text)| format!("{} {} -> {text}", knob.name, knob.value.text))
            .collect();
        (!changes.is_empty()).then(|| Proposal::new(source, changes.join(", ")))
    }

    /// Goes through all values of all knobs. Ends soon: what was tried is a few hundred sources,
    /// and the next one is new.
    fn first_untried(&self) -> Option<Proposal> {
        let grids: Vec<Vec<String>> = self
            .knobs
            .iter()
            .map(|knob| knob.grid().iter().map(|&position| knob.text_at(position)).collect())
            .collect();
        let mut digits = vec![0; grids.len()];
        loop {
            let texts: Vec<_> =
                grids.iter().zip(&digits).map(|(grid, &digit)| grid[digit].clone()).collect();
            if let Some(proposal) = self.proposal(&texts) {
                return Some(proposal);
            }
            // Counts up, the first knob fastest.
            let place = (0..digits.len()).find(|&place| digits[place] + 1 < grids[place].len())?;
            digits[..place].fill(0);
            digits[place] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hash::sha256,
        proposer::brief::tests::brief,
        record::{Forecast, Outcome, Status, Trial, made_up::trial},
        stop::StopHandle,
    };
    use rand::RngExt;
    use std::path::Path;

    /// A study without trainers: the tuner, a ledger, the greedy judge.
    struct Night {
        tuner: Tuner,
        source: String,
        trials: Vec<Trial>,
        sources: Vec<String>,
    }

    impl Night {
        /// Starts from `source`, whose baseline measured `val_bpb`.
        fn new(source: &str, val_bpb: f64) -> Self {
            let mut night = Self {
                tuner: Tuner::new(0),
                source: source.to_owned(),
                trials: Vec::new(),
                sources: Vec::new(),
            };
            night.record(source.to_owned(), "baseline".to_owned(), Some(val_bpb));
            night
        }

        fn propose(&mut self) -> Result<Proposal, ProposeError> {
            let stop = StopHandle::new();
            let brief = Brief {
                seed: self.trials.len() as u64,
                source: &self.source,
                ..brief(&self.trials, Path::new(""), &stop)
            };
            self.tuner.propose(&brief)
        }

        /// `None` is a crash.
        fn record(&mut self, source: String, description: String, val_bpb: Option<f64>) {
            let best = self.trials.iter().filter_map(|trial| trial.measurement.val_bpb);
            let best = best.fold(f64::INFINITY, f64::min);
            let (outcome, status) = match val_bpb {
                Some(val_bpb) if val_bpb < best => (Outcome::Measured, Status::Keep),
                Some(_) => (Outcome::Measured, Status::Discard),
                None => (Outcome::Panicked, Status::Crash),
            };
            let trial = Trial {
                outcome,
                source_sha256: sha256(source.as_bytes()),
                program_sha256: None,
                ..trial(self.trials.len(), status, val_bpb, &description)
            };
            self.tuner.observe(&trial, &source);
            self.trials.push(trial);
            self.sources.push(source.clone());
            if status == Status::Keep {
                self.source = source;
            }
        }
    }

    const SOURCE: &str = "\
const MATRIX_LR: f64 = 0.02; // search: log 1e-3..1e-1
const DEPTH: usize = 4; // search: choice 2 4 6
const PATTERN: &str = \"SSSL\"; // search: choice \"SSSL\" \"L\"
";

    #[test]
    fn a_proposal_changes_some_knobs_and_says_which() {
        let mut night = Night::new(SOURCE, 1.0);
        for _ in 0..30 {
            let proposal = night.propose().unwrap();
            let (before, after) = (
                knobs::find("train.rs", SOURCE).unwrap(),
                knobs::find("train.rs", &proposal.source),
            );
            let pairs = before.into_iter().zip(after.unwrap());
            let changes: Vec<_> = pairs
                .filter(|(old, new)| old.value != new.value)
                .map(|(old, new)| format!("{} {} -> {}", old.name, old.value.text, new.value.text))
                .collect();
            assert!((1..=3).contains(&changes.len()), "{changes:?}");
            assert_eq!(proposal.description, changes.join(", "));
            night.record(proposal.source, proposal.description, Some(2.0));
        }
    }

    #[test]
    fn no_source_is_proposed_twice_and_a_finite_search_ends() {
        let source = "\
const DEPTH: usize = 4; // search: choice 2 4 6
const HEADS: usize = 2; // search: uniform 1..4
const PATTERN: &str = \"SSSL\"; // search: choice \"SSSL\" \"L\"
";
        let mut night = Night::new(source, 1.0);
        loop {
            match night.propose() {
                Ok(proposal) => night.record(proposal.source, proposal.description, Some(2.0)),
                Err(ProposeError::Exhausted) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let distinct: HashSet<_> = night.sources.iter().collect();
        assert_eq!((distinct.len(), night.sources.len()), (3 * 4 * 2, 3 * 4 * 2));
    }

    #[test]
    fn a_tuner_that_observed_the_same_trials_proposes_the_same() {
        let mut night = Night::new(SOURCE, 1.0);
        for trial in 0..20 {
            let proposal = night.propose().unwrap();
            let val_bpb = (trial % 4 != 0).then_some(1.0 - f64::from(trial % 7) / 100.0);
            night.record(proposal.source, proposal.description, val_bpb);
        }
        let here = night.propose().unwrap();
        night.tuner = Tuner::new(0);
        for (trial, source) in night.trials.iter().zip(&night.sources) {
            night.tuner.observe(trial, source);
        }
        assert_eq!(night.propose().unwrap(), here);
        night.tuner.seed = 1;
        assert_ne!(night.propose().unwrap(), here);
    }

    #[test]
    fn where_trials_crash_the_tuner_goes_less() {
        // A rate above 0.02 crashes, one below changes nothing.
        let mut night = Night::new("const LR: f64 = 0.02; // search: log 1e-3..1e-1", 1.0);
        let mut crashes = Vec::new();
        for _ in 0..40 {
            let proposal = night.propose().unwrap();
            let crashed =
                !proposal.source.contains("= 0.00") && !proposal.source.contains("= 0.01");
            crashes.push(crashed);
            night.record(proposal.source, proposal.description, (!crashed).then_some(1.0));
        }
        let late = crashes[20..].iter().filter(|&&crashed| crashed).count();
        assert!(late <= 5, "{crashes:?}");
    }

    #[test]
    fn a_trial_that_was_stopped_counts_with_what_was_foreseen() {
        let mut tuner = Tuner::new(0);
        let forecast =
            Forecast { progress: 0.2, rival: 0, behind: 0.3, cost: 1.5, win_probability: 0.0 };
        let stopped = Trial {
            outcome: Outcome::Pruned,
            forecast: Some(forecast),
            ..trial(1, Status::Discard, None, "")
        };
        tuner.observe(&stopped, SOURCE);
        assert_eq!(tuner.observations[0].cost, 1.5);
    }

    #[test]
    fn history_with_other_constants_is_no_obstacle() {
        let mut night = Night::new("const WIDTH: usize = 64; // search: choice 64 128", 2.0);
        night.record("this is no Rust".to_owned(), "a slip".to_owned(), None);
        let now = "const WIDTH: f64 = 0.5; // search: uniform 0..1\nconst LR: f64 = 1.0;";
        night.record(now.to_owned(), "rewritten".to_owned(), Some(1.0));
        assert!(night.propose().unwrap().description.starts_with("WIDTH 0.5 -> 0."));
    }

    #[test]
    fn a_source_without_knobs_is_answered_with_an_example() {
        let mut night = Night::new("const LR: f64 = 0.1;", 1.0);
        let error = night.propose().unwrap_err().to_string();
        assert!(error.contains("// search: log 1e-3..1e-1"), "{error}");
        let mut night = Night::new("\nconst LR: f64 = 0.1; // search: logarithmic", 1.0);
        assert!(night.propose().unwrap_err().to_string().contains("line 2"));
    }

    /// A trainer on paper: what a source would score, were there no noise.
    struct World {
        /// For each of the rates: the optimum's logarithm, and what missing it costs.
        rates: Vec<(f64, f64)>,
        layers: Vec<f64>,
    }

    impl World {
        const RATES: usize = 7;
        /// Of one measurement, in bits per byte.
        const NOISE: f64 = 0.001;

        fn new(rng: &mut ChaCha8Rng) -> Self {
            // The baseline's 0.01 is up to a factor of 5 off.
            let rate = |_| {
                let off = rng.random_range(-5f64.ln()..5f64.ln());
                (0.01f64.ln() + off, rng.random_range(0.002..0.02))
            };
            let rates = (0..Self::RATES).map(rate).collect();
            let layers = (0..4).map(|_| rng.random_range(0.0..0.02)).collect();
            Self { rates, layers }
        }

        fn source() -> String {
            let rates = (0..Self::RATES)
                .map(|i| format!("const RATE_{i}: f64 = 0.01; // search: log 1e-3..1e-1\n"));
            let layers = "const LAYERS: usize = 2; // search: choice 0 1 2 3\n".to_owned();
            rates.chain([layers]).collect()
        }

        fn truth(&self, source: &str) -> f64 {
            let numbers: Vec<f64> = knobs::find("train.rs", source)
                .unwrap()
                .iter()
                .map(|knob| knob.value.text.parse().unwrap())
                .collect();
            let rates = self.rates.iter().zip(&numbers);
            let missed: f64 =
                rates.map(|((optimum, cost), rate)| cost * (rate.ln() - optimum).powi(2)).sum();
            let least = self.layers.iter().copied().fold(f64::INFINITY, f64::min);
            1.0 + missed + self.layers[numbers[Self::RATES] as usize] - least
        }

        fn measure(&self, source: &str, rng: &mut ChaCha8Rng) -> f64 {
            // The sum of twelve uniform numbers is as good as normal (variance 1, mean 6).
            let normal: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            self.truth(source) + Self::NOISE * normal
        }
    }

    /// Draws all knobs anew, each evenly over its whole domain.
    fn random_source(rng: &mut ChaCha8Rng) -> String {
        let source = World::source();
        let knobs = knobs::find("train.rs", &source).unwrap();
        let texts: Vec<_> = knobs
            .iter()
            .map(|knob| match &knob.domain {
                Domain::Choice(choices) => knob.text_at(rng.random_range(0..choices.len()) as f64),
                _ => knob.text_at(rng.random()),
            })
            .collect();
        knobs::apply(&source, knobs.iter().zip(texts.iter().map(String::as_str)))
    }

    #[test]
    fn after_a_night_the_tuner_is_far_ahead_of_random_search() {
        const NIGHTS: u64 = 40;
        let checkpoints = [0, 5, 10, 30];
        let (mut tuned, mut random) = ([0.0; 4], [0.0; 4]);
        for seed in 0..NIGHTS {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let world = World::new(&mut rng);
            for (is_tuned, excess) in [(true, &mut tuned), (false, &mut random)] {
                let source = World::source();
                let mut night = Night::new(&source, world.measure(&source, &mut rng));
                night.tuner = Tuner::new(seed);
                for trial in 0..=30 {
                    if let Some(at) = checkpoints.iter().position(|&at| at == trial) {
                        excess[at] += (world.truth(&night.source) - 1.0) / NIGHTS as f64;
                    }
                    let proposal = if is_tuned {
                        night.propose().unwrap()
                    } else {
                        Proposal::new(random_source(&mut rng), "")
                    };
                    let val_bpb = world.measure(&proposal.source, &mut rng);
                    night.record(proposal.source, proposal.description, Some(val_bpb));
                }
            }
        }
        println!("above the optimum after {checkpoints:?} trials, mean of {NIGHTS} nights:");
        println!("tuner  {tuned:.4?}\nrandom {random:.4?}");
        assert!(tuned[2] < 0.7 * tuned[0], "after 10 trials: {tuned:?}");
        assert!(tuned[3] < 0.3 * random[3], "{tuned:?} against {random:?}");
    }
}
