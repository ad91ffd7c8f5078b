//! Macros of a trainer's dependencies that write unsafe code.
//!
//! `forbid(unsafe_code)` says nothing of what another crate's macro expands to (rustc 1.95: a lint is silent in the
//! expansion of an external macro). So the edited file may not name such a macro.

use crate::source::apart;
use proc_macro2::{Group, TokenStream, TokenTree};
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

/// Macros by which unsafe code can be had, by name: how each is called, and its crate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnsafeMacros(HashMap<String, (Form, String)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `name!(…)`
    Call,
    /// `#[name]`
    Attribute,
    /// `#[derive(Name)]`. A type may well have the same name.
    Derive,
}

/// A crate that a trainer is built with.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    /// As its source is called in another's.
    pub name: String,
    /// Where its manifest is.
    pub folder: PathBuf,
    pub is_proc_macro: bool,
    /// Whether the trainer's own source may call it by name.
    pub is_direct: bool,
}

/// What no source of a crate's author is larger than; bindings that were generated are.
const LARGEST_FILE: u64 = 8 << 20;

impl UnsafeMacros {
    /// Looks through the sources of all `dependencies` that a trainer can name: its own, and those that one of them
    /// hands on.
    pub(crate) fn of(dependencies: &[Dependency]) -> Self {
        let mut found = Self::default();
        let mut rules = Vec::new();
        let (mut reached, mut rest): (Vec<_>, Vec<_>) =
            dependencies.iter().partition(|dependency| dependency.is_direct);
        while let Some(dependency) = reached.pop() {
            let mut files = Vec::new();
            sources(&dependency.folder, &mut files);
            let texts: Vec<_> = files.iter().filter_map(|file| read(file)).collect();
            apart(|| {
                if dependency.is_proc_macro {
                    found.learn_procedural(&dependency.name, &texts);
                } else {
                    for text in texts.iter().filter(|text| text.contains("macro_export")) {
                        rules.extend(rules_in(&dependency.name, text));
                    }
                }
            });
            let (handed_on, others) =
                rest.into_iter().partition(|other| hands_on(&texts, &other.name));
            (rest, _) = (others, reached.extend::<Vec<_>>(handed_on));
        }
        found.learn(rules);
        found
    }

    /// Which of them a source names whose words these are; a sentence for its author.
    pub(crate) fn named_in<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
        let words: Vec<_> = words.into_iter().map(|word| word.trim_start_matches("r#")).collect();
        let derives = words.contains(&"derive");
        // A macro of its own may be handed the name, and call it.
        let defines_macros = words.contains(&"macro_rules");
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let (name, owner) = (0..words.len()).find_map(|at| {
            let (form, owner) = self.0.get(words[at])?;
            // Under another name it may be called in any way.
            let is_meant = defines_macros
                || word(at + 1) == "as"
                || match form {
                    Form::Call => word(at + 1) == "!" && "([{".contains(word(at + 2)),
                    Form::Attribute => {
                        at > 0 && "[:".contains(words[at - 1]) && "](".contains(word(at + 1))
                    }
                    Form::Derive => derives,
                };
            is_meant.then_some((words[at], owner))
        })?;
        Some(format!(
            "the source names the macro `{name}` of the crate {owner}, which writes unsafe code, and unsafe code \
             is not allowed here"
        ))
    }

    /// Macros by example: those that write it, and those that call one which does.
    fn learn(&mut self, rules: Vec<Rules>) {
        let is_unsafe = |words: &HashSet<String>| WRITES.iter().any(|word| words.contains(*word));
        let (mut known, mut rest): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|rules| is_unsafe(&rules.words));
        while let Some(rules) = known.pop() {
            let calls = |other: &Rules| other.words.contains(&rules.name);
            let (callers, others) = rest.into_iter().partition(calls);
            (rest, _) = (others, known.extend::<Vec<_>>(callers));
            self.0.insert(rules.name, (Form::Call, rules.owner));
        }
    }

    /// Macros that are programs: all of a crate that has the word in its own text, be it within a string.
    fn learn_procedural(&mut self, owner: &str, texts: &[String]) {
        if !texts.iter().any(|text| WRITES.iter().any(|word| text.contains(word))) {
            return;
        }
        for text in texts.iter().filter(|text| text.contains("proc_macro")) {
            let Ok(tokens) = text.parse() else { continue };
            walk(tokens, |before, token| {
                // `#[proc_macro] pub fn name`
                let (TokenTree::Ident(name), [before @ .., public, function]) = (token, before)
                else {
                    return;
                };
                if public.to_string() != "pub" || function.to_string() != "fn" {
                    return;
                }
                for attribute in attributes(before) {
                    let mut inner = attribute.stream().into_iter();
                    let (name, form) = match inner.next().map(|word| word.to_string()).as_deref() {
                        Some("proc_macro") => (name.to_string(), Form::Call),
                        Some("proc_macro_attribute") => (name.to_string(), Form::Attribute),
                        // `proc_macro_derive(Name, …)`
                        Some("proc_macro_derive") => match inner.next() {
                            Some(TokenTree::Group(group)) => {
                                let name = group.stream().into_iter().next();
                                (
                                    name.map(|name| name.to_string()).unwrap_or_default(),
                                    Form::Derive,
                                )
                            }
                            _ => continue,
                        },
                        _ => continue,
                    };
                    self.0.insert(name, (form, owner.to_owned()));
                }
            });
        }
    }
}

