//! What a sink is called: `stdout:json`, `syslog+tls://host?ca=FILE`, the same on the command line and in a configuration.

use std::{
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::format::syslog::{FACILITIES, Payload};

/// The forms, for messages and help.
pub const FORMS: &str = "stdout:FORMAT, file:///PATH, syslog:, syslog+unix:///PATH, syslog+udp://HOST, syslog+tcp://HOST, \
                         syslog+tls://HOST?ca=FILE, journald:, otlp+http[s]://HOST:4318, webhook+http[s]://HOST/PATH";

const DEV_LOG: &str = "/dev/log";
const JOURNALD: &str = "/run/systemd/journal/socket";
/// Spools hold this much unless told otherwise.
const SPOOL: u64 = 64 << 20;
const SPOOLS: RangeInclusive<u64> = 1 << 20..=64 << 30;
const ROTATIONS: RangeInclusive<u64> = 4096..=1 << 40;
const MESSAGES: RangeInclusive<u64> = 2048..=65_000;
/// What rsyslog takes unless told otherwise; it cuts what is longer, and the rest is no JSON any more.
const MESSAGE: u64 = 8096;

/// A sink and its options, as one string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spec {
    text: String,
    kind: Kind,
}

/// Why a string names no sink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Stdout(Form),
    File(FileSpec),
    Remote(Remote),
}

/// How an alert looks on standard output, in a file, at a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people; only on standard output.
    Pretty,
    /// The alert itself.
    Json,
    /// OCSF's Detection Finding.
    Ocsf,
    /// What falcosidekick takes.
    Falco,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    pub path: PathBuf,
    pub form: Form,
    /// From this size on the file becomes PATH.1, in bytes; `None` for never.
    pub rotate: Option<u64>,
    /// How many of those are kept.
    pub keep: u32,
}

/// Somebody who may be away: what cannot be delivered waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub to: To,
    /// A directory of its own, instead of one below the common one.
    pub spool: Option<PathBuf>,
    /// Most bytes that wait.
    pub spool_size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Syslog(Syslog),
    Journald { socket: PathBuf },
    Http(Http),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syslog {
    pub peer: Peer,
    pub facility: u8,
    pub payload: Payload,
    /// Most bytes of a message.
    pub max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Unix(PathBuf),
    Udp(String, u16),
    Tcp(String, u16),
    Tls(String, u16, Tls),
}

/// Whom to trust, and who we are. PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `None`: the authorities that browsers trust.
    pub ca: Option<PathBuf>,
    /// Certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub url: String,
    pub body: HttpBody,
    pub tls: Tls,
    pub headers: Vec<(String, String)>,
    /// Lines of `Name: value`, read for every request: for secrets, which change.
    pub header_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpBody {
    Otlp,
    /// One alert, or an array of up to `batch` where that is more than 1.
    Webhook {
        form: Form,
        batch: usize,
    },
}

impl Spec {
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Standard output in this form.
    #[must_use]
    pub fn stdout(form: Form) -> Self {
        Self { text: format!("stdout:{}", form.name()), kind: Kind::Stdout(form) }
    }

