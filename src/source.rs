//! When two sources are the same program.

use crate::hash::sha256;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

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
fn tokens(name: &str, source: &str) -> Option<String> {
    if !name.ends_with(".rs") {
        return None;
    }
    apart(|| {
        let tokens = source.parse().ok()?;
        let mut text = String::with_capacity(source.len());
        write(tokens, Delimiter::None, &mut text);
        Some(text)
    })
}

/// Parses on a thread of its own. proc-macro2 keeps, for the sake of its spans, every source that a
/// thread has parsed until that thread ends: over ten thousand trials that would be gigabytes.
pub(crate) fn apart<T: Send>(parse: impl FnOnce() -> T + Send) -> T {
    let parsed = std::thread::scope(|scope| scope.spawn(parse).join());
    parsed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The tokens, each on a line, without documentation and without the commas that formatters add or
/// take away.
fn write(tokens: TokenStream, within: Delimiter, text: &mut String) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |token: Option<&TokenTree>, c: char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c);
    let mut at = 0;
    while at < tokens.len() {
        // A comment with three slashes is `#[doc = "…"]`, one with `//!` has a `!` in between.
        if is(tokens.get(at), '#') {
            let group = if is(tokens.get(at + 1), '!') { at + 2 } else { at + 1 };
            if tokens.get(group).is_some_and(is_documentation) {
                at = group + 1;
                continue;
            }
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                text.push_str(open);
                text.push('\n');
                write(group.stream(), group.delimiter(), text);
                text.push_str(close);
            }
            token if is(Some(token), ',') && at + 1 == tokens.len() => {
                // `(a,)` is a tuple, and `(a)` is not: there the comma is more than layout.
                let commas = tokens.iter().filter(|token| is(Some(token), ',')).count();
                if within != Delimiter::Parenthesis || commas > 1 {
                    break;
                }
                text.push(',');
            }
            token => text.push_str(&token.to_string()),
        }
        text.push('\n');
        at += 1;
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
