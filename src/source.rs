//! When two sources are the same program.
//!
//! Whoever proposes a source decides what is in it, and it is read in the study's own process. So it is
//! bounded in size, and only ever cut into tokens: proc-macro2 does that without recursion, and lets
//! go of them without recursion. A parser of the whole grammar, such as syn, descends as deep as the source nests, and
//! a stack that overflows ends the process.

use crate::hash::sha256;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The most that a source may have, in bytes. The template has 40 KB.
pub(crate) const LARGEST_SOURCE: usize = 1 << 20;

/// Words by which machine instructions come into a program: macros, and the attribute of a function that has
/// nothing else. `forbid(unsafe_code)` lets the attribute pass (rustc 1.95).
const ASSEMBLY: [&str; 5] = ["asm", "global_asm", "naked_asm", "llvm_asm", "naked"];

/// What stands behind `unsafe` where `forbid(unsafe_code)` sees it. Elsewhere it is an attribute, or goes through
/// a macro to become one.
const SEEN_BY_THE_LINT: [&str; 5] = ["{", "fn", "impl", "trait", "extern"];

/// What is wrong with the source in the file `name`, before anybody builds it.
pub(crate) fn check(name: &str, source: &str, allows_unsafe: bool) -> Result<(), String> {
    if source.len() > LARGEST_SOURCE {
        let (kib, most) = (source.len() >> 10, LARGEST_SOURCE >> 10);
        return Err(format!("the source has {kib} KiB, and {most} KiB are the most that is read"));
    }
    if source.trim().is_empty() {
        return Err("the source is empty".to_owned());
    }
    if allows_unsafe {
        return Ok(());
    }
    let tokens = tokens(name, source).unwrap_or_default();
    let words = || tokens.lines().map(|token| token.trim_start_matches("r#"));
    if let Some(word) = words().find(|word| ASSEMBLY.contains(word)) {
        return Err(format!(
            "the source has the word `{word}`, and assembly is not allowed where unsafe code is not"
        ));
    }
    let mut pairs = words().zip(words().skip(1));
    match pairs.find(|(word, next)| *word == "unsafe" && !SEEN_BY_THE_LINT.contains(next)) {
        Some(_) => Err("the source has an `unsafe` that is no block and no item".to_owned()),
        None => Ok(()),
    }
}

/// `text` with the line ends, the byte-order mark and the end of `other`: an editor's habits are no change.
pub(crate) fn in_the_form_of(other: &str, text: &str) -> String {
    const MARK: char = '\u{feff}';
    let has_returns = |text: &str| text.contains("\r\n");
    let mut text = text.trim_start_matches(MARK).to_owned();
    if has_returns(&text) || has_returns(other) {
        text = text.replace("\r\n", "\n");
    }
    if other.ends_with('\n') && !text.ends_with('\n') && !text.is_empty() {
        text.push('\n');
    } else if !other.ends_with('\n') {
        text.truncate(text.trim_end_matches('\n').len());
    }
    // Where the lines of both kinds stand mixed, the incumbent's most frequent one.
    let returns = other.matches("\r\n").count();
    if 2 * returns > other.matches('\n').count() {
        text = text.replace('\n', "\r\n");
    }
    if other.starts_with(MARK) { format!("{MARK}{text}") } else { text }
}

/// A name for what the source in the file `name` does. Formatting, comments and documentation have no
/// part in Rust's; any other language goes by its characters.
pub(crate) fn identity(name: &str, source: &str) -> String {
    let tokens = tokens(name, source);
    sha256(tokens.as_deref().unwrap_or(source).as_bytes())
}

/// How much there is to read in the source in the file `name`: Rust's tokens without formatting and
/// comments, or the characters of any other language that are no white space.
pub(crate) fn length(name: &str, source: &str) -> usize {
    match tokens(name, source) {
        Some(tokens) => tokens.lines().count(),
        None => source.chars().filter(|c| !c.is_whitespace()).count(),
    }
}

/// Rust's tokens, a line each. `None`: it is another language, or nonsense.
pub(crate) fn tokens(name: &str, source: &str) -> Option<String> {
    if !name.ends_with(".rs") || source.len() > LARGEST_SOURCE {
        return None;
    }
    apart(|| {
        let tokens = source.parse().ok()?;
        let mut text = String::with_capacity(source.len());
        write(tokens, &mut text);
        Some(text)
    })
}

