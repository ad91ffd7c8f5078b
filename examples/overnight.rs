//! Research while you sleep: trials of a trainer, one after the other, until Ctrl-C.
//!
//! ```text
//! cargo run --release --example overnight
//! ```

mod view;

use clap::Parser;
use overnight::{
    Ablation, Budget, Certificate, CommandObjective, Error, Event, JudgeRule, Ledger, Sandbox,
    StopHandle, Study, Until,
    data::DataSpec,
    proposer::{Agent, Allowance, Chat, ChatOptions, Price, Proposer, ProposerSpec},
    report,
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use view::{Planned, View};

/// Trains, scores and keeps or discards one edited trainer after the other.
///
/// Press Ctrl-C, or send SIGTERM or SIGHUP, to end the night: what is recorded stays, and the same command goes on from there.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The study's folder, created or resumed [default: runs/ and the date]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Stop after this many trials beyond the baseline [default: never]
    #[arg(long, value_name = "N")]
    trials: Option<usize>,
    /// Begin no other trial after this time, such as 8h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    hours: Option<Duration>,
    /// Stop when the best trial has this score
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    target: Option<f64>,
    /// Stop when this many trials in a row were not kept
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// What each trial may spend on training: 5m, 90s or 200steps; with --objective, the time after
    /// which a command is killed is twice that, as in autoresearch
    #[arg(long, default_value_t)]
    budget: Budget,
    /// A trainer crate [default: the GPT that comes with overnight]
    #[arg(long, value_name = "DIR")]
    trainer: Option<PathBuf>,
    /// What to train on: cpu, cuda for the first card, or cuda:1 for another
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// The research instructions
    #[arg(long, value_name = "FILE", default_value = "program.md")]
    program: PathBuf,
    /// builtin, or a .txt file, or a folder of them
    #[arg(long, value_name = "SPEC", default_value_t = DataSpec::Builtin)]
    data: DataSpec,
    /// Distinct tokens of the tokenizer that is trained on the data
    #[arg(long, value_name = "N", conflicts_with = "objective")]
    vocab: Option<usize>,
    /// Tokens of the longest sequence that is trained on, and of every window of the exam
    #[arg(long, value_name = "N", conflicts_with = "objective")]
    seq_len: Option<usize>,
    /// Windows of validation text in the exam
    #[arg(long, value_name = "N", conflicts_with = "objective")]
    exam_windows: Option<usize>,
    /// Threads of the processor that a trainer computes on [default: one a core]
    #[arg(long, value_name = "N", conflicts_with = "objective")]
    threads: Option<usize>,
    /// Who writes the next source: tuner, replay:DIR, command:claude (codex, gemini, opencode,
    /// aider, pi, or any command line) or chat:MODEL; several share the night by what they gain
    #[arg(long, value_name = "SPEC", default_value = "tuner")]
    proposer: Vec<ProposerSpec>,
    /// What proposers may use up in all: 5usd or 2000000tokens [default: no limit]
    #[arg(long, value_name = "LIMIT")]
    spend: Option<Allowance>,
    /// What a chat model costs in US dollars, by a million tokens read and written: 3/15
    #[arg(long, value_name = "IN/OUT")]
    price: Option<Price>,
    /// How long a coding agent may take over a proposal
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    agent_limit: Duration,
    /// Ask every proposer when the trial before is over; an agent or a model is otherwise asked while
    /// that trains
    #[arg(long)]
    no_ahead: bool,
    /// Measure the baseline this many times more first, to know the noise of a measurement
    #[arg(long, value_name = "N", default_value_t = 2)]
    controls: usize,
    /// In the end, try the best without each change that is weakly supported, and measure baseline
    /// and best again, all under this many fresh seeds
    #[arg(long, value_name = "N", default_value_t = 0)]
    certify: usize,
    /// Measure this recorded trial again, from its stored source and under its seed, and nothing else
    #[arg(long, value_name = "TRIAL", conflicts_with_all = ["trials", "certify"])]
    rerun: Option<usize>,
    /// By which rule a trial is kept: posterior, what can be expected to be better; greedy, what
    /// measured better; or significant, what is better beyond the noise when measured again
    #[arg(long, value_name = "RULE", default_value_t)]
    judge: JudgeRule,
    /// Let every trial spend its whole budget, also where its loss makes a win improbable
    #[arg(long)]
    no_race: bool,
    /// Refuse to run where trainers cannot be confined entirely
    #[arg(long)]
    strict_sandbox: bool,
    /// Let proposals contain `unsafe`
    #[arg(long)]
    allow_unsafe: bool,
    /// How long to wait for a quiet machine before a trial that another program disturbed is measured again
    /// [default: as long as the budget]
    #[arg(long, value_name = "DURATION")]
    wait_for_quiet: Option<Budget>,
    /// Let every measurement count, whatever else the machine does meanwhile
    #[arg(long)]
    shared_machine: bool,
    /// Instead of a trainer: a command that prints `METRIC name=value` or `name: value`, run in the
    /// folder that --trainer names
    #[arg(long, value_name = "COMMAND", requires = "trainer", requires = "edit")]
    objective: Option<String>,
    /// The file that is edited, with --objective
    #[arg(long, value_name = "FILE", requires = "objective")]
    edit: Option<String>,
    /// The name of the number that counts, with --objective
    #[arg(long, value_name = "NAME", default_value = "val_bpb", requires = "objective")]
    metric: String,
    /// More of it is better, with --objective
    #[arg(long, requires = "objective")]
    maximize: bool,
    /// Every seed of the study derives from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// One JSON event a line on standard output, instead of progress bars
    #[arg(long)]
    json: bool,
}

