//! What a Rust source offers to its callers, as text: public items with their documentation, without
//! bodies.

use syn::{ImplItem, Item, Visibility, spanned::Spanned};

/// The public surface of `source`, in order, as Rust text. Nothing of a source that does not parse.
pub(crate) fn outline(source: &str) -> String {
    let Ok(file) = syn::parse_file(source) else { return String::new() };
    let mut text = String::new();
    for line in source.lines().take_while(|line| line.starts_with("//!")) {
        text.push_str(line);
        text.push('\n');
    }
    for item in &file.items {
        text.push_str(&surface(item, source));
    }
    text
}

fn surface(item: &Item, source: &str) -> String {
    match item {
        Item::Fn(function) if is_public(&function.vis) => {
            declaration(source, item.span(), function.block.span())
        }
        // Fields, variants and methods of a trait are its interface.
        Item::Struct(of) if is_public(&of.vis) => whole(source, item.span()),
        Item::Enum(of) if is_public(&of.vis) => whole(source, item.span()),
        Item::Trait(of) if is_public(&of.vis) => whole(source, item.span()),
        Item::Const(of) if is_public(&of.vis) => whole(source, item.span()),
        Item::Type(of) if is_public(&of.vis) => whole(source, item.span()),
        Item::Impl(of) if of.trait_.is_none() => {
            let methods: String = of
                .items
                .iter()
                .filter_map(|item| match item {
                    ImplItem::Fn(method) if is_public(&method.vis) => {
                        Some(declaration(source, method.span(), method.block.span()))
                    }
                    _ => None,
                })
                .collect();
            if methods.is_empty() {
                return String::new();
            }
            let from = of.span().byte_range().start;
            let brace = of.brace_token.span.open().byte_range().start;
            format!(
                "\n{} {{\n{}}}\n",
                source[from..brace].trim_end(),
                methods.trim_start_matches('\n')
            )
        }
        _ => String::new(),
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// With its documentation, up to the body.
fn declaration(source: &str, item: proc_macro2::Span, body: proc_macro2::Span) -> String {
    let (from, to) = (item.byte_range().start, body.byte_range().start);
    format!("\n{};\n", on_whole_lines(source, from, to).trim_end())
}

fn whole(source: &str, item: proc_macro2::Span) -> String {
    let range = item.byte_range();
    format!("\n{}\n", on_whole_lines(source, range.start, range.end))
}

/// With the indentation of its first line.
fn on_whole_lines(source: &str, from: usize, to: usize) -> &str {
    let start = source[..from].rfind('\n').map_or(0, |newline| newline + 1);
    let is_indented = source[start..from].trim().is_empty();
    &source[if is_indented { start } else { from }..to]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_is_the_public_surface() {
        let source = "//! Sums.\n\nuse std::fmt;\n\n/// Adds.\npub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n\n\
            fn secret() {}\n\npub(crate) struct Hidden;\n\n/// A pair.\npub struct Pair(pub i32, i32);\n\n\
            impl Pair {\n    /// Makes one.\n    pub fn new(a: i32) -> Self {\n        Self(a, 0)\n    }\n\n    fn no(&self) {}\n}\n\n\
            impl Clone for Pair {\n    fn clone(&self) -> Self { todo!() }\n}\n";
        assert_eq!(
            outline(source),
            "//! Sums.\n\n/// Adds.\npub fn add(a: i32, b: i32) -> i32;\n\n\
             /// A pair.\npub struct Pair(pub i32, i32);\n\n\
             impl Pair {\n    /// Makes one.\n    pub fn new(a: i32) -> Self;\n}\n"
        );
        assert_eq!(outline("no rust at all {"), "");
    }
}