/// Parses on a thread of its own. proc-macro2 keeps, for the sake of its spans, every source that a
/// thread has parsed until that thread ends: over ten thousand trials that would be gigabytes.
pub(crate) fn apart<T: Send>(parse: impl FnOnce() -> T + Send) -> T {
    let parsed = std::thread::scope(|scope| scope.spawn(parse).join());
    parsed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A group that is being written: what is left of it, and how it closes.
struct Open {
    tokens: Vec<TokenTree>,
    at: usize,
    delimiter: Delimiter,
}

impl Open {
    fn new(stream: TokenStream, delimiter: Delimiter) -> Self {
        Self { tokens: stream.into_iter().collect(), at: 0, delimiter }
    }

    fn is(&self, at: usize, c: char) -> bool {
        matches!(self.tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == c)
    }

    /// Steps over documentation: a comment with three slashes is `#[doc = "…"]`, one with `//!` has a
    /// `!` in between.
    fn skip_documentation(&mut self) {
        while self.is(self.at, '#') {
            let group = if self.is(self.at + 1, '!') { self.at + 2 } else { self.at + 1 };
            if !self.tokens.get(group).is_some_and(is_documentation) {
                break;
            }
            self.at = group + 1;
        }
    }

    /// Whether the comma before the end is layout. `(a,)` is a tuple, and `(a)` is not.
    fn is_layout(&self, at: usize) -> bool {
        let commas = || (0..self.tokens.len()).filter(|&at| self.is(at, ',')).count();
        self.is(at, ',')
            && at + 1 == self.tokens.len()
            && (self.delimiter != Delimiter::Parenthesis || commas() > 1)
    }
}

/// The tokens, each on a line, without documentation and without the commas that formatters add or
/// take away. Without recursion: how deep a source nests is up to whoever wrote it.
fn write(tokens: TokenStream, text: &mut String) {
    let mut stack = vec![Open::new(tokens, Delimiter::None)];
    while let Some(open) = stack.last_mut() {
        open.skip_documentation();
        let at = open.at;
        open.at += 1;
        if open.is_layout(at) {
            continue;
        }
        match open.tokens.get(at) {
            Some(TokenTree::Group(group)) => {
                let (delimiter, stream) = (group.delimiter(), group.stream());
                text.push_str(marks(delimiter).0);
                text.push('\n');
                stack.push(Open::new(stream, delimiter));
            }
            Some(token) => {
                text.push_str(&token.to_string());
                text.push('\n');
            }
            None => {
                text.push_str(marks(open.delimiter).1);
                text.push('\n');
                stack.pop();
            }
        }
    }
}

fn marks(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

fn is_documentation(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    let mut inner = group.stream().into_iter();
    let is_doc = matches!(inner.next(), Some(TokenTree::Ident(name)) if name == "doc");
    let is_value = matches!(inner.next(), Some(TokenTree::Punct(punct)) if punct.as_char() == '=');
    group.delimiter() == Delimiter::Bracket && is_doc && is_value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "const A: f64 = 0.5; // search: log 1..2\nfn f(a: i32, b: i32) -> i32 { a }";

    #[test]
    fn formatting_and_comments_do_not_make_another_program() {
        for same in [
            "const A: f64 = 0.5;\n\n\nfn f(a: i32, b: i32) -> i32 { a }",
            "const A : f64=0.5;fn f(a:i32,b:i32)->i32{a}",
            "//! A file.\n/// A constant.\nconst A: f64 = 0.5;\n/* a function */ fn f(a: i32, b: i32) -> i32 { a }",
            "const A: f64 = 0.5;\nfn f(\n    a: i32,\n    b: i32,\n) -> i32 {\n    a // the first\n}",
        ] {
            assert_eq!(identity("train.rs", same), identity("train.rs", SOURCE), "{same}");
        }
    }

    #[test]
    fn what_was_parsed_is_let_go() {
        // The debug form of a span counts the bytes of everything that this thread has parsed.
        let place = || {
            let tokens: TokenStream = "a".parse().unwrap();
            format!("{:?}", tokens.into_iter().next().unwrap().span())
        };
        let (first, second) = (place(), place());
        identity("train.rs", &SOURCE.repeat(1000));
        length("train.rs", &SOURCE.repeat(1000));
        assert_eq!(first, "bytes(1..2)");
        assert_eq!((second.as_str(), place().as_str()), ("bytes(3..4)", "bytes(5..6)"));
    }

    #[test]
    fn no_depth_of_nesting_is_too_much() {
        // Threads have 2 MiB: a frame of 20 bytes a level would be too much.
        for (open, close) in [("(", ")"), ("{", "}"), ("[", "]"), ("#[doc = ", "]"), ("/*", "*/")] {
            let deep = open.repeat(100_000) + "1" + &close.repeat(100_000);
            let source = format!("const A: f64 = 0.5;\n{deep}\n");
            assert!(check("train.rs", &source, false).is_ok());
            assert_ne!(identity("train.rs", &source), identity("train.rs", SOURCE));
        }
        for chain in
            ["-", "!", "&", "|| ", "a.b", "a = ", "if a {} else ", "*const ", "<", "'a ", "r#"]
        {
            length("train.rs", &format!("fn f() {{ {} }}", chain.repeat(50_000)));
        }
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let long = "a ".repeat(LARGEST_SOURCE);
        assert!(check("train.rs", &long, false).unwrap_err().contains("2048 KiB"));
        assert!(check("train.rs", " \n", false).is_err());
        assert!(check("train.rs", SOURCE, false).is_ok());
        identity("train.rs", &long);
    }

    #[test]
    fn an_editors_habits_are_no_change() {
        for incumbent in ["a\nb\n", "a\r\nb\r\n", "\u{feff}a\nb\n", "a\nb", "\u{feff}a\r\nb"] {
            for saved in ["a\nb\n", "a\r\nb\r\n", "\u{feff}a\nb\n", "a\nb", "\u{feff}a\r\nb"] {
                assert_eq!(in_the_form_of(incumbent, saved), incumbent, "{saved:?}");
            }
        }
        assert_eq!(in_the_form_of("a\n", ""), "");
        assert_eq!(in_the_form_of("a\nb\n", "a\n\nb\n\n"), "a\n\nb\n\n");
    }

    #[test]
    fn assembly_is_refused_in_any_form() {
        for assembly in [
            "use std::arch::asm;",
            "core::arch::global_asm!(\"nop\");",
            "macro_rules! m { () => { std::arch::r#asm!(\"nop\") } }",
            "use core::arch::{naked_asm as quiet};",
        ] {
            let source = format!("{SOURCE}\n{assembly}\n");
            assert!(check("train.rs", &source, false).unwrap_err().contains("asm`"), "{assembly}");
            assert!(check("train.rs", &source, true).is_ok());
        }
        for unsafe_attribute in [
            "#[unsafe(no_mangle)] fn f() {}",
            "#[cfg_attr(all(), unsafe(export_name = \"f\"))] fn f() {}",
            "m!(unsafe); ",
            "#[r#unsafe(no_mangle)] fn f() {}",
        ] {
            let source = format!("{SOURCE}\n{unsafe_attribute}\n");
            assert!(check("train.rs", &source, false).unwrap_err().contains("unsafe"));
            assert!(check("train.rs", &source, true).is_ok());
        }
        // The compiler says it better.
        assert!(check("train.rs", "fn f() { unsafe { g() } }", false).is_ok());
        let spoken = "// asm!\nconst ASM: &str = \"asm!\"; fn asmara() {}";
        assert!(check("train.rs", spoken, false).is_ok());
        assert!(check("train.py", "asm = 1", false).is_ok());
    }

    #[test]
    fn length_is_what_there_is_to_read() {
        let long =
            "// A long comment.\n\nconst A:   f64 = 0.5;\nfn f(a: i32, b: i32,) -> i32 {\n a }";
        assert_eq!(length("train.rs", long), length("train.rs", SOURCE));
        let more = SOURCE.replace("{ a }", "{ a + b }");
        assert_eq!(length("train.rs", &more), length("train.rs", SOURCE) + 2);
        assert_eq!(length("train.py", "if a:\n    b\n"), 5);
    }

    #[test]
    fn another_number_name_or_attribute_does() {
        for other in [
            "const A: f64 = 0.50;\nfn f(a: i32, b: i32) -> i32 { a }",
            "const A: f64 = 0.5;\nfn f(a: i32, b: i32) -> i32 { b }",
            "const A: f64 = 0.5;\n#[inline]\nfn f(a: i32, b: i32) -> i32 { a }",
            "const A: f64 = 0.5",
        ] {
            assert_ne!(identity("train.rs", other), identity("train.rs", SOURCE), "{other}");
        }
        assert_ne!(
            identity("train.rs", "const A: (u8,) = (1,);"),
            identity("train.rs", "const A: (u8) = (1);")
        );
        assert_ne!(identity("train.rs", "a b"), identity("train.rs", "ab"));
    }

    #[test]
    fn what_is_no_rust_is_named_by_its_characters() {
        assert_ne!(identity("train.rs", "it's { text"), identity("train.rs", "it's  { text"));
        // Python's indentation would be lost on Rust's tokens.
        assert_ne!(identity("train.py", "f(1)\nf(2)"), identity("train.py", "f(1)\n  f(2)"));
    }
}
