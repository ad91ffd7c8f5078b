//! Bits per byte, measured by the parent: two rooms, and the comparison of their answers.
//!
//! *The fast room* gets whole validation windows and answers with the cost of every target. *The
//! honest room* gets prefixes only, cut at places that the parent draws at random after training
//! has ended, and answers with logits, which the parent normalises itself: it cannot look ahead,
//! because nothing is ahead. The fast room does not know which of its answers will be compared.
//! With k comparisons, a lie about a share p of the tokens survives with probability (1 - p)^k.

use crate::{
    data::{Dataset, Split, Windows},
    error::{Error, Result},
    halt::Halt,
    record::{Effort, Outcome},
    runner::Question,
    workers::Runner,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How an exam is held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rules {
    /// Windows to score.
    pub windows: usize,
    /// Tokens a window.
    pub seq_len: usize,
    /// Answers to compare between the rooms.
    pub comparisons: usize,
}

/// The questions, the same for every trial of a study.
pub(crate) struct Exam {
    windows: Windows,
    /// Bytes of text in each token; 0 for special tokens.
    token_bytes: Vec<u32>,
    vocab_size: usize,
    comparisons: usize,
}

/// An exam that was passed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grade {
    pub bits_per_byte: f64,
    /// Greatest difference between the rooms, in nats.
    pub disagreement: f64,
    /// What loading and answering took; nothing is known here of training.
    pub effort: Effort,
}

/// Windows in one question: few enough that a trainer need not split them itself.
const ROWS_PER_QUESTION: usize = 16;

// How far honest rooms differ.
//
// A window's scores and a prefix's logits take different paths through the same arithmetic (other
// shapes, other orders of summation), so honest answers agree to rounding only. How large that is
// depends on the trainer's precision, and most of the answers tell: nine in ten honest differences
// are below 1.645 standard deviations, as of any normal distribution. `measurements/honesty.rs` measures
// all of this; docs/guarantees.md has its figures. Honest rooms are about as far apart as they can be
// where none of the roundings of one happens in the other: one in f32, the other in bf16.

/// The standard deviation of rounding that is always allowed, in nats: a tenth of a trainer's answers
/// may fall on the other side of a rounding in bf16 where all others agree to the last bit of f32.
const LEAST_ROUNDING: f64 = 0.004;

/// And that is never exceeded: about one and a half times the largest measured, one room in bf16.
const GREATEST_ROUNDING: f64 = 0.035;

/// How many standard deviations of rounding a single answer may be off: twice what was measured.
const IN_ONE_ANSWER: f64 = 20.0;

/// How many standard errors the mean may be off: rounding has no direction, a lie has one. Of a
/// million means of normal deviates, one is so far from zero.
const STANDARD_ERRORS: f64 = 5.0;

/// And how many standard deviations beyond that, because rounding does have a little of a direction.
const BIAS: f64 = 0.2;

/// The standard deviation below which nobody looks at the mean more closely, in nats.
const LEAST_DEVIATION: f64 = 2e-4;

impl Exam {
    /// Packs a split into the study's windows.
    pub(crate) fn prepare(dataset: &Dataset, split: Split, rules: &Rules) -> Result<Self> {
        if rules.windows == 0 || rules.comparisons == 0 {
            return Err(Error::Data {
                what: "an exam".to_owned(),
                problem:
                    "it needs a window and a comparison at least; without comparisons, nobody \
                          would notice what is made up"
                        .to_owned(),
            });
        }
        let tokens = dataset.open(split)?;
        Ok(Self {
            windows: Windows::pack(tokens, dataset.bos(), rules.windows, rules.seq_len)?,
            token_bytes: dataset.token_bytes().to_vec(),
            vocab_size: dataset.vocab_size(),
            comparisons: rules.comparisons,
        })
    }

