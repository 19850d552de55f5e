//! Values that are texts of a certain form: checked where they are read, on the command line and in the file alike.

use std::{net::SocketAddr, time::Duration};

use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    context::image,
    detect::{network, technique},
    sink::{Form, Spec},
    source::{kernel::hooks::HOOKS, trust::Trust},
    triage,
};

/// Longest text that a configuration holds, in bytes.
const TEXT_MAX: usize = 1024;

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(inline)]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $check(text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text!(
    /// A few words.
    Text,
    |text: String| match text.trim().len() {
        1.. if text.len() <= TEXT_MAX => Ok(text),
        _ => Err(format!("{} bytes of text; expected 1 to {TEXT_MAX}", text.len())),
    }
);
text!(
    /// A digest, `sha256:...`.
    Digest,
    |text: String| pause_digest(&text)
);
text!(
    /// A SHA-256 in hex digits.
    Sha256,
    |text: String| pause_binary(&text)
);
text!(
    /// A hook's name.
    HookName,
    |text: String| hook_name(&text)
);
text!(
    /// A technique's id.
    Technique,
    |text: String| technique(&text)
);
text!(
    /// `PATH` or `PATH=SHA256`.
    Trusted,
    |text: String| trust(&text).map(|_| text)
);
text!(
    /// Where alerts go.
    Output,
    |text: String| match text.parse::<Spec>() {
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
);
text!(
    /// When an exception expires.
    Expiry,
    |text: String| triage::expiry(&text).map(|_| text)
);
text!(
    /// A network.
    Network,
    |text: String| text.parse::<network::Network>().map(|_| text)
);
text!(
    /// A pattern of paths.
    Pattern,
    |text: String| triage::pattern(&text).map(|_| text)
);
text!(
    /// A CEL expression.
    Expression,
    |text: String| triage::expression::compile(&text).map(|_| text)
);

impl Output {
    #[must_use]
    pub fn spec(&self) -> Spec {
        // It was checked.
        self.0.parse().unwrap_or_else(|_| Spec::stdout(Form::Json))
    }
}

impl Expiry {
    #[must_use]
    pub fn time(&self) -> Timestamp {
        // It was checked.
        self.0.parse().unwrap_or(Timestamp::MIN)
    }
}

impl Trusted {
    #[must_use]
    pub fn program(&self) -> Trust {
        trust(&self.0).unwrap_or_else(|_| Trust { path: (&self.0).into(), sha256: None })
    }
}

/// A number of bytes: `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline)]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let size: Result<ByteSize, _> = text.parse();
        size.map(|size| Self(size.as_u64()))
            .map_err(|_| "no size; expected a number with a unit, such as 512MiB".to_owned())
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let unit = units.into_iter().find(|(_, bits)| size.0 > 0 && size.0.trailing_zeros() >= *bits);
        unit.map_or_else(|| format!("{}B", size.0), |(unit, bits)| format!("{}{unit}", size.0 >> bits))
    }
}

/// A time: `60s`, `24h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline)]
pub struct Span(pub Duration);

impl Span {
    /// In ns; at most what fits.
    #[must_use]
    pub fn ns(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        duration(&text).map(Self)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        SignedDuration::try_from(span.0)
            .map_or_else(|_| format!("{}s", span.0.as_secs()), |signed| format!("{signed:#}"))
    }
}

/// An address to listen on. Names are not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline)]
pub struct Listen(pub SocketAddr);

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |_| "no address; expected ADDR:PORT, such as 127.0.0.1:9469 or [::]:9469".to_owned();
        text.parse().map(Self).map_err(wrong)
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.0.to_string()
    }
}

/// A program that is trusted under `--deny`.
///
/// # Errors
/// When the digest is none.
pub fn trust(text: &str) -> Result<Trust, String> {
    let (path, sha256) = match text.rsplit_once('=') {
        Some((path, digest)) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (path, Some(digest.to_owned()))
        }
        Some(_) => return Err("what follows = is no SHA-256 (64 hex digits)".to_owned()),
        None => (text, None),
    };
    Ok(Trust { path: path.into(), sha256 })
}

/// The digest of an image.
///
/// # Errors
/// When it is none.
pub fn pause_digest(text: &str) -> Result<String, String> {
    let digest = text.to_ascii_lowercase();
    match image::digest(&digest) {
        Some(digest) => Ok(digest),
        None => Err("not a digest: sha256: and 64 hex digits, as in `crictl images --digests`".to_owned()),
    }
}

/// The digest of a program.
///
/// # Errors
/// When it is none.
pub fn pause_binary(text: &str) -> Result<String, String> {
    let binary = text.to_ascii_lowercase();
    if !image::is_sha256(&binary) {
        return Err("not a SHA-256: 64 hex digits, as in the output of `sha256sum`".to_owned());
    }
    Ok(binary)
}

/// The name of a hook.
///
/// # Errors
/// When no hook is called so.
pub fn hook_name(name: &str) -> Result<String, String> {
    let known = HOOKS.iter().map(|hook| hook.name);
    if known.clone().any(|hook| hook == name) {
        return Ok(name.to_owned());
    }
    Err(format!("no hook has that name; there are {}", known.collect::<Vec<_>>().join(", ")))
}

/// The id of a technique.
///
/// # Errors
/// When no technique has it.
pub fn technique(id: &str) -> Result<String, String> {
    let known = technique::ALL.iter().map(|technique| technique.id);
    if known.clone().any(|known| known == id) {
        return Ok(id.to_owned());
    }
    Err(format!("no technique has that id; there are {}", known.collect::<Vec<_>>().join(", ")))
}

/// A time that passes.
///
/// # Errors
/// When it is none, or negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration =
        text.parse().map_err(|_| "no time; expected a number with a unit, such as 30s, 5m or 24h".to_owned())?;
    signed.try_into().map_err(|_| "a time before now".to_owned())
}
