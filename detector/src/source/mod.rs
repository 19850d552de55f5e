//! Sources: the only code that does I/O to learn what happened. Each yields records.

pub mod bundle;
pub mod cri;
pub mod images;
pub mod kernel;
pub mod kubelet;
pub mod live;
pub mod manifest;
pub mod proc;
mod root;
pub mod runtimes;

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
