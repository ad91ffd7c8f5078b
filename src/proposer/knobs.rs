//! Knobs: a source's constants with a `// search:` annotation, found, read and rewritten.

use super::constants::{self, Constant, Value};
use std::{collections::BTreeMap, ops::Range};

/// A constant that may be changed, and what it may become.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Knob {
    pub name: String,
    pub value: Value,
    pub domain: Domain,
    /// Where the value stands in the source.
    bytes: Range<usize>,
}

/// What a knob may become. A position in it is a share of the way from low to high, or the index of
/// a choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Domain {
    Log { low: f64, high: f64 },
    Uniform { low: f64, high: f64 },
    Choice(Vec<Value>),
}

/// Said to whoever has no annotation, or a wrong one.
pub(super) const EXAMPLES: &str = "`const MATRIX_LR: f64 = 0.02; // search: log 1e-3..1e-1`, \
     `// search: uniform 0..0.5` or `// search: choice 2 4 8`";

/// The annotated constants of the top level of a source in the file `name`, in order.
///
/// # Errors
/// A source that is no Rust though its name says so, or an annotation that cannot be understood, with its line.
pub(super) fn find(name: &str, source: &str) -> Result<Vec<Knob>, String> {
    let constants = match name.ends_with(".rs") {
        true => constants::of_rust(source)?,
        false => constants::of_lines(source),
    };
    constants.into_iter().filter_map(knob).collect()
}

/// `None`: it is not to be searched.
fn knob(constant: Constant) -> Option<Result<Knob, String>> {
    let Constant { name, line, literal, comment } = constant;
    let annotation = annotation(comment.as_deref()?)?;
    let knob = literal
        .ok_or_else(|| "only a constant that is one literal can be searched".to_owned())
        .and_then(|(value, bytes)| Ok((domain(annotation, &value)?, value, bytes)));
    Some(match knob {
        Ok((domain, value, bytes)) => Ok(Knob { name, value, domain, bytes }),
        Err(problem) => Err(format!(
            "line {line}: {name} has `{annotation}`: {problem}; it should be like {EXAMPLES}"
        )),
    })
}

/// The literal constants of a source's top level, annotated or not, by name, whatever the language. None of a
/// source that cannot be read.
pub(super) fn values(source: &str) -> BTreeMap<String, Value> {
    // No line of Rust looks like another language's constant, nor the other way round.
    let rust = constants::of_rust(source).unwrap_or_default();
    let constants = if rust.is_empty() { constants::of_lines(source) } else { rust };
    constants
        .into_iter()
        .filter_map(|constant| Some((constant.name, constant.literal?.0)))
        .collect()
}

/// The source with new texts in place of some knobs' values. The knobs are its own, in order.
pub(super) fn apply<'a>(
    source: &str,
    changes: impl IntoIterator<Item = (&'a Knob, &'a str)>,
) -> String {
    let (mut changed, mut end) = (String::with_capacity(source.len() + 64), 0);
    for (knob, text) in changes {
        changed.push_str(&source[end..knob.bytes.start]);
        changed.push_str(text);
        end = knob.bytes.end;
    }
    changed + &source[end..]
}

impl Knob {
    /// Where a value lies in the domain. A number beyond an end counts as that end; a choice that
    /// is not on the list is nowhere.
    pub fn position(&self, value: &Value) -> Option<f64> {
        match &self.domain {
            Domain::Choice(choices) => {
                let same = |choice: &Value| {
                    choice.text == value.text
                        || choice.number.is_some() && choice.number == value.number
                };
                choices.iter().position(same).map(|index| index as f64)
            }
            Domain::Log { .. } | Domain::Uniform { .. } => value.number.map(|n| self.share(n)),
        }
    }

