//! Markdown as a terminal shows it: what our own pages are written in, and no more.

/// Begins and ends text in another colour, within lines that are still to be wrapped.
const ON: char = '\u{1}';
const OFF: char = '\u{2}';
/// What lies below a heading stands in from the left.
const INDENT: &str = "  ";
/// Between the columns of a table.
const GAP: usize = 2;

/// Wraps to `width` characters. Without `colour`, plain text.
#[must_use]
pub fn render(markdown: &str, width: usize, colour: bool) -> String {
    let width = width.max(40);
    let mut out = String::new();
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if let Some(heading) = line.strip_prefix("## ") {
            push(&mut out, "", &format!("{ON}{}{OFF}", heading.to_uppercase()), colour, "1");
        } else if let Some(heading) = line.strip_prefix("# ") {
            push(&mut out, "", &format!("{ON}{}{OFF}", heading.replace('`', "")), colour, "1");
        } else if line.starts_with("    ") {
            // As it is: a command, or an alert.
            push(&mut out, INDENT, line, colour, "");
        } else if line.starts_with('|') {
            let mut rows = vec![cells(line, colour)];
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(row, colour));
            }
            table(&mut out, &rows, width - INDENT.len(), colour);
        } else if line.trim().is_empty() {
            if !out.ends_with("\n\n") {
                out.push('\n');
            }
        } else {
            let mut paragraph = line.trim().to_owned();
            let mut following = next;
            while !following.trim().is_empty() && !begins(following) {
                lines.next();
                paragraph.push(' ');
                paragraph.push_str(following.trim());
                following = lines.peek().copied().unwrap_or_default();
            }
            let (mark, text) = item(&paragraph);
            let hang = " ".repeat(mark.len());
            for (n, line) in wrap(&inline(text, colour), width - INDENT.len() - mark.len()).iter().enumerate() {
                let lead = format!("{INDENT}{}", if n == 0 { mark } else { &hang });
                push(&mut out, &lead, line, colour, "36");
            }
        }
    }
    out
}

/// Whether a line begins something of its own.
fn begins(line: &str) -> bool {
    line.starts_with(['#', '|']) || line.starts_with("    ") || !item(line).0.is_empty()
}

/// A list item's mark, as it is shown, and what is behind it.
fn item(line: &str) -> (&str, &str) {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let mark = if line.starts_with("- ") {
        2
    } else if digits > 0 && line[digits..].starts_with(". ") {
        digits + 2
    } else {
        0
    };
    line.split_at(mark)
}

/// Links become their text. Code and what is stressed is between the two signs; where there are no colours, code keeps its quotes.
fn inline(text: &str, colour: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['`', '[', '*']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (shown, after) = match from.as_bytes().first() {
            Some(b'`') => {
                let Some((code, after)) = from[1..].split_once('`') else { break };
                (if colour { format!("{ON}{code}{OFF}") } else { format!("`{code}`") }, after)
            }
            Some(b'[') if let Some((label, after)) = from[1..].split_once("](") => {
                (inline(label, colour), after.split_once(')').map_or("", |(_, after)| after))
            }
            Some(b'*')
                if let Some((strong, after)) = from.strip_prefix("**").and_then(|from| from.split_once("**")) =>
            {
                (format!("{ON}{strong}{OFF}"), after)
            }
            _ => (from[..1].to_owned(), &from[1..]),
        };
        out.push_str(&shown);
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A row's cells.
fn cells(row: &str, colour: bool) -> Vec<String> {
    row.trim().trim_matches('|').split('|').map(|cell| inline(cell.trim(), colour)).collect()
}

/// Columns beside one another, each cell wrapped. Where they do not all fit, the widest gives way.
fn table(out: &mut String, rows: &[Vec<String>], width: usize, colour: bool) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize, of: &dyn Fn(&String) -> usize| -> usize {
        rows.iter().filter_map(|row| row.get(column)).map(of).max().unwrap_or(0)
    };
    let least = |cell: &String| cell.split_whitespace().map(shown).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..columns).map(|column| widest(column, &|cell| shown(cell))).collect();
    let leasts: Vec<usize> = (0..columns).map(|column| widest(column, &least)).collect();
    let room = width.saturating_sub(GAP * columns.saturating_sub(1));
    while widths.iter().sum::<usize>() > room
        && let Some((width, _)) = widths.iter_mut().zip(&leasts).filter(|(width, least)| **width > **least).max()
    {
        *width -= 1;
    }
    for (n, row) in rows.iter().enumerate() {
        if row.iter().all(|cell| cell.chars().all(|c| matches!(c, '-' | ':'))) {
            continue;
        }
        let wrapped: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| wrap(cell, *width)).collect();
        for at in 0..wrapped.iter().map(Vec::len).max().unwrap_or(0) {
            let mut line = String::new();
            for (cell, width) in wrapped.iter().zip(&widths) {
                let part = cell.get(at).map_or("", String::as_str);
                line.push_str(part);
                line.push_str(&" ".repeat(width.saturating_sub(shown(part)) + GAP));
            }
            let line = line.trim_end();
            match n {
                0 => push(out, INDENT, &format!("{ON}{line}{OFF}"), colour, "2"),
                _ => push(out, INDENT, line, colour, "36"),
            }
        }
    }
}

