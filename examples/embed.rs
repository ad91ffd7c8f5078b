//! A study inside another program: one closure proposes, another one hears what happens.

use overnight::{Event, StopHandle, Study, proposer::Brief, proposer::Proposal};

fn main() -> Result<(), overnight::Error> {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();

    let observer = |event: &Event| {
        if let Event::Finished(trial) = event {
            println!("{:?} {:?}", trial.measurement.val_bpb, trial.description);
        }
    };

    // Where an agent, a model or a grid of your own goes.
    let warm_down = |brief: &Brief<'_>| {
        let share = 0.2 + 0.15 * brief.trial as f64;
        let lines = brief.source.lines().map(|line| match line.split_once(" = 0.") {
            Some((constant, _)) if constant.contains("WARMDOWN") => {
                format!("{constant} = {share:?};")
            }
            _ => line.to_owned(),
        });
        let source = lines.collect::<Vec<_>>().join("\n");
        Ok(Proposal::new(source, format!("warm down over {share:.1} of the budget")))
    };

    let study = Study::builder("runs/embedded").budget("10s".parse()?).proposer(warm_down);
    // Ctrl-C and SIGTERM end the night; the same program goes on from there.
    let mut study = study.observer(observer).stop_handle(StopHandle::on_interrupt()?).open()?;
    study.optimize(Some(2))?;
    let best = study.best_trial().map(|trial| trial.trial);
    println!("the best is in {}", study.folder_of(best.unwrap_or_default()).display());
    Ok(())
}
