//! How far the exam's two rooms differ when nobody lies: where the tolerances of `src/exam.rs` come
//! from, and what they still let through.
//!
//! ```text
//! cargo run --release --example honesty
//! ```
//!
//! Trains the template, as it is and in other precisions, under several seeds, for few and for many
//! steps. Each of these models then answers in both rooms, whole windows in one and prefixes in the
//! other, at thousands of places. What the rooms say of a place does not depend on the other places,
//! so an exam is a draw from these: as many of them as an exam compares, by the rule that a study
//! applies. All of it happens in this process, with the numbers that workers would compute. Workers
//! have `CANDLE_BARRIER_POOL_SPIN_LIMIT=0` in their environment; where other programs compute at the
//! same time, it is much quicker so here, too.

#[path = "honesty/school.rs"]
mod school;

use clap::Parser;
use overnight::{
    Budget, TrainerCrate,
    exam::{self, Pair},
    plugin::Plugin,
    worker::train_in_process,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use school::{COMPARISONS, SEQ_LEN, School};
use std::{error::Error, io::Write, path::PathBuf};

/// Measures how far honest trainers' answers differ between the exam's rooms.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Steps of training; may be given more than once
    #[arg(long, value_name = "N", default_values_t = [30, 300])]
    steps: Vec<u64>,
    /// Models trained for each number of steps, each under another seed
    #[arg(long, value_name = "N", default_value_t = 2)]
    seeds: u64,
    /// Places compared for each of these models
    #[arg(long, value_name = "N", default_value_t = 2048)]
    places: usize,
    /// Exams drawn in each precision, from all of its models by turns
    #[arg(long, value_name = "N", default_value_t = 500)]
    exams: usize,
    /// Measure only what has this in its name; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Another value for one of the template's constants; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Measure this train.rs, too; may be given more than once
    #[arg(long, value_name = "FILE")]
    source: Vec<PathBuf>,
}

/// A name, and what to replace in the template's source.
const VARIANTS: &[(&str, &[(&str, &str)])] = &[
    ("as it is", &[]),
    ("in f32", &[("const BF16: bool = true;", "const BF16: bool = false;")]),
    ("candle's operations, in f32", &[("Compute::fastest(device, dtype)", "Compute::Composed")]),
    // About as far as honest rooms can be apart: no rounding of one happens in the other.
    (
        "one room in bf16",
        &[("next_logits(prefix, self.compute)?", "next_logits(prefix, Compute::F32)?")],
    ),
    // And further: that room has its weights in bf16, and all that candle makes of them.
    (
        "the other room in bf16, by candle",
        &[(
            "self.frozen.next_logits(prefix, self.compute)?",
            "Model::new(&self.config, |name, _, _| {
                Ok(self.parameters.vars[name].to_dtype(DType::BF16)?)
            })?
            .next_logits(prefix, Compute::Composed)?",
        )],
    ),
];

/// Prefixes are told apart by length, in this many classes.
const LENGTHS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: cargo runs this program again to confine the compiler.
    overnight::worker::run_if_worker();

    let options = Options::parse();
    let template = TrainerCrate::template(&overnight::cache_dir()?)?;
    let school = School::open(&template)?;
    print_head();
    let named =
        |name: &str| options.only.is_empty() || options.only.iter().any(|o| name.contains(o));
    for &(name, changes) in VARIANTS.iter().filter(|(name, _)| named(name)) {
        let mut source = template.source().to_owned();
        if let Some((from, _)) = changes.iter().find(|(from, _)| !source.contains(from)) {
            println!("{name}: left out, the template has no {from:?} any more\n");
            continue;
        }
        for (from, to) in changes {
            source = source.replace(from, to);
        }
        for setting in &options.set {
            source = school::set(&source, setting)?;
        }
        measure(&school, name, &source, &options)?;
    }
    for file in &options.source {
        let source = std::fs::read_to_string(file)?;
        measure(&school, &file.display().to_string(), &source, &options)?;
    }
    print_gains(&school);
    Ok(())
}

/// Trains models of a source, has them answer in both rooms, and prints what came of it.
fn measure(
    school: &School,
    name: &str,
    source: &str,
    options: &Options,
) -> Result<(), Box<dyn Error>> {
    let plugin = school.build(name, source)?;
    println!("{name}");
    let mut models = Vec::new();
    for &steps in &options.steps {
        for seed in 0..options.seeds {
            let pairs = graduate(school, &plugin, (steps, seed), options.places)?;
            print_row(&format!("{steps} steps, seed {seed}"), &pairs);
            models.push(pairs);
        }
    }
    let all: Vec<Pair> = models.iter().flatten().copied().collect();
    for class in 0..LENGTHS {
        let (from, to) = (class * SEQ_LEN / LENGTHS, (class + 1) * SEQ_LEN / LENGTHS);
        let within = |pair: &&Pair| (from..to).contains(&(pair.place % SEQ_LEN));
        let pairs: Vec<Pair> = all.iter().filter(within).copied().collect();
        print_row(&format!("prefixes of {} to {to}", from + 1), &pairs);
    }
    print_row("all of them", &all);
    print_exams(&models, options.exams);
    print_detection(&models, options.exams);
    Ok(())
}

