//! A study inside another program: a closure proposes, a channel tells what happens.

use overnight::{Event, Study, proposer::Brief, proposer::Proposal};

fn main() -> Result<(), overnight::Error> {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();

    let (observer, events) = crossbeam_channel::unbounded();
    let listener = std::thread::spawn(move || {
        for event in events {
            if let Event::Finished(trial) = event {
                println!(
                    "{:?}: {:?} {}",
                    trial.status, trial.measurement.val_bpb, trial.description
                );
            }
        }
    });

    // Where an agent, a model or a grid of your own goes.
    let halve_the_learning_rate = |brief: &Brief<'_>| {
        let factor = 0.5_f64.powi(brief.trial as i32);
        let source = brief
            .source
            .replace("progress: f64) -> f64 {", &format!("progress: f64) -> f64 {{ {factor} *"));
        Ok(Proposal { source, description: format!("learning rates times {factor}") })
    };

    let mut study = Study::builder("runs/embedded")
        .budget("10s".parse()?)
        .proposer(halve_the_learning_rate)
        .observer(observer)
        .open()?;
    study.optimize(Some(2))?;
    if let Some(best) = study.best_trial() {
        println!("best: trial {} in {}", best.trial, study.folder_of(best.trial).display());
    }
    drop(study); // and with it the sender that the listener waits for
    listener.join().expect("the listener only prints");
    Ok(())
}
