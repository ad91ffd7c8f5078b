//! The constants of a source's top level, in Rust or in any language of lines, where they stand and what they are.
//!
//! Rust is cut into tokens and not parsed: see [`source`](crate::source).

use crate::source::{LARGEST_SOURCE, apart};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::ops::Range;

/// A literal as it stands in a source, a minus sign included.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub text: String,
    pub number: Option<f64>,
    pub is_integer: bool,
    /// `usize` in `4usize`.
    pub suffix: String,
}

/// A constant of the top level.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    pub name: String,
    /// From 1.
    pub line: usize,
    /// What it is, and the bytes where that stands; `None` of what is more than one literal.
    pub literal: Option<(Value, Range<usize>)>,
    /// The comment behind it, in its line.
    pub comment: Option<String>,
}

/// The constants of `source`, in order.
///
/// # Errors
/// It cannot be cut into Rust's tokens, with its line.
pub(super) fn of_rust(source: &str) -> Result<Vec<Constant>, String> {
    if source.len() > LARGEST_SOURCE {
        return Err("the source cannot be read: it is too long".to_owned());
    }
    // proc-macro2 counts without it.
    let text = source.strip_prefix('\u{feff}').unwrap_or(source);
    let skipped = source.len() - text.len();
    apart(|| {
        let tokens: TokenStream = text.parse().map_err(|error: proc_macro2::LexError| {
            format!("the source cannot be read: line {}: {error}", error.span().start().line)
        })?;
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let starts = (0..tokens.len()).filter(|&at| begins_an_item(&tokens, at));
        Ok(starts.filter_map(|at| rust(&tokens[at..], text, skipped)).collect())
    })
}

/// The constants of a source in a language of lines: `NAME = literal` at a line's beginning, with a comment behind
/// `#`, `//`, `--` or `%`. A type may stand behind the name, and words such as `let` before it.
pub(super) fn of_lines(source: &str) -> Vec<Constant> {
    let mut start = 0;
    let mut constants = Vec::new();
    for (number, line) in source.split_inclusive('\n').enumerate() {
        constants.extend(assignment(line, number + 1, start));
        start += line.len();
    }
    constants
}

/// The literals of a list that is separated by white space. `None`: something in it is none.
pub(super) fn list(text: &str) -> Option<Vec<Value>> {
    rust_list(text).or_else(|| plain_list(text))
}

fn rust_list(text: &str) -> Option<Vec<Value>> {
    apart(|| {
        let tokens: Vec<TokenTree> = text.parse::<TokenStream>().ok()?.into_iter().collect();
        let mut rest = tokens.as_slice();
        let mut values = Vec::new();
        while !rest.is_empty() {
            let (value, _, length) = literal(rest, text)?;
            values.push(value);
            rest = &rest[length..];
        }
        Some(values)
    })
}

/// For what other languages write, such as `'adam'`.
fn plain_list(mut text: &str) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    while !text.trim_start().is_empty() {
        text = text.trim_start();
        let length = length_of_literal(text)?;
        values.push(plain(&text[..length])?);
        text = &text[length..];
    }
    Some(values)
}

/// Whether the `const` of an item stands at `at`, and not one of a type's parameters, of a pointer, or of a
/// function.
fn begins_an_item(tokens: &[TokenTree], at: usize) -> bool {
    let is = |at: usize, word: &str| matches!(tokens.get(at), Some(TokenTree::Ident(name)) if name == word);
    let follows = match at.checked_sub(1).map(|before| &tokens[before]) {
        None => true,
        Some(TokenTree::Punct(punct)) => punct.as_char() == ';',
        Some(TokenTree::Group(group)) => match group.delimiter() {
            // Of an item, of an attribute, of `pub(crate)`.
            Delimiter::Brace | Delimiter::Bracket => true,
            Delimiter::Parenthesis => at >= 2 && is(at - 2, "pub"),
            Delimiter::None => false,
        },
        Some(TokenTree::Ident(name)) => name == "pub",
        Some(TokenTree::Literal(_)) => false,
    };
    follows && is(at, "const") && is_punct(tokens.get(at + 2), ':')
}

fn is_punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c)
}

