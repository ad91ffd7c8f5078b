//! Which program, or proposer, makes the faster progress: contenders run trial by trial in turn.
//!
//! A [`Comparison`] gives every [`Contender`] a study of its own, under one budget and from one
//! baseline, and repeats that under other seeds. Its [`Standings`] say who is ahead, and whether
//! that can be told from luck.

mod progress;
mod standings;

pub use crate::statistics::Estimate;
pub use standings::{Lead, Standing, Standings};

use crate::{
    error::{Error, Result},
    proposer::Proposer,
    record::Trial,
    stop::StopHandle,
    study::{Study, StudyBuilder},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One of those that are compared: a proposer, and the program that it is told to follow.
///
/// Nothing else can differ between two contenders.
pub struct Contender {
    name: String,
    program: Option<String>,
    hire: Box<dyn Fn(u64) -> Result<Box<dyn Proposer>>>,
}

impl Contender {
    /// A contender whose proposer `hire` makes, once a repetition, from the repetition's seed.
    pub fn new<P: Proposer + 'static>(
        name: impl Into<String>,
        hire: impl Fn(u64) -> Result<P> + 'static,
    ) -> Self {
        let hire = move |seed| Ok(Box::new(hire(seed)?) as Box<dyn Proposer>);
        Self { name: name.into(), program: None, hire: Box::new(hire) }
    }

    /// The research instructions, as text. Default: those that the studies have anyway.
    #[must_use]
    pub fn program(mut self, text: impl Into<String>) -> Self {
        self.program = Some(text.into());
        self
    }
}

/// Contenders under equal conditions, interleaved so that whatever else the machine does meets all
/// of them alike.
///
/// ```no_run
/// use overnight::{Study, comparison::{Comparison, Contender}, proposer::Tuner};
///
/// # fn main() -> Result<(), overnight::Error> {
/// # overnight::worker::run_if_worker();
/// let standings = Comparison::new("runs/compare", |dir| Study::builder(dir))
///     .contender(Contender::new("careful", |seed| Ok(Tuner::new(seed))).program("Small steps."))
///     .contender(Contender::new("bold", |seed| Ok(Tuner::new(seed))).program("Think big."))
///     .run(20, |turn| println!("{}: {:?}", turn.contender, turn.trial.cost()))?;
/// if let Some(standings) = standings {
///     print!("{standings}");
/// }
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Comparison {
    dir: PathBuf,
    describe: Box<dyn Fn(&Path) -> StudyBuilder>,
    contenders: Vec<Contender>,
    repetitions: usize,
    seed: u64,
    stop: StopHandle,
}

/// A trial is over, and it is the next contender's turn.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Turn<'a> {
    /// From 0.
    pub repetition: usize,
    /// The contender's name.
    pub contender: &'a str,
    /// What came of its turn.
    pub trial: &'a Trial,
}

/// A contender in one repetition.
struct Entrant {
    study: Study,
    /// It has nothing left to propose, and stays where it is.
    is_exhausted: bool,
}

impl Comparison {
    /// A comparison in the folder `dir`, to be begun or resumed. `describe` is asked for the study
    /// in each folder below it, and should answer with the same one: seed, program, proposer and
    /// stop handle are then filled in, and control runs left out.
    pub fn new(
        dir: impl Into<PathBuf>,
        describe: impl Fn(&Path) -> StudyBuilder + 'static,
    ) -> Self {
        Self {
            dir: dir.into(),
            describe: Box::new(describe),
            contenders: Vec::new(),
            repetitions: 3,
            seed: 0,
            stop: StopHandle::new(),
        }
    }

    /// Adds a contender. Its name becomes a folder's, and is changed where it could not be one or
    /// is another contender's already.
    pub fn contender(mut self, mut contender: Contender) -> Self {
        let taken: Vec<_> = self.contenders.iter().map(|other| other.name.as_str()).collect();
        contender.name = distinct_name(&contender.name, &taken);
        self.contenders.push(contender);
        self
    }

    /// How often all contenders begin anew, each time under another seed. Default: 3. A single time
    /// leaves it open what was luck.
    pub fn repetitions(mut self, repetitions: usize) -> Self {
        self.repetitions = repetitions;
        self
    }

    /// The first repetition's seed; the others' follow it. Within one, all contenders have the same.
    /// Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Lets `stop` end the comparison from another thread.
    pub fn stop_handle(mut self, stop: StopHandle) -> Self {
        self.stop = stop;
        self
    }

