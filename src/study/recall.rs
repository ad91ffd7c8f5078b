//! What the judge believes, kept beside the ledger so that a long study opens quickly.
//!
//! The ledger is the truth, and the judge can always be led through it again; that takes 0.1 ms a trial or more. So its
//! belief is written down now and then. It counts only as far as it was drawn from these trials by this very judge, and
//! may be deleted at any time.

use crate::{
    hash::{sha256, sha256_of_parts},
    judge::Judge,
    record::{JudgeRule, Trial},
};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path};

/// In the study's folder.
const FILE: &str = ".judge";

/// So many trials are followed before the belief is written down.
pub(crate) const EVERY: usize = 250;

/// The judge's own text: what another version believed is of no use.
const JUDGE: [&str; 4] = [
    include_str!("../judge/mod.rs"),
    include_str!("../judge/belief.rs"),
    include_str!("../judge/effects.rs"),
    include_str!("../judge/normal.rs"),
];

#[derive(Serialize, Deserialize)]
struct Kept {
    trials: usize,
    key: String,
    judge: Judge,
}

/// A judge that has followed these trials.
pub(crate) fn judge(folder: &Path, rule: JudgeRule, trials: &[Trial]) -> Judge {
    let known = read(folder)
        .filter(|kept| trials.get(..kept.trials).is_some_and(|known| kept.key == key(rule, known)));
    let (mut judge, from) =
        known.map_or_else(|| (Judge::new(rule), 0), |kept| (kept.judge, kept.trials));
    let rest = &trials[from..];
    rest.iter().for_each(|trial| judge.remember(trial));
    if rest.len() >= EVERY {
        keep(folder, rule, &judge, trials);
    }
    judge
}

/// Writes down what a judge believes who has followed these trials. Where that fails, the next opening takes longer.
pub(crate) fn keep(folder: &Path, rule: JudgeRule, judge: &Judge, trials: &[Trial]) {
    #[derive(Serialize)]
    struct Keeping<'a> {
        trials: usize,
        key: String,
        judge: &'a Judge,
    }
    let keeping = Keeping { trials: trials.len(), key: key(rule, trials), judge };
    let Ok(body) = postcard::to_allocvec(&keeping) else { return };
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|file| {
        fs::write(&file, [sha256(&body).as_bytes(), &body].concat())?;
        file.persist(folder.join(FILE)).map_err(io::Error::from)
    });
    drop(written);
}

fn read(folder: &Path) -> Option<Kept> {
    let bytes = fs::read(folder.join(FILE)).ok()?;
    let (sum, body) = bytes.split_at_checked(sha256(b"").len())?;
    if sum != sha256(body).as_bytes() {
        return None;
    }
    postcard::from_bytes(body).ok()
}

/// Names a judge and all that it draws from these trials.
fn key(rule: JudgeRule, trials: &[Trial]) -> String {
    let told = trials.iter().map(|trial| {
        let start = trial.measurement.start_sha256.as_deref();
        let cost = trial.cost().map(f64::to_bits);
        postcard::to_allocvec(&(cost, trial.seed, trial.repeats, trial.is_kept(), start))
    });
    let told: Vec<u8> = told.flatten().flatten().collect();
    let rule = rule.to_string();
    let judge = JUDGE.map(str::as_bytes);
    sha256_of_parts(judge.into_iter().chain([rule.as_bytes(), &told]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Status, made_up::trial};

    /// A night whose costs go down, with a trial that came to nothing now and then.
    fn night(trials: usize) -> Vec<Trial> {
        let cost = |number: usize| 2.0 - (number % 7) as f64 * 1e-3 - number as f64 * 1e-4;
        let one = |number: usize| {
            let kept = number.is_multiple_of(5);
            let status = if kept { Status::Keep } else { Status::Discard };
            trial(number, status, (!number.is_multiple_of(11)).then(|| cost(number)), "a change")
        };
        (0..trials)
            .map(
                |number| {
                    if number == 0 { trial(0, Status::Keep, Some(2.0), "") } else { one(number) }
                },
            )
            .collect()
    }

    fn followed(trials: &[Trial]) -> Judge {
        let mut judge = Judge::new(JudgeRule::Posterior);
        trials.iter().for_each(|trial| judge.remember(trial));
        judge
    }

    #[test]
    fn what_was_kept_is_believed_as_far_as_it_is_of_these_trials() {
        let folder = tempfile::tempdir().unwrap();
        let (place, rule) = (folder.path(), JudgeRule::Posterior);
        let trials = night(EVERY + 60);
        assert_eq!(judge(place, rule, &trials[..EVERY]), followed(&trials[..EVERY]));
        assert!(place.join(FILE).exists());
        assert_eq!(judge(place, rule, &trials), followed(&trials));

        // A belief that nobody could come to by himself shows that it was read.
        let strange = followed(&night(3));
        keep(place, rule, &strange, &trials[..EVERY]);
        assert_eq!(judge(place, rule, &trials[..EVERY]), strange);
        // But not for other trials, fewer of them, another rule, or where the file is damaged.
        let mut others = trials.clone();
        others[17].measurement.val_bpb = Some(1.5);
        assert_eq!(judge(place, rule, &others[..EVERY - 1]), followed(&others[..EVERY - 1]));
        assert_eq!(judge(place, rule, &others[..EVERY]), followed(&others[..EVERY]));
        keep(place, rule, &strange, &trials[..EVERY]);
        assert_ne!(judge(place, JudgeRule::Greedy, &trials[..EVERY - 1]), strange);
        let mut bytes = fs::read(place.join(FILE)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(place.join(FILE), bytes).unwrap();
        assert_eq!(judge(place, rule, &trials[..EVERY]), followed(&trials[..EVERY]));
    }
}