    /// The text of the value at a position. Three digits are as many as a search can tell apart.
    pub fn text_at(&self, position: f64) -> String {
        let number = match &self.domain {
            Domain::Choice(choices) => {
                let last = choices.len().saturating_sub(1);
                // Rust saturates where a number does not fit.
                return choices[(position as usize).min(last)].text.clone();
            }
            &Domain::Log { low, high } => {
                (low.ln() + position * (high / low).ln()).exp().clamp(low, high)
            }
            &Domain::Uniform { low, high } => (low + position * (high - low)).clamp(low, high),
        };
        let (low, high) = self.ends();
        let digits = if self.value.is_integer {
            format!("{}", number.round().clamp(low.ceil(), high.floor()) as i64)
        } else {
            let rounded = format!("{number:.2e}").parse().unwrap_or(number);
            // Debug, unlike Display, always writes what Rust reads as a float.
            format!("{:?}", rounded.clamp(low, high))
        };
        digits + &self.value.suffix
    }

    /// The positions within `radius` of the knob's value, the second one exclusive: as far as the
    /// domain goes, and for integers at least one step each way, however coarse.
    pub fn neighbourhood(&self, radius: f64) -> (f64, f64) {
        if let Domain::Choice(choices) = &self.domain {
            return (0.0, choices.len() as f64);
        }
        let number = self.value.number.unwrap_or_default();
        let here = self.share(number);
        let (mut from, mut to) = (here - radius, here + radius);
        if self.value.is_integer {
            from = from.min(self.share(number - 1.5));
            to = to.max(self.share(number + 1.5));
        }
        // The domain's end is inclusive.
        (from.max(0.0), to.min(1.0) + 1e-9)
    }

    /// Positions that stand for the whole domain: every choice, every integer of a short range, and
    /// a hundred steps of anything else.
    pub fn grid(&self) -> Vec<f64> {
        let (low, high) = self.ends();
        match &self.domain {
            Domain::Choice(choices) => (0..choices.len()).map(|index| index as f64).collect(),
            _ if self.value.is_integer && high.floor() - low.ceil() <= 100.0 => {
                (low.ceil() as i64..=high.floor() as i64).map(|n| self.share(n as f64)).collect()
            }
            _ => (0..=100).map(|step| f64::from(step) / 100.0).collect(),
        }
    }

    fn ends(&self) -> (f64, f64) {
        match self.domain {
            Domain::Log { low, high } | Domain::Uniform { low, high } => (low, high),
            Domain::Choice(_) => (0.0, 0.0),
        }
    }

    fn share(&self, number: f64) -> f64 {
        let (low, high) = self.ends();
        let number = number.clamp(low, high);
        match self.domain {
            Domain::Log { .. } => (number / low).ln() / (high / low).ln(),
            _ => (number - low) / (high - low),
        }
    }
}

/// The `search: …` of a comment.
fn annotation(comment: &str) -> Option<&str> {
    // Not the end of "research:".
    let starts_a_word =
        |&(at, _): &(usize, &str)| !comment[..at].ends_with(|c: char| c.is_alphanumeric());
    let (at, _) = comment.match_indices("search:").find(starts_a_word)?;
    Some(comment[at..].trim_end())
}

fn domain(annotation: &str, value: &Value) -> Result<Domain, String> {
    let text = annotation.trim_start_matches("search:").trim();
    let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match kind {
        "log" | "uniform" if value.number.is_none() => Err(format!("{} is no number", value.text)),
        "log" => match range(rest)? {
            (low, _) if low <= 0.0 => Err("a logarithm needs a LOW above 0".into()),
            (low, high) => Ok(Domain::Log { low, high }),
        },
        "uniform" => range(rest).map(|(low, high)| Domain::Uniform { low, high }),
        "choice" => choices(rest).map(Domain::Choice),
        _ => Err(format!("{kind:?} is none of log, uniform and choice")),
    }
    .and_then(|domain| match domain {
        Domain::Log { low, high } | Domain::Uniform { low, high }
            if value.is_integer && high.floor() <= low.ceil() =>
        {
            Err("there are no two integers in it".into())
        }
        domain => Ok(domain),
    })
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let read = |text: &str| text.trim().replace('_', "").parse::<f64>().ok();
    let ends = text.split_once("..").and_then(|(low, high)| Some((read(low)?, read(high)?)));
    match ends {
        Some((low, high)) if low < high && (high - low).is_finite() => Ok((low, high)),
        Some((low, high)) if low.is_finite() && high.is_finite() => {
            Err("LOW is not below HIGH".into())
        }
        _ => Err(format!("{text:?} is no LOW..HIGH")),
    }
}

