//! Text from a trace on its way into a page.

use std::fmt::{self, Write};

use askama::filters::{Escaper, Html};

use crate::{alert::Alert, escape};

/// Longest text that is kept, in bytes: more than any kernel record has.
pub const TEXT_MAX: usize = 4096;
/// Most entries of a list that are kept.
const LIST_MAX: usize = 256;
/// A hidden character more often than this in a row is shown once, with a count.
const RUN: usize = 4;

/// Escapes for HTML, and shows what would be invisible, or lie about the order of others, as a marked `\u{202e}`. The mark is
/// an element, so such text belongs between tags, not into attributes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visibly;

impl Escaper for Visibly {
    fn write_escaped_str<W: Write>(&self, mut dest: W, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| escape::is_hidden(*c)) {
            Html.write_escaped_str(&mut dest, &rest[..at])?;
            let after = rest[at..].trim_start_matches(c);
            let count = (rest.len() - at - after.len()) / c.len_utf8();
            for _ in 0..if count > RUN { 1 } else { count } {
                write!(dest, "<i>{}</i>", escape::escape(c.encode_utf8(&mut [0; 4])))?;
            }
            if count > RUN {
                write!(dest, "<i>×{count}</i>")?;
            }
            rest = after;
        }
        Html.write_escaped_str(dest, rest)
    }
}

/// At most `max` bytes of a text, and a word on what is missing.
#[must_use]
pub fn cut(text: &str, max: usize) -> String {
    let kept = &text[..text.floor_char_boundary(max)];
    if kept.len() == text.len() {
        return kept.to_owned();
    }
    format!("{kept}… ({} bytes in all)", text.len())
}

/// The alert with every text and list bounded. What [`crate::manifest`] parsed is bounded already.
#[must_use]
pub fn bounded(alert: &Alert) -> Alert {
    let mut alert = alert.clone();
    short(&mut alert.time);
    short(&mut alert.node);
    short(&mut alert.title);
    list(&mut alert.reasons, short);
    if let Some(process) = &mut alert.process {
        short(&mut process.exe);
        process.argv_truncated |= process.argv.len() > LIST_MAX;
        list(&mut process.argv, short);
        process.tty.iter_mut().for_each(short);
        process.cgroup.iter_mut().for_each(short);
        list(&mut process.ancestors, |ancestor| short(&mut ancestor.exe));
    }
    if let Some(container) = &mut alert.container {
        short(&mut container.id);
        [&mut container.name, &mut container.image, &mut container.image_digest].into_iter().flatten().for_each(short);
    }
    if let Some(pod) = &mut alert.pod {
        [&mut pod.namespace, &mut pod.name, &mut pod.uid].into_iter().for_each(short);
    }
    if let Some(file) = &mut alert.file {
        short(&mut file.path);
        [&mut file.sha256, &mut file.previous_sha256, &mut file.symlink].into_iter().flatten().for_each(short);
    }
    if let Some(request) = &mut alert.request {
        let texts =
            [&mut request.user, &mut request.user_agent, &mut request.verb, &mut request.uri, &mut request.audit_id];
        texts.into_iter().chain([&mut request.time]).for_each(short);
        let more = [&mut request.impersonated_user, &mut request.resource, &mut request.namespace, &mut request.name];
        more.into_iter().chain([&mut request.pod]).flatten().for_each(short);
        list(&mut request.groups, short);
        list(&mut request.source_ips, short);
    }
    list(&mut alert.evidence, |evidence| short(&mut evidence.detail));
    alert
}

fn short(text: &mut String) {
    if text.len() > TEXT_MAX {
        *text = cut(text, TEXT_MAX);
    }
}

fn list<T>(list: &mut Vec<T>, each: impl FnMut(&mut T)) {
    list.truncate(LIST_MAX);
    list.iter_mut().for_each(each);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut out = String::new();
        Visibly.write_escaped_str(&mut out, text).unwrap();
        out
    }

    #[test]
    fn markup_is_text_and_hidden_characters_are_seen() {
        assert_eq!(shown("<a href='\"&"), "&#60;a href=&#39;&#34;&#38;");
        assert_eq!(shown("a\u{202e}b\0"), "a<i>\\u{202e}</i>b<i>\\u{0}</i>");
        assert_eq!(shown("\u{1b}[31m\n"), "<i>\\u{1b}</i>[31m<i>\\n</i>");
        assert_eq!(shown("plain päth\\n"), "plain päth\\n");
    }

    #[test]
    fn many_of_the_same_are_one_with_a_count() {
        assert_eq!(shown(&format!("a{}b", "\u{200b}".repeat(1 << 20))), "a<i>\\u{200b}</i><i>×1048576</i>b");
        assert_eq!(shown("\0\0"), "<i>\\u{0}</i><i>\\u{0}</i>");
    }

    #[test]
    fn what_is_cut_says_so_and_is_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "ä… (6 bytes in all)");
        assert_eq!(cut("äöü", 6), "äöü");
    }
}
