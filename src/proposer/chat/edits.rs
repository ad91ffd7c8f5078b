//! Edits: the model's answer, turned into a source, or into a complaint that the model can act on.

use super::prompt::SOURCE_BYTES;
use crate::text::{fenced, head, line};
use std::ops::Range;

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edited {
    pub source: String,
    /// What the model says it tries.
    pub description: Option<String>,
}

/// Lines to find in the source, and lines to stand there instead.
#[derive(Debug, PartialEq, Eq)]
struct Block<'a> {
    search: &'a str,
    replace: &'a str,
}

/// The lines that lend a block its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Search,
    Divider,
    Replace,
}

/// A change in more blocks is a new file.
const MOST_BLOCKS: usize = 100;

/// Blocks that one complaint is about, and lines of each that are compared with the source.
const MOST_COMPLAINTS: usize = 4;
const LINES_COMPARED: usize = 40;

/// Applies an answer to a source: every block of it, or none. `Err` says what the model did wrong.
pub(super) fn apply(answer: &str, source: &str) -> Result<Edited, String> {
    if answer.trim().is_empty() {
        return Err("Your answer was empty.".to_owned());
    }
    let blocks = blocks(answer)?;
    let edited = if blocks.is_empty() { whole_file(answer)? } else { replaced(&blocks, source)? };
    if edited.trim().is_empty() {
        return Err("Your answer leaves nothing of the file.".to_owned());
    }
    if edited.len() > SOURCE_BYTES {
        return Err(format!("Your file is longer than {} KiB.", SOURCE_BYTES >> 10));
    }
    if edited.trim_end() == source.trim_end() {
        return Err("Your answer changes nothing.".to_owned());
    }
    Ok(Edited { source: edited, description: description(answer) })
}

/// The rest of a line `DESCRIPTION: …`, whatever Markdown is around it.
fn description(answer: &str) -> Option<String> {
    const LABEL: &str = "DESCRIPTION:";
    let text = answer.lines().find_map(|line| {
        let line = line.trim_start_matches(['*', '#', '>', '`', ' ']);
        let (label, rest) = line.split_at_checked(LABEL.len())?;
        label.eq_ignore_ascii_case(LABEL).then_some(rest)
    })?;
    Some(line(text.trim_matches(['*', '`', ' ']), 200)).filter(|text| !text.is_empty())
}

/// The blocks of an answer, which may stand in Markdown's code blocks or not.
fn blocks(answer: &str) -> Result<Vec<Block<'_>>, String> {
    let mut blocks = Vec::new();
    // What is open, and where its text began.
    let mut open: Option<(Marker, usize)> = None;
    let (mut search, mut at) = ("", 0);
    for line in answer.split_inclusive('\n') {
        let end = at + line.len();
        open = match (open, marker(line)) {
            (open, None) => open,
            // Markdown underlines its headings.
            (None, Some(Marker::Divider)) => None,
            (None, Some(Marker::Search)) => Some((Marker::Search, end)),
            (Some((Marker::Search, from)), Some(Marker::Divider)) => {
                search = &answer[from..at];
                Some((Marker::Divider, end))
            }
            (Some((Marker::Divider, from)), Some(Marker::Replace)) => {
                blocks.push(Block { search, replace: &answer[from..at] });
                None
            }
            (_, Some(_)) => {
                return Err(format!(
                    "Block {} is out of order: `{}` stands where another line was to be expected.",
                    blocks.len() + 1,
                    line.trim()
                ));
            }
        };
        at = end;
    }
    if open.is_some() {
        return Err(format!("Block {} has no end.", blocks.len() + 1));
    }
    if blocks.len() > MOST_BLOCKS {
        return Err(format!("These are more than {MOST_BLOCKS} blocks: give the whole file."));
    }
    Ok(blocks)
}

/// Seven characters, give or take two, and the word.
fn marker(line: &str) -> Option<Marker> {
    let line = line.trim_end();
    let rest = line.trim_start_matches(['<', '=', '>']);
    let signs = &line[..line.len() - rest.len()];
    let all = |sign| (5..=9).contains(&signs.len()) && signs.chars().all(|c| c == sign);
    match rest.trim() {
        "SEARCH" if all('<') => Some(Marker::Search),
        "" if all('=') => Some(Marker::Divider),
        "REPLACE" if all('>') => Some(Marker::Replace),
        _ => None,
    }
}

