//! What the race saves and what it loses: the tables of docs/race.md.
//!
//! In nights that were run in full, raced afterwards over their recorded curves:
//!
//! ```text
//! cargo run --release --example overnight -- --dir runs/full --no-race
//! cargo run --release --example race -- runs/full
//! ```
//!
//! And in simulated ones, of which there can be enough to count what is rarely lost:
//!
//! ```text
//! cargo run --release --example race -- --simulated 200
//! ```

use overnight::{
    Config, Error, JudgeRule, Ledger,
    race::{
        HOPELESS,
        replay::Replay,
        simulation::{WORLDS, night},
    },
};
use std::{path::Path, process::ExitCode};

/// Probabilities of a win below which a trial is stopped.
const THRESHOLDS: [f64; 5] = [0.005, 0.01, 0.02, 0.05, 0.1];

/// A budget as it is meant to be.
const FIVE_MINUTES: f64 = 300.0;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            eprintln!("usage: race FOLDER…, of studies with --no-race; or race --simulated NIGHTS");
            return ExitCode::from(2);
        }
        ["--simulated", nights] => {
            simulated(nights.parse().unwrap_or(200));
            Ok(())
        }
        folders => folders.iter().try_for_each(|folder| recorded(Path::new(folder))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("race: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A recorded night, under several thresholds.
fn recorded(folder: &Path) -> Result<(), Error> {
    let trials = Ledger::read(folder)?;
    let judge = Config::read(folder)?.judge;
    let night = Replay::of(&trials, judge, HOPELESS);
    let times: Vec<_> = trials.iter().filter_map(|t| t.measurement.training_seconds).collect();
    let budget = times.iter().sum::<f64>() / night.full.budgets;
    let folder = folder.display();
    println!("{folder}: {} candidates came in, {} were kept\n", night.candidates, night.kept);
    println!("| stopped below | stopped | kept ones lost | budgets | trials | of five minutes |");
    println!("|---|---|---|---|---|---|");
    for threshold in THRESHOLDS {
        let Replay { stopped, lost, full, raced, .. } = Replay::of(&trials, judge, threshold);
        let more = |seconds: f64| full.seconds(seconds) / raced.seconds(seconds);
        println!(
            "| {} | {} | {} | {:.1} of {:.1} | {:.2} × | {:.2} × |",
            name(threshold),
            stopped.len(),
            lost.len(),
            raced.budgets,
            full.budgets,
            more(budget),
            more(FIVE_MINUTES),
        );
    }
    println!();
    for (trial, forecast) in night.stopped {
        let change = trials[trial].cost().zip(trials[trial].parent.and_then(|p| trials[p].cost()));
        let change =
            change.map_or(String::new(), |(cost, parent)| format!("{:+.4}", cost - parent));
        println!("trial {trial}, {change}: {forecast}");
    }
    Ok(())
}

/// Many nights in each simulated world, under several thresholds.
fn simulated(nights: u64) {
    println!("{nights} nights of 100 measurements in each world\n");
    println!("| world | stopped below | kept ones lost | trials of five minutes |");
    println!("|---|---|---|---|");
    // Worlds have nothing to do with each other.
    let rows: Vec<String> = std::thread::scope(|scope| {
        let tables = WORLDS.map(|world| {
            scope.spawn(move || {
                let nights: Vec<_> = (0..nights).map(|seed| night(&world, seed)).collect();
                THRESHOLDS.map(|threshold| {
                    let (mut kept, mut lost, mut full, mut raced) = (0, 0, 0.0, 0.0);
                    for trials in &nights {
                        let replay = Replay::of(trials, JudgeRule::default(), threshold);
                        kept += replay.kept;
                        lost += replay.lost.len();
                        full += replay.full.seconds(FIVE_MINUTES);
                        raced += replay.raced.seconds(FIVE_MINUTES);
                    }
                    let share = 100.0 * lost as f64 / kept as f64;
                    let (world, threshold, more) = (world.name, name(threshold), full / raced);
                    format!("| {world} | {threshold} | {share:.2} % of {kept} | {more:.2} × |")
                })
            })
        });
        tables
            .into_iter()
            .flat_map(|table| table.join().expect("a simulation has nothing to fail at"))
            .collect()
    });
    rows.iter().for_each(|row| println!("{row}"));
}

fn name(threshold: f64) -> String {
    let is_default = if threshold == HOPELESS { ", the default" } else { "" };
    format!("{} %{is_default}", 100.0 * threshold)
}