/// The constant whose tokens these are, and all that follow: `const NAME: TYPE = VALUE;`.
fn rust(tokens: &[TokenTree], source: &str, skipped: usize) -> Option<Constant> {
    let TokenTree::Ident(name) = tokens.get(1)? else { return None };
    let end = tokens.iter().position(|token| is_punct(Some(token), ';'))?;
    let equals = tokens[..end].iter().position(|token| is_punct(Some(token), '='))?;
    let value = &tokens[equals + 1..end];
    let literal = literal(value, source).filter(|(_, _, length)| *length == value.len());
    let rest = &source[tokens[end].span().byte_range().end..];
    let comment = rest.lines().next().and_then(|line| line.trim().strip_prefix("//"));
    Some(Constant {
        name: name.to_string(),
        line: name.span().start().line,
        literal: literal
            .map(|(value, bytes, _)| (value, bytes.start + skipped..bytes.end + skipped)),
        comment: comment.map(str::to_owned),
    })
}

/// The literal that these tokens begin with, where it stands, and of how many tokens it is.
fn literal(tokens: &[TokenTree], source: &str) -> Option<(Value, Range<usize>, usize)> {
    let start = tokens.first()?.span().byte_range().start;
    let length = if is_punct(tokens.first(), '-') { 2 } else { 1 };
    let last = tokens.get(length - 1)?;
    let bytes = start..last.span().byte_range().end;
    let text = &source[bytes.clone()];
    let (number, is_integer, suffix) = match last {
        TokenTree::Ident(name) if length == 1 && (name == "true" || name == "false") => {
            (None, false, String::new())
        }
        TokenTree::Literal(literal) => match syn::Lit::new(literal.clone()) {
            syn::Lit::Int(lit) => (lit.base10_parse().ok(), true, lit.suffix().to_owned()),
            syn::Lit::Float(lit) => (lit.base10_parse().ok(), false, lit.suffix().to_owned()),
            _ if length == 1 => (None, false, String::new()),
            _ => return None,
        },
        _ => return None,
    };
    // The minus sign is either part of the literal or stands before it.
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    let number = number.map(|number: f64| sign * number.abs());
    Some((Value { text: text.to_owned(), number, is_integer, suffix }, bytes, length))
}

/// `LR: float = 0.1  # comment`, which begins at byte `start` of its source.
fn assignment(line: &str, number: usize, start: usize) -> Option<Constant> {
    let (left, right) = line.split_once('=').or_else(|| line.split_once(':'))?;
    let is_one = !right.starts_with('=') && !left.ends_with(['=', '!', '<', '>', '+', '-', '*']);
    let named = left.split(':').next()?;
    let is_word = |word: &str| word.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    let begins = line.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let name = named.split_whitespace().last()?;
    if !is_one || !begins || !named.split_whitespace().all(is_word) {
        return None;
    }
    let text = right.trim_start();
    let from = line.len() - text.len();
    let length = length_of_literal(text).unwrap_or(0);
    let behind = text[length..].trim_start().trim_start_matches([';', ',']).trim();
    let marks = ["#", "//", "--", "%"];
    let comment = marks.iter().find_map(|mark| behind.strip_prefix(mark));
    let is_whole = behind.is_empty() || comment.is_some();
    let value = plain(&text[..length]).filter(|_| is_whole);
    // The comment of what is more than a literal stands further on.
    let later = || marks.iter().find_map(|mark| Some(behind.split_once(mark)?.1));
    Some(Constant {
        name: name.to_owned(),
        line: number,
        literal: value.map(|value| (value, start + from..start + from + length)),
        comment: comment.or_else(later).map(str::to_owned),
    })
}

/// How far the quoted text or the word goes that `text` begins with.
fn length_of_literal(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    if first != '"' && first != '\'' {
        let ends = |c: char| c.is_whitespace() || ";,#".contains(c);
        return Some(text.find(ends).unwrap_or(text.len()));
    }
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\n' => return None,
            c if c == first && !is_escaped => return Some(at + 1),
            c => is_escaped = c == '\\' && !is_escaped,
        }
    }
    None
}

