//! A study over MCP: an interactive agent submits trainers and hears what became of them.
//!
//! [`serve`] speaks JSON-RPC, a message a line, and answers at once whatever the study is doing:
//! that runs on a thread of its own. The agent is its proposer.

mod desk;
mod protocol;
mod server;
mod submissions;
mod tools;

use crate::{error::Result, event::Event, stop::StopHandle, study::StudyBuilder};
use crossbeam_channel::{Receiver, Sender, never, select, unbounded};
use desk::Desk;
use server::Server;
use std::{
    io::{BufRead, Write},
    panic::resume_unwind,
    thread,
    time::Duration,
};
use submissions::Submissions;

/// The most bytes of a message that are read. A source has one of 1 MiB at most.
const LONGEST_LINE: usize = 16 << 20;

/// How often the conversation looks whether it was asked to end.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Opens the study and has an agent propose for it, until `input` ends, `output` breaks or the stop handle of
/// `builder` is pulled.
///
/// The agent joins the proposers of `builder`. Messages come from `input` and go to
/// `output`, which nothing else may write to; for standard input that is
/// `BufReader::new(std::io::stdin())`.
///
/// # Errors
/// What ended the study or kept it from opening. The agent hears of it too, when it calls a tool.
pub fn serve(
    builder: StudyBuilder,
    input: impl BufRead + Send + 'static,
    output: impl Write,
) -> Result<()> {
    converse(input, output, &builder.stop(), move |submissions, observer, stop| {
        let builder = builder
            .proposer(submissions)
            .observer(move |event| drop(observer.send(event.clone())))
            .stop_handle(stop);
        builder.open()?.optimize(None).map(drop)
    })
}

/// The conversation beside a study, which takes its proposals from the submissions.
fn converse<S>(
    input: impl BufRead + Send + 'static,
    mut output: impl Write,
    stop: &StopHandle,
    study: S,
) -> Result<()>
where
    S: FnOnce(Submissions, Sender<Event>, StopHandle) -> Result<()> + Send + 'static,
{
    let stop = stop.of_a_part();
    let (observer, mut events) = unbounded();
    let (submissions, handing_in, mut notes) = submissions::channel();
    let mut server = Server::new(Desk::new(handing_in));
    let mut study = Some(thread::spawn({
        let stop = stop.clone();
        move || study(submissions, observer, stop)
    }));
    let mut result = Ok(());

    let lines = lines(input);
    // Whoever pulled the handle waits for the study to end, which is heard as the end of its events.
    while !(stop.is_stopped() && study.is_none()) {
        let mut replies = Vec::new();
        select! {
            recv(lines) -> line => match line {
                Ok(line) => replies.extend(server.hear(&line)),
                Err(_) => break,
            },
            recv(notes) -> note => match note {
                Ok(note) => server.desk.note(note),
                Err(_) => notes = never(),
            },
            recv(events) -> event => match event {
                Ok(event) => server.desk.event(&event),
                // The study is gone, and with it the last sender of events.
                Err(_) => {
                    events = never();
                    notes.try_iter().for_each(|note| server.desk.note(note));
                    result = study.take().map_or(Ok(()), join);
                    server.desk.end(result.as_ref().err());
                }
            },
            default(server.patience().min(LOOK_UP)) => {}
        }
        replies.extend(server.due());
        // Who reads no more is gone, as one who writes no more is.
        if replies.iter().any(|reply| send(&mut output, reply).is_err()) {
            break;
        }
    }
    stop.stop();
    study.map_or(result, join)
}

fn join(study: thread::JoinHandle<Result<()>>) -> Result<()> {
    study.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn send(output: &mut impl Write, reply: &serde_json::Value) -> std::io::Result<()> {
    writeln!(output, "{reply}")?;
    output.flush()
}

/// Reads on a thread of its own, which stays behind when the conversation ends before the input.
fn lines(mut input: impl BufRead + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, lines) = unbounded();
    thread::spawn(move || {
        while let Some(line) = line(&mut input) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The next line without its end. Of one that is too long only the beginning, which is no message.
fn line(input: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let part = input.fill_buf().ok()?;
        if part.is_empty() {
            return (!line.is_empty()).then_some(line);
        }
        let end = part.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(part.len());
        line.extend_from_slice(&part[..taken.min(LONGEST_LINE.saturating_sub(line.len()))]);
        let taken = end.map_or(taken, |end| end + 1);
        input.consume(taken);
        if end.is_some() {
            return Some(line);
        }
    }
}

#[cfg(test)]
mod tests;
