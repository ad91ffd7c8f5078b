//! The proposers of one study: whose turn it is, who rests, who is out.

use super::{
    Allowance, Brief, Fault, Proposal, ProposeError, Proposer, Running, Usage, folder::Folder,
};
use crate::{
    error::{Error, Result},
    event::Event,
    laboratory::Built,
    record::{Outcome, Trial},
    text,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// Chooses a proposer for each trial, by what each has gained a minute so far.
///
/// Improvements are taken to come to a proposer as events at an unknown rate, so many a minute of
/// its trials; the gain of each is taken to be near its mean. A rate is drawn from what is believed
/// of it (a gamma distribution, which events at a constant rate leave a gamma distribution), times
/// the mean gain, and the highest draw has its turn: Thompson sampling (Thompson 1933; Russo et al.
/// 2018, "A Tutorial on Thompson Sampling", section 3). Old trials count for less, since what
/// helped at first helps no longer later.
#[derive(Default)]
pub(crate) struct Roster {
    members: Vec<Member>,
    allowance: Option<Allowance>,
    first_pause: Duration,
}

struct Member {
    name: String,
    proposer: Box<dyn Proposer>,
    record: Record,
    /// In this ledger.
    used: Usage,
    /// What led to no trial. It counts with the next one that this member proposes.
    unclaimed: Usage,
    failures_in_a_row: usize,
    refusals_in_a_row: usize,
    resting_until: Option<Instant>,
    /// Why it failed where nobody was told.
    untold: Option<String>,
    /// Why it is asked no more.
    out: Option<ProposeError>,
}

/// What became of a member's trials, the older ones discounted.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    minutes: f64,
    improvements: f64,
    gain: f64,
}

/// What a trial counts for when the next one has been made: half after 23.
const DISCOUNT: f64 = 0.97;

/// Before anything is known, one improvement in this many trials is expected, with the weight of one
/// that was seen.
const TRIALS_PER_IMPROVEMENT: f64 = 5.0;

/// A proposer that failed this often in a row has a pause before it is asked again.
const FAILURES_BEFORE_PAUSE: usize = 3;

/// Each pause is twice as long as the one before, up to this many first pauses.
const LONGEST_PAUSE: u32 = 32;

/// A proposer that repeats itself this often in a row would go on for ever.
const MOST_REFUSALS: usize = 20;

/// Characters of a description that are kept; of a remark.
const LONGEST_DESCRIPTION: usize = 1000;
const LONGEST_REMARK: usize = 1000;

/// The turn of one member.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None`: it was brought along from outside.
    member: Option<usize>,
    pub name: String,
    pub proposal: Proposal,
    /// What the study did with it, for the human.
    pub remarks: Vec<String>,
    /// If the source was built already.
    pub built: Option<Built>,
    /// What it has used up, from the first word to the last repair.
    pub usage: Usage,
    /// How long its proposer was at it.
    pub took: Duration,
}

impl Turn {
    /// A proposal that no proposer of the study stands behind.
    pub(crate) fn of_nobody(name: &str, proposal: Proposal) -> Self {
        Self {
            member: None,
            name: name.to_owned(),
            proposal: readable(proposal),
            remarks: Vec::new(),
            built: None,
            usage: Usage::default(),
            took: Duration::ZERO,
        }
    }
}

impl Roster {
    pub(crate) fn new(
        proposers: Vec<Box<dyn Proposer>>,
        allowance: Option<Allowance>,
        first_pause: Duration,
    ) -> Self {
        let mut members: Vec<Member> = Vec::new();
        for proposer in proposers {
            // The ledger tells proposers apart by their names.
            let same = |name: &str| members.iter().any(|member| member.name == name);
            let mut name = proposer.name().to_owned();
            let mut number = 2;
            while same(&name) {
                name = format!("{}#{number}", proposer.name());
                number += 1;
            }
            members.push(Member {
                name,
                proposer,
                record: Record::default(),
                used: Usage::default(),
                unclaimed: Usage::default(),
                failures_in_a_row: 0,
                refusals_in_a_row: 0,
                resting_until: None,
                untold: None,
                out: None,
            });
        }
        Self { members, allowance, first_pause }
    }

