//! What a trainer can get at.

use crate::tiny;
use overnight::{
    Outcome, Sandbox, Trial,
    data::{DataSpec, Dataset, PrepareOptions, Split},
};
use std::path::{Path, PathBuf};

/// Where the tokens are that the exam of a study over `corpus` asks about.
fn validation_text(corpus: &Path) -> PathBuf {
    let cache_dir = overnight::cache_dir().unwrap().join("data");
    let options = PrepareOptions { vocab_size: tiny::VOCAB_SIZE, cache_dir };
    let spec = DataSpec::Text(corpus.to_owned());
    let path = Dataset::prepare(&spec, &options, |_| {}).unwrap().path(Split::Validation);
    assert!(path.is_file());
    path
}

/// The trials of a study after its baseline; nothing where the system cannot confine anybody.
fn confined(sandbox: Sandbox, deed: &'static str) -> Option<Vec<Trial>> {
    confined_beside(sandbox, deed, None)
}

/// The same, with a file of the user's that the trainer knows of; if it is none, it is the validation
/// text.
fn confined_beside(
    sandbox: Sandbox,
    deed: &'static str,
    secret: Option<&Path>,
) -> Option<Vec<Trial>> {
    if sandbox != Sandbox::Off && !tiny::can_confine() {
        println!("skipped: this system cannot confine a worker");
        return None;
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let secret = secret.map_or_else(|| validation_text(corpus.path()), Path::to_owned);
    let secret = format!("SECRET: &str = {secret:?};");
    let source = tiny::replaced(&tiny::doing(deed), "SECRET: &str = \"\";", &secret);
    let study = tiny::study(dir.path(), corpus.path()).sandbox(sandbox);
    let mut study = study.proposer(tiny::Sources(vec![(deed, source)])).open().unwrap();
    study.optimize(None).unwrap();
    let mut trials = study.trials()[1..].to_vec();
    for trial in trials.iter_mut().filter(|trial| trial.outcome != Outcome::Measured) {
        // What a trainer says over the exam's questions is the human's alone.
        let log = std::fs::read_to_string(study.folder_of(trial.trial).join("exam.log"));
        trial.reason.as_mut().unwrap().push_str(&log.unwrap_or_default());
    }
    Some(trials)
}

/// What the trainer's `score` and `logits` do first, in a study that allows unsafe code: how its trial ended, and
/// where its files were.
fn examined(
    sandbox: Sandbox,
    (save, score, logits): (&str, &str, &str),
) -> (Trial, tempfile::TempDir) {
    let mut source = tiny::source();
    for (head, lines) in [
        ("        std::fs::write(checkpoint, &bytes)?;\n", save),
        ("nats: &mut [f32]) -> Result<()> {\n", score),
        ("logits: &mut [f32]) -> Result<()> {\n", logits),
    ] {
        source = tiny::replaced(&source, head, &format!("{head}{lines}"));
    }
    // No more than it needs.
    let read = "let mut bytes = vec![0; 4 * self.counts.len()];\n\
                std::io::Read::read_exact(&mut std::fs::File::open(checkpoint)?, &mut bytes)?;";
    let source = tiny::replaced(&source, "let bytes = std::fs::read(checkpoint)?;", read);
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).allow_unsafe().sandbox(sandbox);
    let mut study = study.proposer(tiny::Sources(vec![("in the exam", source)])).open().unwrap();
    study.optimize(None).unwrap();
    (study.trials()[1].clone(), dir)
}

pub fn what_is_in_memory_of_a_file_tells_the_other_room_nothing() {
    // Pages that were never read are behind the weights' end. The fast room reads some of them, and the honest
    // room looks which those were: a page that has to come from the disk is a major fault.
    const TOOLS: &str = r#"
        unsafe extern "C" {
            fn mmap(at: *mut u8, n: usize, p: i32, f: i32, fd: i32, o: i64) -> *mut u8;
            fn madvise(start: *mut u8, length: usize, advice: i32) -> i32;
            fn getrusage(who: i32, usage: *mut [i64; 18]) -> i32;
        }
        const PAGES: usize = 64;
        let is_read = |page: usize| page * page % 3 == 1;
        // 1 MiB further on; without reading ahead.
        let file = std::fs::File::open(&self.checkpoint)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a mapping of a file that nobody cuts off.
        let start = unsafe { mmap(std::ptr::null_mut(), PAGES * 65536, 1, 1, fd, 1 << 20) };
        unsafe { madvise(start, PAGES * 65536, 1) };
        let faults = || {
            let mut usage = [0i64; 18];
            unsafe { getrusage(0, &mut usage) };
            usage[9]
        };
        let comes_from_disk = |page: usize| {
            let before = faults();
            unsafe { start.add(page * 65536).read_volatile() };
            faults() > before
        };
    "#;
    let save = "std::fs::File::options().write(true).open(checkpoint)?.set_len(6 << 20)?;\n";
    let score = format!(
        "{TOOLS} (0..PAGES).filter(|&page| is_read(page)).for_each(|page| {{ comes_from_disk(page); }});\n"
    );
    let logits = format!(
        "{TOOLS} let told = (0..PAGES).all(|page| comes_from_disk(page) != is_read(page));\n\
         if told {{ panic!(\"the other room read these pages\"); }}\n"
    );
    let deeds = (save, score.as_str(), logits.as_str());
    // The first question leaves all of them read.
    let (open, _) = examined(Sandbox::Off, deeds);
    assert_eq!(open.outcome, Outcome::Panicked, "{:?}", open.reason);
    if tiny::can_confine() {
        let (closed, _) = examined(Sandbox::BestEffort, deeds);
        assert_eq!(closed.outcome, Outcome::Measured, "{:?}", closed.reason);
    }
}