/// What a trainer computes on.
#[derive(Debug, Clone, Copy)]
enum Device {
    Cpu,
    Cuda(usize),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
        };
        ordinal.map(Self::Cuda).ok_or_else(|| "cpu, cuda or cuda:1".to_owned())
    }
}

pub fn main() -> ExitCode {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overnight: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Error> {
    if options.rerun.is_some() {
        // What is measured again must be there; a mistyped folder would become a study.
        Ledger::read(&options.dir.clone().unwrap_or_else(todays_dir))?;
    }
    let stop = StopHandle::on_interrupt()?;
    let (reader, stopped) = (stop.clone(), stop.clone());
    let planned = Planned { trials: options.trials, controls: options.controls };
    let mut view = View::new(options.json, options.budget, planned);
    let observer = move |event: &Event| {
        // With nobody left who reads, as behind `| head -1`, the night is over.
        if view.show(event).is_err() {
            reader.stop();
        }
    };
    let study = study(options, stop, observer);
    if let Some(trial) = options.rerun {
        return study.and_then(|mut study| rerun(&mut study, trial)).map(|said| say(&said));
    }
    let result = study.and_then(|mut study| {
        let ended = study.optimize(until(options));
        let certificate = ended.and_then(|ended| match options.certify {
            0 => Ok((ended, None)),
            pairs => Ok((ended, study.certify(pairs)?)),
        });
        // What is recorded is worth a report, whatever ended the night.
        let trials = study.trials().to_vec();
        let chart = report::write_chart(study.dir(), &trials);
        let (ended, certificate) = certificate?;
        chart?;
        Ok((study.dir().to_owned(), trials, ended, certificate))
    });
    // The study is gone, and everything that it told has been shown.
    let (dir, trials, ended, certificate) = result?;
    if !options.json {
        say(&report::summary(&trials));
        say(&format!("ended:            {ended}\n"));
        if let Some(Certificate { gain, pairs, ablations, .. }) = certificate {
            for Ablation { of, loss, dropped, .. } in ablations {
                let loss = loss.map_or("nothing that works".to_owned(), |loss| loss.to_string());
                let fate = if dropped { "dropped" } else { "stays" };
                say(&format!("ablation:         without trial {of} worse by {loss}: it {fate}\n"));
            }
            say(&format!("certified_gain:   {gain} over {pairs} fresh seeds\n"));
        } else if options.certify > 0 {
            let improved = trials.iter().any(|trial| trial.trial > 0 && trial.is_kept());
            let why = match (improved, stopped.is_stopped()) {
                (false, _) => "nothing better than the baseline was kept",
                (true, true) => "stopped before it was through",
                (true, false) => "baseline or best came to nothing under a fresh seed, see rerun/",
            };
            say(&format!("certified_gain:   none: {why}\n"));
        }
        say(&format!("chart:            {}\n", dir.join("progress.svg").display()));
    }
    Ok(())
}

/// What ends the night.
fn until(options: &Options) -> Until {
    let mut until = Until::from(options.trials);
    if let Some(time) = options.hours {
        until = until.elapsed(time);
    }
    if let Some(score) = options.target {
        until = until.score(score);
    }
    if let Some(trials) = options.patience {
        until = until.without_improvement(trials);
    }
    until
}

/// Prints, to whoever still reads.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// What a recorded trial comes to now, beside what it came to then.
fn rerun(study: &mut Study, trial: usize) -> Result<String, Error> {
    let recorded = study.trials().get(trial).cloned();
    let seed = recorded.as_ref().map_or(0, |recorded| recorded.seed);
    let again = study.rerun(trial, seed)?;
    let (Some(recorded), Some(again)) = (recorded, again) else { return Ok(String::new()) };
    let score = |score: Option<f64>| score.map_or("none".to_owned(), |score| format!("{score:.9}"));
    let name = recorded.measurement.name_of_score();
    let mut said = format!("---\ntrial:            {trial} ({})\n", recorded.description);
    said += &format!("recorded {name}: {}\n", score(recorded.score()));
    said += &format!("measured {name}: {}\n", score(again.measurement.score()));
    if let Some(reason) = again.reason {
        said += &format!("it came to nothing: {reason}\n");
    }
    Ok(said)
}

fn study(
    options: &Options,
    stop: StopHandle,
    observer: impl FnMut(&Event) + Send + 'static,
) -> Result<Study, Error> {
    let dir = options.dir.clone().unwrap_or_else(todays_dir);
    let mut builder = Study::builder(dir)
        .budget(options.budget)
        .data(options.data.clone())
        .seed(options.seed)
        .controls(options.controls)
        .judge(options.judge)
        .program_file(&options.program)?
        .stop_handle(stop)
        .observer(observer);
    if let Some(vocab) = options.vocab {
        builder = builder.vocab_size(vocab);
    }
    if let Some(tokens) = options.seq_len {
        builder = builder.max_seq_len(tokens);
    }
    if let Some(windows) = options.exam_windows {
        builder = builder.exam_windows(windows);
    }
    if let Some(threads) = options.threads {
        builder = builder.threads(threads);
    }
    if let Device::Cuda(ordinal) = options.device {
        builder = builder.cuda_device(ordinal);
    }
    for proposer in &options.proposer {
        builder = builder.proposer(hire(options, proposer)?);
    }
    if options.strict_sandbox {
        builder = builder.sandbox(Sandbox::Strict);
        eprintln!("a worker is kept from");
        for closed in overnight::worker::CLOSED {
            eprintln!("  {closed}");
        }
    }
    if options.no_race {
        builder = builder.without_race();
    }
    if options.no_ahead {
        builder = builder.without_thinking_ahead();
    }
    if let Some(patience) = options.wait_for_quiet.and_then(|patience| patience.duration()) {
        builder = builder.wait_for_quiet(patience);
    }
    if options.shared_machine {
        builder = builder.shared_machine();
    }
    if options.allow_unsafe {
        builder = builder.allow_unsafe();
    }
    if let Some(spend) = options.spend {
        builder = builder.allowance(spend);
    }
    match (&options.trainer, &options.objective) {
        (Some(folder), Some(command)) => {
            builder = builder.objective(objective(options, folder, command)?);
        }
        (Some(folder), None) => builder = builder.trainer(folder),
        (None, _) => {}
    }
    builder.open()
}

fn hire(options: &Options, spec: &ProposerSpec) -> Result<Box<dyn Proposer>, Error> {
    match spec {
        ProposerSpec::Command(agent) => {
            Ok(Box::new(Agent::new(agent.clone()).limit(options.agent_limit)))
        }
        ProposerSpec::Chat(chat) => {
            Ok(Box::new(Chat::new(ChatOptions { price: options.price, ..chat.clone() })?))
        }
        other => other.build(options.seed),
    }
}

fn time(text: &str) -> Result<Duration, Error> {
    match text.parse()? {
        Budget::WallClock(time) => Ok(time),
        Budget::Steps(_) => Err(Error::Budget { text: text.to_owned(), problem: "it is no time" }),
    }
}

fn objective(options: &Options, folder: &Path, command: &str) -> Result<CommandObjective, Error> {
    let edited = options.edit.clone().unwrap_or_default();
    let objective = CommandObjective::parse(folder, edited, command)?;
    let objective = match options.budget {
        Budget::WallClock(budget) => objective.limit(2 * budget),
        Budget::Steps(_) => objective,
    };
    Ok(match options.maximize {
        true => objective.maximize(&options.metric),
        false => objective.minimize(&options.metric),
    })
}

/// `runs/nov24`
fn todays_dir() -> PathBuf {
    let today = jiff::ZonedDateTime::now().strftime("%b%-d").to_string().to_lowercase();
    PathBuf::from("runs").join(today)
}
