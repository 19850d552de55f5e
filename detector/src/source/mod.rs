//! Sources: the only code that does I/O to learn what happened. Each yields records.

pub mod acting;
pub mod audit;
pub mod bundle;
pub mod cri;
pub mod images;
pub mod kernel;
pub mod kubelet;
pub mod live;
pub mod logs;
pub mod manifest;
mod own;
pub mod proc;
mod root;
pub mod runtimes;
pub mod sense;
pub mod trust;

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// SHA-256 of what is left of a file, of at most `most` bytes.
///
/// # Errors
/// When it cannot be read, or is longer.
pub fn sha256(file: &mut impl Read, most: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut left = most;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&hasher.finalize())),
            len if len as u64 > left => return Err(io::Error::other(format!("it is longer than {most} bytes"))),
            len => {
                hasher.update(&chunk[..len]);
                left -= len as u64;
            }
        }
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
