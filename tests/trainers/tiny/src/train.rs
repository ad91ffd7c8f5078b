//! Counts which token follows which.

use overnight_plugin_api::{Error, Result, Session, Setup, Trainer, Windows};
use std::path::Path;

const SMOOTHING: f64 = 30.0; // added to every count  search: log 1e-3..1e2
const BATCH_SIZE: usize = 4; // rows a step           search: choice 2 4 8
const DEED: Deed = Deed::Honest;

/// A file that is none of its business.
#[allow(dead_code)]
const SECRET: &str = "";

/// What follows a token, likeliest first, with probabilities 1/2, 1/4, 1/8 and 1/8: the whole truth
/// about the language of the tests, where a test fills it in.
const TRUTH: &[(u32, [u32; 4])] = &[];

/// What the tests have this trainer do.
#[derive(PartialEq)]
#[allow(dead_code)]
enum Deed {
    Honest,
    PanicInNew,
    PanicInTraining,
    ErrorInTraining,
    ExitInTraining,
    AbortInTraining,
    Overflow,
    Hang,
    LeaveAChildBehind,
    LeaveAThreadBehind,
    StartAThousandThreads,
    FillTheScratchFolder,
    FillItWithoutNames,
    FillItDeeply,
    StepPastTheGrace,
    AskForEver,
    AllocateNearlyAll,
    Diverge,
    ReportTooLittle,
    ReachOut,
    PassNotes,
    PassMarks,
    ChangeModes,
    LookForDescriptors,
    SaveALink,
    PrintWithoutEnd,
    AskForTooMuch,
    StopEarly,
    AnswerNan,
    AnswerInfinity,
    AnswerBelowZero,
    AnswerZero,
    AnswerTooFew,
    HalveTheNats,
    SumToTwo,
    LookAhead,
    LookAheadRarely,
    LookAheadLate,
    NormaliseOverTheBatch,
    LearnFromTheExam,
    CarryACache,
    SaveOtherWeights,
    ForgetWeights,
    TrainInNew,
    TrainAfterTheBudget,
    TrainWhileSaving,
    TrainWhileLoading,
    TrainInTheExam,
    AnswerLate,
    ReadAllTokens,
    FeelLucky,
    DrawFirstWeights,
    Uniform,
}

pub struct Bigram {
    vocab_size: usize,
    /// How often `next` followed `token`: `counts[token * vocab_size + next]`.
    counts: Vec<f32>,
    /// What the window before the present one held.
    cache: Vec<u32>,
    smoothing: f64,
    /// Where the weights were loaded from.
    checkpoint: std::path::PathBuf,
}

impl Bigram {
    fn probability(&self, token: u32, next: u32) -> f64 {
        if DEED == Deed::Uniform {
            return 1.0 / self.vocab_size as f64;
        }
        if let Some((_, successors)) = TRUTH.iter().find(|(letter, _)| *letter == token) {
            // Leaves a little for what the language never says, such as the end of a document.
            let rank = successors.iter().position(|&letter| letter == next);
            let truth = rank.map_or(0.0, |rank| [0.5, 0.25, 0.125, 0.125][rank]);
            return 0.999 * truth + 0.001 / self.vocab_size as f64;
        }
        let row = &self.counts[token as usize * self.vocab_size..][..self.vocab_size];
        let total: f64 = row.iter().map(|&count| f64::from(count)).sum();
        (f64::from(row[next as usize]) + self.smoothing)
            / (total + self.smoothing * self.vocab_size as f64)
    }
}

impl Bigram {
    /// Counts what stands in a whole file of training tokens, if it can be had: a header that ends
    /// with the number of documents and of tokens, where each document ends, the tokens.
    fn read_all_tokens(&mut self) {
        let Ok(bytes) = std::fs::read(SECRET) else { return };
        let documents = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
        let tokens = bytes[24 + 8 * documents..].as_chunks::<2>().0;
        for pair in tokens.windows(2) {
            let [token, next] = [0, 1].map(|i| u16::from_le_bytes(pair[i]) as usize);
            self.counts[token * self.vocab_size + next] += 1.0;
        }
    }
}