pub fn what_is_said_over_the_exams_questions_reaches_no_proposer() {
    let score = "println!(\"printed {:?}\", &windows.targets[..8]);\n\
                 return Err(Error::msg(format!(\"said {:?}\", &windows.targets[..8])));\n";
    let (trial, dir) = examined(Sandbox::BestEffort, ("", score, ""));
    assert_eq!(trial.outcome, Outcome::Failed);
    let reason = trial.reason.unwrap();
    assert!(!reason.contains("said [") && reason.contains("exam.log"), "{reason}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join("trials/0001").join(name));
    let log = read("exam.log").unwrap();
    assert!(log.contains("printed [") && log.contains("said ["), "{log}");
    assert!(!read("run.log").unwrap_or_default().contains("printed"));
}

pub fn a_trainer_reaches_nothing_that_it_has_no_business_with() {
    // Without a sandbox everything is there to be reached, so that the test can fail.
    let open = confined(Sandbox::Off, "ReachOut").unwrap();
    let reason = open[0].reason.as_deref().unwrap();
    for thing in [
        "the ledger",
        "the validation text",
        "the parent's environment",
        "its own memory",
        "the size of its log",
        "the system's libraries",
        "the existence of files",
        "its own descriptors",
        "its parent's state",
        "programs",
        "TCP",
        "UDP",
    ] {
        assert!(reason.contains(thing), "{thing}: {reason}");
    }
    if let Some(trials) = confined(Sandbox::BestEffort, "ReachOut") {
        assert_eq!(trials[0].outcome, Outcome::Measured, "{:?}", trials[0].reason);
    }
}

pub fn the_rooms_of_the_exam_pass_no_notes() {
    let open = confined(Sandbox::Off, "PassNotes").unwrap();
    assert!(open[0].reason.as_deref().unwrap().contains("notes were passed"), "{open:?}");
    if let Some(trials) = confined(Sandbox::BestEffort, "PassNotes") {
        assert_eq!(trials[0].outcome, Outcome::Measured, "{:?}", trials[0].reason);
    }
}

pub fn the_rooms_of_the_exam_leave_no_marks() {
    let open = confined(Sandbox::Off, "PassMarks").unwrap();
    let reason = open[0].reason.as_deref().unwrap();
    for mark in ["modes", "times", "names", "the log's size"] {
        assert!(reason.contains(mark), "{mark}: {reason}");
    }
    if let Some(trials) = confined(Sandbox::BestEffort, "PassMarks") {
        assert_eq!(trials[0].outcome, Outcome::Measured, "{:?}", trials[0].reason);
    }
}

pub fn a_trainer_leaves_the_users_files_as_they_are() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("of the user's");
    let mode = |sandbox: Sandbox| {
        std::fs::write(&file, "precious").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        confined_beside(sandbox, "ChangeModes", Some(&file))?;
        Some(file.metadata().unwrap().permissions().mode() & 0o777)
    };
    assert_eq!(mode(Sandbox::Off), Some(0o777));
    assert!(matches!(mode(Sandbox::BestEffort), None | Some(0o600)));
}

