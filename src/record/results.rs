//! Rows of `results.tsv`, with autoresearch's five columns.

use crate::{
    record::{Status, Trial},
    text::acts,
};

/// The first line of `results.tsv`.
pub const RESULTS_HEADER: &str = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n";

/// Stands where a trial has no commit: only what is kept is committed.
const NO_COMMIT: &str = "-------";

/// A trial's line of `results.tsv`.
///
/// - `commit`: the first seven digits of the hash; `-------` for a trial that was not kept.
/// - `val_bpb`: bits per byte with six decimals, or the objective's own metric.
/// - `memory_gb`: peak memory in GiB with one decimal, of the accelerator if it is known and of the
///   training process otherwise.
/// - `status`: `keep`, `discard` or `crash`.
/// - `description`: in one line, without tabs, and with `'` for `"`, which readers of tables take
///   for the beginning of a quotation. A dollar has a `\` before it, and what would be read as no value stands in
///   parentheses.
///
/// Notebooks written for autoresearch read it, as does `pandas.read_csv(path, sep="\t")`. As there,
/// what is not known is written as zero: in this one place a gap would change the format.
pub fn results_row(trial: &Trial) -> String {
    let commit = trial.commit.as_deref().map_or(NO_COMMIT, short);
    let measured = &trial.measurement;
    let memory_mb = measured.peak_vram_mb.or(measured.peak_memory_mb);
    let (score, memory_mb) = match trial.status {
        Status::Crash => (0.0, 0.0),
        Status::Keep | Status::Discard => {
            (measured.score().unwrap_or_default(), memory_mb.unwrap_or_default())
        }
    };
    let memory_gb = memory_mb / 1024.0;
    let status = match trial.status {
        Status::Keep => "keep",
        Status::Discard => "discard",
        Status::Crash => "crash",
    };
    let description = described(&trial.description);
    format!("{commit}\t{score:.6}\t{memory_gb:.1}\t{status}\t{description}\n")
}

/// In the words of a description, what notebooks make something else of is written so that they show it.
fn described(description: &str) -> String {
    let text: String = description.chars().filter(|&c| c.is_whitespace() || !acts(c)).collect();
    let words: Vec<_> = text.split_whitespace().collect();
    // matplotlib takes what stands between two dollars for a formula, and fails over a wrong one.
    let text = words.join(" ").replace('"', "'").replace('$', "\\$");
    // pandas takes these for no value.
    if MISSING.contains(&text.as_str()) { format!("({text})") } else { text }
}

/// What `pandas.read_csv` takes for a missing value (3.1, "na_values").
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "null", "NaN", "None", "n/a", "nan",
];

/// As git abbreviates a hash.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::made_up::trial;

    #[test]
    fn notebooks_show_what_was_written() {
        let shown = |text| {
            let row = results_row(&trial(1, Status::Discard, Some(1.0), text));
            row.trim_end_matches('\n').rsplit('\t').next().unwrap().to_owned()
        };
        assert_eq!(shown("from $5 to $6, 10 %"), "from \\$5 to \\$6, 10 %");
        assert_eq!(shown("NA"), "(NA)");
        assert_eq!(shown(" null "), "(null)");
        assert_eq!(shown(""), "()");
        assert_eq!(shown("None of it"), "None of it");
        assert_eq!(shown("a\rb\u{7}c\u{202e}d"), "a bcd");
    }

    #[test]
    fn rows_are_as_autoresearch_writes_them() {
        let mut kept = trial(0, Status::Keep, Some(0.9979), "baseline");
        kept.commit = Some("a1b2c3d4e5f60718293a4b5c6d7e8f9012345678".to_owned());
        kept.measurement.peak_vram_mb = Some(45060.2);
        kept.measurement.peak_memory_mb = Some(2048.0);
        assert_eq!(results_row(&kept), "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n");

        let mut discarded = trial(1, Status::Discard, Some(1.005), "LR 0.02 -> 0.04");
        discarded.measurement.peak_memory_mb = Some(1536.0);
        assert_eq!(results_row(&discarded), "-------\t1.005000\t1.5\tdiscard\tLR 0.02 -> 0.04\n");
    }

    #[test]
    fn a_crash_has_no_figures_even_where_some_were_measured() {
        let mut crashed = trial(2, Status::Crash, None, "double the width");
        crashed.measurement.peak_memory_mb = Some(9000.0);
        assert_eq!(results_row(&crashed), "-------\t0.000000\t0.0\tcrash\tdouble the width\n");
    }

    #[test]
    fn a_description_cannot_break_the_table() {
        let trial = trial(3, Status::Crash, None, "\"SSSL\"\t-> \"L\"\r\nand more ");
        let row = results_row(&trial);
        assert_eq!(row.matches('\t').count(), RESULTS_HEADER.matches('\t').count());
        assert!(row.ends_with("\t'SSSL' -> 'L' and more\n"), "{row:?}");
    }
}