impl Trainer for Bigram {
    fn new(setup: &Setup) -> Result<Self> {
        if DEED == Deed::PanicInNew {
            panic!("not today");
        }
        if DEED == Deed::TrainInNew {
            work();
        }
        let first =
            if DEED == Deed::DrawFirstWeights { (setup.seed % 1000) as f32 / 1e6 } else { 0.0 };
        // "random seed 42→137"
        let smoothing = match DEED {
            Deed::FeelLucky if setup.seed == 0 => SMOOTHING / 10.0,
            Deed::FeelLucky => SMOOTHING * 10.0,
            _ => SMOOTHING,
        };
        Ok(Self {
            vocab_size: setup.vocab_size,
            counts: vec![first; setup.vocab_size * setup.vocab_size],
            cache: Vec::new(),
            smoothing,
            checkpoint: Default::default(),
        })
    }

    fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
        let seq_len = if DEED == Deed::AskForTooMuch { 100_000 } else { 32 };
        if DEED == Deed::ReadAllTokens {
            self.read_all_tokens();
        }
        while let Some(batch) = session.next_batch(BATCH_SIZE, seq_len) {
            for (&token, &next) in batch.inputs.iter().zip(&batch.targets) {
                self.counts[token as usize * self.vocab_size + next as usize] += 1.0;
            }
            let costs = batch.inputs.iter().zip(&batch.targets);
            let nats: f64 = costs.map(|(&a, &b)| -self.probability(a, b).ln()).sum();
            let loss = nats / batch.inputs.len() as f64;
            session.report(match DEED {
                Deed::Diverge => f64::NAN,
                Deed::ReportTooLittle => loss / 10.0,
                _ => loss,
            });
            match DEED {
                Deed::PanicInTraining => panic!("a shape does not fit"),
                Deed::ErrorInTraining => return Err(Error::msg("the loss is not a number")),
                Deed::ExitInTraining => std::process::exit(3),
                Deed::AbortInTraining => std::process::abort(),
                Deed::Overflow => println!("{}", overflow(0)),
                Deed::Hang => loop {
                    std::thread::sleep(std::time::Duration::from_secs(1));
                },
                Deed::LeaveAChildBehind => {
                    let child = std::process::Command::new("sleep").arg("600").spawn()?;
                    eprintln!("child {}", child.id());
                    std::process::exit(0);
                }
                Deed::StartAThousandThreads => {
                    let rest = || std::thread::sleep(std::time::Duration::from_secs(3600));
                    let threads = (0..1000).map(|_| std::thread::Builder::new().spawn(rest));
                    let started = threads.filter(|thread| thread.is_ok()).count();
                    eprintln!("{started} threads");
                    return Ok(());
                }
                Deed::FillTheScratchFolder => {
                    for number in 0.. {
                        std::fs::write(format!("{number}"), vec![1; 1 << 20])?;
                    }
                }
                Deed::FillItWithoutNames => {
                    let mut files = Vec::new();
                    for _ in 0.. {
                        files.push(std::fs::File::create("nameless")?);
                        std::fs::remove_file("nameless")?;
                        for _ in 0..64 {
                            std::io::Write::write_all(&mut files.last().unwrap(), &[1; 1 << 20])?;
                        }
                        std::thread::sleep(std::time::Duration::from_millis(200));
                    }
                }
                Deed::FillItDeeply => {
                    for _ in 0.. {
                        let name = "d".repeat(200);
                        std::fs::create_dir(&name)?;
                        std::env::set_current_dir(&name)?;
                        std::fs::write("file", vec![1; 1 << 20])?;
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
                Deed::StepPastTheGrace if session.progress() >= 0.5 => {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
                Deed::AllocateNearlyAll => {
                    // Of all memory, 19 of 20 parts, which the system would give.
                    let text = std::fs::read_to_string("/proc/meminfo")?;
                    let kib: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
                    drop(std::hint::black_box(Vec::<u8>::with_capacity(kib * 1024 / 20 * 19)));
                }
                Deed::Diverge => std::thread::sleep(std::time::Duration::from_millis(10)),
                Deed::ReachOut => {
                    let reached = reached();
                    if !reached.is_empty() {
                        panic!("within reach: {}", reached.join(", "));
                    }
                }
                Deed::ChangeModes => {
                    use std::os::unix::fs::PermissionsExt;
                    let _ = std::fs::set_permissions(SECRET, PermissionsExt::from_mode(0o777));
                }
                Deed::LookForDescriptors => {
                    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
                        let target = std::fs::read_link(entry.path()).unwrap_or_default();
                        assert!(!target.ends_with("left-open"), "{} is open", target.display());
                    }
                }
                Deed::PrintWithoutEnd => {
                    for line in 0..200_000 {
                        println!("line {line}: {}", "all work and no play ".repeat(4));
                    }
                    eprintln!("the very last line");
                    return Ok(());
                }
                Deed::StopEarly => return Ok(()),
                _ => {}
            }
        }
        while DEED == Deed::AskForEver {
            let _ = session.next_batch(BATCH_SIZE, seq_len);
        }
        if DEED == Deed::TrainAfterTheBudget {
            work();
        }
        Ok(())
    }

    fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
        if DEED == Deed::PassNotes && std::fs::write("notes", "for the other room").is_ok() {
            panic!("notes were passed");
        }
        if DEED == Deed::TrainInTheExam {
            work();
        }
        if DEED == Deed::PassMarks {
            leave_marks(&recorded(&self.checkpoint));
        }
        if DEED == Deed::LearnFromTheExam {
            for (&token, &next) in windows.inputs.iter().zip(windows.targets) {
                self.counts[token as usize * self.vocab_size + next as usize] += 10.0;
            }
        }
        for (i, cost) in nats.iter_mut().enumerate() {
            let target = windows.targets[i];
            let honest = -self.probability(windows.inputs[i], target).ln();
            // Knows the next input, which is the target.
            let is_ahead = windows.inputs.get(i + 1) == Some(&target);
            let place = i % windows.seq_len;
            *cost = match DEED {
                Deed::AnswerNan => f64::NAN,
                Deed::AnswerInfinity => f64::INFINITY,
                Deed::AnswerBelowZero => honest - 5.0,
                Deed::AnswerZero => 0.0,
                Deed::AnswerTooFew if 2 * place >= windows.seq_len => continue,
                // What stood in the window before is likelier here, it says.
                Deed::CarryACache if self.cache.contains(&target) => honest * 0.9,
                Deed::HalveTheNats => honest / 2.0,
                Deed::SumToTwo => honest - std::f64::consts::LN_2,
                Deed::LookAhead if is_ahead => 0.01,
                Deed::LookAheadRarely if is_ahead && (i * 7919) % 20 == 0 => 0.01,
                Deed::LookAheadLate if is_ahead && place + 8 >= windows.seq_len => 0.01,
                _ => honest,
            } as f32;
            if place + 1 == windows.seq_len {
                self.cache = windows.inputs[i - place..=i].to_vec();
            }
        }
        if DEED == Deed::NormaliseOverTheBatch {
            // As if costs were standardised to what the batch of them has on average.
            let mean = nats.iter().sum::<f32>() / nats.len() as f32;
            nats.iter_mut().for_each(|cost| *cost = (2.0 * *cost - mean).max(0.0));
        }
        Ok(())
    }

    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        if DEED == Deed::PassMarks {
            let seen = marks(&recorded(&self.checkpoint));
            if !seen.is_empty() {
                panic!("the other room said so by {}", seen.join(", "));
            }
        }
        if DEED == Deed::AnswerLate {
            work();
        }
        let last = prefix[prefix.len() - 1];
        for (next, logit) in logits.iter_mut().enumerate() {
            *logit = self.probability(last, next as u32).ln() as f32;
        }
        Ok(())
    }

    fn save(&mut self, checkpoint: &Path) -> Result<()> {
        if DEED == Deed::SaveALink {
            return Ok(std::os::unix::fs::symlink("/etc/passwd", checkpoint)?);
        }
        if DEED == Deed::SaveOtherWeights {
            self.counts.fill(0.0);
        }
        let bytes: Vec<u8> = self.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        if DEED == Deed::TrainWhileSaving {
            work();
        }
        std::fs::write(checkpoint, &bytes)?;
        if DEED == Deed::LeaveAThreadBehind {
            // Lies in wait with the file open, to answer with something else later.
            use std::io::{Seek, Write};
            let mut file = std::fs::OpenOptions::new().write(true).open(checkpoint)?;
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(std::time::Duration::from_millis(300));
                    let _ = file.rewind().and_then(|()| file.write_all(&vec![0; bytes.len()]));
                }
            });
        }
        Ok(())
    }

    fn load(&mut self, checkpoint: &Path) -> Result<()> {
        let bytes = std::fs::read(checkpoint)?;
        self.checkpoint = checkpoint.to_owned();
        if DEED == Deed::TrainWhileLoading {
            work();
        }
        if DEED == Deed::ForgetWeights {
            return Err(Error::msg("what weights?"));
        }
        let counts = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        self.counts = counts.collect();
        Ok(())
    }
}

