//! The matrix for people and for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use askama::Template;

use super::{Covered, Findings, Format, Matrix, State};
use crate::{
    escape::escape,
    report::{STYLE, policy},
    trace::command::is_broken_pipe,
};

/// Prints it on standard output.
///
/// # Errors
/// When that fails, unless whoever reads has read enough.
pub fn print(matrix: &Matrix, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Text => text(matrix)?,
        Format::Html => Page { policy: policy(), style: STYLE, matrix }.render()?,
        Format::Json => format!("{}\n", serde_json::to_string_pretty(matrix)?),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if is_broken_pipe(&anyhow::Error::from(io::Error::from(error.kind()))) => Ok(()),
        result => Ok(result?),
    }
}

fn text(matrix: &Matrix) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "The Kubernetes Threat Matrix on {}, kernel {}", escape(&matrix.node), escape(&matrix.kernel))?;
    for row in &matrix.techniques {
        writeln!(out, "\n  {:<9} {:<31} {} ({})", row.state.word(), row.id, row.tactic, row.ids())?;
        if row.signals.is_empty() {
            writeln!(out, "            -     this agent does not look for it")?;
        }
        for signal in &row.signals {
            match &signal.missing {
                None => {
                    let by = if signal.by.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", escape(&signal.by.join(", ")))
                    };
                    writeln!(out, "            ok    {}{by}", signal.what)?;
                }
                Some(why) => writeln!(out, "            -     {}: {why}", signal.what)?,
            }
        }
        if let Some(findings) = &row.findings {
            writeln!(out, "            found {}", findings.words())?;
        }
    }
    let count = |state| matrix.techniques.iter().filter(|row| row.state == state).count();
    writeln!(
        out,
        "\n  {} covered, {} partly, {} not here",
        count(State::Covered),
        count(State::Partly),
        count(State::NotHere)
    )?;
    Ok(out)
}

impl Covered {
    /// Its ids elsewhere.
    fn ids(&self) -> String {
        self.attack.iter().chain(self.microsoft).copied().collect::<Vec<_>>().join(", ")
    }

    /// What was found, in words.
    fn found(&self) -> String {
        self.findings.as_ref().map(Findings::words).unwrap_or_default()
    }

    /// As a class of the page's style.
    fn class(&self) -> &'static str {
        match self.state {
            State::Covered => "none",
            State::Partly => "medium",
            State::NotHere => "info",
        }
    }
}

impl Findings {
    fn words(&self) -> String {
        let mut text = match (self.count, self.worst, &self.last) {
            (0, ..) => "nothing".to_owned(),
            (count, Some(worst), Some(last)) => format!("{count}, the worst {}, the last at {last}", worst.word()),
            (count, ..) => count.to_string(),
        };
        if let Some(drill) = &self.last_drill {
            text.push_str(&format!("; drilled at {drill}"));
        }
        text
    }
}

impl Matrix {
    fn has_findings(&self) -> bool {
        self.techniques.iter().any(|row| row.findings.is_some())
    }
}

#[derive(Template)]
#[template(path = "matrix.html")]
struct Page<'a> {
    policy: String,
    style: &'static str,
    matrix: &'a Matrix,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{alert::Severity, matrix::Seen};

    fn matrix(node: &str) -> Matrix {
        let findings = Findings {
            count: 2,
            worst: Some(Severity::High),
            last: Some("2026-01-01T00:00:00Z".to_owned()),
            last_drill: Some("2026-01-02T00:00:00Z".to_owned()),
        };
        let seen = |missing: Option<&str>| Seen {
            what: "who made them",
            by: vec!["file-open (lsm)".to_owned()],
            missing: missing.map(str::to_owned),
        };
        let row = Covered {
            id: "static-pod",
            name: "Static Pod",
            tactic: "Persistence",
            attack: &["T1543.005"],
            microsoft: &[],
            state: State::Partly,
            signals: vec![seen(None), seen(Some("no kubelet runs here"))],
            findings: Some(findings),
        };
        Matrix { node: node.to_owned(), kernel: "6.12".to_owned(), techniques: vec![row] }
    }

    #[test]
    fn a_terminal_gets_what_sees_it_what_is_missing_and_what_was_found() {
        let shown = text(&matrix("node-1\x1b[2J")).unwrap();
        assert!(!shown.contains('\x1b'), "{shown:?}");
        for line in [
            "  partly    static-pod                      Persistence (T1543.005)",
            "            ok    who made them: file-open (lsm)",
            "            -     who made them: no kubelet runs here",
            "            found 2, the worst high, the last at 2026-01-01T00:00:00Z; drilled at 2026-01-02T00:00:00Z",
            "  0 covered, 1 partly, 0 not here",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
    }

    #[test]
    fn the_page_loads_nothing_and_escapes_what_a_trace_says() {
        let matrix = matrix("<script>alert(1)</script>");
        let page = Page { policy: policy(), style: STYLE, matrix: &matrix }.render().unwrap();
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("default-src 'none'") && !page.contains("src=") && !page.contains("http://"));
        assert!(page.contains("no kubelet runs here"));
    }
}
