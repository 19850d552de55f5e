//! Sinks: alerts as lines.

pub mod pretty;

use std::io::{self, Write as _};

use crate::alert::Alert;

/// How alerts look on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty { colour: bool },
}

/// Standard output.
#[derive(Debug)]
pub struct Stdout(Format);

impl Stdout {
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self(format)
    }

    /// Writes one alert, and flushes: whoever reads it is waiting.
    ///
    /// # Errors
    /// When standard output is gone.
    pub fn send(&mut self, alert: &Alert) -> io::Result<()> {
        let line = match self.0 {
            Format::Json => json(alert)?,
            Format::Pretty { colour } => pretty::render(alert, colour),
        };
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.flush()
    }
}

/// An alert as one line of JSON, newline included. JSON escapes control characters, so a line is a line whatever a path holds.
///
/// # Errors
/// Never for an alert; the serializer's type says that it could.
pub fn json(alert: &Alert) -> Result<String, serde_json::Error> {
    let mut line = serde_json::to_string(alert)?;
    line.push('\n');
    Ok(line)
}
