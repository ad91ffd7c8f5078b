//! The child's side: the embedding program run again, to load one trainer and serve one parent.
//!
//! A worker lives for one task. Its exit is the only unloading there is. It learns what to do from
//! the pipe that was its standard input and answers on the one that was its standard output; the
//! trainer finds both replaced, so that nothing it prints can be taken for an answer.

pub(crate) mod protocol;
pub(crate) mod sandbox;
mod session;

use crate::{
    Budget,
    data::Loader,
    plugin::{Failure, LoadedTrainer, Plugin},
};
use crossbeam_channel::{Receiver, Sender};
use overnight_plugin_api::Windows;
use protocol::{Answer, Request, read_frame, write_frame};
use sandbox::Confinement;
use session::Run;
use std::{fs::File, io, process, sync::Arc};

/// Set in a worker's environment, and nowhere else.
pub(crate) const VARIABLE: &str = "OVERNIGHT_WORKER";

/// Set where this program is to confine itself and then become another: a compiler, which cargo puts
/// behind a wrapper's name.
const COMPILER: &str = "OVERNIGHT_COMPILER";

/// What the environment of cargo needs, for this program to be a wrapper that confines a compiler.
pub(crate) fn compiler_variable(confinement: &Confinement) -> Option<(&'static str, String)> {
    Some((COMPILER, serde_json::to_string(confinement).ok()?))
}

/// Confines this process and replaces it by the program that its arguments name.
#[cfg(unix)]
fn become_compiler(confinement: &str) -> io::Error {
    let confinement: Confinement = match serde_json::from_str(confinement) {
        Ok(confinement) => confinement,
        Err(error) => return error.into(),
    };
    // What the system lacks, the study has learned from its first worker.
    let _ = confinement.enter();
    let mut arguments = std::env::args_os().skip(1);
    let mut command = process::Command::new(arguments.next().unwrap_or_default());
    std::os::unix::process::CommandExt::exec(command.args(arguments).env_remove(COMPILER))
}

#[cfg(not(unix))]
fn become_compiler(_confinement: &str) -> io::Error {
    io::Error::other("there is no sandbox for compilers on this system")
}

/// Turns this process into a worker if it was started as one, and never returns then.
///
/// Call it first thing in `main`, before threads are started or arguments read: a study starts the
/// program that it lives in again for every trial.
pub fn run_if_worker() {
    if let Ok(confinement) = std::env::var(COMPILER) {
        let error = become_compiler(&confinement);
        eprintln!("cannot become the compiler: {error}");
        process::exit(1);
    }
    if is_worker() {
        process::exit(match serve() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("worker: {error}");
                1
            }
        });
    }
}

/// Trains in this very process, without a worker, and says how many tokens were handed out: for
/// benches and tests, which give up the clock's guard and the process's end for it.
pub fn train_in_process(
    trainer: &mut LoadedTrainer,
    loader: Loader,
    max_seq_len: usize,
    budget: Budget,
) -> Result<u64, Failure> {
    let mut run = Run { loader, max_seq_len, listener: Box::new(|_| {}) }.begin(budget);
    trainer.train(&mut run)?;
    Ok(run.progress().tokens)
}

/// Whether this process was started by a study, as its worker.
pub(crate) fn is_worker() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Where answers go; shared by the session and the loop of requests, which take turns.
pub(crate) type Replies = Arc<parking_lot::Mutex<File>>;

fn serve() -> io::Result<()> {
    let (requests, replies) = take_pipes()?;
    let replies: Replies = Arc::new(parking_lot::Mutex::new(replies));
    let requests = listen(requests);
    let mut task = Task::default();
    for request in requests {
        let answer = task.answer(request, &replies);
        write_frame(&mut *replies.lock(), &answer)?;
    }
    Ok(())
}

/// Takes standard input and output for the conversation with the parent, and leaves the trainer an
/// empty input and an output that ends in its log.
#[cfg(unix)]
fn take_pipes() -> io::Result<(File, File)> {
    use rustix::{io::fcntl_dupfd_cloexec, stdio};
    let requests = fcntl_dupfd_cloexec(stdio::stdin(), 3)?;
    let replies = fcntl_dupfd_cloexec(stdio::stdout(), 3)?;
    stdio::dup2_stdin(File::open("/dev/null")?)?;
    stdio::dup2_stdout(stdio::stderr())?;
    Ok((requests.into(), replies.into()))
}