    /// Has `checkpoint` sit the exam in two fresh workers.
    pub(crate) fn sit(
        &self,
        runner: &Runner,
        candidate: &Candidate<'_>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Grade, Halt> {
        let Candidate { library, checkpoint, folder } = *candidate;
        let questions =
            self.windows.inputs.len().div_ceil(ROWS_PER_QUESTION * self.windows.seq_len);
        let steps = questions + self.comparisons;

        // One limit for all of it, not one for each of hundreds of answers.
        let due = Instant::now() + runner.bounds.exam(runner.limits.exam);
        let mut effort = Effort::default();
        let seconds = |spent: Duration| spent.as_secs_f64();
        let nats = {
            let answers = |effort: &Effort| effort.score_seconds;
            let mut fast = runner.examinee(library, checkpoint, folder, (due, answers))?;
            let mut nats = Vec::with_capacity(self.windows.targets.len());
            let size = ROWS_PER_QUESTION * self.windows.seq_len;
            let questions = self.windows.inputs.chunks(size).zip(self.windows.targets.chunks(size));
            for (done, (inputs, targets)) in questions.enumerate() {
                let question = Question { seq_len: self.windows.seq_len, inputs, targets };
                let answer = fast.score(&question)?;
                if answer.len() != targets.len() {
                    return Err(rejected(format!(
                        "score: {} answers to {} questions",
                        answer.len(),
                        targets.len()
                    )));
                }
                nats.extend(answer);
                progress(done + 1, steps);
            }
            effort.load_seconds = seconds(fast.loading());
            effort.score_seconds = seconds(fast.answering());
            nats
        };
        check_costs(&nats).map_err(rejected)?;

        // Drawn only now, from the system's randomness: nothing that a trainer sees, not even the
        // study's seed, tells where it will be compared.
        let places = draw_places(self.windows.targets.len(), self.comparisons)?;
        let answers = |effort: &Effort| effort.logits_seconds;
        let mut honest = runner.examinee(library, checkpoint, folder, (due, answers))?;
        let mut pairs = Vec::with_capacity(places.len());
        for (done, &place) in places.iter().enumerate() {
            let row = place - place % self.windows.seq_len;
            let logits = honest.logits(&self.windows.inputs[row..=place])?;
            if logits.len() != self.vocab_size {
                return Err(rejected(format!(
                    "logits: {} numbers for {} tokens",
                    logits.len(),
                    self.vocab_size
                )));
            }
            let cost = cross_entropy(&logits, self.windows.targets[place] as usize);
            pairs.push(Pair { place, fast: f64::from(nats[place]), honest: cost });
            progress(questions + done + 1, steps);
        }
        effort.load_seconds = effort.load_seconds.max(seconds(honest.loading()));
        effort.logits_seconds = seconds(honest.answering());
        let disagreement = compare(&pairs).map_err(rejected)?;
        let bits_per_byte = bits_per_byte(&nats, &self.windows.targets, &self.token_bytes);
        Ok(Grade { bits_per_byte, disagreement, effort })
    }
}

/// Who sits an exam.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub library: &'a Path,
    pub checkpoint: &'a Path,
    /// The trial's folder.
    pub folder: &'a Path,
}

fn rejected(reason: String) -> Halt {
    Halt::Ended { outcome: Outcome::Rejected, reason }
}

/// One target as both rooms priced it, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Index into the windows' targets.
    pub place: usize,
    /// When the whole window was there.
    pub fast: f64,
    /// From the prefix alone.
    pub honest: f64,
}

impl Pair {
    /// Below zero where the fast room claims a lower cost.
    pub fn difference(&self) -> f64 {
        self.fast - self.honest
    }

    fn evidence(&self) -> String {
        format!(
            "the rooms disagree about target {}: {:.4} nats when the whole window was there, {:.4} \
             nats from the prefix alone",
            self.place, self.fast, self.honest
        )
    }
}