    /// What it is called in messages and figures: without what may be secret (paths and parameters of URLs).
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Stdout(form) => format!("stdout:{}", form.name()),
            Kind::File(file) => format!("file://{}", file.path.display()),
            Kind::Remote(remote) => match &remote.to {
                To::Journald { socket } if socket == Path::new(JOURNALD) => "journald:".to_owned(),
                To::Journald { socket } => format!("journald://{}", socket.display()),
                To::Syslog(syslog) => match &syslog.peer {
                    Peer::Unix(path) => format!("syslog+unix://{}", path.display()),
                    Peer::Udp(host, port) => format!("syslog+udp://{host}:{port}"),
                    Peer::Tcp(host, port) => format!("syslog+tcp://{host}:{port}"),
                    Peer::Tls(host, port, _) => format!("syslog+tls://{host}:{port}"),
                },
                To::Http(http) => {
                    let kind = if http.body == HttpBody::Otlp { "otlp" } else { "webhook" };
                    let (scheme, rest) = http.url.split_once("://").unwrap_or(("http", ""));
                    let authority = rest.split(['/', '?']).next().unwrap_or_default();
                    format!("{kind}+{scheme}://{}", authority.rsplit('@').next().unwrap_or_default())
                }
            },
        }
    }

    /// What tells its spool from others': where it leads and in which form, and no more, so that another CA keeps the spool.
    pub(super) fn identity(&self) -> String {
        match &self.kind {
            Kind::Remote(Remote { to: To::Http(http), .. }) => format!("{} {:?} {}", self.name(), http.body, http.url),
            _ => self.name(),
        }
    }
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
            Self::Ocsf => "ocsf",
            Self::Falco => "falco",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Pretty, Self::Json, Self::Ocsf, Self::Falco].into_iter().find(|form| form.name() == name)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> Self {
        spec.text
    }
}

impl TryFrom<String> for Spec {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| fail(format!("names no sink; there are {FORMS}")))?;
        let (kind, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
        let http = matches!((kind, transport), ("otlp" | "webhook", "http" | "https"));
        let parsed = if http { format!("{transport}:{rest}") } else { text.to_owned() };
        let url = Url::parse(&parsed).map_err(|error| fail(format!("is no URL: {error}")))?;
        let mut given = Parameters::of(&url);
        let kind = match (kind, transport) {
            ("stdout", "") => Kind::Stdout(Form::of(url.path()).ok_or_else(|| {
                fail("standard output has the formats stdout:pretty, stdout:json, stdout:ocsf and stdout:falco")
            })?),
            ("file", "") => Kind::File(FileSpec {
                path: path(&url, None)?,
                form: given.form()?,
                rotate: given.size("rotate", ROTATIONS)?,
                keep: u32::try_from(given.number("keep", 0..=1000)?.unwrap_or(5)).unwrap_or(5),
            }),
            ("syslog", "" | "unix" | "udp" | "tcp" | "tls") => {
                remote(To::Syslog(syslog(&url, transport, &mut given)?), &mut given)?
            }
            ("journald", "") => remote(To::Journald { socket: path(&url, Some(JOURNALD))? }, &mut given)?,
            ("otlp" | "webhook", "http" | "https") => {
                let body = if kind == "otlp" {
                    HttpBody::Otlp
                } else {
                    let batch = given.number("batch", 1..=1000)?.unwrap_or(1);
                    let form = given.form()?;
                    if form == Form::Falco && batch > 1 {
                        return Err(fail(
                            "falcosidekick takes one event a request: leave `batch` out, or take another format",
                        ));
                    }
                    HttpBody::Webhook { form, batch: usize::try_from(batch).unwrap_or(1) }
                };
                remote(To::Http(request(url.clone(), body, &mut given)?), &mut given)?
            }
            _ => return Err(fail(format!("`{scheme}:` is no sink; there are {FORMS}"))),
        };
        given.end()?;
        if url.fragment().is_some() {
            return Err(fail("has a fragment (#...), which means nothing here; in a value write # as %23"));
        }
        Ok(Self { text: text.to_owned(), kind })
    }
}

fn fail(why: impl Into<String>) -> SpecError {
    SpecError(why.into())
}

fn remote(to: To, given: &mut Parameters) -> Result<Kind, SpecError> {
    Ok(Kind::Remote(Remote {
        to,
        spool: given.file("spool")?,
        spool_size: given.size("spool_size", SPOOLS)?.unwrap_or(SPOOL),
    }))
}

