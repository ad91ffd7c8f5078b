//! The key to a paid service: sent to it, and shown to nobody.

use std::fmt;
use ureq::http::HeaderValue;

/// A secret that stands in no message, no log and no `Debug` output.
#[derive(Clone)]
pub(super) struct Key(String);

/// What stands where the key stood.
const CROSSED_OUT: &str = "[key]";

/// Shorter keys are placeholders, such as the `none` that a local server is content with. Crossing
/// those out would garble sources.
const SHORTEST_SECRET: usize = 12;

impl Key {
    /// `None` for a text that no HTTP header can carry.
    pub(super) fn new(text: &str) -> Option<Self> {
        HeaderValue::from_str(text).is_ok().then(|| Self(text.to_owned()))
    }

    /// The value of a header that begins with `scheme`, such as `Bearer `.
    pub(super) fn header(&self, scheme: &str) -> HeaderValue {
        let value = HeaderValue::from_str(&format!("{scheme}{}", self.0));
        let mut value = value.expect("`new` tried it");
        value.set_sensitive(true);
        value
    }

    /// The text with the key crossed out. Servers repeat keys in their complaints.
    pub(super) fn redact(&self, text: &str) -> String {
        if self.0.len() < SHORTEST_SECRET {
            return text.to_owned();
        }
        text.replace(&self.0, CROSSED_OUT)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CROSSED_OUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_crossed_out_wherever_it_stands() {
        let key = Key::new("sk-0123456789abcdef").unwrap();
        assert_eq!(key.redact("bad key: sk-0123456789abcdef!"), "bad key: [key]!");
        assert_eq!(format!("{key:?}"), "[key]");
        assert!(!format!("{:?}", key.header("Bearer ")).contains("0123"));
    }

    #[test]
    fn a_placeholder_crosses_out_no_source() {
        assert_eq!(Key::new("none").unwrap().redact("none else"), "none else");
    }

    #[test]
    fn a_key_with_a_line_break_is_no_key() {
        assert!(Key::new("sk-\n0123456789").is_none());
    }
}