/// How many characters are seen.
fn shown(text: &str) -> usize {
    text.chars().filter(|c| !matches!(*c, ON | OFF)).count()
}

/// Lines of at most `width` characters, where words allow it. A colour ends with its line and goes on with the next.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut on) = (String::new(), false);
    for word in text.split_whitespace() {
        if !line.is_empty() {
            if shown(&line) + 1 + shown(word) > width {
                line.extend(on.then_some(OFF));
                lines.push(std::mem::take(&mut line));
                line.extend(on.then_some(ON));
            } else {
                line.push(' ');
            }
        }
        line.push_str(word);
        on = word.chars().fold(on, |on, c| if matches!(c, ON | OFF) { c == ON } else { on });
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// One line, in which the two signs are what the terminal understands, or nothing.
fn push(out: &mut String, lead: &str, line: &str, colour: bool, code: &str) {
    out.push_str(lead);
    for c in line.chars() {
        match c {
            ON if colour => out.extend(["\x1b[", code, "m"]),
            OFF if colour => out.push_str("\x1b[0m"),
            ON | OFF => {}
            c => out.push(c),
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::page::PAGES;

    #[test]
    fn paragraphs_lists_and_tables_are_wrapped_and_code_is_as_it_is() {
        let page = "# Title (`id`)\n\nOne `two` three\nfour [five](six.md) **seven** eight nine.\n\n- a list whose item is\n  longer \
                    than a line of the page is\n1. second\n\n    a command that is much longer than any line may be here\n\n\
                    | one | two |\n|---|---|\n| a | what is wrapped below itself, in its column |\n";
        let wanted = "\
Title (id)

  One `two` three four five seven eight
  nine.

  - a list whose item is longer than a
    line of the page is
  1. second

      a command that is much longer than any line may be here

  one  two
  a    what is wrapped below itself, in
       its column
";
        assert_eq!(render(page, 40, false), wanted);
    }

    #[test]
    fn colours_are_there_when_wanted_and_end_with_their_line() {
        let text = render("## Heading\n\nbefore `a code that is wrapped over lines` after\n", 40, true);
        assert_eq!(
            text,
            "\x1b[1mHEADING\x1b[0m\n\n  before \x1b[36ma code that is wrapped over\x1b[0m\n  \x1b[36mlines\x1b[0m after\n"
        );
    }

    #[test]
    fn a_column_is_no_wider_than_it_needs_while_another_has_no_room() {
        let page = "| a | b | c |\n|---|---|---|\n| `long-name-of-it` | of several words here | T1, T2 |\n";
        let wanted = [
            "  a                  b            c",
            "  `long-name-of-it`  of several   T1, T2",
            "                     words here",
        ];
        assert_eq!(render(page, 40, false).lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn every_page_fits_the_width_but_for_what_is_shown_as_it_is() {
        for (id, page) in PAGES {
            for width in [60, 80, 100] {
                for line in render(page, width, false).lines() {
                    let word = line.split_whitespace().map(str::len).max().unwrap_or(0);
                    let verbatim = line.starts_with("      ");
                    assert!(line.chars().count() <= width || verbatim || word > width / 3, "{id} at {width}: {line}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_markdown_after_all_is_shown() {
        for text in ["`", "[", "*", "**", "[a](", "a ` b", "|", "1.", "-"] {
            assert!(!render(text, 80, false).trim().is_empty() || text == "|", "{text}");
        }
    }
}