/// Bits per byte of text: the targets' costs over their bytes. Special tokens count in neither.
///
/// As `evaluate_bpb` of autoresearch's prepare.py: `sum(nats) / (ln 2 * sum(bytes))`.
pub fn bits_per_byte(nats: &[f32], targets: &[u32], token_bytes: &[u32]) -> f64 {
    let mut total_nats = 0.0;
    let mut total_bytes = 0;
    for (&nats, &target) in nats.iter().zip(targets) {
        let bytes = token_bytes[target as usize];
        if bytes > 0 {
            total_nats += f64::from(nats);
            total_bytes += u64::from(bytes);
        }
    }
    total_nats / (std::f64::consts::LN_2 * total_bytes as f64)
}

/// `-ln softmax(logits)[target]`, in nats.
pub fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let greatest = f64::from(greatest);
    // Subtracting the greatest keeps every exponential at most 1.
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - greatest).exp()).sum();
    sum.ln() + (greatest - f64::from(logits[target]))
}

/// A cost is a finite number and not below zero, but for rounding.
fn check_costs(nats: &[f32]) -> Result<(), String> {
    match nats.iter().position(|cost| !cost.is_finite() || *cost < -1e-3) {
        None => Ok(()),
        Some(place) => {
            Err(format!("score: answer {place} of {} is {} nats", nats.len(), nats[place]))
        }
    }
}

