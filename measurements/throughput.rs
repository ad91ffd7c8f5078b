//! How fast the template trains on this machine: tokens a second, the share of what the processor
//! can do, and memory, by shape.
//!
//! ```text
//! cargo run --release --example throughput
//! ```
//!
//! What is measured is what a study gets: each shape is a trial of one, built, confined and trained
//! in a worker with the environment that workers have (the allocator's settings among it, which a
//! process can only be started with). The speed is that of whole steps, batches and optimizer
//! included: the median of five stretches of the training, so that a burst of something else on the
//! machine does not decide. The first second is left out.

#[path = "throughput/peak.rs"]
mod peak;
#[path = "throughput/shape.rs"]
mod shape;

use clap::Parser;
use overnight::{
    Budget, Event, Study, TrainerCrate,
    proposer::{Brief, Proposal},
};
use peak::Peak;
use serde::Serialize;
use shape::Shape;
use std::sync::mpsc::Receiver;
use std::{collections::VecDeque, error::Error, time::Duration};

/// Measures how fast the template trains, by shape.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Layers and channels; may be given more than once
    #[arg(long, value_name = "DEPTHxWIDTH", default_values = ["4x64", "4x128", "4x256"])]
    shape: Vec<Shape>,
    /// Sequences of 256 tokens a step [default: 8; 16 from a width of 256 on]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// How long each shape trains, and the template as it is before them
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,
    /// Without bf16, as on processors that do not multiply it
    #[arg(long)]
    f32: bool,
    /// Forward and backward pass alone: gradients are computed and thrown away
    #[arg(long)]
    no_optimizer: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

const VOCABULARY: usize = 2048;
const SEQ_LEN: usize = 256;
/// Left out: the first steps fault all memory in.
const WARM_UP: f64 = 1.0;
const STRETCHES: usize = 5;

/// What was measured of a shape.
#[derive(Serialize)]
struct Row {
    shape: String,
    rows: usize,
    parameters: Option<u64>,
    /// Whether steps are whole, or forward and backward pass alone.
    with_optimizer: bool,
    operations_per_token: f64,
    step_tokens_per_second: f64,
    peak_operations_per_second: Peak,
    peak_memory_mib: Option<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();

    let mut options = Options::parse();
    options.shape.dedup();
    let threads = std::thread::available_parallelism()?.get();
    let peak = Peak::measure(threads);
    if !options.json {
        print_head(threads, peak);
    }

    let template = TrainerCrate::template(&overnight::cache_dir()?)?.source().to_owned();
    let mut shaped = template.clone();
    let mut change = |from: &str, to: &str| {
        assert!(shaped.contains(from), "the template says {from}");
        shaped = shaped.replace(from, to);
    };
    if options.f32 {
        change("const BF16: bool = true;", "const BF16: bool = false;");
    }
    if options.no_optimizer {
        change("optimizer.step(&grads, session.progress())?;", "let _ = (&mut optimizer, &grads);");
    }
    let mut planned: VecDeque<_> = options
        .shape
        .iter()
        .map(|&shape| {
            let rows = options.rows.unwrap_or(shape.rows());
            (shape, rows, shape.source(&shaped, rows))
        })
        .collect();
    // The study measures the template as it is anyway, and takes no source twice.
    let sources = planned.iter().map(|(_, _, source)| source.clone());
    let mut proposals: VecDeque<_> = sources.filter(|source| *source != template).collect();
    let propose = move |_: &Brief<'_>| {
        let source = proposals.pop_front().expect("as many trials as sources");
        Ok(Proposal::new(source, "another shape"))
    };

    let folder = tempfile::tempdir()?;
    let (observer, events) = overnight::events();
    let mut study = Study::builder(folder.path().join("study"))
        .budget(Budget::WallClock(Duration::from_secs(options.seconds)))
        .vocab_size(VOCABULARY)
        .max_seq_len(SEQ_LEN)
        .threads(threads)
        .controls(0)
        .repairs(0)
        .proposer(propose)
        .observer(observer)
        .open()?;
    // By source: the template as it is comes first, wherever it stands in the list.
    planned.make_contiguous().sort_by_key(|(_, _, source)| *source != template);
    if planned.front().is_some_and(|(_, _, source)| *source != template) {
        study.step()?;
        events.try_iter().for_each(drop);
    }
    for (shape, rows, _) in planned {
        let trial = study.step()?.ok_or("the study was stopped")?;
        let measured = trial.measurement;
        if !trial.outcome.is_measured() {
            return Err(format!("{shape}: {}", trial.reason.unwrap_or_default()).into());
        }
        let step_tokens_per_second =
            speed(&events).ok_or_else(|| format!("{shape}: too few steps; raise --seconds"))?;
        let row = Row {
            shape: shape.to_string(),
            rows,
            parameters: measured.num_params,
            with_optimizer: !options.no_optimizer,
            operations_per_token: shape.operations_per_token(VOCABULARY, SEQ_LEN),
            step_tokens_per_second,
            peak_operations_per_second: peak,
            peak_memory_mib: measured.peak_memory_mb,
        };
        if options.json {
            println!("{}", serde_json::to_string(&row)?);
        } else {
            print_row(&row);
        }
    }
    Ok(())
}

/// Tokens a second in the median stretch of the training that was just watched.
fn speed(events: &Receiver<Event>) -> Option<f64> {
    let watched: Vec<_> = events
        .try_iter()
        .filter_map(|event| match event {
            Event::Training { elapsed_seconds, tokens, .. } if elapsed_seconds > WARM_UP => {
                Some((elapsed_seconds, tokens as f64))
            }
            _ => None,
        })
        .collect();
    // Neighbouring stretches share an event; none is shorter than a step.
    let last = watched.len().checked_sub(1).filter(|&last| last > 0)?;
    let stretches = STRETCHES.min(last);
    let mut speeds: Vec<_> = (0..stretches)
        .map(|i| (watched[i * last / stretches], watched[(i + 1) * last / stretches]))
        .map(|((begun, before), (ended, after))| (after - before) / (ended - begun))
        .collect();
    speeds.sort_by(f64::total_cmp);
    Some(speeds[stretches / 2])
}

fn print_head(threads: usize, peak: Peak) {
    let giga =
        |speed: Option<f64>| speed.map_or("-".to_owned(), |speed| format!("{:.0}", speed / 1e9));
    let (f32, bf16) = (giga(peak.f32), giga(peak.bf16));
    println!("{threads} threads; at best {f32} GFLOP/s in f32, {bf16} in bf16\n");
    println!(
        "{:>7} {:>5} {:>11} {:>12} {:>9} {:>8} {:>7} {:>8} {:>11}",
        "shape",
        "rows",
        "parameters",
        "MFLOP/token",
        "tokens/s",
        "GFLOP/s",
        "of f32",
        "of bf16",
        "memory/MiB"
    );
}

fn print_row(row: &Row) {
    let speed = row.step_tokens_per_second * row.operations_per_token;
    let share = |peak: Option<f64>| {
        peak.map_or("-".to_owned(), |peak| format!("{:.0} %", 100.0 * speed / peak))
    };
    let whole =
        |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.0}"));
    println!(
        "{:>7} {:>5} {:>11} {:>12.2} {:>9.0} {:>8.1} {:>7} {:>8} {:>11}",
        row.shape,
        row.rows,
        whole(row.parameters.map(|count| count as f64)),
        row.operations_per_token / 1e6,
        row.step_tokens_per_second,
        speed / 1e9,
        share(row.peak_operations_per_second.f32),
        share(row.peak_operations_per_second.bf16),
        whole(row.peak_memory_mib),
    );
}