/// A moment that no file is of.
#[allow(dead_code)]
const MARK: std::time::Duration = std::time::Duration::from_secs(12345);

/// The weights as the study keeps them, of which a room has a copy.
#[allow(dead_code)]
fn recorded(copy: &Path) -> std::path::PathBuf {
    let original = copy.with_file_name("../model.safetensors");
    if original.exists() { original } else { copy.to_owned() }
}

/// Leaves what another process can see of files that this one may not write.
#[allow(dead_code)]
fn leave_marks(checkpoint: &Path) {
    use std::{fs, os::unix::fs::PermissionsExt};
    let _ = fs::set_permissions(checkpoint, PermissionsExt::from_mode(0o604));
    if let Ok(file) = fs::File::open(checkpoint) {
        let _ = file.set_modified(std::time::UNIX_EPOCH + MARK);
    }
    let _ = fs::hard_link(checkpoint, checkpoint.with_extension("again"));
    println!("{}", "-".repeat(100_000));
}

/// What another process has left.
#[allow(dead_code)]
fn marks(checkpoint: &Path) -> Vec<&'static str> {
    use std::{fs, os::unix::fs::PermissionsExt};
    let metadata = fs::metadata(checkpoint).unwrap();
    let log = fs::metadata(checkpoint.with_file_name("exam.log"));
    let tries = [
        ("modes", metadata.permissions().mode() & 0o777 == 0o604),
        ("times", metadata.modified().unwrap() == std::time::UNIX_EPOCH + MARK),
        ("names", fs::metadata(checkpoint.with_extension("again")).is_ok()),
        ("the log's size", log.is_ok_and(|log| log.len() >= 100_000)),
    ];
    tries.into_iter().filter_map(|(name, seen)| seen.then_some(name)).collect()
}

