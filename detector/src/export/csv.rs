//! Rows as text: RFC 4180, UTF-8, one header line, times as RFC 3339 in UTC, nothing for null.
//!
//! Text is the workloads' or an attacker's, and spreadsheets run cells that look like formulas. So a cell of text that begins with
//! `=`, `+`, `-`, `@`, a tab, a carriage return or a line feed gets an apostrophe before it, and so does one that begins with an
//! apostrophe: whoever takes one leading apostrophe away has the exact text.

use std::io::Write;

use crate::export::{
    BUFFER, ExportError, Exporter, Seen,
    rows::{COLUMNS, Cell},
};

/// CSV over a writer.
pub struct Csv<W: Write> {
    out: csv::Writer<W>,
    scratch: String,
}

impl<W: Write> Csv<W> {
    /// Begins with the header line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W) -> Result<Self, ExportError> {
        let mut out = csv::WriterBuilder::new().buffer_capacity(BUFFER).from_writer(out);
        out.write_record(COLUMNS.iter().map(|column| column.name))?;
        Ok(Self { out, scratch: String::new() })
    }
}

impl<W: Write> Exporter for Csv<W> {
    fn push(&mut self, seen: &Seen<'_>) -> Result<(), ExportError> {
        for column in COLUMNS {
            self.scratch.clear();
            if let Some(cell) = (column.get)(&seen.row) {
                write(cell, &mut self.scratch);
            }
            self.out.write_field(&self.scratch)?;
        }
        Ok(self.out.write_record(None::<&[u8]>)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), ExportError> {
        Ok(self.out.flush()?)
    }
}

fn write(cell: Cell<'_>, out: &mut String) {
    use std::fmt::Write as _;
    // Writing to a string cannot fail.
    let _ = match cell {
        Cell::U32(number) => write!(out, "{number}"),
        Cell::U64(number) => write!(out, "{number}"),
        Cell::I32(number) => write!(out, "{number}"),
        Cell::Bool(is) => write!(out, "{is}"),
        Cell::Time(ns) => match jiff::Timestamp::from_nanosecond(ns.into()) {
            Ok(time) => write!(out, "{time:.9}"),
            // Every such number is a time that jiff has.
            Err(_) => write!(out, "{ns}"),
        },
        Cell::Text(text) => {
            if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '\'', '＝', '＋', '－', '＠']) {
                out.push('\'');
            }
            out.push_str(text);
            Ok(())
        }
    };
}