/// A literal of any language.
fn plain(text: &str) -> Option<Value> {
    let is_name = ["true", "false", "True", "False", "TRUE", "FALSE"].contains(&text);
    let is_quoted = text.starts_with(['"', '\'']);
    let starts =
        text.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let number = Some(text.replace('_', "")).filter(|_| starts).and_then(|text| text.parse().ok());
    let number = number.filter(|number: &f64| number.is_finite());
    let is_integer = number.is_some() && !text.contains(['.', 'e', 'E']);
    let value = Value { text: text.to_owned(), number, is_integer, suffix: String::new() };
    (is_name || is_quoted || number.is_some()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(constants: &[Constant]) -> Vec<(&str, &str)> {
        let text =
            |constant: &Constant| constant.literal.as_ref().map(|(value, _)| value.text.clone());
        let texts = constants.iter().map(|constant| {
            let text = text(constant).map_or("", |text| Box::leak(text.into_boxed_str()));
            (constant.name.as_str(), text)
        });
        texts.collect()
    }

    #[test]
    fn a_constant_is_an_item_and_nothing_else_with_its_word() {
        let source = "#![allow(dead_code)]\nimpl<const N: usize> Of<N> {}\ntype P = *const u8;\n\
                      const fn f() -> u8 { const IN: u8 = 1; IN }\n/// Documented.\n#[inline]\n\
                      pub(crate) const A: f64 = -0.5;\npub const B: Map<K, V> = 3;\nconst C: u8 = 1 + 2;\n\
                      mod m { const D: u8 = 4; }\nconst E: &'static str = \"x\";const F: bool = true;\n\
                      const _: () = assert!(true);\nmacro_rules! m { () => {} }\nconst G: u8 = b'a';\n";
        let found = of_rust(source).unwrap();
        let expected = [
            ("A", "-0.5"),
            ("B", "3"),
            ("C", ""),
            ("E", "\"x\""),
            ("F", "true"),
            ("_", ""),
            ("G", "b'a'"),
        ];
        assert_eq!(texts(&found), expected);
        for constant in &found {
            if let Some((value, bytes)) = &constant.literal {
                assert_eq!(source[bytes.clone()], value.text);
            }
        }
    }

    #[test]
    fn a_byte_order_mark_shifts_nothing() {
        let source = "\u{feff}const A: f64 = 0.5; // a\r\nconst B: u8 = 7;\r\n";
        let found = of_rust(source).unwrap();
        let (_, bytes) = found[1].literal.clone().unwrap();
        assert_eq!((&source[bytes], found[0].comment.as_deref()), ("7", Some(" a")));
    }

    #[test]
    fn a_line_that_assigns_a_literal_is_a_constant() {
        let source = "import os\nLR = 0.1  # search: log 1e-3..1\nDEPTH: int = 4 # layers\n\
                      NAME = 'ad\\'am' # one\nlet width = 1_024; // wide\nlr: -2e-3 # yaml\n  INNER = 3\n\
                      if x == 3: pass\nx += 3\nSUM = 1 + 2 # no\nON = True\nE = 1e-3\nf(a=3)\n";
        let found = of_lines(source);
        let expected = [
            ("LR", "0.1"),
            ("DEPTH", "4"),
            ("NAME", "'ad\\'am'"),
            ("width", "1_024"),
            ("lr", "-2e-3"),
            ("SUM", ""),
            ("ON", "True"),
            ("E", "1e-3"),
        ];
        assert_eq!(texts(&found), expected);
        for constant in &found {
            if let Some((value, bytes)) = &constant.literal {
                assert_eq!(source[bytes.clone()], value.text);
            }
        }
        let value = |at: usize| found[at].literal.clone().unwrap().0;
        assert_eq!((value(3).number, value(3).is_integer), (Some(1024.0), true));
        assert_eq!((value(7).number, value(7).is_integer), (Some(0.001), false));
        assert_eq!(found[0].comment.as_deref(), Some(" search: log 1e-3..1"));
        assert_eq!(found[5].comment.as_deref(), Some(" no"));
    }

    #[test]
    fn a_list_of_literals_is_one_of_any_language() {
        let texts = |text: &str| list(text).map(|list| list.into_iter().map(|v| v.text).collect());
        let some =
            |list: &[&str]| Some(list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(texts("2 -4 \"S L\" true"), some(&["2", "-4", "\"S L\"", "true"]));
        assert_eq!(texts("'adam' 'sgd with' True"), some(&["'adam'", "'sgd with'", "True"]));
        assert_eq!(texts("2 four"), None);
        assert_eq!(texts("\"2"), None);
        assert_eq!(texts(&"(".repeat(100_000)), None);
    }

    #[test]
    fn depth_is_no_matter() {
        let (open, close) = ("(".repeat(100_000), ")".repeat(100_000));
        let minus = "-".repeat(90_000);
        let source = format!("const A: u8 = {open}1{close};\nconst B: u8 = {minus};\n");
        assert_eq!(list(&format!("{open}{close}")), None);
        assert_eq!(of_rust(&source).unwrap().len(), 2);
    }
}
