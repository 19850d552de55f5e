//! Reading it. Whatever the file holds, the answer is a configuration or where it is wrong.

use std::{fmt, fs::File, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_saphyr::{Error, Spanned};

use super::{Config, Conflict};
use crate::{
    escape::{escape, escape_to},
    nearest::near,
};

/// Largest file that is read: what fits into a ConfigMap.
const SIZE_MAX: u64 = 1 << 20;
/// Longest message, in characters.
const MESSAGE_MAX: usize = 600;

/// What is wrong, and where: `FILE:LINE:COLUMN: what; expected what`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    pub file: String,
    /// Line and column, from 1.
    pub place: Option<(u64, u64)>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.file))?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", escape_to(&self.what, MESSAGE_MAX))
    }
}

/// Reads the file, lets flags override it, and checks that all fits together.
///
/// # Errors
/// When it cannot be read, is no configuration, or does not fit together.
pub fn load(path: &Path, flags: impl FnOnce(&mut Config)) -> Result<(String, Config), Problem> {
    let name = path.display().to_string();
    let text = read(path)?;
    let config = interpret(&name, &text, flags)?;
    Ok((text, config))
}

/// The same for a text that was read already.
///
/// # Errors
/// When it is no configuration, or does not fit together.
pub fn interpret(name: &str, text: &str, flags: impl FnOnce(&mut Config)) -> Result<Config, Problem> {
    let mut config = parse(name, text)?;
    flags(&mut config);
    config.fits().map_err(|conflict| locate(name, text, conflict))?;
    Ok(config)
}

/// The file's text.
///
/// # Errors
/// When it cannot be read, is too large or no UTF-8.
pub fn read(path: &Path) -> Result<String, Problem> {
    let name = path.display().to_string();
    let problem = |what: String| Problem { file: name.clone(), place: None, what };
    // A fifo would make whoever opens it wait.
    let open = File::options().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path);
    let file = open.map_err(|error| problem(format!("{error}; expected a configuration file")))?;
    let metadata = file.metadata().map_err(|error| problem(error.to_string()))?;
    if !metadata.is_file() {
        return Err(problem("no regular file; expected a configuration file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(|error| problem(error.to_string()))?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(problem("larger than a configuration may be; expected at most 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (valid, invalid) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count() as u64;
        let column = 1 + valid.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
        let byte = invalid.first().copied().unwrap_or_default();
        Problem {
            file: name.clone(),
            place: Some((line, column)),
            what: format!("the byte {byte:#04x} is no text; expected UTF-8"),
        }
    })
}

/// A configuration of a text.
///
/// # Errors
/// When it is none.
pub fn parse(name: &str, text: &str) -> Result<Config, Problem> {
    yaml(name, text)
}

/// What a text of YAML or JSON says.
///
/// # Errors
/// When it does not say that, with the place.
pub fn yaml<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Problem> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        Problem { file: name.to_owned(), place: place(error.location()), what: what(error) }
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            flow_nesting_limit: 32,
            max_nodes: 50_000,
            max_events: 200_000,
            max_aliases: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000 },
        emit_comments: false,
        with_snippet: false,
    }
}

/// Line and column, from 1.
pub fn place(location: Option<serde_saphyr::Location>) -> Option<(u64, u64)> {
    location.map(|at| (at.line(), at.column())).filter(|(line, _)| *line > 0)
}

fn what(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key `{}`{}", escape_to(field, 80), near(field, expected.iter().copied()))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value `{}`{}", escape_to(variant, 80), near(variant, expected.iter().copied()))
        }
        Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing; it is required here"),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("{unexpected}; expected {expected}")
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key =
                key.as_deref().map_or_else(|| "a key".to_owned(), |key| format!("the key `{}`", escape_to(key, 80)));
            format!("{key} stands here twice; expected it once")
        }
        Error::Unexpected { expected, .. } => {
            let kind = match *expected {
                "sequence start" => "a list: [a, b], or lines that begin with -",
                "mapping start" => "keys with values: KEY: VALUE",
                other => other,
            };
            format!("another kind of value; expected {kind}")
        }
        Error::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => {
            "no number that fits; expected a whole number".to_owned()
        }
        Error::InvalidScalar { ty: "boolean", .. } => "neither true nor false; expected one of them".to_owned(),
        Error::MultipleDocuments { .. } => "a second document begins; expected one".to_owned(),
        other => {
            let at = other.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
            let text = other.to_string();
            at.and_then(|at| text.strip_suffix(&at).map(str::to_owned)).unwrap_or(text)
        }
    }
}

/// Where the keys stand that do not fit together.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Places {
    default_dirs: Option<Spanned<IgnoredAny>>,
    cri: CriPlaces,
    deny: DenyPlaces,
    record: RecordPlaces,
    outputs: Vec<Spanned<IgnoredAny>>,
    exceptions: Vec<Spanned<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CriPlaces {
    sockets: Option<Spanned<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DenyPlaces {
    trust: Option<Spanned<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RecordPlaces {
    free_percent: Option<Spanned<IgnoredAny>>,
}

/// What flags say has no place in the file.
fn locate(name: &str, text: &str, conflict: Conflict) -> Problem {
    let places: Places = serde_saphyr::from_str_with_options(text, options()).unwrap_or_default();
    let item = conflict.item.unwrap_or_default();
    let at = match conflict.key {
        ["default_dirs"] => places.default_dirs.as_ref(),
        ["cri", ..] => places.cri.sockets.as_ref(),
        ["deny", ..] => places.deny.trust.as_ref(),
        ["record", ..] => places.record.free_percent.as_ref(),
        ["outputs"] => places.outputs.get(item),
        ["exceptions"] => places.exceptions.get(item),
        _ => None,
    };
    let what = format!("{}: {}", conflict.key.join("."), conflict.what);
    Problem { file: name.to_owned(), place: place(at.map(|at| at.referenced)), what }
}