/// The one code block of an answer.
fn whole_file(answer: &str) -> Result<String, String> {
    let mut files = Vec::new();
    // The fence that is open, whether a file may be behind it, and where that begins.
    let mut open: Option<(usize, bool, usize)> = None;
    let mut at = 0;
    for line in answer.split_inclusive('\n') {
        let end = at + line.len();
        let ticks = line.len() - line.trim_start_matches('`').len();
        let info = line[ticks..].trim();
        match open {
            None if ticks >= 3 => {
                let language = info.split(|c: char| !c.is_alphanumeric()).next();
                let is_aside =
                    matches!(language, Some("text" | "diff" | "sh" | "bash" | "console"));
                open = Some((ticks, !is_aside, end));
            }
            Some((fence, is_file, from)) if ticks >= fence && info.is_empty() => {
                if is_file {
                    files.push(&answer[from..at]);
                }
                open = None;
            }
            _ => {}
        }
        at = end;
    }
    if open.is_some() {
        return Err("Your code block has no end.".to_owned());
    }
    match files[..] {
        [file] => Ok(format!("{}\n", file.trim_end())),
        [] => Err("Your answer holds neither a SEARCH/REPLACE block nor a file.".to_owned()),
        _ => Err(format!("Your answer holds {} code blocks; which is the file?", files.len())),
    }
}

/// The source with all blocks applied. Line ends become `\n`.
fn replaced(blocks: &[Block<'_>], source: &str) -> Result<String, String> {
    let lines: Vec<_> = source.lines().collect();
    let mut changes = Vec::new();
    let mut complaints = Vec::new();
    for (n, block) in (1..).zip(blocks) {
        match locate(block, &lines) {
            Ok(range) => changes.push((range, n, block)),
            Err(_) if complaints.len() == MOST_COMPLAINTS => break,
            Err(missed) => complaints.push(format!("Block {n}: {}", missed.complaint(&lines))),
        }
    }
    changes.sort_by_key(|(range, ..)| range.start);
    for pair in changes.windows(2) {
        let [(first, n, _), (second, m, _)] = pair else { continue };
        if first.end > second.start {
            complaints.push(format!("Blocks {n} and {m} overlap: make them one."));
        }
    }
    if !complaints.is_empty() {
        return Err(complaints.join("\n\n"));
    }
    let mut edited = Vec::new();
    let mut at = 0;
    for (range, _, block) in &changes {
        edited.extend(lines[at..range.start].iter().map(|&line| line.to_owned()));
        edited.extend(replacement(block, &lines[range.clone()]));
        at = range.end;
    }
    edited.extend(lines[at..].iter().map(|&line| line.to_owned()));
    Ok(edited.join("\n") + "\n")
}

/// Why a block has no place.
enum Missed<'a> {
    Empty,
    /// The numbers of the lines, from 0, where it begins to fit.
    Ambiguous(Vec<usize>),
    Nowhere(Vec<&'a str>),
}

/// The lines that a block is about: the same ones, or else the same but for white space.
fn locate<'a>(block: &Block<'a>, lines: &[&str]) -> Result<Range<usize>, Missed<'a>> {
    let exact: Vec<_> = block.search.lines().collect();
    let loose = trimmed(&exact);
    if loose.is_empty() {
        return Err(Missed::Empty);
    }
    let is_same = |a: &str, b: &str| a == b;
    let is_alike = |a: &str, b: &str| a.split_whitespace().eq(b.split_whitespace());
    let mut found = places(&exact, lines, is_same);
    let mut length = exact.len();
    if found.is_empty() {
        found = places(loose, lines, is_alike);
        length = loose.len();
    }
    match found[..] {
        [at] => Ok(at..at + length),
        [] => Err(Missed::Nowhere(loose.to_vec())),
        _ => Err(Missed::Ambiguous(found)),
    }
}

/// Without the blank lines around.
fn trimmed<'a, 'b>(lines: &'b [&'a str]) -> &'b [&'a str] {
    let is_text = |line: &&str| !line.trim().is_empty();
    let from = lines.iter().position(is_text).unwrap_or(lines.len());
    let to = lines.iter().rposition(is_text).map_or(from, |last| last + 1);
    &lines[from..to]
}

fn places(search: &[&str], lines: &[&str], is_same: fn(&str, &str) -> bool) -> Vec<usize> {
    let windows = lines.windows(search.len()).enumerate();
    let fits = |window: &[&str]| window.iter().zip(search).all(|(a, b)| is_same(a, b));
    windows.filter(|(_, window)| fits(window)).map(|(at, _)| at).collect()
}