fn choices(text: &str) -> Result<Vec<Value>, String> {
    match constants::list(text) {
        Some(choices) if choices.len() >= 2 => Ok(choices),
        Some(_) => Err("a choice needs two literals or more".into()),
        None => Err(format!("{text:?} is no list of literals")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
//! A trainer — with a dash of more than one byte.
const MATRIX_LR: f64 = 0.02; // Muon  search: log 1e-3..1e-1
const DEPTH: usize = 4usize;           // layers  search: uniform 1..8
pub const PATTERN: &str = \"SSSL\"; // search: choice \"SSSL\" \"L\" \"S L\"
const BIAS: f32 = -0.5; //search: uniform -1..0
const VOCAB: usize = 2_000; // search: choice 1000 2000 4000
const SEED: u64 = 7; // no research: log of anything
const SQUARED: f64 = 2.0 * 2.0;
fn main() {}
";

    fn knob(source: &str) -> Knob {
        find("train.rs", source).unwrap().remove(0)
    }

    #[test]
    fn annotated_constants_are_found_in_order() {
        let knobs = find("train.rs", SOURCE).unwrap();
        let found: Vec<_> = knobs.iter().map(|knob| (&*knob.name, &*knob.value.text)).collect();
        assert_eq!(
            found,
            [
                ("MATRIX_LR", "0.02"),
                ("DEPTH", "4usize"),
                ("PATTERN", "\"SSSL\""),
                ("BIAS", "-0.5"),
                ("VOCAB", "2_000"),
            ]
        );
    }

    #[test]
    fn exactly_the_bytes_of_the_values_are_replaced() {
        let knobs = find("train.rs", SOURCE).unwrap();
        let changed = apply(SOURCE, [(&knobs[0], "0.034"), (&knobs[3], "-0.25")]);
        let expected = SOURCE.replace("= 0.02;", "= 0.034;").replace("= -0.5;", "= -0.25;");
        assert_eq!(changed, expected);
        assert_eq!(apply(SOURCE, []), SOURCE);
    }

    #[test]
    fn every_literal_constant_has_a_value_annotated_or_not() {
        let values = values(SOURCE);
        assert_eq!(values["SEED"].number, Some(7.0));
        assert_eq!(values["BIAS"].number, Some(-0.5));
        assert!(!values.contains_key("SQUARED"));
        assert!(super::values("fn { this is no Rust").is_empty());
    }

    #[test]
    fn values_have_positions_and_positions_have_values() {
        for (annotated, position, text) in [
            ("A: f64 = 0.01; // search: log 1e-3..1e-1", 0.5, "0.01"),
            ("A: f64 = 0.01; // search: log 1e-3..1e-1", 0.0, "0.001"),
            ("A: f64 = 1e-6; // search: log 1e-8..1e-6", 1.0, "1e-6"),
            ("A: f32 = 0.5f32; // search: uniform 0..2", 0.25, "0.5f32"),
            ("A: f64 = -1.0; // search: uniform -2..0", 0.5, "-1.0"),
            ("A: usize = 4; // search: uniform 2..6", 0.5, "4"),
            ("A: u64 = 4_u64; // search: log 1..16", 0.5, "4u64"),
            ("A: i32 = -3; // search: uniform -4..0", 0.25, "-3"),
            ("A: bool = true; // search: choice false true", 1.0, "true"),
            ("A: &str = \"a\"; // search: choice \"b c\" \"a\"", 1.0, "\"a\""),
        ] {
            let knob = knob(&format!("const {annotated}"));
            assert_eq!(knob.text_at(position), text, "{annotated}");
            let value = values(&format!("const A: T = {text};")).remove("A").unwrap();
            let found = knob.position(&value).unwrap();
            assert!((found - position).abs() < 1e-9, "{annotated}: {found}");
        }
    }

    #[test]
    fn new_floats_have_three_digits_and_stay_in_range() {
        let knob = knob("const A: f64 = 0.5; // search: log 1.2345e-3..0.98765");
        assert_eq!(knob.text_at(0.0), "0.0012345");
        assert_eq!(knob.text_at(1.0), "0.98765");
        assert_eq!(knob.text_at(0.5), "0.0349");
        assert_eq!(knob.text_at(7.0), "0.98765");
    }

    #[test]
    fn what_lies_outside_counts_as_the_end() {
        let knob = knob("const A: f64 = 0.0; // search: log 1e-3..1e-1");
        assert_eq!(knob.position(&knob.value), Some(0.0));
        assert_eq!(knob.neighbourhood(0.2), (0.0, 0.2 + 1e-9));
    }

    #[test]
    fn a_choice_beside_the_list_is_nowhere_and_numbers_are_compared_as_numbers() {
        let knobs = find("train.rs", SOURCE).unwrap();
        assert_eq!(knobs[4].position(&knobs[4].value), Some(1.0));
        assert_eq!(knobs[4].position(&knobs[1].value), None);
        assert_eq!(knobs[4].neighbourhood(0.2), (0.0, 3.0));
    }

    #[test]
    fn an_integer_can_always_take_a_step() {
        let knob = knob("const A: usize = 2; // search: uniform 1..3");
        assert_eq!(knob.neighbourhood(0.2), (0.0, 1.0 + 1e-9));
        assert_eq!(
            knob.grid().iter().map(|&p| knob.text_at(p)).collect::<Vec<_>>(),
            ["1", "2", "3"]
        );
    }

    #[test]
    fn other_languages_have_knobs_too() {
        let source = "LR = 0.1  # search: log 1e-3..1\nNAME = 'sgd'  # search: choice 'sgd' 'adam'\n\
                      DEPTH = 4  # search: uniform 1..8\n";
        let knobs = find("train.py", source).unwrap();
        assert_eq!(knobs[0].text_at(0.0), "0.001");
        assert_eq!(knobs[1].text_at(1.0), "'adam'");
        let changed = apply(source, [(&knobs[0], "0.2"), (&knobs[1], "'adam'"), (&knobs[2], "5")]);
        let expected =
            source.replace("0.1", "0.2").replace("= 'sgd'", "= 'adam'").replace("= 4", "= 5");
        assert_eq!(changed, expected);
        assert_eq!(values(&changed)["LR"].number, Some(0.2));
        let error = find("train.py", "\nLR = f(1)  # search: log 1e-3..1\n").unwrap_err();
        assert!(error.starts_with("line 2: LR"), "{error}");
    }

    #[test]
    fn a_wrong_annotation_is_reported_with_its_line() {
        for (annotated, complaint) in [
            ("A: f64 = 0.1; // search: log 1e-1..1e-3", "LOW is not below HIGH"),
            ("A: f64 = 0.1; // search: log 0..1", "above 0"),
            ("A: f64 = 0.1; // search: log 1e-3", "no LOW..HIGH"),
            ("A: f64 = 0.1; // search: uniform 0..1 roughly", "no LOW..HIGH"),
            ("A: f64 = 0.1; // search: uniform 0..inf", "no LOW..HIGH"),
            ("A: f64 = 0.1; // search: gaussian 0..1", "none of log, uniform and choice"),
            ("A: f64 = 0.1; // search:", "none of log, uniform and choice"),
            ("A: &str = \"L\"; // search: log 1..2", "is no number"),
            ("A: usize = 2; // search: uniform 1.2..1.8", "no two integers"),
            ("A: usize = 2; // search: choice 2", "two literals"),
            ("A: usize = 2; // search: choice 2 four", "no list of literals"),
            ("A: usize = 2; // search: choice \"2", "no list of literals"),
            ("A: usize = 2 * B; // search: choice 2 4", "one literal"),
        ] {
            let error = find("train.rs", &format!("\n\nconst {annotated}\n")).unwrap_err();
            assert!(error.starts_with("line 3: A"), "{error}");
            assert!(error.contains(complaint), "{error}");
        }
        assert!(find("train.rs", "\nfn (").unwrap_err().contains("line 2"));
    }
}