    /// Brings every study to `trials` trials beyond its baseline, round by round, and tells who is
    /// ahead. What stands in the ledgers is not run again, so the same call goes on after a stop.
    ///
    /// A comparison that was stopped is judged by the rounds that are complete; `None` if there are
    /// none.
    ///
    /// # Errors
    /// What keeps one of the studies from going on.
    pub fn run(
        &self,
        trials: usize,
        mut on_turn: impl FnMut(Turn<'_>),
    ) -> Result<Option<Standings>> {
        let mut nights = self.open()?;
        let mut complete = 0;
        'rounds: for round in 0..=trials {
            for (repetition, entrants) in nights.iter_mut().enumerate() {
                for contender in order(round + repetition, entrants.len()) {
                    let Entrant { study, is_exhausted } = &mut entrants[contender];
                    if *is_exhausted || study.trials().len() > round {
                        continue;
                    }
                    match study.step()? {
                        Some(trial) => {
                            let contender = &self.contenders[contender].name;
                            on_turn(Turn { repetition, contender, trial: &trial });
                        }
                        None if self.stop.is_stopped() => break 'rounds,
                        None => *is_exhausted = true,
                    }
                }
            }
            if !nights.iter().flatten().any(|entrant| entrant.study.trials().len() > round) {
                break;
            }
            complete = round;
        }
        let names: Vec<_> = self.contenders.iter().map(|one| one.name.as_str()).collect();
        let ledgers: Vec<Vec<_>> = nights
            .iter()
            .map(|entrants| entrants.iter().map(|entrant| entrant.study.trials()).collect())
            .collect();
        Ok(Standings::of(&names, &ledgers, complete))
    }

    /// The studies, by repetition and contender. All are open at a time, so that every round can
    /// visit them all.
    fn open(&self) -> Result<Vec<Vec<Entrant>>> {
        let seeds = (0..self.repetitions as u64).map(|n| self.seed.wrapping_add(n));
        seeds
            .map(|seed| {
                self.contenders.iter().map(|contender| self.enter(contender, seed)).collect()
            })
            .collect()
    }

    fn enter(&self, contender: &Contender, seed: u64) -> Result<Entrant> {
        let dir = self.dir.join(format!("seed-{seed}")).join(&contender.name);
        let mut study = (self.describe)(&dir)
            .seed(seed)
            // Every round is a proposal of each; the repetitions tell the noise.
            .controls(0)
            .control_every(None)
            .proposer((contender.hire)(seed)?)
            .stop_handle(self.stop.clone());
        if let Some(program) = &contender.program {
            freeze_program(&dir, program)?;
            study = study.program(program);
        }
        Ok(Entrant { study: study.open()?, is_exhausted: false })
    }
}

/// A study may change its program overnight, but a program that is compared has to stay what it is.
fn freeze_program(dir: &Path, program: &str) -> Result<()> {
    let path = dir.join("program.md");
    match fs::read_to_string(&path) {
        Ok(text) if text == program => Ok(()),
        Ok(_) => Err(Error::OtherConfiguration {
            folder: dir.to_owned(),
            differences: "its program.md was another text".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            fs::write(&path, program).map_err(Error::io("write", path))
        }
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Who goes first, second, and so on. Every other order is the one before it backwards, and pairs of
/// orders rotate: after 2 × `count` turns each contender has been equally often in each place, and
/// before each other one.
fn order(turn: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    order.rotate_left(turn / 2 % count.max(1));
    if turn % 2 == 1 {
        order.reverse();
    }
    order
}

/// `name` as a folder can have it, numbered where it is taken.
fn distinct_name(name: &str, taken: &[&str]) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_+".contains(letter);
    let plain = name.replace(|letter| !is_plain(letter), "-");
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut names = std::iter::once(plain.clone()).chain(numbered);
    names.find(|name| !name.is_empty() && !taken.contains(&name.as_str())).unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_always_goes_first() {
        let orders: Vec<_> = (0..5).map(|turn| order(turn, 2)).collect();
        assert_eq!(orders, [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1]]);
        for count in 1..6 {
            let orders: Vec<_> = (0..2 * count).map(|turn| order(turn, count)).collect();
            for contender in 0..count {
                for place in 0..count {
                    let times = orders.iter().filter(|order| order[place] == contender).count();
                    assert_eq!(times, 2, "{contender} of {count} in place {place}");
                }
                for other in (0..count).filter(|&other| other != contender) {
                    let place =
                        |order: &Vec<usize>, who| order.iter().position(|&one| one == who).unwrap();
                    let before =
                        |order: &&Vec<usize>| place(order, contender) < place(order, other);
                    assert_eq!(orders.iter().filter(before).count(), count);
                }
            }
        }
    }

    #[test]
    fn names_are_distinct_and_folders_can_have_them() {
        for (name, taken, expected) in [
            ("bold+tuner", &[][..], "bold+tuner"),
            ("replay:../nights/1", &[], "replay----nights-1"),
            ("tuner", &["tuner"], "tuner-2"),
            ("tuner", &["tuner", "tuner-2"], "tuner-3"),
            ("a/b", &["a-b"], "a-b-2"),
            ("..", &[], "--"),
            ("", &[], "-2"),
        ] {
            assert_eq!(distinct_name(name, taken), expected);
        }
    }

    #[test]
    fn a_program_cannot_change_within_a_comparison() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("seed-0/bold");
        freeze_program(&dir, "Think big.").unwrap();
        freeze_program(&dir, "Think big.").unwrap();
        let error = freeze_program(&dir, "Think small.").unwrap_err();
        assert!(error.to_string().contains("its program.md was another text"), "{error}");
    }
}