#[cfg(not(unix))]
fn take_pipes() -> io::Result<(File, File)> {
    Err(io::Error::other("workers run on Unix only so far"))
}

/// Reads requests on a thread of its own, which ends the process when the parent is gone: a worker
/// in the middle of training must not outlive its study.
fn listen(mut requests: File) -> Receiver<Request> {
    let (sender, receiver): (Sender<Request>, _) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        loop {
            match read_frame(&mut requests) {
                Ok(Some(request)) => {
                    if sender.send(request).is_err() {
                        return;
                    }
                }
                Ok(None) => process::exit(0),
                Err(error) => {
                    eprintln!("worker: cannot read a request: {error}");
                    process::exit(1);
                }
            }
        }
    });
    receiver
}

/// What this worker has been given so far.
#[derive(Default)]
struct Task {
    trainer: Option<LoadedTrainer>,
    run: Option<Run>,
    vocab_size: usize,
}

impl Task {
    fn answer(&mut self, request: Request, replies: &Replies) -> Answer {
        match self.respond(request, replies) {
            Ok(answer) => answer,
            Err(failure) => Answer::Failed(failure),
        }
    }

    fn respond(&mut self, request: Request, replies: &Replies) -> Result<Answer, Failure> {
        match request {
            Request::Greet => Ok(Answer::Done),
            Request::Confine(confinement) => Ok(Answer::Confined { missing: confinement.enter() }),
            Request::Start { library, setup, training } => {
                let plugin = match Plugin::load(&library) {
                    Ok(plugin) => plugin,
                    Err(error) => return Ok(Answer::LoadFailed(error.to_string())),
                };
                self.vocab_size = setup.vocab_size;
                self.trainer = Some(plugin.trainer(&setup.into())?);
                if let Some(data) = training {
                    let loader = match Loader::open(&data.tokens, data.bos, setup.seed) {
                        Ok(loader) => loader,
                        Err(error) => return Ok(Answer::LoadFailed(error.to_string())),
                    };
                    let replies = Arc::clone(replies);
                    let listener = Box::new(move |progress| {
                        // A parent that is gone ends this process by itself.
                        let _ = write_frame(&mut *replies.lock(), &Answer::Progress(progress));
                    });
                    self.run = Some(Run { loader, max_seq_len: setup.max_seq_len, listener });
                }
                Ok(Answer::Done)
            }
            Request::Train { budget } => {
                let Some(run) = self.run.take() else { return Err(out_of_turn()) };
                let mut run = run.begin(budget);
                self.trainer()?.train(&mut run)?;
                Ok(Answer::Trained(run.finish()))
            }
            Request::Save { checkpoint } => {
                self.trainer()?.save(&checkpoint)?;
                Ok(Answer::Done)
            }
            Request::Load { checkpoint } => {
                self.trainer()?.load(&checkpoint)?;
                Ok(Answer::Done)
            }
            Request::Score { seq_len, inputs, targets } => {
                let windows = Windows {
                    inputs: &inputs,
                    targets: &targets,
                    batch_size: inputs.len() / seq_len,
                    seq_len,
                };
                let mut nats = vec![f32::NAN; targets.len()];
                self.trainer()?.score(windows, &mut nats)?;
                Ok(Answer::Numbers(nats))
            }
            Request::Logits { prefix } => {
                let mut logits = vec![f32::NAN; self.vocab_size];
                self.trainer()?.logits(&prefix, &mut logits)?;
                Ok(Answer::Numbers(logits))
            }
        }
    }

    fn trainer(&mut self) -> Result<&mut LoadedTrainer, Failure> {
        self.trainer.as_mut().ok_or_else(out_of_turn)
    }
}

fn out_of_turn() -> Failure {
    Failure { panicked: false, message: "the worker was asked out of turn".to_owned() }
}