fn syslog(url: &Url, transport: &str, given: &mut Parameters) -> Result<Syslog, SpecError> {
    let facility = match given.take("facility")? {
        None => 10,
        Some(name) => {
            FACILITIES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(|| {
                let known: Vec<_> = FACILITIES.iter().map(|(name, _)| *name).collect();
                fail(format!("no facility is called `{name}`; there are {}", known.join(", ")))
            })?
        }
    };
    let payload = match given.take("format")?.as_deref() {
        None | Some("json") => Payload::Json,
        Some("cef") => Payload::Cef,
        Some(other) => return Err(fail(format!("syslog has no format `{other}`; there are json and cef"))),
    };
    let max = usize::try_from(given.number("max", MESSAGES)?.unwrap_or(MESSAGE)).unwrap_or(usize::MAX);
    let peer = match transport {
        "" => Peer::Unix(path(url, Some(DEV_LOG))?),
        "unix" => Peer::Unix(path(url, None)?),
        _ => {
            let (host, port) = (host(url)?, url.port());
            match transport {
                "udp" => Peer::Udp(host, port.unwrap_or(514)),
                "tcp" => Peer::Tcp(host, port.unwrap_or(601)),
                _ => {
                    let tls = given.tls()?;
                    if tls.ca.is_none() {
                        return Err(fail("needs ?ca=FILE: the authority that signed the server's certificate, as PEM"));
                    }
                    Peer::Tls(host, port.unwrap_or(6514), tls)
                }
            }
        }
    };
    Ok(Syslog { peer, facility, payload, max })
}

