//! Labels of a chart's points: slanted, cut to fit, and none over another.

use crate::text::acts;
use std::fmt::Write;

/// What could be written beside a point. Coordinates are pixels, `y` downwards.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Label {
    pub x: f64,
    pub y: f64,
    pub text: String,
}

/// A part of the picture, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

const FONT_SIZE: f64 = 12.0;
/// Of a letter on average, in `FONT_SIZE`s, where most are capitals and digits, as in the names of
/// constants: rather too much than too little.
const LETTER_WIDTH: f64 = 0.66;
/// Of two labels one above the other, in pixels.
const LINE_HEIGHT: f64 = 13.0;
/// Upwards to the right.
const SLANT_DEGREES: f64 = 30.0;
/// From the point to the text's beginning.
const OFFSET: f64 = 7.0;
const MOST_LETTERS: usize = 45;
/// A label shorter than this says too little.
const FEWEST_LETTERS: usize = 8;

/// Those labels that have room, each cut to what fits into the picture. Earlier ones go first;
/// nothing is written over `taken` areas.
pub(super) fn place(labels: Vec<Label>, picture: Area, taken: &[Area]) -> Vec<Label> {
    let mut placed: Vec<Label> = Vec::new();
    for mut label in labels {
        let fitting = letters_that_fit(&label, picture, taken).min(MOST_LETTERS);
        let length = label.text.chars().count();
        if fitting < length.min(FEWEST_LETTERS) {
            continue;
        }
        if fitting < length {
            let kept: String = label.text.chars().take(fitting.saturating_sub(1)).collect();
            label.text = kept.trim_end().to_owned() + "…";
        }
        if !placed.iter().any(|other| overlap(other, &label)) {
            placed.push(label);
        }
    }
    placed
}

/// A label as an SVG element.
pub(super) fn svg(label: &Label, color: &str) -> String {
    let (x, y) = (label.x + OFFSET, label.y - OFFSET);
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-family=\"sans-serif\" font-size=\"{FONT_SIZE}\" \
         fill=\"{color}\" transform=\"rotate(-{SLANT_DEGREES} {x:.1} {y:.1})\">{}</text>\n",
        escape(&label.text)
    )
}

/// Text for XML. Control characters have no place in it, not even escaped (XML 1.0, section 2.2).
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c if acts(c) => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => escaped.push(' '),
            c => {
                let _ = escaped.write_char(c);
            }
        }
        escaped
    })
}

/// How many letters can be written before the text leaves the picture or meets what is taken.
fn letters_that_fit(label: &Label, picture: Area, taken: &[Area]) -> usize {
    let (sin, cos) = SLANT_DEGREES.to_radians().sin_cos();
    let step = FONT_SIZE * LETTER_WIDTH;
    let is_free = |along: f64, above: f64| {
        let x = label.x + OFFSET + along * cos - above * sin;
        let y = label.y - OFFSET - along * sin - above * cos;
        picture.contains(x, y) && !taken.iter().any(|area| area.contains(x, y))
    };
    let fits = |&letters: &usize| {
        let along = letters as f64 * step;
        is_free(along, 0.0) && is_free(along, FONT_SIZE)
    };
    (1..=MOST_LETTERS).take_while(fits).count()
}

impl Area {
    fn contains(&self, x: f64, y: f64) -> bool {
        (self.left..=self.right).contains(&x) && (self.top..=self.bottom).contains(&y)
    }
}

/// Whether two labels would be written over each other. All have the same slant, so that in a
/// picture turned by it they are upright rectangles.
fn overlap(a: &Label, b: &Label) -> bool {
    let (sin, cos) = SLANT_DEGREES.to_radians().sin_cos();
    let turned = |label: &Label| {
        let along = label.x * cos - label.y * sin;
        let above = -label.x * sin - label.y * cos;
        let width = label.text.chars().count() as f64 * FONT_SIZE * LETTER_WIDTH;
        (along, width, above)
    };
    let ((a_along, a_width, a_above), (b_along, b_width, b_above)) = (turned(a), turned(b));
    let apart = a_along + a_width < b_along || b_along + b_width < a_along;
    !apart && (a_above - b_above).abs() < LINE_HEIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICTURE: Area = Area { left: 0.0, top: 0.0, right: 1000.0, bottom: 500.0 };

    fn label(x: f64, y: f64, text: &str) -> Label {
        Label { x, y, text: text.to_owned() }
    }

    fn placed(labels: Vec<Label>, taken: &[Area]) -> Vec<String> {
        place(labels, PICTURE, taken).into_iter().map(|label| label.text).collect()
    }

    #[test]
    fn of_two_labels_in_the_same_place_the_first_stays() {
        let labels = vec![
            label(100.0, 300.0, "first in the list"),
            label(105.0, 301.0, "second in the list"),
            label(100.0, 330.0, "a line below"),
        ];
        assert_eq!(placed(labels, &[]), ["first in the list", "a line below"]);
    }

    #[test]
    fn a_label_along_the_slant_is_in_the_way() {
        // 100 to the right and 58 up is where the first label's text goes through.
        let long = "a".repeat(30);
        let labels = vec![label(100.0, 300.0, &long), label(200.0, 242.3, "b")];
        assert_eq!(placed(labels, &[]), [&*long]);
        let labels = vec![label(100.0, 300.0, "short"), label(200.0, 242.3, "b")];
        assert_eq!(placed(labels, &[]), ["short", "b"]);
    }

    #[test]
    fn a_label_is_cut_where_the_picture_or_a_taken_area_begins() {
        let text = "a description that is as long as a line of a poem by someone";
        let cut = &placed(vec![label(900.0, 300.0, text)], &[])[0];
        assert!(cut.ends_with('…') && cut.chars().count() < 20, "{cut}");
        let legend = Area { left: 500.0, top: 0.0, right: 700.0, bottom: 300.0 };
        let cut = &placed(vec![label(400.0, 300.0, text)], &[legend])[0];
        assert!(cut.ends_with('…') && cut.chars().count() < 20, "{cut}");
        assert!(placed(vec![label(980.0, 300.0, text)], &[]).is_empty());
        let whole = &placed(vec![label(100.0, 300.0, text)], &[])[0];
        assert_eq!(whole.chars().count(), MOST_LETTERS);
    }

    #[test]
    fn text_is_escaped_for_xml() {
        assert_eq!(escape("a < b && \"c\"\u{7}"), "a &lt; b &amp;&amp; &quot;c&quot; ");
    }
}