/// Whether a crate with these sources lets others name `other` through it: `pub use other`, `pub extern crate other`.
fn hands_on(texts: &[String], other: &str) -> bool {
    texts.iter().any(|text| {
        text.match_indices(other).any(|(at, _)| {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let behind = &text[at + other.len()..];
            let before = text[..at].trim_end();
            let whole = !behind.starts_with(is_word) && !text[..at].ends_with(is_word);
            // Within `pub use {…}`, too.
            let item = before.rsplit([';', '}', ']']).next().unwrap_or_default();
            let mut words = item.split_whitespace();
            let is_public = words.any(|word| word == "pub");
            whole
                && is_public
                && matches!(words.next(), Some(next) if next.starts_with("use") || next == "extern")
        })
    })
}

/// Words of which one stands where unsafe code does.
const WRITES: [&str; 4] = ["unsafe", "asm", "global_asm", "naked_asm"];

/// A macro by example that other crates can call.
#[derive(Debug)]
struct Rules {
    name: String,
    owner: String,
    /// Every word in its rules.
    words: HashSet<String>,
}

/// The macros that a file exports: `#[macro_export] macro_rules! name { … }`.
fn rules_in(owner: &str, text: &str) -> Vec<Rules> {
    let Ok(tokens) = text.parse() else { return Vec::new() };
    let mut found = Vec::new();
    walk(tokens, |before, token| {
        let TokenTree::Group(body) = token else { return };
        let [before @ .., rules, mark, TokenTree::Ident(name)] = before else { return };
        let is_rules = rules.to_string() == "macro_rules" && mark.to_string() == "!";
        // Under a condition it may stand deeper.
        let exports = |attribute: &Group| attribute.to_string().contains("macro_export");
        if !is_rules || !attributes(before).any(exports) {
            return;
        }
        let mut words = HashSet::new();
        walk(body.stream(), |_, token| {
            if let TokenTree::Ident(word) = token {
                words.insert(word.to_string().trim_start_matches("r#").to_owned());
            }
        });
        found.push(Rules { name: name.to_string(), owner: owner.to_owned(), words });
    });
    found
}

/// The attributes at the end of these tokens.
fn attributes(tokens: &[TokenTree]) -> impl Iterator<Item = &Group> {
    tokens.rchunks_exact(2).map_while(|pair| match pair {
        [TokenTree::Punct(mark), TokenTree::Group(attribute)] if mark.as_char() == '#' => {
            Some(attribute)
        }
        _ => None,
    })
}

/// Every token with those that stand before it in its group. Without recursion, as a source
/// may nest as deep as it likes.
fn walk(tokens: TokenStream, mut visit: impl FnMut(&[TokenTree], &TokenTree)) {
    let mut waiting = vec![tokens];
    while let Some(tokens) = waiting.pop() {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            visit(&tokens[..at], token);
            if let TokenTree::Group(group) = token {
                waiting.push(group.stream());
            }
        }
    }
}

/// The sources below a crate's folder, but for its tests and examples.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_other =
            ["target", "tests", "examples", "benches"].iter().any(|other| name == *other);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !is_other => sources(&path, files),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|kind| kind == "rs") => {
                files.push(path);
            }
            _ => {}
        }
    }
}

