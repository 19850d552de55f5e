//! Attacker-controlled text on its way to people.

use std::fmt::Write as _;

/// Makes text safe for one line of a terminal: control and format characters (ANSI escapes, newlines, bidirectional
/// overrides, zero-width ones) become visible escapes.
#[must_use]
pub fn escape(text: &str) -> String {
    // Nearly all of it.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\\' => out.push_str("\\\\"),
            c if is_hidden(c) => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// As [`escape`], cut to at most `max` characters with a mark at the end.
#[must_use]
pub fn escape_to(text: &str, max: usize) -> String {
    let escaped = escape(text);
    if escaped.len() <= max {
        return escaped;
    }
    match escaped.char_indices().nth(max) {
        None => escaped,
        Some(_) => escaped.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Whether a character does not show itself, or changes how others look: control characters, and Unicode's Cf where it misleads.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_or_lies_about_order_survives() {
        assert_eq!(escape("a\u{1b}[31mb\nc\u{202e}d\u{9b}1m"), "a\\u{1b}[31mb\\nc\\u{202e}d\\u{9b}1m");
        assert_eq!(escape("ordinary/päth"), "ordinary/päth");
    }

    #[test]
    fn cuts_with_a_mark() {
        assert_eq!(escape_to("abcdef", 4), "abc…");
        assert_eq!(escape_to("abcd", 4), "abcd");
        assert_eq!(escape_to("äöüß", 2), "ä…");
    }
}