fn request(mut url: Url, body: HttpBody, given: &mut Parameters) -> Result<Http, SpecError> {
    if url.scheme() == "http" && given.has(&["ca", "cert", "key"]) {
        return Err(fail("ca, cert and key are for https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fail("has a user name; use ?header_file=FILE with a line `Authorization: ...`"));
    }
    if body == HttpBody::Otlp && url.path() == "/" {
        url.set_path("/v1/logs");
    }
    let query = given.take("query")?;
    url.set_query(query.as_deref());
    let mut headers = Vec::new();
    while let Some(header) = given.next("header") {
        headers.push(self::header(&header).map_err(fail)?);
    }
    Ok(Http { tls: given.tls()?, header_file: given.file("header_file")?, headers, body, url: url.into() })
}

/// A line `Name: value` of a request.
pub(super) fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header is `Name: value`")?;
    let (name, value) = (name.trim(), value.trim());
    http::HeaderName::from_str(name).map_err(|_| format!("`{}` is no name of a header", name.escape_debug()))?;
    http::HeaderValue::from_str(value)
        .map_err(|_| format!("the value of header {name} has characters that none may have"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The absolute path of a URL without a host.
fn path(url: &Url, default: Option<&str>) -> Result<PathBuf, SpecError> {
    if let (Some(default), "") = (default, url.path()) {
        return Ok(default.into());
    }
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        return Err(fail(format!("takes `{host}` for a host; a path has three slashes: {}:///PATH", url.scheme())));
    }
    let path = percent_encoding::percent_decode_str(url.path())
        .decode_utf8()
        .map_err(|_| fail("has a path that is not UTF-8"))?;
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(fail(format!("needs the absolute path of a file: {}:///PATH", url.scheme())));
    }
    Ok(path.into_owned().into())
}

fn host(url: &Url) -> Result<String, SpecError> {
    if !matches!(url.path(), "" | "/") || !url.username().is_empty() {
        return Err(fail(format!("has more than a host and a port: {}://HOST:PORT", url.scheme())));
    }
    match url.host() {
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        Some(Host::Ipv4(address)) => Ok(address.to_string()),
        Some(Host::Domain(name)) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(fail(format!("names no host: {}://HOST:PORT", url.scheme()))),
    }
}

/// The parameters of a URL, each of which must be asked for.
struct Parameters {
    left: Vec<(String, String)>,
    asked: Vec<&'static str>,
}

impl Parameters {
    fn of(url: &Url) -> Self {
        Self { left: url.query_pairs().into_owned().collect(), asked: Vec::new() }
    }

    fn has(&self, names: &[&str]) -> bool {
        self.left.iter().any(|(name, _)| names.contains(&name.as_str()))
    }

    /// The next of several values.
    fn next(&mut self, name: &'static str) -> Option<String> {
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
        let at = self.left.iter().position(|(found, _)| found == name)?;
        Some(self.left.remove(at).1)
    }

    /// The only value.
    fn take(&mut self, name: &'static str) -> Result<Option<String>, SpecError> {
        let value = self.next(name);
        if self.has(&[name]) {
            return Err(fail(format!("`{name}` is given twice")));
        }
        Ok(value)
    }

    fn file(&mut self, name: &'static str) -> Result<Option<PathBuf>, SpecError> {
        let path = self.take(name)?.map(PathBuf::from);
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(fail(format!("`{name}` needs an absolute path")));
        }
        Ok(path)
    }

    fn number(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, SpecError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let expected = || fail(format!("`{name}={text}`: not a number from {} to {}", range.start(), range.end()));
        number.ok_or_else(expected).map(Some)
    }

    fn size(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, SpecError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let size = text.parse::<ByteSize>().ok().map(|size| size.as_u64()).filter(|size| range.contains(size));
        let shown = |bytes: &u64| ByteSize(*bytes).to_string();
        let expected =
            || fail(format!("`{name}={text}`: not a size from {} to {}", shown(range.start()), shown(range.end())));
        size.ok_or_else(expected).map(Some)
    }

    fn form(&mut self) -> Result<Form, SpecError> {
        match self.take("format")? {
            None => Ok(Form::Json),
            Some(name) => Form::of(&name)
                .filter(|form| *form != Form::Pretty)
                .ok_or_else(|| fail(format!("no format is called `{name}`; there are json, ocsf and falco"))),
        }
    }

    fn tls(&mut self) -> Result<Tls, SpecError> {
        let ca = self.file("ca")?;
        let client = match (self.file("cert")?, self.file("key")?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(fail("needs both cert=FILE and key=FILE, or neither")),
        };
        Ok(Tls { ca, client })
    }

    fn end(self) -> Result<(), SpecError> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        if self.asked.is_empty() {
            return Err(fail(format!("takes no parameters, and has `{name}`")));
        }
        let own = if self.asked.contains(&"query") {
            "; what is for the receiver goes into `query`, percent-encoded"
        } else {
            ""
        };
        Err(fail(format!("has no parameter `{name}`; there are {}{own}", self.asked.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> Remote {
        match text.parse::<Spec>().unwrap().kind {
            Kind::Remote(remote) => remote,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_form_is_read_and_written_back_as_it_was() {
        for (text, name) in [
            ("stdout:json", "stdout:json"),
            ("stdout:ocsf", "stdout:ocsf"),
            ("file:///var/log/a%20b.jsonl?rotate=10MiB&keep=5", "file:///var/log/a b.jsonl"),
            ("syslog:", "syslog+unix:///dev/log"),
            ("syslog:?format=cef", "syslog+unix:///dev/log"),
            ("syslog+unix:///run/s", "syslog+unix:///run/s"),
            ("syslog+udp://logs.example", "syslog+udp://logs.example:514"),
            ("syslog+tcp://[::1]:6010?facility=local3", "syslog+tcp://::1:6010"),
            ("syslog+tls://logs.example?ca=/a&cert=/b&key=/c", "syslog+tls://logs.example:6514"),
            ("journald:", "journald:"),
            ("otlp+http://otel:4318", "otlp+http://otel:4318"),
            ("webhook+https://hooks.example/secret?header=X-Token:%20s3cret&batch=10", "webhook+https://hooks.example"),
        ] {
            let spec: Spec = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(spec.to_string(), text);
            assert_eq!(spec.name(), name);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn options_have_the_values_that_were_given_or_sensible_ones() {
        let Kind::File(file) = "file:///a?rotate=10MiB&keep=2&format=ocsf".parse::<Spec>().unwrap().kind else {
            panic!()
        };
        assert_eq!((file.rotate, file.keep, file.form), (Some(10 << 20), 2, Form::Ocsf));
        let tls = remote("syslog+tls://h?ca=/ca&cert=/c&key=/k&spool=/s&spool_size=2MiB&max=9000");
        assert_eq!((tls.spool, tls.spool_size), (Some("/s".into()), 2 << 20));
        let To::Syslog(syslog) = tls.to else { panic!() };
        assert_eq!((syslog.max, syslog.facility, syslog.payload), (9000, 10, Payload::Json));
        let tls = Tls { ca: Some("/ca".into()), client: Some(("/c".into(), "/k".into())) };
        assert_eq!(syslog.peer, Peer::Tls("h".to_owned(), 6514, tls));
        let To::Http(http) = remote("otlp+http://h:4318").to else { panic!() };
        assert_eq!((http.url.as_str(), http.body), ("http://h:4318/v1/logs", HttpBody::Otlp));
        let To::Http(http) = remote("webhook+https://h/p?query=a%3Db%26c&header=A:1&header=B:%20x%2By&format=falco").to
        else {
            panic!()
        };
        assert_eq!(http.url, "https://h/p?a=b&c");
        assert_eq!(http.headers, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x+y".to_owned())]);
        assert_eq!(http.body, HttpBody::Webhook { form: Form::Falco, batch: 1 });
    }

    #[test]
    fn what_is_no_sink_is_told_with_what_would_be_one() {
        for (text, part) in [
            ("json", "names no sink; there are stdout:"),
            ("kafka://x", "`kafka:` is no sink; there are"),
            ("stdout:xml", "stdout:pretty, stdout:json"),
            ("stdout:json?x=1", "takes no parameters, and has `x`"),
            ("file://var/log/x", "takes `var` for a host; a path has three slashes"),
            ("file:///var/log/", "absolute path of a file"),
            ("file:///x?rotat=1MiB", "has no parameter `rotat`; there are format, rotate, keep"),
            ("file:///x?rotate=1", "`rotate=1`: not a size from 4.0 KiB"),
            ("file:///x?format=pretty", "there are json, ocsf and falco"),
            ("webhook+http://h/?format=falco&batch=2", "one event a request"),
            ("file:///x?keep=1&keep=2", "`keep` is given twice"),
            ("syslog+tls://h", "needs ?ca=FILE"),
            ("syslog+tls://h?ca=/a&cert=/b", "needs both cert=FILE and key=FILE"),
            ("syslog+tls://h?ca=a", "`ca` needs an absolute path"),
            ("syslog+tcp:///run/x", "more than a host and a port"),
            ("syslog+tcp:", "names no host"),
            ("syslog+tcp://h/x", "more than a host and a port"),
            ("syslog+tcp://h:99999", "is no URL: invalid port number"),
            ("syslog:?facility=mail2", "no facility is called `mail2`; there are user, daemon"),
            ("syslog:?format=xml", "there are json and cef"),
            ("syslog+relp://h", "`syslog+relp:` is no sink"),
            ("webhook+http://h/?ca=/x", "are for https"),
            ("webhook+http://u:p@h/", "use ?header_file=FILE"),
            ("webhook+http://h/?token=1", "what is for the receiver goes into `query`"),
            ("webhook+http://h/?header=a%0Ab:%20c", "is no name of a header"),
            ("webhook+http://h/?header=a:%20b%0D%0AX:%20c", "characters that none may have"),
            ("otlp+grpc://h", "`otlp+grpc:` is no sink"),
            ("webhook+http://h/#x", "fragment"),
        ] {
            let error = text.parse::<Spec>().map(|spec| spec.to_string()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_spool_is_found_again_when_only_trust_or_bounds_changed() {
        let identity = |text: &str| text.parse::<Spec>().unwrap().identity();
        assert_eq!(identity("syslog+tls://h?ca=/a"), identity("syslog+tls://h?ca=/b&max=9000"));
        assert_ne!(identity("webhook+http://h/a"), identity("webhook+http://h/b"));
        assert_ne!(identity("webhook+http://h/a"), identity("webhook+http://h/a?format=falco"));
    }
}