/// The new lines, as far to the right as the old ones stood: models drop what all lines share.
fn replacement(block: &Block<'_>, old: &[&str]) -> Vec<String> {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let first = |lines: &[&str]| trimmed(lines).first().map_or(0, |line| indentation(line));
    let search: Vec<_> = block.search.lines().collect();
    let missing = first(old).saturating_sub(first(&search));
    let shift = |line: &str| {
        let by = if line.trim().is_empty() { 0 } else { missing };
        format!("{:by$}{line}", "")
    };
    block.replace.lines().map(shift).collect()
}

impl Missed<'_> {
    fn complaint(&self, lines: &[&str]) -> String {
        match self {
            Self::Empty => "its SEARCH is empty: name the lines that it stands for.".to_owned(),
            Self::Ambiguous(places) => {
                let numbers: Vec<_> =
                    places.iter().take(8).map(|at| (at + 1).to_string()).collect();
                format!(
                    "its SEARCH fits in {} places, at lines {}: add lines around it until it fits \
                     in one.",
                    places.len(),
                    numbers.join(", ")
                )
            }
            Self::Nowhere(search) => match nearest(search, lines) {
                Some(range) => format!(
                    "its SEARCH lines are not in the file. The nearest, lines {} to {}, are:\n\n{}",
                    range.start + 1,
                    range.end,
                    fenced("rust", &head(&lines[range.clone()].join("\n"), 4 << 10))
                ),
                None => "its SEARCH lines are not in the file, nor any like them.".to_owned(),
            },
        }
    }
}

/// The lines that are most like these, with two more on either side.
fn nearest(search: &[&str], lines: &[&str]) -> Option<Range<usize>> {
    let search = &search[..search.len().min(LINES_COMPARED).min(lines.len())];
    if search.is_empty() {
        return None;
    }
    let likeness = |window: &[&str]| -> usize {
        window.iter().zip(search).map(|(a, b)| bytes_alike(a.trim(), b.trim())).sum()
    };
    let scored = lines.windows(search.len()).enumerate().map(|(at, lines)| (likeness(lines), at));
    // Of equals the first.
    let (best, at) = scored.max_by_key(|&(likeness, at)| (likeness, usize::MAX - at))?;
    let all: usize = search.iter().map(|line| line.trim().len()).sum();
    (3 * best >= all).then(|| at.saturating_sub(2)..(at + search.len() + 2).min(lines.len()))
}

