//! Long texts, cut into documents of a length that packing can use.

/// The longest document, in bytes.
///
/// Packing crops documents that do not fit their row and drops the rest, which for a source file
/// and a window of 256 tokens would be nearly all of it. At about three bytes a token, a passage
/// is one or two such windows long.
const LONGEST: usize = 1500;

/// Cuts `text` at blank lines, or else at line ends, or else between characters. The passages,
/// joined, are the text.
pub(super) fn passages(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (passage, remainder) = rest.split_at(cut(rest));
        rest = remainder;
        Some(passage)
    })
}

/// Where the first passage of `text` ends.
fn cut(text: &str) -> usize {
    if text.len() <= LONGEST {
        return text.len();
    }
    let window = &text[..text.floor_char_boundary(LONGEST)];
    // A cut in the first quarter would leave a crumb.
    let worthwhile = |place: &usize| *place > LONGEST / 4;
    let after = |pattern: &str| window.rfind(pattern).map(|place| place + pattern.len());
    after("\n\n")
        .filter(worthwhile)
        .or_else(|| after("\n").filter(worthwhile))
        .unwrap_or(window.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_joined_are_the_text() {
        let texts = [
            String::new(),
            "short".to_owned(),
            "a line\n".repeat(1000),
            "a paragraph of some length\nover lines\n\n".repeat(500),
            "ß".repeat(5000),
            "\n\n".repeat(3000),
        ];
        for text in texts {
            let joined: String = passages(&text).collect();
            assert_eq!(joined, text);
            assert!(passages(&text).all(|passage| !passage.is_empty() && passage.len() <= LONGEST));
        }
    }

    #[test]
    fn a_long_text_is_cut_at_blank_lines_where_there_are_any() {
        let text = "one line of a paragraph\n\n".repeat(200);
        assert!(passages(&text).all(|passage| passage.ends_with("\n\n")));
    }
}