pub fn unsafe_code_marks_nothing_either() {
    let lines = r#"{
        unsafe extern "C" {
            fn setxattr(p: *const i8, n: *const i8, v: *const u8, l: usize, f: i32) -> i32;
            fn flock(file: i32, operation: i32) -> i32;
            fn utime(p: *const i8, times: *const u8) -> i32;
            fn setpriority(which: i32, who: u32, priority: i32) -> i32;
            fn prlimit(process: i32, resource: i32, new: *const u8, old: *mut u8) -> i32;
            fn mknod(p: *const i8, mode: u32, device: u64) -> i32;
            fn mq_open(name: *const i8, flags: i32, mode: u32, is: *const u8) -> i32;
            fn mq_unlink(name: *const i8) -> i32;
            fn sched_getaffinity(process: i32, size: usize, mask: *mut u8) -> i32;
            fn sched_setaffinity(process: i32, size: usize, mask: *const u8) -> i32;
            fn sched_setscheduler(process: i32, policy: i32, priority: *const i32) -> i32;
            fn fcntl(file: i32, command: i32, ...) -> i32;
            fn ioctl(file: i32, command: u64, ...) -> i32;
            fn inotify_init() -> i32;
            fn tgkill(process: i32, thread: i32, signal: i32) -> i32;
            fn prctl(option: i32, ...) -> i32;
            fn madvise(start: *mut u8, length: usize, advice: i32) -> i32;
            fn memfd_create(name: *const i8, flags: u32) -> i32;
            fn mmap(at: *mut u8, n: usize, p: i32, f: i32, fd: i32, o: i64) -> *mut u8;
            fn getpgid(process: i32) -> i32;
            fn fallocate(file: i32, mode: i32, from: i64, length: i64) -> i32;
            fn getsockopt(s: i32, l: i32, o: i32, value: *mut u8, length: *mut u32) -> i32;
            fn mincore(start: *mut u8, length: usize, is_there: *mut u8) -> i32;
            fn dladdr(of: *const u8, is_in: *mut [*const i8; 4]) -> i32;
        }
        std::fs::write("own", "").unwrap();
        let own = std::fs::File::options().read(true).write(true).open("own").unwrap();
        let file = std::os::fd::AsRawFd::as_raw_fd(&own);
        let parent = std::os::unix::process::parent_id() as i32;
        let (mut limit, mut mask, mut flags) = ([0u8; 16], [0u8; 1024], [0u64; 1]);
        let page = std::hint::black_box(vec![0u8; 8192]);
        let page = (page.as_ptr() as usize + 4095 & !4095) as *mut u8;
        let mut library = [std::ptr::null(); 4];
        // SAFETY: all of these are zero-terminated, or as long as is said.
        let tries = unsafe { [
            ("attributes", setxattr(c"own".as_ptr(), c"user.note".as_ptr(), &1, 1, 0)),
            ("locks", flock(file, 2)),
            ("times", utime(c"own".as_ptr(), std::ptr::null())),
            ("pipes", mknod(c"pipe".as_ptr(), 0o010644, 0)),
            ("priorities", setpriority(0, parent as u32, 0)),
            ("limits", prlimit(parent, 7, std::ptr::null(), limit.as_mut_ptr())),
            ("queues", mq_open(c"/overnight-note".as_ptr(), 0o102, 0o600, std::ptr::null()).min(0)),
            ("names of theirs", mq_unlink(c"/overnight-note".as_ptr())),
            ("processors", {
                sched_getaffinity(parent, 1024, mask.as_mut_ptr());
                sched_setaffinity(parent, 1024, mask.as_ptr())
            }),
            ("turns", sched_setscheduler(parent, 0, &0)),
            ("hints", fcntl(file, 1036, flags.as_ptr())),
            ("flags", ioctl(file, 0x8008_6601, flags.as_mut_ptr())),
            ("watches", inotify_init().min(0)),
            ("signals", tgkill(parent, parent, 0)),
            ("outliving", prctl(1, 0)),
            ("who there is", getpgid(parent).min(0)),
            ("where others are", sched_getaffinity(parent, 1024, mask.as_mut_ptr())),
            ("memory in no limit", memfd_create(c"memory".as_ptr(), 0).min(0)),
            ("memory for all", mmap(std::ptr::null_mut(), 4096, 3, 0x21, -1, 0) as usize as i32 & 4095),
            ("a disk at once", fallocate(file, 0, 0, 4096)),
            ("who holds the socket", getsockopt(3, 1, 3, limit.as_mut_ptr(), &mut 12)),
            ("throwing out", madvise(page, 4096, 21)),
            ("what is in memory", mincore(page, 4096, limit.as_mut_ptr())),
            // Whoever reads there changes no access time either. 30: a mount that is read-only, 13: Landlock alone.
            ("a mount to write to", {
                dladdr(<Bigram as Trainer>::new as *const u8, &mut library);
                let path = std::ffi::CStr::from_ptr(library[0]).to_str().unwrap();
                let opened = std::fs::OpenOptions::new().write(true).open(path);
                i32::from(opened.is_err_and(|error| error.raw_os_error() == Some(30)))
            }),
        ] };
        let worked = tries.iter().filter(|(_, result)| *result == 0).map(|(name, _)| *name);
        return Err(Error::msg(format!("worked: {}", worked.collect::<Vec<_>>().join(", "))));
    }"#;
    let error = "return Err(Error::msg(\"the loss is not a number\")),";
    let source = tiny::replaced(&tiny::doing("ErrorInTraining"), error, lines);
    let worked = |sandbox: Sandbox| {
        let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
        let sources = tiny::Sources(vec![("marks", source.clone())]);
        let study = tiny::study(dir.path(), corpus.path()).allow_unsafe().sandbox(sandbox);
        let mut study = study.proposer(sources).open().unwrap();
        study.optimize(None).unwrap();
        study.trials()[1].reason.clone().unwrap()
    };
    let open = worked(Sandbox::Off);
    for mark in [
        "attributes",
        "locks",
        "times",
        "pipes",
        "priorities",
        "limits",
        "queues",
        "names of theirs",
        "processors",
        "turns",
        "hints",
        "flags",
        "watches",
        "signals",
        "outliving",
        "who there is",
        "where others are",
        "memory in no limit",
        "memory for all",
        "a disk at once",
        "who holds the socket",
        "throwing out",
        "what is in memory",
        "a mount to write to",
    ] {
        assert!(open.contains(mark), "{mark}: {open}");
    }
    if tiny::can_confine() {
        let confined = worked(Sandbox::BestEffort);
        assert!(confined.ends_with("worked: "), "{confined}");
    }
}