/// The greatest difference between the rooms, or the evidence against the trainer.
pub fn compare(pairs: &[Pair]) -> Result<f64, String> {
    // A difference that is no number must not pass.
    if let Some(pair) = pairs.iter().find(|pair| pair.difference().is_nan()) {
        return Err(pair.evidence());
    }
    let size = |pair: &&Pair| pair.difference().abs();
    let mut by_size: Vec<&Pair> = pairs.iter().collect();
    by_size.sort_by(|a, b| size(a).total_cmp(&size(b)));
    let Some(furthest) = by_size.last() else { return Ok(0.0) };

    let nine_in_ten = by_size[(by_size.len() - 1) * 9 / 10];
    let rounding = (size(&nine_in_ten) / 1.645).max(LEAST_ROUNDING);
    if rounding > GREATEST_ROUNDING || size(furthest) > IN_ONE_ANSWER * rounding {
        return Err(furthest.evidence());
    }

    let count = pairs.len() as f64;
    let mean = pairs.iter().map(Pair::difference).sum::<f64>() / count;
    let squares = pairs.iter().map(|pair| (pair.difference() - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt().max(LEAST_DEVIATION);
    // Many small lies would pass for rounding, and a few large ones for deviation; neither does for
    // the lesser of both.
    let tolerance = rounding.min(deviation) * (STANDARD_ERRORS / count.sqrt() + BIAS);
    if mean.abs() > tolerance {
        return Err(format!(
            "the rooms disagree by {mean:+.5} nats on the mean of {count} answers, where rounding \
             explains {tolerance:.5}"
        ));
    }
    Ok(size(furthest))
}

/// `count` places below `targets`, evenly distributed.
fn draw_places(targets: usize, count: usize) -> Result<Vec<usize>> {
    let mut places = Vec::with_capacity(count);
    let mut random = [0; 8];
    while places.len() < count {
        getrandom::fill(&mut random).map_err(|error| Error::Randomness(error.to_string()))?;
        let random = u64::from_le_bytes(random);
        // The bias of the remainder is below 2^-40 for any window count that fits a machine.
        places.push((random % targets as u64) as usize);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};

    #[test]
    fn special_tokens_count_neither_in_nats_nor_in_bytes() {
        let nats = [std::f32::consts::LN_2, 100.0, 3.0 * std::f32::consts::LN_2];
        // 1 bit for 1 byte, a special token, 3 bits for 3 bytes: 1 bit a byte.
        let bpb = bits_per_byte(&nats, &[0, 1, 2], &[1, 0, 3]);
        assert!((bpb - 1.0).abs() < 1e-6, "{bpb}");
    }

    #[test]
    fn cross_entropy_does_not_depend_on_an_additive_constant() {
        let uniform = cross_entropy(&[0.0; 4], 2);
        assert!((uniform - 4f64.ln()).abs() < 1e-12);
        let shifted = cross_entropy(&[1e30; 4], 2);
        assert!((shifted - 4f64.ln()).abs() < 1e-12);
        assert!(cross_entropy(&[0.0, f32::NAN], 0).is_nan());
    }

    #[test]
    fn numbers_that_are_no_costs_are_rejected() {
        assert!(check_costs(&[0.0, 1.0, -1e-6]).is_ok());
        for bad in [f32::NAN, f32::INFINITY, -0.5] {
            assert!(check_costs(&[1.0, bad]).is_err());
        }
    }

    #[test]
    fn a_difference_of_one_answer_is_found_and_rounding_is_not() {
        let honest = |place| Pair { place, fast: 2.0 + 1e-5, honest: 2.0 };
        let mut pairs: Vec<_> = (0..100).map(honest).collect();
        assert!(compare(&pairs).is_ok());
        pairs[50].fast = 1.4;
        assert!(compare(&pairs).unwrap_err().contains("target 50"));
        pairs[50].fast = f64::NAN;
        assert!(compare(&pairs).is_err());
    }

    #[test]
    fn a_small_lie_about_every_answer_is_found_on_the_mean() {
        let pairs: Vec<_> =
            (0..100).map(|place| Pair { place, fast: 1.999, honest: 2.0 }).collect();
        assert!(compare(&pairs).unwrap_err().contains("mean"));
    }

    /// As many answers as an exam compares by default.
    const COMPARISONS: usize = 256;

    /// The share of exams that are rejected, when the differences have this standard deviation and
    /// the fast room claims `size` nats less about a `share` of the answers.
    fn rejected(deviation: f64, (size, share): (f64, f64), exams: usize) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let noise = Normal::new(0.0, deviation).unwrap();
        let mut sat = || {
            let mut pair = |place| {
                let lie = if random.random::<f64>() < share { size } else { 0.0 };
                Pair { place, fast: 8.0 - lie + noise.sample(&mut random), honest: 8.0 }
            };
            compare(&(0..COMPARISONS).map(&mut pair).collect::<Vec<_>>())
        };
        (0..exams).filter(|_| sat().is_err()).count() as f64 / exams as f64
    }

    /// Standard deviations of honest differences: about the template's, and a little above the
    /// largest in docs/guarantees.md.
    const MEASURED: [f64; 2] = [1e-6, 0.025];

    #[test]
    fn honest_trainers_are_not_rejected_whatever_their_precision() {
        for deviation in MEASURED.into_iter().chain([1e-4, 1e-3, 1e-2]) {
            assert_eq!(rejected(deviation, (0.0, 0.0), 5000), 0.0, "{deviation}");
        }
    }

    #[test]
    fn a_lie_beyond_the_tolerance_survives_as_often_as_no_comparison_meets_it() {
        for deviation in MEASURED {
            for share in [0.1, 0.01, 0.003, 0.001f64] {
                let missed = (1.0 - share).powi(COMPARISONS as i32);
                let found = rejected(deviation, (1.0, share), 4000);
                assert!((found - (1.0 - missed)).abs() < 0.03, "{share}: {found}");
            }
        }
    }

    #[test]
    fn lies_about_many_answers_are_found_on_the_mean() {
        let [exact, coarse] = MEASURED;
        for (deviation, size, share, expected) in [
            (exact, 0.003, 1.0, 1.0),
            (exact, 0.003, 0.3, 1.0),
            // Half of the exams meet it in less than a tenth of the answers, and half in more.
            (exact, 0.03, 0.1, 0.55),
            (exact, 0.01, 0.1, 0.0),
            // A tenth to a quarter of them pass for coarse rounding, as long as they are small.
            (exact, 0.05, 0.2, 0.37),
            (exact, 0.08, 0.2, 1.0),
            (coarse, 0.03, 1.0, 1.0),
            (coarse, 0.1, 0.3, 1.0),
            (coarse, 0.3, 0.1, 1.0),
            (coarse, 0.01, 0.3, 0.0),
        ] {
            let found = rejected(deviation, (size, share), 1000);
            assert!((found - expected).abs() < 0.05, "{size} nats in {share}: {found}");
        }
    }
}
