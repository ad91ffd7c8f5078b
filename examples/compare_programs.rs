//! Which program, or proposer, makes the faster progress: equal budgets, one baseline, in turn.
//!
//! ```text
//! cargo run --release --example compare_programs -- --program program.md --program bold.md
//! ```

use clap::{CommandFactory, Parser, error::ErrorKind};
use overnight::{
    Budget, Error, Status, StopHandle, Study,
    comparison::{Comparison, Contender, Turn},
    data::DataSpec,
    proposer::ProposerSpec,
};
use std::{fs, io::Write, num::NonZeroUsize, path::PathBuf, process::ExitCode};

/// Runs programs, proposers, or all combinations of them against each other, trial by trial.
///
/// Press Ctrl-C for a report of what is complete: the same command goes on from there.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The comparison's folder, created or resumed
    #[arg(long, default_value = "runs/compare")]
    dir: PathBuf,
    /// Trials beyond the baseline, for each contender in each repetition
    #[arg(long, value_name = "N", default_value = "20")]
    trials: NonZeroUsize,
    /// What each trial may spend on training: 5m, 90s or 200steps
    #[arg(long, default_value_t)]
    budget: Budget,
    /// Nights for each contender; one leaves it open what was luck
    #[arg(long, value_name = "R", default_value = "3")]
    repeats: NonZeroUsize,
    /// Research instructions; give several to compare them
    #[arg(long = "program", value_name = "FILE", default_value = "program.md")]
    programs: Vec<PathBuf>,
    /// Who writes the next source: tuner, replay:DIR, command:claude, chat:MODEL and the like; give
    /// several to compare them
    #[arg(long = "proposer", value_name = "SPEC", default_value = "tuner")]
    proposers: Vec<ProposerSpec>,
    /// A trainer crate [default: the GPT that comes with overnight]
    #[arg(long, value_name = "DIR")]
    trainer: Option<PathBuf>,
    /// builtin, or a .txt file, or a folder of them
    #[arg(long, value_name = "SPEC", default_value_t = DataSpec::Builtin)]
    data: DataSpec,
    /// The first repetition's seed; the others' follow it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();
    let options = Options::parse();
    if options.programs.len() * options.proposers.len() < 2 {
        let problem = "there is nothing to compare: give a second --program or --proposer";
        Options::command().error(ErrorKind::TooFewValues, problem).exit();
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare_programs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Error> {
    let stop = StopHandle::on_interrupt()?;
    let (budget, data, trainer) = (options.budget, options.data.clone(), options.trainer.clone());
    let mut comparison = Comparison::new(&options.dir, move |dir| {
        let study = Study::builder(dir).budget(budget).data(data.clone());
        match &trainer {
            Some(trainer) => study.trainer(trainer),
            None => study,
        }
    })
    .repetitions(options.repeats.get())
    .seed(options.seed)
    .stop_handle(stop);
    for contender in contenders(options)? {
        comparison = comparison.contender(contender);
    }
    eprintln!("preparing; the first time on a machine, that takes some minutes");
    match comparison.run(options.trials.get(), show)? {
        Some(standings) => {
            let _ = write!(std::io::stdout(), "\n{standings}");
        }
        None => {
            let why = "stopped before every contender had its first trial; nothing to compare";
            let _ = writeln!(std::io::stdout(), "{why}");
        }
    }
    Ok(())
}

/// Every program with every proposer, named after what is not the same for all.
fn contenders(options: &Options) -> Result<Vec<Contender>, Error> {
    let mut contenders = Vec::new();
    for path in &options.programs {
        let text = fs::read_to_string(path).map_err(|source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let program = path.file_stem().unwrap_or_default().to_string_lossy();
        for proposer in &options.proposers {
            let name = match (options.programs.len(), options.proposers.len()) {
                (1, _) => proposer.to_string(),
                (_, 1) => program.to_string(),
                _ => format!("{program}+{proposer}"),
            };
            let proposer = proposer.clone();
            let contender = Contender::new(name, move |seed| proposer.build(seed));
            contenders.push(contender.program(&text));
        }
    }
    Ok(contenders)
}

/// A line for each trial.
fn show(turn: Turn<'_>) {
    let Turn { repetition, contender, trial, .. } = turn;
    let status = match trial.status {
        Status::Keep => "keep",
        Status::Discard => "discard",
        Status::Crash => "crash",
    };
    let score = trial.score().map(|score| format!("{score:.6}")).unwrap_or_default();
    // Whoever reads may have gone; the night goes on.
    let _ = writeln!(
        std::io::stdout(),
        "night {:<3} trial {:<4} {contender:<16} {status:<8} {score:<9} {}",
        repetition + 1,
        trial.trial,
        trial.description
    );
}