/// Bytes that two lines share at their beginnings and their ends. Models get one word of a line
/// wrong, seldom more.
fn bytes_alike(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let front = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let rest = a.iter().rev().zip(b.iter().rev()).take(a.len().min(b.len()) - front);
    front + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
const WIDTH: usize = 64; // search: choice 64 128

fn rate(progress: f64) -> f64 {
    let peak = 0.02;
    peak * (1.0 - progress)
}

fn decay(progress: f64) -> f64 {
    let floor = 0.0;
    floor.max(1.0 - progress)
}
";

    /// An answer of these blocks.
    fn answer(blocks: &[(&str, &str)]) -> String {
        let mut text = "DESCRIPTION: an idea\n".to_owned();
        for (search, replace) in blocks {
            text += &format!("\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n");
        }
        text
    }

    fn edited(blocks: &[(&str, &str)]) -> Result<String, String> {
        apply(&answer(blocks), SOURCE).map(|edited| edited.source)
    }

    #[test]
    fn blocks_are_applied_wherever_they_fit_in_any_order() {
        let peak = ("    let peak = 0.02;\n", "    let peak = 0.03;\n");
        let width = ("const WIDTH: usize = 64; // search: choice 64 128\n\n", "");
        let expected = SOURCE.replace("0.02", "0.03");
        assert_eq!(edited(&[peak]).unwrap(), expected);
        let expected = expected.split_once("\n\n").unwrap().1;
        assert_eq!(edited(&[peak, width]).unwrap(), expected);
        assert_eq!(edited(&[width, peak]).unwrap(), expected);
    }

    #[test]
    fn blocks_may_stand_in_code_blocks_and_their_markers_may_be_off_by_one() {
        let text = "**DESCRIPTION:** raise the peak\n```rust\n<<<<<<<< SEARCH\n    let peak = 0.02;\n\
                    ======\n    let peak = 0.03;\n>>>>>> REPLACE \n```\n";
        let edited = apply(text, SOURCE).unwrap();
        assert_eq!(edited.source, SOURCE.replace("0.02", "0.03"));
        assert_eq!(edited.description.unwrap(), "raise the peak");
    }

    #[test]
    fn white_space_may_differ_where_the_place_stays_clear() {
        let found = edited(&[("let peak  = 0.02;  \n\n", "let peak = 0.03;\n\nlet more = 1;\n")]);
        let expected = SOURCE.replace("0.02;", "0.03;\n\n    let more = 1;");
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn lines_that_are_not_there_come_back_with_the_nearest() {
        let complaint =
            edited(&[("    let peak = 0.05;\n    peak * (1.0 - progress)\n", "")]).unwrap_err();
        assert!(complaint.contains("Block 1: its SEARCH lines are not in the file"), "{complaint}");
        assert!(complaint.contains("lines 2 to 7"), "{complaint}");
        assert!(complaint.contains("\n    let peak = 0.02;\n"), "{complaint}");
        let complaint = edited(&[("import torch\n", "")]).unwrap_err();
        assert!(complaint.contains("nor any like them"), "{complaint}");
    }

    #[test]
    fn one_bad_block_spoils_the_answer() {
        let good = ("    let peak = 0.02;\n", "    let peak = 0.03;\n");
        let bad = ("    let valley = 9.99;\n", "");
        let complaint = edited(&[good, bad]).unwrap_err();
        assert!(complaint.starts_with("Block 2: "), "{complaint}");
    }

    #[test]
    fn lines_that_occur_twice_want_company() {
        let complaint = edited(&[("}\n", "} // end\n")]).unwrap_err();
        assert!(complaint.contains("fits in 2 places, at lines 6, 11"), "{complaint}");
        let peak = ("    let peak = 0.02;\n", "");
        let around = ("fn rate(progress: f64) -> f64 {\n    let peak = 0.02;\n", "");
        let complaint = edited(&[peak, around]).unwrap_err();
        assert!(complaint.contains("Blocks 2 and 1 overlap"), "{complaint}");
    }

    #[test]
    fn answers_without_form_are_told_what_is_wrong() {
        let nothing = answer(&[("    let peak = 0.02;\n", "    let peak = 0.02;\n")]);
        for (text, complaint) in [
            ("", "was empty"),
            ("I would raise the rate.", "neither a SEARCH/REPLACE block nor a file"),
            ("```\na\n```\n```rust\nb\n```", "2 code blocks"),
            ("```rust\nfn main() {}\n", "has no end"),
            ("```rust\n\n```", "leaves nothing"),
            (nothing.as_str(), "changes nothing"),
            (format!("```rust\n{SOURCE}```").as_str(), "changes nothing"),
            (answer(&[("\n", "new\n")]).as_str(), "Block 1: its SEARCH is empty"),
            ("<<<<<<< SEARCH\na\n=======\nb\n", "Block 1 has no end"),
            ("<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "Block 1 is out of order: `>>>>>>> REPLACE`"),
            ("<<<<<<< SEARCH\na\n=======\nb\n=======\n", "Block 1 is out of order"),
            (answer(&[("x\n", ""); MOST_BLOCKS + 1]).as_str(), "give the whole file"),
        ] {
            let found = apply(text, SOURCE).unwrap_err();
            assert!(found.contains(complaint), "{text:?}: {found}");
        }
    }

    #[test]
    fn a_whole_file_stands_in_one_code_block() {
        let text = "# Description: start over\n\n````rust\n/// ```\n/// code\n/// ```\nfn main() {}\n````\nDone.";
        let edited = apply(text, SOURCE).unwrap();
        assert_eq!(edited.source, "/// ```\n/// code\n/// ```\nfn main() {}\n");
        assert_eq!(edited.description.unwrap(), "start over");
        let text = "```text\nloss 3\n```\n```rs\nfn main() {}\n```";
        let edited = apply(text, SOURCE).unwrap();
        assert_eq!((edited.source.as_str(), edited.description), ("fn main() {}\n", None));
    }

    #[test]
    fn a_file_has_a_limit() {
        let text = format!("```rust\n{}\n```", "// long\n".repeat(SOURCE_BYTES));
        assert!(apply(&text, SOURCE).unwrap_err().contains("longer than"));
    }
}
