//! How far a replay has come, on standard error where that is a terminal.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::{fd::AsFd as _, unix::fs::FileTypeExt as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is drawn anew when nothing happens.
const DRAW: Duration = Duration::from_millis(100);

/// A line that alerts are written above.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    speed: Option<f64>,
}

impl Progress {
    /// `bytes` is how many the trace has, where that is known; `name` is empty when there is one file only.
    pub fn new(name: &str, bytes: Option<u64>, speed: Option<f64>) -> Self {
        let bar = if is_wanted() {
            let template = match (speed, bytes) {
                // How long it will take is not known: the trace says when it ends at its end.
                (Some(_), _) => "{spinner} {msg}",
                (None, Some(_)) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                (None, None) => "{spinner} {msg} {bytes} {bytes_per_sec}",
            };
            let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(label("replaying", name));
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, name: name.to_owned(), speed }
    }

    /// So much of the trace was read.
    pub fn read(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Waits, and says what moment of the recording it is meanwhile: `moment` of the time that is left.
    pub fn wait(&self, until: std::time::Instant, moment: impl Fn(Duration) -> String) {
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            if let Some(speed) = self.speed.filter(|_| !self.bar.is_hidden()) {
                self.bar.set_message(label(&format!("{} at {speed}x", moment(left)), &self.name));
                self.bar.tick();
            }
            std::thread::sleep(if self.bar.is_hidden() { left } else { left.min(DRAW) });
        }
    }

    /// Writes something else to the terminal.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    /// Nothing is left of it.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn label(what: &str, name: &str) -> String {
    if name.is_empty() { what.to_owned() } else { format!("{what} {name}") }
}

/// Whoever reads from a pipe (`less`, `jq`) writes to the same terminal.
fn is_wanted() -> bool {
    let piped = || -> io::Result<bool> {
        let kind = File::from(io::stdout().as_fd().try_clone_to_owned()?).metadata()?.file_type();
        Ok(kind.is_fifo() || kind.is_socket())
    };
    io::stderr().is_terminal() && !piped().unwrap_or(true)
}
