//! The same loop on something that is no trainer: a command that compiles a file, runs it, and
//! prints how fast it was. More is better.
//!
//! ```text
//! cargo run --release --example matmul
//! ```

use overnight::{CommandObjective, Error, Event, Study, report};
use std::{
    io::{Write, stdout},
    path::Path,
    time::Duration,
};

fn main() -> Result<(), Error> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/matmul");
    let command = ["sh", "-c", "rustc -O -o matmul kernel.rs && ./matmul"];
    let objective = CommandObjective::new(project, "kernel.rs", command)
        .maximize("gflops")
        .limit(Duration::from_secs(60));

    let observer = |event: &Event| {
        if let Event::Finished(trial) = event {
            let score = trial.score().map_or("-".to_owned(), |score| format!("{score:.2}"));
            let (status, what) = (trial.status, &trial.description);
            let _ = writeln!(stdout(), "{score:>8} GFLOP/s  {status:?}  {what}");
        }
    };
    // The built-in tuner turns the constants of any Rust file that says what may be tried.
    let mut study = Study::builder("runs/matmul").objective(objective).observer(observer).open()?;
    study.optimize(Some(20))?;
    let trials = study.trials().to_vec();
    report::write_chart(study.dir(), &trials)?;
    drop(study); // when all that it told is printed
    let _ = write!(stdout(), "{}", report::summary(&trials));
    Ok(())
}
