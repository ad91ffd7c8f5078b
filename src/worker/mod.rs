//! The child's side: the embedding program run again, to load one trainer and serve one parent.
//!
//! A worker lives for one task. Its exit is the only unloading there is. It is asked and answers
//! through the socket that was its standard input; the trainer finds an empty input and its log in
//! place of it. Batches come through the same socket, one by one: there is no file of them here.

mod closed;
#[cfg(target_os = "linux")]
mod pages;
pub(crate) mod protocol;
#[cfg(target_os = "linux")]
mod room;
pub(crate) mod sandbox;
mod session;

pub use closed::{CLOSED, Closed};

use crate::{
    data::Loader,
    error::{Error, Result},
    plugin::{Failure, LoadedTrainer, Plugin},
    record::Budget,
};
use overnight_plugin_api::Windows;
use protocol::{Answer, Progress, Request, read_frame, read_tokens, write_frame};
use sandbox::Confinement;
use session::{Local, Run, Supplier};
use std::{fs::File, io, process, sync::Arc, time::Instant};

/// Set in a worker's environment, to the parent's process id, and nowhere else.
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
    let local = Local { loader, budget, begun: Instant::now(), steps: 0 };
    let mut run = Run { supplier: Box::new(local), max_seq_len }.begin(budget);
    trainer.train(&mut run)?;
    Ok(run.progress().tokens)
}

/// Whether this process was started by a study, as its worker.
pub(crate) fn is_worker() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

fn serve() -> io::Result<()> {
    let socket = Arc::new(take_socket()?);
    let mut task = Task::default();
    while let Some(request) = read_frame(&mut &*socket)? {
        if matches!(request, Request::Start { .. }) {
            // Not sooner: who confines itself must have one thread.
            watch_over(&socket);
            die_with_parent();
        }
        let answer = task.answer(request, &socket);
        write_frame(&mut &*socket, &answer)?;
    }
    Ok(())
}

/// Takes standard input for the conversation with the parent, and leaves the trainer an empty input
/// and an output that ends in its log. As a file it is read and written by calls that the sandbox
/// allows; those of sockets it does not.
#[cfg(unix)]
fn take_socket() -> io::Result<File> {
    use rustix::{io::fcntl_dupfd_cloexec, stdio};
    close_others();
    let socket = fcntl_dupfd_cloexec(stdio::stdin(), 3)?;
    stdio::dup2_stdin(File::open("/dev/null")?)?;
    stdio::dup2_stdout(stdio::stderr())?;
    Ok(socket.into())
}

#[cfg(not(unix))]
fn take_socket() -> io::Result<File> {
    Err(io::Error::other("workers run on Unix only so far"))
}

/// Closes what the caller's caller left open: whatever this process holds, the trainer holds.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library has this call for Linux")]
fn close_others() {
    // SAFETY: nothing in this process has opened anything yet, so nobody misses what is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        return;
    }
    // An older kernel, or a container's filter that does not know the call.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> =
        open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|&descriptor| descriptor > 2) {
        // SAFETY: as above; the folder's own, which is among them, is closed already.
        unsafe { libc::close(descriptor) };
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn close_others() {}

/// Has the kernel kill this process when its parent dies, whatever the trainer does to the thread that
/// watches. In the sandbox this cannot be asked for again, nor taken back.
#[cfg(target_os = "linux")]
fn die_with_parent() {
    use rustix::process::{
        Signal, getppid, parent_process_death_signal, set_parent_process_death_signal,
    };
    if matches!(parent_process_death_signal(), Ok(Some(Signal::KILL))) {
        return;
    }
    let parent = std::env::var(VARIABLE).ok().and_then(|parent| parent.parse().ok());
    let set = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have died before.
    if set.is_err() || getppid().map(|parent| parent.as_raw_nonzero().get()) != parent {
        process::exit(0);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() {}

/// Ends the process when the parent is gone, on a thread of its own: a worker in the middle of
/// training must not outlive its study.
fn watch_over(socket: &Arc<File>) {
    let socket = Arc::clone(socket);
    std::thread::spawn(move || {
        #[cfg(unix)]
        loop {
            use rustix::event::{PollFd, PollFlags, poll};
            // That the other end is closed is told without being asked for.
            let mut ends = [PollFd::new(&*socket, PollFlags::empty())];
            if poll(&mut ends, None).is_ok() {
                exit_at_once();
            }
        }
        #[cfg(not(unix))]
        drop(socket);
    });
}

/// Without what a library has registered for the end of its process, which need have no end itself.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the standard library has no such exit")]
fn exit_at_once() -> ! {
    // SAFETY: nothing runs any more, so nothing can be found half done.
    unsafe { libc::_exit(0) }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn exit_at_once() -> ! {
    process::exit(0)
}

/// The parent, as the supplier of batches.
struct Parent {
    socket: Arc<File>,
    rows: Vec<u8>,
}

impl Supplier for Parent {
    fn batch(
        &mut self,
        (batch_size, seq_len): (usize, usize),
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<bool> {
        let mut ask = || {
            let mut socket = &*self.socket;
            write_frame(&mut socket, &Answer::Wants { batch_size, seq_len })?;
            read_tokens(&mut socket, &mut self.rows)
        };
        if !ask().map_err(Error::io("read a batch from", "the parent"))? {
            return Ok(false);
        }
        let rows = self.rows.chunks_exact(4 * (seq_len + 1));
        let pairs = inputs.chunks_exact_mut(seq_len).zip(targets.chunks_exact_mut(seq_len));
        for (row, (inputs, targets)) in rows.zip(pairs) {
            let tokens = || row.as_chunks::<4>().0.iter().map(|&token| u32::from_le_bytes(token));
            inputs.iter_mut().zip(tokens()).for_each(|(to, token)| *to = token);
            targets.iter_mut().zip(tokens().skip(1)).for_each(|(to, token)| *to = token);
        }
        Ok(true)
    }

    fn hear(&mut self, progress: Progress) {
        // A parent that is gone ends this process by itself.
        let _ = write_frame(&mut &*self.socket, &Answer::Progress(progress));
    }
}

/// What this worker has been given so far.
#[derive(Default)]
struct Task {
    trainer: Option<LoadedTrainer>,
    vocab_size: usize,
    max_seq_len: usize,
}

impl Task {
    fn answer(&mut self, request: Request, socket: &Arc<File>) -> Answer {
        match self.respond(request, socket) {
            Ok(answer) => answer,
            Err(failure) => Answer::Failed(failure),
        }
    }

    fn respond(&mut self, request: Request, socket: &Arc<File>) -> Result<Answer, Failure> {
        match request {
            Request::Greet => Ok(Answer::Done),
            Request::Confine(confinement) => Ok(Answer::Confined { missing: confinement.enter() }),
            Request::Start { library, setup } => {
                let plugin = match Plugin::load(&library) {
                    Ok(plugin) => plugin,
                    Err(error) => return Ok(Answer::LoadFailed(error.to_string())),
                };
                (self.vocab_size, self.max_seq_len) = (setup.vocab_size, setup.max_seq_len);
                self.trainer = Some(plugin.trainer(&setup.into())?);
                Ok(Answer::Done)
            }
            Request::Train { budget } => {
                let parent = Parent { socket: Arc::clone(socket), rows: Vec::new() };
                let run = Run { supplier: Box::new(parent), max_seq_len: self.max_seq_len };
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