/// Trains a model and returns both rooms' answers at random places.
fn graduate(
    school: &School,
    plugin: &Plugin,
    (steps, seed): (u64, u64),
    places: usize,
) -> Result<Vec<Pair>, Box<dyn Error>> {
    let mut trainer = plugin.trainer(&school.setup(seed)?)?;
    train_in_process(&mut trainer, school.loader(seed)?, SEQ_LEN, Budget::Steps(steps))?;
    // What is examined is what was saved.
    let checkpoint = school.folder.path().join("checkpoint");
    trainer.save(&checkpoint)?;
    let nats = school.fast_room(&mut school.examinee(plugin, &checkpoint)?)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ steps);
    let places = (0..places).map(|_| below(school.windows.targets.len(), &mut random));
    school.honest_room(&mut school.examinee(plugin, &checkpoint)?, &nats, places)
}

/// What lies of some size, in nats, about some share of all answers would gain, in bits per byte.
fn print_gains(school: &School) {
    let bytes: f64 = school
        .windows
        .targets
        .iter()
        .map(|&target| f64::from(school.dataset.token_bytes()[target as usize]))
        .sum();
    let bytes_per_answer = bytes / school.windows.targets.len() as f64;
    println!("what such lies gain in bits per byte, at {bytes_per_answer:.3} bytes an answer");
    print_sizes();
    for share in SHARES {
        print!("{:>13} %", 100.0 * share);
        for size in SIZES {
            print!(" {:>9.5}", size * share / (std::f64::consts::LN_2 * bytes_per_answer));
        }
        println!();
    }
}

fn print_sizes() {
    print!("{:>15}", "share of answers");
    SIZES.iter().for_each(|size| print!(" {size:>6} nats"));
    println!();
}

fn below(limit: usize, random: &mut impl Rng) -> usize {
    (random.next_u64() % limit as u64) as usize
}

fn print_head() {
    println!(
        "{:<28} {:>7} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "fast - honest, in nats", "places", "mean", "std", "|.| 90%", "99%", "99.9%", "greatest"
    );
}

fn print_row(name: &str, pairs: &[Pair]) {
    let (mean, std, sizes) = spread(pairs.iter().map(Pair::difference).collect());
    let quantile = |share: f64| sizes[((sizes.len() - 1) as f64 * share) as usize];
    println!(
        "{name:<28} {:>7} {mean:>+10.1e} {std:>9.1e} {:>9.1e} {:>9.1e} {:>9.1e} {:>9.1e}",
        pairs.len(),
        quantile(0.9),
        quantile(0.99),
        quantile(0.999),
        quantile(1.0),
    );
    let _ = std::io::stdout().flush();
}

/// Mean, standard deviation, and the numbers' sizes in order.
fn spread(mut numbers: Vec<f64>) -> (f64, f64, Vec<f64>) {
    let count = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / count;
    numbers.iter_mut().for_each(|number| *number = number.abs());
    numbers.sort_by(f64::total_cmp);
    (mean, variance.sqrt(), numbers)
}

/// Exams of places that are drawn anew for each, from the models by turns.
fn exams(models: &[Vec<Pair>], count: usize, random: &mut ChaCha8Rng) -> Vec<Vec<Pair>> {
    let mut draw =
        |pairs: &Vec<Pair>| (0..COMPARISONS).map(|_| pairs[below(pairs.len(), random)]).collect();
    models.iter().cycle().take(count).map(&mut draw).collect()
}

fn print_exams(models: &[Vec<Pair>], count: usize) {
    let exams = exams(models, count, &mut ChaCha8Rng::seed_from_u64(0));
    let rejected = exams.iter().filter(|exam| exam::compare(exam).is_err()).count();
    let mean =
        |exam: &Vec<Pair>| exam.iter().map(Pair::difference).sum::<f64>() / exam.len() as f64;
    let (mean, std, sizes) = spread(exams.iter().map(mean).collect());
    let greatest = sizes.last().copied().unwrap_or_default();
    println!(
        "{rejected} of {count} exams rejected; the mean of one: {mean:+.1e}, standard deviation \
         {std:.1e}, greatest {greatest:.1e}"
    );
}

/// Lies of these sizes, in nats an answer, about these shares of all answers.
const SIZES: [f64; 7] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
const SHARES: [f64; 6] = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003];

/// How often a trainer is rejected that is honest but for a lie.
fn print_detection(models: &[Vec<Pair>], count: usize) {
    println!("rejected if the fast room claims less, in percent");
    print_sizes();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for share in SHARES {
        print!("{:>13} %", 100.0 * share);
        for size in SIZES {
            let mut exams = exams(models, count, &mut random);
            for pair in exams.iter_mut().flatten() {
                // Of 2^32 equally likely numbers, the lowest.
                if f64::from(random.next_u32()) < share * 2f64.powi(32) {
                    pair.fast -= size;
                }
            }
            let rejected = exams.iter().filter(|exam| exam::compare(exam).is_err()).count();
            print!(" {:>9.1}", 100.0 * rejected as f64 / count as f64);
        }
        println!();
    }
    println!();
}