fn read(file: &Path) -> Option<String> {
    let is_small = fs::metadata(file).is_ok_and(|file| file.len() <= LARGEST_FILE);
    if is_small { fs::read_to_string(file).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(found: &UnsafeMacros, source: &str) -> Option<String> {
        let words = crate::source::tokens("train.rs", source).unwrap();
        found.named_in(words.lines())
    }

    #[test]
    fn a_macro_that_writes_unsafe_code_is_known_with_all_that_call_it() {
        let text = "
            #[macro_export]
            macro_rules! peek { ($at:expr) => { unsafe { *$at } } }
            /// Documented.
            #[doc(hidden)] #[macro_export]
            macro_rules! peeked { ($at:expr) => { $crate::peek!($at) } }
            #[macro_export]
            macro_rules! of_those { ($at:expr) => { vec![$crate::peeked!($at)] } }
            #[cfg_attr(all(), macro_export)]
            macro_rules! stop { () => { core::arch::r#asm!(\"hlt\") } }
            #[macro_export]
            macro_rules! harmless { ($at:expr) => { $at + 1 } }
            macro_rules! private { () => { unsafe {} } }
            mod deeper { #[macro_export] macro_rules! deep { () => { unsafe { f() } } } }
            // unsafe
        ";
        let mut found = UnsafeMacros::default();
        found.learn(rules_in("nearby", text));
        let mut names: Vec<_> = found.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["deep", "of_those", "peek", "peeked", "stop"]);
        for use_of in ["nearby::peek!(p)", "use nearby::{f, r#peek as look};", "of_those! [p]"] {
            let said = named(&found, use_of).unwrap();
            assert!(said.contains("crate nearby"), "{said}");
        }
        let handed = "macro_rules! call { ($m:ident) => { nearby::$m!(p) } } call!(peek);";
        assert!(named(&found, handed).is_some());
        for other in
            ["harmless!(1)", "// peek!", "let a = \"peek\";", "private!()", "peek()", "peek != 1"]
        {
            assert_eq!(named(&found, other), None, "{other}");
        }
    }

    #[test]
    fn a_derive_is_told_from_a_type_of_its_name() {
        let text = "
            #[proc_macro_derive(Bytes, attributes(bytes))]
            pub fn derive_bytes(input: TokenStream) -> TokenStream { quote!(unsafe impl Pod for #name {}) }
            #[proc_macro]
            pub fn view(input: TokenStream) -> TokenStream { input }
            #[proc_macro_attribute]
            pub fn mark(_: TokenStream, input: TokenStream) -> TokenStream { input }
            fn helper() {}
        ";
        let mut found = UnsafeMacros::default();
        found.learn_procedural("writer", &["pub fn nothing() {}".to_owned()]);
        assert_eq!(found, UnsafeMacros::default());
        found.learn_procedural("writer", &[text.to_owned()]);
        for use_of in [
            "#[derive(Clone, writer::Bytes)] struct A;",
            "use writer::Bytes as B; #[derive(B)] struct A;",
            "writer::view!(a)",
            "#[mark] fn f() {}",
            "#[writer::mark(1)] fn f() {}",
        ] {
            assert!(named(&found, use_of).is_some(), "{use_of}");
        }
        assert_eq!(named(&found, "fn f(bytes: &Bytes) { helper!(mark(1), view) }"), None);
    }

    #[test]
    fn crates_are_looked_through_as_far_as_a_trainer_can_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let rules = |name: &str| {
            format!("#[macro_export]\nmacro_rules! {name} {{ () => {{ unsafe {{ f() }} }} }}")
        };
        write(
            "near/src/lib.rs",
            "mod deep;\n#[doc(hidden)]\npub use {far, std::fs};\nuse away::f;",
        );
        write("near/src/deep/mod.rs", &rules("close"));
        write("near/tests/it.rs", &rules("test"));
        write("far/src/lib.rs", &(rules("distant") + "\npub(crate) use away::f;"));
        write("away/src/lib.rs", &rules("gone"));
        let dependency = |name: &str| Dependency {
            name: name.to_owned(),
            folder: folder.path().join(name),
            is_proc_macro: false,
            is_direct: name == "near",
        };
        let found = UnsafeMacros::of(&["away", "far", "near"].map(dependency));
        let mut names: Vec<_> = found.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["close", "distant"]);
    }
}
