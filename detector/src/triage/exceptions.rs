//! What the user does not want to be told.

use cel::Program;
use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;

use super::{EXCEPTIONS_MAX, expression};
use crate::{alert::Alert, escape::escape_to, record::Exception};

/// Longest pattern, in bytes.
const PATTERN_MAX: usize = 1024;

/// The exceptions, ready to be applied.
#[derive(Debug, Default)]
pub struct Exceptions {
    ready: Vec<Ready>,
    /// What the user should know.
    pub notes: Vec<String>,
}

#[derive(Debug)]
struct Ready {
    exception: Exception,
    expires: i128,
    expired: bool,
    image: Option<GlobMatcher>,
    path: Option<GlobMatcher>,
    when: Option<Program>,
}

impl Exceptions {
    /// One that cannot be used is said, and silences nothing.
    pub fn new(exceptions: &[Exception]) -> Self {
        let mut all = Self::default();
        for exception in exceptions.iter().take(EXCEPTIONS_MAX) {
            match Ready::new(exception) {
                Ok(ready) => all.ready.push(ready),
                Err(why) => all.notes.push(format!("exception {} does not apply: {why}", shown(&exception.name))),
            }
        }
        if let Some(more) = exceptions.len().checked_sub(EXCEPTIONS_MAX).filter(|more| *more > 0) {
            all.notes.push(format!("{more} exceptions do not apply: there may be {EXCEPTIONS_MAX}"));
        }
        all
    }

    /// It is this time of the wall, in ns since the epoch.
    pub fn passes(&mut self, now: i128) {
        for ready in self.ready.iter_mut().filter(|ready| !ready.expired && ready.expires <= now) {
            ready.expired = true;
            let Exception { name, expires, .. } = &ready.exception;
            self.notes.push(format!("exception {} expired at {expires} and does not apply any more", shown(name)));
        }
    }

    /// How many there are, and how many of them have expired.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ready.len(), self.ready.iter().filter(|ready| ready.expired).count())
    }

    /// The first exception that an alert falls under.
    pub fn silences(&self, alert: &Alert) -> Option<&Exception> {
        let mut context = None;
        self.ready
            .iter()
            .filter(|ready| !ready.expired && ready.names(alert))
            .find(|ready| {
                ready.when.as_ref().is_none_or(|when| {
                    expression::holds(when, context.get_or_insert_with(|| expression::context(alert)))
                })
            })
            .map(|ready| &ready.exception)
    }
}

impl Ready {
    fn new(exception: &Exception) -> Result<Self, String> {
        let pattern = |text: &Option<String>| text.as_deref().map(pattern).transpose();
        Ok(Self {
            expires: expiry(&exception.expires)?.as_nanosecond(),
            expired: false,
            image: pattern(&exception.image)?,
            path: pattern(&exception.path)?,
            when: exception.when.as_deref().map(expression::compile).transpose()?,
            exception: exception.clone(),
        })
    }

    /// Whether everything but the expression is so. What an alert does not have is not as the exception says.
    fn names(&self, alert: &Alert) -> bool {
        let Exception { technique, namespace, digest, binary, .. } = &self.exception;
        let container = alert.container.as_ref();
        let is = |digest: &String| {
            let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
            let image = container.and_then(|container| container.image_digest.as_deref());
            let file = alert.file.as_ref().and_then(|file| file.sha256.as_deref());
            [image, file].into_iter().flatten().any(|has| has.strip_prefix("sha256:").unwrap_or(has) == hex)
        };
        technique.as_ref().is_none_or(|technique| alert.technique.id == technique)
            && namespace
                .as_ref()
                .is_none_or(|namespace| alert.pod.as_ref().is_some_and(|pod| pod.namespace == *namespace))
            && digest.as_ref().is_none_or(is)
            && binary.as_ref().is_none_or(|binary| {
                alert.process.as_ref().is_some_and(|process| process.sha256.as_ref() == Some(binary))
            })
            && self.image.as_ref().is_none_or(|image| {
                container.and_then(|container| container.image.as_deref()).is_some_and(|has| image.is_match(has))
            })
            && self.path.as_ref().is_none_or(|path| alert.file.as_ref().is_some_and(|file| path.is_match(&file.path)))
    }
}

fn shown(name: &str) -> String {
    format!("\"{}\"", escape_to(name, 80))
}

/// When an exception ends.
///
/// # Errors
/// When the text is no time, in words.
pub fn expiry(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "no time; expected RFC 3339, such as 2027-01-31T00:00:00Z".to_owned())
}

/// A pattern in which `*` and `?` stand for anything but a slash, and `**` for anything.
///
/// # Errors
/// When the text is no pattern, in words.
pub fn pattern(text: &str) -> Result<GlobMatcher, String> {
    if text.is_empty() || text.len() > PATTERN_MAX {
        return Err(format!("a pattern of {} bytes; expected 1 to {PATTERN_MAX}", text.len()));
    }
    let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| {
        format!(
            "no pattern: {}; expected a path in which * stands for anything but a slash, and ** for anything",
            error.kind()
        )
    })
}
