//! `cargo xtask screenshot`: the picture in the README, of what the agent really says on a terminal.
//!
//! The agent runs in a virtual machine, whose processes have the same names everywhere. What it wrote to the terminal there, colours
//! included, is drawn as an SVG.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::Context as _;

use crate::vm;

/// Of a character, in pixels.
const WIDTH: f64 = 7.83;
const HEIGHT: usize = 18;
const MARGIN: usize = 16;
/// Longest line and most lines that are drawn.
const COLUMNS: usize = 120;
const ROWS: usize = 60;

#[derive(clap::Args)]
pub struct Options {
    /// Write the picture to FILE
    #[arg(short, long, value_name = "FILE", default_value = "docs/images/alerts.svg")]
    output: PathBuf,
    /// Draw what FILE holds, as a terminal was sent it, instead of running anything
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// Runs the scene and draws it.
///
/// # Errors
/// When the machine cannot be set up or says nothing.
pub fn screenshot(options: &Options) -> anyhow::Result<()> {
    let said = match &options.from {
        Some(file) => fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => vm::scene()?,
    };
    let said = said.replace('\r', "");
    let lines: Vec<_> = said.trim_end().lines().take(ROWS).collect();
    anyhow::ensure!(lines.iter().any(|line| line.contains("technique")), "no alert came:\n{said}");
    if let Some(dir) = options.output.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&options.output, draw(&lines)).with_context(|| options.output.display().to_string())
}

/// Text in one look: codes as the terminal has them, such as `1` or `31`.
type Span<'a> = (Vec<&'a str>, String);

/// A line's text by its looks. What is no colour is left out.
fn spans(line: &str) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    let mut codes = Vec::new();
    let mut parts = line.split("\x1b[");
    let mut text = parts.next().unwrap_or_default();
    loop {
        if !text.is_empty() {
            spans.push((codes.clone(), text.to_owned()));
        }
        let Some(part) = parts.next() else { return spans };
        let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(part.len());
        if part[end..].starts_with('m') {
            let given = &part[..end];
            codes = if matches!(given, "" | "0") { Vec::new() } else { given.split(';').collect() };
        }
        text = part.get(end + 1..).unwrap_or_default();
    }
}

fn draw(lines: &[&str]) -> String {
    let drawn: Vec<_> = lines.iter().map(|line| spans(line)).collect();
    let columns = |line: &Vec<Span>| line.iter().map(|(_, text)| text.chars().count()).sum::<usize>();
    let widest = drawn.iter().map(columns).max().unwrap_or(0).min(COLUMNS);
    // As many as there are characters: far from any bound.
    let width = (widest as f64 * WIDTH).ceil() as usize + 2 * MARGIN;
    let height = lines.len() * HEIGHT + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <style>text{{font:13px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#d0d7de;white-space:pre}}\
         .b{{font-weight:bold}}.d{{fill:#7d8590}}.r{{fill:#ff7b72}}.y{{fill:#e3b341}}.g{{fill:#7ee787}}.u{{fill:#79c0ff}}.c{{fill:#76e3ea}}\
         </style>\n<rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (row, line) in drawn.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(svg, "<text x=\"{MARGIN}\" y=\"{}\">", MARGIN + row * HEIGHT + 13);
        let mut left = COLUMNS;
        for (codes, text) in line {
            let classes: Vec<_> = codes.iter().filter_map(|code| class(code)).collect();
            let mut shown: String = text.chars().take(left).collect();
            left -= shown.chars().count();
            if left == 0 && shown.pop().is_some() {
                shown.push('…');
            }
            let text = shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let _ = match classes.as_slice() {
                [] => write!(svg, "{text}"),
                some => write!(svg, "<tspan class=\"{}\">{text}</tspan>", some.join(" ")),
            };
        }
        svg.push_str("</text>\n");
    }
    svg + "</svg>\n"
}

fn class(code: &str) -> Option<&'static str> {
    Some(match code {
        "1" => "b",
        "2" => "d",
        "31" | "41" => "r",
        "32" => "g",
        "33" => "y",
        "34" => "u",
        "36" => "c",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_text_stays_text() {
        let svg = draw(&["\x1b[31mHIGH\x1b[0m \x1b[1ma < b & c\x1b[0m", "\x1b[2K\x1b[1;97;41mCRITICAL\x1b[0m", ""]);
        assert!(
            svg.contains("<tspan class=\"r\">HIGH</tspan> <tspan class=\"b\">a &lt; b &amp; c</tspan></text>"),
            "{svg}"
        );
        assert!(
            svg.contains(">\u{1b}").then_some(()).is_none() && svg.contains("<tspan class=\"b r\">CRITICAL</tspan>"),
            "{svg}"
        );
        assert_eq!(svg.matches("<text ").count(), 3);
    }

    #[test]
    fn long_lines_are_cut_with_a_mark() {
        let svg = draw(&[&"x".repeat(500)]);
        assert!(svg.contains(&format!(">{}…</text>", "x".repeat(COLUMNS - 1))), "{svg}");
    }
}