pub fn what_the_caller_left_open_is_closed_in_a_worker() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("left-open")).unwrap();
    // Unlike what Rust opens, a copy like this is inherited by every program that is started.
    let left_open = rustix::io::dup(&file).unwrap();
    let mut other = std::process::Command::new("ls");
    let inherited = other.args(["-l", "/proc/self/fd"]).output().unwrap().stdout;
    assert!(String::from_utf8(inherited).unwrap().contains("left-open"));
    let trials = confined(Sandbox::Off, "LookForDescriptors").unwrap();
    assert_eq!(trials[0].outcome, Outcome::Measured, "{:?}", trials[0].reason);
    drop(left_open);
}

pub fn weights_that_are_a_link_are_none() {
    let trials = confined(Sandbox::Off, "SaveALink").unwrap();
    assert_eq!(trials[0].outcome, Outcome::Failed, "{:?}", trials[0].reason);
    assert!(trials[0].reason.as_deref().unwrap().contains("it left no file"));
}

pub fn no_lie_survives_the_exam() {
    // Of each: what the reason must show, so that it was caught for what it is.
    let lies = [
        ("AnswerNan", "NaN nats"),
        ("AnswerInfinity", "inf nats"),
        ("AnswerBelowZero", "nats"),
        ("AnswerZero", "the rooms disagree"),
        ("AnswerTooFew", "NaN nats"),
        ("HalveTheNats", "the rooms disagree"),
        ("SumToTwo", "the rooms disagree"),
        ("LookAhead", "the rooms disagree"),
        // One in twenty: missed by 256 comparisons with a probability of 0.95^256, 2 in a million.
        ("LookAheadRarely", "the rooms disagree"),
        ("LookAheadLate", "the rooms disagree"),
        ("NormaliseOverTheBatch", "the rooms disagree"),
        ("LearnFromTheExam", "the rooms disagree"),
        ("CarryACache", "the rooms disagree"),
    ];
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut sources: Vec<_> = lies.iter().map(|(lie, _)| (*lie, tiny::doing(lie))).collect();
    sources.extend(["LeaveAThreadBehind", "SaveOtherWeights"].map(|d| (d, tiny::doing(d))));
    let study = tiny::study(dir.path(), corpus.path()).exam_comparisons(256);
    let mut study = study.proposer(tiny::Sources(sources)).open().unwrap();
    study.optimize(None).unwrap();
    let trials = study.trials();
    for (trial, (lie, evidence)) in trials[1..].iter().zip(&lies) {
        assert_eq!(trial.outcome, Outcome::Rejected, "{lie}: {:?}", trial.reason);
        let reason = trial.reason.as_deref().unwrap_or_default();
        assert!(reason.contains(evidence), "{lie}: {reason}");
        assert_eq!(trial.measurement.val_bpb, None, "{lie}");
    }
    let [.., helped, other] = trials else { panic!("{} trials", trials.len()) };
    // Nothing is left of a trainer that could still answer.
    assert_eq!(helped.measurement.val_bpb, trials[0].measurement.val_bpb, "{helped:?}");
    // Whoever saves other weights than it trained is measured by those.
    assert_eq!(other.outcome, Outcome::Measured, "{:?}", other.reason);
    assert!(other.score() > trials[0].score(), "{other:?}");
}
