//! What the race would have saved and lost in a night that was run in full: the table of
//! docs/race.md.
//!
//! ```text
//! cargo run --release --example overnight -- --dir runs/full --no-race
//! cargo run --release --example race -- runs/full
//! ```

use overnight::{
    Config, Error, Ledger,
    race::{HOPELESS, replay::Replay},
};
use std::{path::Path, process::ExitCode};

/// Probabilities of a win below which a trial is stopped.
const THRESHOLDS: [f64; 7] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1];

/// The budget of a night as it is meant to be.
const FIVE_MINUTES: f64 = 300.0;

fn main() -> ExitCode {
    let folders: Vec<_> = std::env::args_os().skip(1).collect();
    if folders.is_empty() {
        eprintln!("usage: race FOLDER…, of studies that were run with --no-race");
        return ExitCode::from(2);
    }
    for folder in folders {
        if let Err(error) = replay(Path::new(&folder)) {
            eprintln!("race: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn replay(folder: &Path) -> Result<(), Error> {
    let trials = Ledger::read(folder)?;
    let judge = Config::read(folder)?.judge;
    let night = Replay::of(&trials, judge, 0.0);
    let times: Vec<_> = trials.iter().filter_map(|t| t.measurement.training_seconds).collect();
    let budget = times.iter().sum::<f64>() / night.full.budgets;
    println!("{}: {} candidates came in, {} kept\n", folder.display(), night.candidates, night.kept);
    println!("| stopped below | stopped | kept, but lost | budgets | trials | of five minutes |");
    println!("|---|---|---|---|---|---|");
    for threshold in THRESHOLDS {
        let Replay { stopped, lost, full, raced, .. } = Replay::of(&trials, judge, threshold);
        let more = |seconds: f64| full.seconds(seconds) / raced.seconds(seconds);
        println!(
            "| {} %{} | {} | {} | {:.1} of {:.1} | {:.2} × | {:.2} × |",
            100.0 * threshold,
            if threshold == HOPELESS { ", the default" } else { "" },
            stopped.len(),
            lost.len(),
            raced.budgets,
            full.budgets,
            more(budget),
            more(FIVE_MINUTES),
        );
    }
    println!();
    Ok(())
}