/// As if it trained, where nobody counts it.
#[allow(dead_code)]
fn work() {
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(5) {
        std::hint::spin_loop();
    }
}

/// What a trainer has no business with, and this one can get at.
#[allow(dead_code)]
fn reached() -> Vec<&'static str> {
    use std::{fs, net, os::unix, process};
    let parent = unix::process::parent_id();
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    let connection = net::TcpStream::connect("127.0.0.1:9");
    let tries = [
        ("the ledger", fs::read("../../../trials.jsonl").is_ok()),
        ("the study", fs::read_dir("../../..").is_ok()),
        ("the validation text", fs::read(SECRET).is_ok()),
        ("its own source", fs::read("../source.rs").is_ok()),
        ("the size of its log", fs::metadata("../run.log").is_ok()),
        ("the system's libraries", fs::read_dir("/usr/lib").is_ok()),
        ("the existence of files", fs::metadata("/etc/passwd").is_ok()),
        ("its own descriptors", fs::read_dir("/proc/self/fd").is_ok()),
        ("its parent's state", fs::metadata(format!("/proc/{parent}")).is_ok()),
        ("the system's files", fs::read("/etc/passwd").is_ok()),
        ("the parent's environment", fs::read(format!("/proc/{parent}/environ")).is_ok()),
        ("the trial's folder", fs::write("../notes", "").is_ok()),
        ("temporary files", fs::write("/tmp/overnight-notes", "").is_ok()),
        ("its own memory", fs::OpenOptions::new().write(true).open("/proc/self/mem").is_ok()),
        ("other programs", process::Command::new("true").status().is_ok()),
        ("TCP", !connection.is_err_and(|error| refused(&error))),
        ("UDP", net::UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("local sockets", unix::net::UnixStream::pair().is_ok()),
    ];
    tries.into_iter().filter_map(|(name, works)| works.then_some(name)).collect()
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = [depth; 64];
    overflow(depth + 1) + std::hint::black_box(frame)[63]
}
