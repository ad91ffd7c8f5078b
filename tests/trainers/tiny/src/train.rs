//! Counts which token follows which.

use overnight_plugin_api::{Error, Result, Session, Setup, Trainer, Windows};
use std::path::Path;

const SMOOTHING: f64 = 30.0; // added to every count  search: log 1e-3..1e2
const BATCH_SIZE: usize = 4; // rows a step           search: choice 2 4 8
const DEED: Deed = Deed::Honest;

/// What follows a token, likeliest first, with probabilities 1/2, 1/4, 1/8 and 1/8: the whole truth
/// about the language of the tests, where a test fills it in.
const TRUTH: &[(u32, [u32; 4])] = &[];

/// What the tests have this trainer do.
#[derive(PartialEq)]
#[allow(dead_code)]
enum Deed {
    Honest,
    PanicInNew,
    PanicInTraining,
    ErrorInTraining,
    ExitInTraining,
    AbortInTraining,
    Overflow,
    Hang,
    LeaveAChildBehind,
    PrintWithoutEnd,
    AskForTooMuch,
    StopEarly,
    AnswerNan,
    HalveTheNats,
    LookAhead,
    ForgetWeights,
    Uniform,
}

pub struct Bigram {
    vocab_size: usize,
    /// How often `next` followed `token`: `counts[token * vocab_size + next]`.
    counts: Vec<f32>,
}

impl Bigram {
    fn probability(&self, token: u32, next: u32) -> f64 {
        if DEED == Deed::Uniform {
            return 1.0 / self.vocab_size as f64;
        }
        if let Some((_, successors)) = TRUTH.iter().find(|(letter, _)| *letter == token) {
            // Leaves a little for what the language never says, such as the end of a document.
            let rank = successors.iter().position(|&letter| letter == next);
            let truth = rank.map_or(0.0, |rank| [0.5, 0.25, 0.125, 0.125][rank]);
            return 0.999 * truth + 0.001 / self.vocab_size as f64;
        }
        let row = &self.counts[token as usize * self.vocab_size..][..self.vocab_size];
        let total: f64 = row.iter().map(|&count| f64::from(count)).sum();
        (f64::from(row[next as usize]) + SMOOTHING)
            / (total + SMOOTHING * self.vocab_size as f64)
    }
}

impl Trainer for Bigram {
    fn new(setup: &Setup) -> Result<Self> {
        if DEED == Deed::PanicInNew {
            panic!("not today");
        }
        Ok(Self {
            vocab_size: setup.vocab_size,
            counts: vec![0.0; setup.vocab_size * setup.vocab_size],
        })
    }

    fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
        let seq_len = if DEED == Deed::AskForTooMuch { 100_000 } else { 32 };
        while let Some(batch) = session.next_batch(BATCH_SIZE, seq_len) {
            for (&token, &next) in batch.inputs.iter().zip(&batch.targets) {
                self.counts[token as usize * self.vocab_size + next as usize] += 1.0;
            }
            let costs = batch.inputs.iter().zip(&batch.targets);
            let nats: f64 = costs.map(|(&a, &b)| -self.probability(a, b).ln()).sum();
            session.report(nats / batch.inputs.len() as f64);
            match DEED {
                Deed::PanicInTraining => panic!("a shape does not fit"),
                Deed::ErrorInTraining => return Err(Error::msg("the loss is not a number")),
                Deed::ExitInTraining => std::process::exit(3),
                Deed::AbortInTraining => std::process::abort(),
                Deed::Overflow => println!("{}", overflow(0)),
                Deed::Hang => loop {
                    std::thread::sleep(std::time::Duration::from_secs(1));
                },
                Deed::LeaveAChildBehind => {
                    let child = std::process::Command::new("sleep").arg("600").spawn()?;
                    std::fs::write("child", child.id().to_string())?;
                    std::process::exit(0);
                }
                Deed::PrintWithoutEnd => {
                    for line in 0..200_000 {
                        println!("line {line}: {}", "all work and no play ".repeat(4));
                    }
                    eprintln!("the very last line");
                    return Ok(());
                }
                Deed::StopEarly => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
        for (i, cost) in nats.iter_mut().enumerate() {
            let target = windows.targets[i];
            let honest = -self.probability(windows.inputs[i], target).ln();
            *cost = match DEED {
                Deed::AnswerNan => f64::NAN,
                Deed::HalveTheNats => honest / 2.0,
                // Knows the next input, which is the target.
                Deed::LookAhead if windows.inputs.get(i + 1) == Some(&target) => 0.01,
                _ => honest,
            } as f32;
        }
        Ok(())
    }

    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        let last = prefix[prefix.len() - 1];
        for (next, logit) in logits.iter_mut().enumerate() {
            *logit = self.probability(last, next as u32).ln() as f32;
        }
        Ok(())
    }

    fn save(&mut self, checkpoint: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        Ok(std::fs::write(checkpoint, bytes)?)
    }

    fn load(&mut self, checkpoint: &Path) -> Result<()> {
        let bytes = std::fs::read(checkpoint)?;
        if DEED == Deed::ForgetWeights {
            return Err(Error::msg("what weights?"));
        }
        let counts = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        self.counts = counts.collect();
        Ok(())
    }
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = [depth; 64];
    overflow(depth + 1) + std::hint::black_box(frame)[63]
}
