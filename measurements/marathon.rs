//! A very long night, to see whether anything grows with the trials behind it: seconds a trial, the memory of
//! this program, and what it takes to open the study again.
//!
//! ```text
//! cargo run --release --example marathon
//! ```
//!
//! The loop is the real one: proposals replayed from a folder, a work tree and commits in git, a
//! command that is run and killed in time, the judge, the ledger with an fsync a trial, table and
//! chart. Only what is measured costs nothing: the command computes a number from the constants of
//! the edited file, and some noise from the trial's seed.

use clap::Parser;
use overnight::{
    CommandObjective, Study,
    proposer::{Proposer, Replay, Tuner},
    report,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{
    error::Error,
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Looks for growth over a very long night.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Trials beyond the baseline and the control runs
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    trials: usize,
    /// A row is printed for so many of them
    #[arg(long, value_name = "N", default_value_t = 1000)]
    every: usize,
    /// The built-in tuner proposes, instead of a folder being replayed
    #[arg(long)]
    tuner: bool,
}

/// A point's squared distance from where all constants are 0.3, and noise.
const COMMAND: &str = r#"/^const/ { d = $5 - 0.3; sum += d * d }
END { srand(ENVIRON["OVERNIGHT_SEED"] % 65536); print "METRIC loss=" 1 + sum + 0.002 * rand() }"#;

const CONSTANTS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let place = tempfile::tempdir()?;
    let (project, replayed) = (place.path().join("project"), place.path().join("replayed"));
    let mut random = ChaCha8Rng::seed_from_u64(0);
    write(&project.join("point.rs"), &point(1.0, &mut random))?;
    let proposer: Box<dyn Proposer> = if options.tuner {
        Box::new(Tuner::new(0))
    } else {
        for number in 0..options.trials {
            // Nearer and nearer, so that some are better to the very end.
            let distance = (-3.0 * number as f64 / options.trials as f64).exp();
            let name = format!("{number:05}-a-point.rs");
            write(&replayed.join(name), &point(distance, &mut random))?;
        }
        Box::new(Replay::open(&replayed)?)
    };

    let (observer, events) = overnight::events();
    let listener = std::thread::spawn(move || events.iter().count());
    let describe = || {
        let objective = CommandObjective::new(&project, "point.rs", ["awk", COMMAND, "point.rs"])
            .minimize("loss")
            .limit(Duration::from_secs(10));
        Study::builder(place.path().join("study")).objective(objective)
    };
    let mut study = describe().proposer(proposer).observer(observer).open()?;

    println!(
        "{:>15} {:>10} {:>13} {:>6} {:>10}",
        "trials", "ms a trial", "of processor", "kept", "memory/MiB"
    );
    let mut left = options.trials;
    while left > 0 {
        let (begun, used, before) = (Instant::now(), processor_ms(), study.trials().len());
        study.optimize(Some(left.min(options.every)))?;
        left = left.saturating_sub(options.every);
        let done = study.trials().len();
        if done == before {
            break;
        }
        let trials = (done - before) as f64;
        println!(
            "{:>15} {:>10.1} {:>13} {:>6} {:>10}",
            format!("{before} to {}", done - 1),
            begun.elapsed().as_secs_f64() * 1e3 / trials,
            used.zip(processor_ms()).map_or("-".to_owned(), |(before, after)| {
                format!("{:.1}", (after - before) / trials)
            }),
            study.trials()[before..].iter().filter(|trial| trial.is_kept()).count(),
            memory_mib().map_or("-".to_owned(), |mib| format!("{mib:.1}")),
        );
    }
    let begun = Instant::now();
    let trials = study.trials().to_vec();
    report::write_chart(study.dir(), &trials)?;
    println!("chart of all of them: {:.2} s", begun.elapsed().as_secs_f64());
    drop((study, trials));
    listener.join().expect("the listener only counts");
    for _ in 0..3 {
        let begun = Instant::now();
        let trials = describe().open()?.trials().len();
        println!("opened with {trials} trials: {:.2} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A source whose constants are so far from the best, or up to twice that.
fn point(distance: f64, random: &mut ChaCha8Rng) -> String {
    let mut unit = || f64::from(random.next_u32()) / 2f64.powi(32);
    let mut text = String::new();
    for constant in 0..CONSTANTS {
        let value = 0.3 + distance * (unit() - 0.5) * (1.0 + unit());
        let _ = writeln!(text, "const C{constant}: f64 = {value:.6} ; // search: uniform -1..1");
    }
    text
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, text)
}

/// Processor time of this program and of those that it has run, where the system tells: that does not
/// depend on what else the machine has to do.
fn processor_ms() -> Option<f64> {
    const MS_PER_TICK: f64 = 10.0; // of what Linux shows to programs
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // User and system time, own and children's: fields 14 to 17; the second one may hold spaces.
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(4);
    fields.map(|ticks| ticks.parse::<f64>().ok()).sum::<Option<f64>>().map(|t| t * MS_PER_TICK)
}

/// What this program holds in memory, where the system tells.
fn memory_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? / 1024.0)
}
