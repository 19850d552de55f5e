//! The agent as a library: sources, the record stream, the pipeline behind it, sinks.
//!
//! Sources do I/O and yield [`record::Record`]s. Everything behind them is a pure function of that stream.

pub mod alert;
pub mod decode;
pub mod manifest;
pub mod record;
pub mod source;
