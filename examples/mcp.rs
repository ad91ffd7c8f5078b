//! A study for an interactive agent: an MCP server on standard input and output.
//!
//! Build it, then tell your agent where it is. Relative paths are taken from the folder that the
//! agent runs in, so give absolute ones.
//!
//! ```text
//! cargo build --release --example mcp
//! claude mcp add overnight -- /path/to/target/release/examples/mcp --dir /path/to/runs/interactive
//! codex mcp add overnight -- /path/to/target/release/examples/mcp --dir /path/to/runs/interactive
//! ```
//!
//! Other clients read a file like this:
//!
//! ```json
//! {
//!   "mcpServers": {
//!     "overnight": {
//!       "command": "/path/to/target/release/examples/mcp",
//!       "args": ["--dir", "/path/to/runs/interactive"]
//!     }
//!   }
//! }
//! ```
//!
//! Then say: "Improve the trainer with overnight's tools, until I stop you."

use clap::Parser;
use overnight::{Budget, Error, StopHandle, Study, data::DataSpec, mcp};
use std::{
    io::{BufReader, stdin, stdout},
    path::PathBuf,
    process::ExitCode,
};

/// Serves one study over MCP on standard input and output; its trials are an agent's.
///
/// The study ends with the conversation, or by Ctrl-C, SIGTERM or SIGHUP, and the same command goes on from
/// there.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The study's folder, created or resumed
    #[arg(long)]
    dir: PathBuf,
    /// What each trial may spend on training: 5m, 90s or 200steps
    #[arg(long, default_value_t)]
    budget: Budget,
    /// A trainer crate [default: the GPT that comes with overnight]
    #[arg(long, value_name = "DIR")]
    trainer: Option<PathBuf>,
    /// The research instructions [default: those that come with overnight]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// builtin, or a .txt file, or a folder of them
    #[arg(long, value_name = "SPEC", default_value_t = DataSpec::Builtin)]
    data: DataSpec,
    /// Every seed of the study derives from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overnight: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Error> {
    let mut builder = Study::builder(options.dir)
        .budget(options.budget)
        .data(options.data)
        .seed(options.seed)
        .stop_handle(StopHandle::on_interrupt()?);
    if let Some(trainer) = options.trainer {
        builder = builder.trainer(trainer);
    }
    if let Some(program) = options.program {
        builder = builder.program_file(program)?;
    }
    mcp::serve(builder, BufReader::new(stdin()), stdout())
}