    /// Asks everybody whether there will be something to propose; what those say who will not.
    ///
    /// # Errors
    /// Nobody will.
    pub(crate) fn check(&self, edited: &str, baseline: &str) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for Member { name, proposer, .. } in &self.members {
            let checked = catch_unwind(AssertUnwindSafe(|| proposer.check(edited, baseline)));
            if let Ok(Err(error)) = checked {
                complaints.push((name.clone(), error));
            }
        }
        if complaints.len() == self.members.len()
            && let Some((proposer, source)) = complaints.first().cloned()
        {
            return Err(Error::Proposer { proposer, source });
        }
        Ok(complaints.iter().map(|(name, error)| format!("{name}: {error}")).collect())
    }

    /// Gives a turn of an earlier run back to its author, if that is still one of the members.
    pub(crate) fn recognise(&self, turn: Turn) -> Turn {
        let member = self.members.iter().position(|member| member.name == turn.name);
        Turn { member, ..turn }
    }

    /// Whether somebody would rather be asked ahead.
    pub(crate) fn thinks(&self) -> bool {
        self.members.iter().any(|member| member.out.is_none() && member.thinks())
    }

    /// The next proposal, from whoever's turn it is. `None`: nobody has anything left to try, or the
    /// study is to stop.
    ///
    /// While another trial runs, `None` also says that it is better asked for afterwards: the turn
    /// is somebody's who does not think ahead, or nobody is awake.
    ///
    /// # Errors
    /// Nobody is able to propose, now or later.
    pub(crate) fn propose(
        &mut self,
        brief: &Brief<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<Option<Turn>> {
        let mut rng = ChaCha8Rng::seed_from_u64(brief.seed);
        rng.set_stream(u64::from_be_bytes(*b"proposer"));
        while !brief.stop.is_stopped() {
            for member in &mut self.members {
                if let Some(reason) = member.untold.take() {
                    member.fail(&reason, self.first_pause, tell);
                }
            }
            self.retire_the_costly(brief.running, tell);
            let Some(chosen) = self.choose(&mut rng) else {
                match self.next_awake() {
                    _ if brief.running.is_some() => return Ok(None),
                    Some(moment) => {
                        wait_until(moment, brief);
                        continue;
                    }
                    None => return self.nobody_left(),
                }
            };
            if brief.running.is_some() && !self.members[chosen].thinks() {
                return Ok(None);
            }
            match self.ask(chosen, brief, tell) {
                Ok(turn) => return Ok(Some(turn)),
                Err(ProposeError::Interrupted) => break,
                // It rests now, or is out.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// A proposal in place of one that no longer fits: from its author or, where that fails, from
    /// whoever's turn it is.
    ///
    /// # Errors
    /// As for [`propose`](Self::propose).
    pub(crate) fn propose_again(
        &mut self,
        outdated: Turn,
        brief: &Brief<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<Option<Turn>> {
        let (author, before) = (outdated.member, outdated.took);
        // The allowance ends turns, and this one is not over: so what it cost has a trial to stand by.
        self.take_back(outdated);
        match author.map(|author| self.ask(author, brief, tell)) {
            Some(Ok(turn)) => Ok(Some(Turn { took: before + turn.took, ..turn })),
            Some(Err(ProposeError::Interrupted)) => Ok(None),
            Some(Err(_)) | None => self.propose(brief, tell),
        }
    }

    /// Ends a turn without a trial.
    pub(crate) fn take_back(&mut self, turn: Turn) {
        if let Some(author) = turn.member {
            self.members[author].unclaimed += turn.usage;
        }
    }

    fn ask(
        &mut self,
        chosen: usize,
        brief: &Brief<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<Turn, ProposeError> {
        let member = &mut self.members[chosen];
        let begun = Instant::now();
        tell(Event::Proposing { trial: brief.trial, proposer: member.name.clone() });
        let proposed = member.call(brief, |proposer, brief| proposer.propose(brief));
        let usage = member.take_usage();
        member.unclaimed += usage;
        match &proposed {
            Ok(_) => member.failures_in_a_row = 0,
            Err(ProposeError::Interrupted) => {}
            Err(error @ (ProposeError::Exhausted | ProposeError::Unable(_))) => {
                member.retire(error.clone(), tell);
            }
            Err(error) => member.fail(&error.to_string(), self.first_pause, tell),
        }
        Ok(Turn {
            member: Some(chosen),
            name: member.name.clone(),
            proposal: readable(proposed?),
            remarks: Vec::new(),
            built: None,
            usage: std::mem::take(&mut member.unclaimed),
            took: begun.elapsed(),
        })
    }

    /// Has the author of what came to nothing mend it; whether there is another version now.
    pub(crate) fn repair(
        &mut self,
        brief: &Brief<'_>,
        turn: &mut Turn,
        fault: &Fault,
        tell: &dyn Fn(Event),
    ) -> bool {
        let Some(author) = turn.member else { return false };
        let member = &mut self.members[author];
        let begun = Instant::now();
        let proposal = &turn.proposal;
        let repaired =
            member.call(brief, |proposer, brief| proposer.repair(brief, proposal, fault));
        turn.took += begun.elapsed();
        turn.usage += member.take_usage();
        match repaired {
            Ok(Some(version)) => {
                turn.proposal = readable(version);
                return true;
            }
            Ok(None) | Err(ProposeError::Interrupted) => {}
            Err(error) => member.fail(&error.to_string(), self.first_pause, tell),
        }
        false
    }

    /// Hears what became of a trial. `gain` is by how much it bettered the incumbent, if it did.
    pub(crate) fn observe(&mut self, trial: &Trial, source: &str, gain: Option<f64>) {
        for member in &mut self.members {
            member.record.discount();
            if member.name == trial.proposer {
                member.learn(trial, gain);
            }
            let observing = || member.proposer.observe(trial, source);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(observing)) {
                member.untold = Some(panicked(panic.as_ref()));
            }
        }
    }

    /// The member with the highest draw of those who are not out and not resting.
    fn choose(&self, rng: &mut ChaCha8Rng) -> Option<usize> {
        let now = Instant::now();
        let total = self.members.iter().fold(Record::default(), |sum, member| Record {
            minutes: sum.minutes + member.record.minutes,
            improvements: sum.improvements + member.record.improvements,
            gain: sum.gain + member.record.gain,
        });
        let mean_gain =
            if total.improvements > 0.0 { total.gain / total.improvements } else { 1.0 };
        let mut best: Option<(f64, usize)> = None;
        for (index, member) in self.members.iter().enumerate() {
            // Drawn for everybody, so that a pause does not change the others' luck.
            let draw = member.record.draw(mean_gain, rng);
            let awake = member.resting_until.is_none_or(|until| until <= now);
            if member.out.is_none() && awake && best.is_none_or(|(highest, _)| draw > highest) {
                best = Some((draw, index));
            }
        }
        best.map(|(_, index)| index)
    }

    fn next_awake(&self) -> Option<Instant> {
        let resting = self.members.iter().filter(|member| member.out.is_none());
        resting.filter_map(|member| member.resting_until).min()
    }

    /// Once the allowance is spent, only those go on who cost nothing.
    fn retire_the_costly(&mut self, running: Option<&Running>, tell: &dyn Fn(Event)) {
        let Some(allowance) = self.allowance else { return };
        let mut all = Usage::default();
        for member in &mut self.members {
            let used = member.used_up(running);
            all += used;
            // Money that nobody counts would be spent without end.
            let is_uncounted = allowance.is_money() && used.usd.is_none();
            if is_uncounted && used.tokens.is_some() && member.out.is_none() {
                let reason =
                    "what it costs in dollars is not known: name its price, or limit tokens";
                member.retire(ProposeError::Unable(reason.to_owned()), tell);
            }
        }
        if allowance.is_spent(all) {
            for member in &mut self.members {
                if member.used_up(running) != Usage::default() && member.out.is_none() {
                    member.retire(ProposeError::Exhausted, tell);
                }
            }
        }
    }

    fn nobody_left(&mut self) -> Result<Option<Turn>> {
        let unable = self.members.iter_mut().find_map(|member| match member.out.take() {
            Some(error @ ProposeError::Unable(_)) => Some((member.name.clone(), error)),
            other => {
                member.out = other;
                None
            }
        });
        match unable {
            Some((proposer, source)) => Err(Error::Proposer { proposer, source }),
            None => Ok(None),
        }
    }
}

impl Member {
    /// Has it do something in a folder of its own. One that panics is one that failed: others go on.
    fn call<T>(
        &mut self,
        brief: &Brief<'_>,
        act: impl FnOnce(&mut dyn Proposer, &Brief<'_>) -> Result<T, ProposeError>,
    ) -> Result<T, ProposeError> {
        let folder = Folder::lay(brief).map_err(|error| {
            let above = brief.folder.display();
            ProposeError::Failed(format!("there is no folder to work in below {above}: {error}"))
        })?;
        let brief = Brief { folder: folder.path(), proposer: &self.name, ..*brief };
        let proposer = self.proposer.as_mut();
        catch_unwind(AssertUnwindSafe(|| act(proposer, &brief)))
            .unwrap_or_else(|panic| Err(ProposeError::Failed(panicked(panic.as_ref()))))
    }

    fn thinks(&self) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.proposer.thinks())).unwrap_or_default()
    }

    fn take_usage(&mut self) -> Usage {
        catch_unwind(AssertUnwindSafe(|| self.proposer.take_usage())).unwrap_or_default()
    }

    /// In the ledger, and what will stand there.
    fn used_up(&self, running: Option<&Running>) -> Usage {
        let mut used = self.used;
        used += self.unclaimed;
        if let Some(running) = running.filter(|running| running.proposer == self.name) {
            used += running.usage;
        }
        used
    }

    fn learn(&mut self, trial: &Trial, gain: Option<f64>) {
        let measured = &trial.measurement;
        self.used += Usage { usd: measured.propose_usd, tokens: measured.propose_tokens };
        // A trial without a time, which only a damaged ledger has, counts as one of no length.
        self.record.minutes += measured.total_seconds.unwrap_or_default() / 60.0;
        if let Some(gain) = gain {
            self.record.improvements += 1.0;
            self.record.gain += gain;
        }
        self.refusals_in_a_row =
            if trial.outcome == Outcome::Refused { self.refusals_in_a_row + 1 } else { 0 };
        if self.refusals_in_a_row >= MOST_REFUSALS {
            self.out = Some(ProposeError::Unable(format!(
                "its last {MOST_REFUSALS} proposals were refused, most likely as sources that had been tried"
            )));
        }
    }

    fn fail(&mut self, reason: &str, first_pause: Duration, tell: &dyn Fn(Event)) {
        self.failures_in_a_row += 1;
        let pauses = self.failures_in_a_row.checked_sub(FAILURES_BEFORE_PAUSE);
        let pause = pauses.map(|pauses| {
            let factor = 2u32.saturating_pow(u32::try_from(pauses).unwrap_or(u32::MAX));
            first_pause * factor.min(LONGEST_PAUSE)
        });
        self.resting_until = pause.map(|pause| Instant::now() + pause);
        tell(Event::ProposerFailed {
            proposer: self.name.clone(),
            reason: reason.to_owned(),
            pause_seconds: pause.map_or(0.0, |pause| pause.as_secs_f64()),
        });
    }

    fn retire(&mut self, reason: ProposeError, tell: &dyn Fn(Event)) {
        tell(Event::ProposerRetired { proposer: self.name.clone(), reason: reason.to_string() });
        self.out = Some(reason);
    }
}

impl Record {
    fn discount(&mut self) {
        self.minutes *= DISCOUNT;
        self.improvements *= DISCOUNT;
        self.gain *= DISCOUNT;
    }

    /// A gain a minute, drawn from what is believed of it.
    fn draw(&self, mean_gain: f64, rng: &mut ChaCha8Rng) -> f64 {
        // The prior's unit of time cancels out between members; what a trial usually takes is as
        // good as any.
        const MINUTES_PER_TRIAL: f64 = 5.0;
        let shape = 1.0 + self.improvements;
        let minutes = TRIALS_PER_IMPROVEMENT * MINUTES_PER_TRIAL + self.minutes;
        let rate = Gamma::new(shape, 1.0 / minutes).map_or(0.0, |gamma| gamma.sample(rng));
        let size = (mean_gain + self.gain) / (1.0 + self.improvements);
        rate * size
    }
}

/// A description is a line that can be read, in the ledger as in a commit and on a terminal.
fn readable(mut proposal: Proposal) -> Proposal {
    proposal.description = text::line(&proposal.description, LONGEST_DESCRIPTION);
    proposal.remarks =
        proposal.remarks.iter().map(|remark| text::line(remark, LONGEST_REMARK)).collect();
    proposal
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied();
    let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text::line(words.unwrap_or("without a word"), 300))
}

fn wait_until(moment: Instant, brief: &Brief<'_>) {
    const TICK: Duration = Duration::from_millis(100);
    while Instant::now() < moment && !brief.stop.is_stopped() {
        std::thread::sleep(TICK.min(moment.saturating_duration_since(Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proposer::brief::tests::brief,
        record::{Status, made_up::trial},
        stop::StopHandle,
    };
    use std::cell::RefCell;

    /// Answers what it is told to, and the last of that for ever.
    struct Scripted(&'static str, Vec<Result<Proposal, ProposeError>>);

    impl Proposer for Scripted {
        fn name(&self) -> &str {
            self.0
        }

        fn propose(&mut self, _: &Brief<'_>) -> Result<Proposal, ProposeError> {
            if self.1.len() > 1 { self.1.remove(0) } else { self.1[0].clone() }
        }
    }

    fn scripted(
        name: &'static str,
        answers: impl IntoIterator<Item = Result<Proposal, ProposeError>>,
    ) -> Box<dyn Proposer> {
        Box::new(Scripted(name, answers.into_iter().collect()))
    }

    fn good() -> Result<Proposal, ProposeError> {
        Ok(Proposal::new("source", "an idea"))
    }

    fn down() -> Result<Proposal, ProposeError> {
        Err(ProposeError::Failed("no connection".to_owned()))
    }

    /// Panics wherever it is asked anything.
    struct Panicking;

    impl Proposer for Panicking {
        fn name(&self) -> &str {
            "panicking"
        }

        fn propose(&mut self, _: &Brief<'_>) -> Result<Proposal, ProposeError> {
            panic!("no {}", "idea")
        }

        fn repair(
            &mut self,
            _: &Brief<'_>,
            _: &Proposal,
            _: &Fault,
        ) -> Result<Option<Proposal>, ProposeError> {
            panic!()
        }

        fn observe(&mut self, _: &Trial, _: &str) {
            panic!("seen enough")
        }

        fn take_usage(&mut self) -> Usage {
            panic!()
        }

        fn thinks(&self) -> bool {
            panic!()
        }
    }

    const PAUSE: Duration = Duration::from_millis(1);

    fn roster(proposers: Vec<Box<dyn Proposer>>) -> Roster {
        Roster::new(proposers, None, PAUSE)
    }

    /// One turn, and what observers heard of it.
    fn turn(roster: &mut Roster, number: usize) -> (Result<Option<Turn>>, Vec<Event>) {
        let history = [trial(0, Status::Keep, Some(1.0), "baseline")];
        let stop = StopHandle::new();
        let folder = tempfile::tempdir().unwrap();
        let brief =
            Brief { trial: number, seed: number as u64, ..brief(&history, folder.path(), &stop) };
        let events = RefCell::new(Vec::new());
        let turn = roster.propose(&brief, &|event| events.borrow_mut().push(event));
        (turn, events.into_inner())
    }

    fn played(number: usize, name: &str, gain: Option<f64>) -> Trial {
        let status = if gain.is_some() { Status::Keep } else { Status::Discard };
        let mut trial = trial(number, status, Some(1.0), "an idea");
        trial.proposer = name.to_owned();
        trial.measurement.total_seconds = Some(300.0);
        trial
    }

    /// How often each of two proposers has its turn where they gain as `gain` says.
    fn turns(trials: usize, gain: impl Fn(&str, usize) -> Option<f64>) -> [usize; 2] {
        let mut roster = roster(vec![scripted("a", [good()]), scripted("b", [good()])]);
        let mut counts = [0, 0];
        for number in 1..=trials {
            let name = turn(&mut roster, number).0.unwrap().unwrap().name;
            counts[usize::from(name == "b")] += 1;
            let gain = gain(&name, number);
            roster.observe(&played(number, &name, gain), "", gain);
        }
        counts
    }

    #[test]
    fn whoever_gains_more_a_minute_has_more_turns() {
        // Every third of b's proposals helps, none of a's.
        let [a, b] = turns(100, |name, n| (name == "b" && n % 3 == 0).then_some(0.01));
        assert!(b > 2 * a && a > 3, "{a} and {b}: the better one more, the other now and then");
        // Both help as often, but b's improvements are larger.
        let [a, b] =
            turns(100, |name, n| (n % 3 == 0).then_some(if name == "b" { 0.1 } else { 0.01 }));
        assert!(b > 2 * a, "{a} and {b}");
    }

    #[test]
    fn proposers_that_help_alike_share_the_night() {
        let [a, b] = turns(200, |_, n| (n % 4 == 0).then_some(0.01));
        assert!(a > 50 && b > 50, "{a} and {b}");
    }

    #[test]
    fn a_proposer_that_stops_helping_loses_its_turns() {
        let [a, b] = turns(200, |name, n| {
            let helps = if n < 40 { "a" } else { "b" };
            (name == helps && n % 2 == 0).then_some(0.01)
        });
        assert!(b > a, "{a} and {b}");
    }

    #[test]
    fn a_failing_proposer_rests_and_the_others_go_on() {
        let mut roster = Roster::new(
            vec![scripted("agent", [down()]), scripted("tuner", [good()])],
            None,
            Duration::from_secs(3600),
        );
        let mut failures = Vec::new();
        for number in 1..=40 {
            let (turn, events) = turn(&mut roster, number);
            assert_eq!(turn.unwrap().unwrap().name, "tuner");
            failures.extend(events.into_iter().filter_map(|event| match event {
                Event::ProposerFailed { pause_seconds, .. } => Some(pause_seconds),
                _ => None,
            }));
        }
        assert_eq!(failures, [0.0, 0.0, 3600.0]);
    }

    #[test]
    fn a_lone_proposer_is_asked_again_after_ever_longer_pauses() {
        let answers = (0..6).map(|_| down()).chain([good()]);
        let mut roster = roster(vec![scripted("agent", answers)]);
        let (turn, events) = turn(&mut roster, 1);
        assert_eq!(turn.unwrap().unwrap().name, "agent");
        let pauses: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::ProposerFailed { pause_seconds, .. } => Some(pause_seconds * 1e3),
                _ => None,
            })
            .collect();
        assert_eq!(pauses, [0.0, 0.0, 1.0, 2.0, 4.0, 8.0]);
    }

    #[test]
    fn a_study_ends_well_when_nothing_is_left_and_badly_when_nobody_is_able() {
        let done = || scripted("replay", [Err(ProposeError::Exhausted)]);
        let unable = || scripted("agent", [Err(ProposeError::Unable("not installed".to_owned()))]);
        assert!(turn(&mut roster(vec![done()]), 1).0.unwrap().is_none());
        let error = turn(&mut roster(vec![unable()]), 1).0.unwrap_err().to_string();
        assert!(error.contains("agent") && error.contains("not installed"), "{error}");
        // Where somebody is left, the night goes on.
        let mut mixed = roster(vec![unable(), done(), scripted("tuner", [good()])]);
        assert_eq!(turn(&mut mixed, 1).0.unwrap().unwrap().name, "tuner");
    }

    #[test]
    fn while_a_trial_runs_nobody_is_asked_who_does_not_think_nor_waited_for() {
        let history = [trial(0, Status::Keep, Some(1.0), "baseline")];
        let stop = StopHandle::new();
        let running = Running {
            trial: 1,
            proposer: "tuner".to_owned(),
            description: "an idea".to_owned(),
            usage: Usage::default(),
        };
        let folder = tempfile::tempdir().unwrap();
        let brief = Brief { running: Some(&running), ..brief(&history, folder.path(), &stop) };
        let events = RefCell::new(Vec::new());
        let ahead = |roster: &mut Roster| {
            let turn = roster.propose(&brief, &|event| events.borrow_mut().push(event));
            (turn.unwrap().is_some(), events.take().len())
        };
        let mut alone = roster(vec![scripted("tuner", [good()])]);
        assert!(!alone.thinks());
        assert_eq!(ahead(&mut alone), (false, 0));
        alone.members[0].resting_until = Some(Instant::now() + Duration::from_secs(3600));
        assert_eq!(ahead(&mut alone), (false, 0));
        // Nor does it end the study that nobody is left.
        alone.members[0].out = Some(ProposeError::Unable("not installed".to_owned()));
        assert_eq!(ahead(&mut alone), (false, 0));
    }

    #[test]
    fn a_spent_allowance_leaves_those_who_cost_nothing() {
        let proposers = vec![scripted("chat", [good()]), scripted("tuner", [good()])];
        let mut roster = Roster::new(proposers, Some("0.5usd".parse().unwrap()), PAUSE);
        let mut costly = played(1, "chat", Some(1.0));
        costly.measurement.propose_usd = Some(0.3);
        roster.observe(&costly, "", Some(1.0));
        let names = |roster: &mut Roster| -> Vec<_> {
            (2..40).map(|n| turn(roster, n).0.unwrap().unwrap().name).collect()
        };
        assert!(names(&mut roster).contains(&"chat".to_owned()));
        roster.observe(&costly, "", Some(1.0));
        assert!(!names(&mut roster).contains(&"chat".to_owned()));
    }

    #[test]
    fn money_that_nobody_counts_is_not_spent() {
        let mut roster =
            Roster::new(vec![scripted("chat", [good()])], Some("5usd".parse().unwrap()), PAUSE);
        let mut trial = played(1, "chat", Some(1.0));
        trial.measurement.propose_tokens = Some(100);
        assert!(turn(&mut roster, 1).0.is_ok());
        roster.observe(&trial, "", Some(1.0));
        let error = turn(&mut roster, 2).0.unwrap_err().to_string();
        assert!(error.contains("name its price"), "{error}");
    }

    #[test]
    fn a_proposer_that_only_repeats_itself_is_out() {
        let mut roster = roster(vec![scripted("loop", [good()])]);
        for number in 1..=MOST_REFUSALS {
            assert!(turn(&mut roster, number).0.is_ok());
            let mut refused = played(number, "loop", None);
            refused.outcome = Outcome::Refused;
            roster.observe(&refused, "", None);
        }
        assert!(turn(&mut roster, 99).0.is_err());
    }

    #[test]
    fn who_panics_has_failed_and_the_others_go_on() {
        let mut roster = roster(vec![Box::new(Panicking), scripted("sound", [good()])]);
        let mut reasons = Vec::new();
        for number in 1..30 {
            let (turn, events) = turn(&mut roster, number);
            let mut turn = turn.unwrap().unwrap();
            assert_eq!(turn.name, "sound");
            reasons.extend(events.into_iter().filter_map(|event| match event {
                Event::ProposerFailed { proposer, reason, .. } => Some((proposer, reason)),
                _ => None,
            }));
            roster.observe(&trial(number, Status::Discard, Some(1.0), "an idea"), "", None);
            turn.member = Some(0);
            let folder = tempfile::tempdir().unwrap();
            let (history, stop) = ([trial(0, Status::Keep, Some(1.0), "")], StopHandle::new());
            let brief = brief(&history, folder.path(), &stop);
            let fault = Fault::Repeats { trial: 0 };
            assert!(!roster.repair(&brief, &mut turn, &fault, &|_| {}));
        }
        let expected = ["it panicked: no idea", "it panicked: seen enough"];
        for expected in expected {
            let expected = ("panicking".to_owned(), expected.to_owned());
            assert!(reasons.contains(&expected), "{reasons:?}");
        }
    }

    #[test]
    fn proposers_of_one_name_are_told_apart() {
        let roster = roster(vec![scripted("claude", [good()]), scripted("claude", [good()])]);
        let names: Vec<_> = roster.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["claude", "claude#2"]);
    }
}
