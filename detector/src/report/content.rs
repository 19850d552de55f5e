//! A manifest's text, or what changed in it.

use bytes::Bytes;
use similar::{Algorithm, ChangeTag, TextDiff};

use super::text;
use crate::record::ManifestFile;

/// Most bytes of a manifest that the page shows.
pub const TEXT_BYTES: usize = 64 * 1024;
/// Most lines of a file that is compared: the time for that grows with the square of how much differs.
const LINES_MAX: usize = 2000;
/// Lines around a change that are shown.
const AROUND: usize = 3;

/// A manifest before or after a change.
#[derive(Clone)]
pub struct Side {
    /// A copy: the record's own may be a small part of a much larger buffer.
    text: Bytes,
    size: u64,
    unreadable: Option<String>,
}

impl Side {
    pub fn new(file: &ManifestFile) -> Self {
        Self {
            text: Bytes::copy_from_slice(&file.content[..file.content.len().min(TEXT_BYTES)]),
            size: file.size.max(file.content.len() as u64),
            unreadable: file.unreadable.as_deref().map(|why| text::cut(why, text::TEXT_MAX)),
        }
    }

    /// Lines without their ends, so that a carriage return is seen.
    fn lines(text: &str) -> Vec<&str> {
        let mut lines: Vec<_> = text.split('\n').collect();
        lines.pop_if(|last| last.is_empty());
        lines
    }

    fn note(&self, which: &str) -> Option<String> {
        if let Some(why) = &self.unreadable {
            return Some(format!("The file {which} could not be read: {why}."));
        }
        let shown = self.text.len() as u64;
        (self.size > shown).then(|| format!("The first {shown} of {} bytes {which}.", self.size))
    }
}

#[derive(Clone)]
pub struct Sides {
    pub before: Option<Side>,
    pub after: Option<Side>,
}

/// One line of the page.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// `""`, `add`, `del` or `hunk`: a class of the page.
    pub class: &'static str,
    /// What stands before it: its number, or a sign.
    pub sign: &'static str,
    pub text: String,
}

pub struct Content {
    pub caption: &'static str,
    pub notes: Vec<String>,
    pub lines: Vec<Line>,
}

impl Sides {
    pub fn bytes(&self) -> usize {
        [&self.before, &self.after].into_iter().flatten().map(|side| size_of::<Side>() + side.text.len()).sum()
    }

    pub fn content(&self) -> Content {
        let readable = |side: &Option<Side>| side.as_ref().is_some_and(|side| side.unreadable.is_none());
        let of = |side: &Option<Side>| {
            side.as_ref().map(|side| String::from_utf8_lossy(&side.text).into_owned()).unwrap_or_default()
        };
        let (before, after) = (of(&self.before), of(&self.after));
        let notes = [(&self.before, "before"), (&self.after, "after")]
            .into_iter()
            .filter_map(|(side, which)| side.as_ref()?.note(which))
            .collect();
        let whole = |text: &str, class: &'static str, sign: &'static str| -> Vec<Line> {
            Side::lines(text).into_iter().map(|line| Line { class, sign, text: line.to_owned() }).collect()
        };
        let mut content = Content { caption: "The manifest", notes, lines: Vec::new() };
        match (readable(&self.before), readable(&self.after)) {
            (true, true) if before == after => {
                content.notes.push("The text is the same before and after.".to_owned());
                content.lines = whole(&after, "", "");
            }
            (true, true) => {
                content.caption = "What changed in the manifest";
                let (old, new) = (Side::lines(&before), Side::lines(&after));
                if old.len().max(new.len()) <= LINES_MAX {
                    content.lines = diff(&old, &new);
                } else {
                    content.notes.push(format!("More than {LINES_MAX} lines: all of both is shown, not compared."));
                    content.lines = whole(&before, "del", "-");
                    content.lines.extend(whole(&after, "add", "+"));
                }
            }
            (false, true) => content.lines = whole(&after, "", ""),
            (true, false) => {
                content.caption = "The manifest before";
                content.lines = whole(&before, "del", "-");
            }
            (false, false) => {}
        }
        content
    }
}

/// As `diff -u`, without the names.
fn diff(old: &[&str], new: &[&str]) -> Vec<Line> {
    let diff = TextDiff::configure().algorithm(Algorithm::Myers).diff_slices(old, new);
    let mut lines = Vec::new();
    for hunk in diff.unified_diff().context_radius(AROUND).iter_hunks() {
        lines.push(Line { class: "hunk", sign: "", text: hunk.header().to_string() });
        lines.extend(hunk.iter_changes().map(|change| {
            let (class, sign) = match change.tag() {
                ChangeTag::Equal => ("", " "),
                ChangeTag::Delete => ("del", "-"),
                ChangeTag::Insert => ("add", "+"),
            };
            Line { class, sign, text: change.value().to_string() }
        }));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Option<Side> {
        let content = Bytes::copy_from_slice(text.as_bytes());
        Some(Side::new(&ManifestFile { size: text.len() as u64, content, ..ManifestFile::default() }))
    }

    fn told(content: &Content) -> Vec<String> {
        content.lines.iter().map(|line| format!("{}{}", line.sign, line.text)).collect()
    }

    #[test]
    fn a_modified_manifest_is_told_as_a_unified_diff() {
        let old: Vec<String> = (1..=20).map(|n| format!("line {n}\n")).collect();
        let new = old.concat().replace("line 10\n", "line ten\nmore\r\n");
        let content = Sides { before: side(&old.concat()), after: side(&new) }.content();
        let expected = [
            "@@ -7,7 +7,8 @@",
            " line 7",
            " line 8",
            " line 9",
            "-line 10",
            "+line ten",
            "+more\r",
            " line 11",
            " line 12",
            " line 13",
        ];
        assert_eq!(told(&content), expected);
        assert_eq!(content.notes, Vec::<String>::new());
    }

    #[test]
    fn one_that_is_new_or_gone_is_told_whole() {
        assert_eq!(told(&Sides { before: None, after: side("a\n\nb") }.content()), ["a", "", "b"]);
        assert_eq!(told(&Sides { before: side("a\n"), after: None }.content()), ["-a"]);
        assert_eq!(told(&Sides { before: None, after: None }.content()), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_shown_or_could_not_be_read_is_said() {
        let long = "x".repeat(1 << 20);
        let content = Sides { before: None, after: side(&long) }.content();
        assert_eq!(content.notes, ["The first 65536 of 1048576 bytes after."]);
        assert_eq!(content.lines[0].text.len(), TEXT_BYTES);
        let fifo = ManifestFile { unreadable: Some("a fifo".to_owned()), ..ManifestFile::default() };
        let content = Sides { before: side("a"), after: Some(Side::new(&fifo)) }.content();
        assert_eq!(content.notes, ["The file after could not be read: a fifo."]);
        assert_eq!(told(&content), ["-a"]);
    }

    #[test]
    fn files_of_very_many_lines_are_shown_and_not_compared() {
        let many = "x\n".repeat(LINES_MAX + 1);
        let content = Sides { before: side("a\nb\n"), after: side(&many) }.content();
        assert_eq!(content.lines.len(), LINES_MAX + 3);
        assert!(content.notes[0].contains("not compared"), "{:?}", content.notes);
    }
}
