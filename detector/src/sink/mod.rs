//! Sinks: alerts to whoever reads them.
//!
//! [`Spec`] names one, [`Sinks`] are those of an agent, each with a bounded queue and a thread of its own, so that none waits for
//! another. [`format`] is pure; what may be away is behind a [`spool`].

mod backoff;
mod fanout;
pub mod format;
pub(crate) mod handed;
mod http;
mod local;
pub mod pretty;
mod queue;
mod remote;
pub mod spec;
pub mod spool;
mod syslog;
mod tls;

use std::io::{self, Write as _};

pub use fanout::{Sinks, StartError};
pub use queue::State;
pub use spec::{Form, Spec};

use crate::alert::Alert;

/// What makes bytes of an alert, for a sink.
type Render = Box<dyn Fn(&Alert) -> Vec<u8> + Send>;

/// Standard output.
#[derive(Debug)]
pub struct Stdout {
    form: Form,
    colour: bool,
}

impl Stdout {
    /// `colour` is for people only.
    #[must_use]
    pub fn new(form: Form, colour: bool) -> Self {
        Self { form, colour }
    }

    /// Writes one alert, and flushes: whoever reads it is waiting.
    ///
    /// # Errors
    /// When standard output is gone.
    pub fn send(&mut self, alert: &Alert) -> io::Result<()> {
        let line = line(alert, self.form, self.colour)?;
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.flush()
    }
}

/// An alert in one of the forms, with what ends it.
///
/// # Errors
/// Never for an alert; the serializer's type says that it could.
pub fn line(alert: &Alert, form: Form, colour: bool) -> Result<String, serde_json::Error> {
    Ok(match form {
        Form::Json => json(alert)?,
        Form::Pretty => pretty::render(alert, colour),
        Form::Ocsf => format!("{}\n", format::ocsf::render(alert)),
        Form::Falco => format!("{}\n", format::falco::render(alert)),
    })
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        alert::{Alert, Container, Origin, Pod},
        record::{Body, ChangeKind},
        testing::{self, Actor, DIR, FILE, POD, Stream, manifest},
    };

    const HOSTILE: &str = "/tmp/\x1b[2J\nCRITICAL all is well\u{202e}";

    /// An alert in which everything that an attacker can choose is hostile.
    fn hostile() -> Alert {
        let mut stream = Stream::new();
        let (shell, actor) = (Actor::host(50, 10), Actor::host(60, 90));
        stream.kernel(testing::exec(actor, shell, HOSTILE, &["a\nb", "\x1b]0;title\x07", HOSTILE]));
        let since = stream.now();
        stream.kernel(testing::open(actor, FILE, DIR, HOSTILE));
        let text = POD.replace("web:1", "\"web\\e[31m\\n:1\"").replace("name: web,", "name: \"we\\nb\",");
        let mut change = manifest(ChangeKind::Added, Some(&text), since);
        change.name = HOSTILE.to_owned();
        change.dir = HOSTILE.to_owned();
        change.after.as_mut().unwrap().symlink = Some(HOSTILE.to_owned());
        stream.push(Body::Manifest(Box::new(change)));
        stream.alerts().remove(0)
    }

    #[test]
    fn json_is_one_line_with_every_field_of_the_contract() {
        let line = json(&hostile()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with('\n'));
        assert!(!line.contains('\x1b'));
        let alert: Value = serde_json::from_str(&line).unwrap();
        let fields = [
            "/time",
            "/node",
            "/severity",
            "/technique/id",
            "/technique/name",
            "/technique/tactic",
            "/technique/attack/0",
            "/technique/microsoft/0",
            "/title",
            "/origin",
            "/process/pid",
            "/process/start_time",
            "/process/exe",
            "/process/argv/2",
            "/process/uid",
            "/process/ancestors/0/pid",
            "/process/ancestors/0/exe",
            "/file/path",
            "/file/sha256",
            "/evidence/0/kind",
            "/evidence/0/hook",
            "/evidence/0/sequence",
            "/trace/sequence",
        ];
        for field in fields {
            assert!(alert.pointer(field).is_some_and(|value| !value.is_null()), "{field}");
        }
        for field in ["/container", "/pod"] {
            assert_eq!(alert.pointer(field), Some(&Value::Null), "{field}");
        }
        // What the file is called is told as it is; JSON's own escapes make it harmless.
        assert_eq!(alert.pointer("/file/path").unwrap(), &format!("{HOSTILE}/{HOSTILE}"));
    }

    #[test]
    fn pretty_shows_nothing_that_a_terminal_would_obey() {
        let text = pretty::render(&hostile(), false);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains('\u{202e}'));
        // Each line begins with the severity or with one of our own words.
        let words: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(
            words,
            ["MEDIUM", "who", "command", "lineage", "from", "file", "images", "technique", "when"],
            "{text}"
        );
    }

    #[test]
    fn pretty_names_container_and_pod_as_far_as_they_are_known() {
        let id = "0123456789abcdef".repeat(4);
        let mut alert = hostile();
        let mut from = |name: Option<&str>, image: Option<&str>, pod: bool| {
            let text = |text: &str| text.to_owned();
            alert.origin = Origin::Container;
            alert.container =
                Some(Container { id: id.clone(), name: name.map(text), image: image.map(text), image_digest: None });
            alert.pod = pod.then(|| Pod { namespace: text("shop"), name: text("web"), uid: String::new() });
            let pretty = pretty::render(&alert, false);
            pretty.lines().find_map(|line| line.trim().strip_prefix("from")).map(|rest| rest.trim().to_owned()).unwrap()
        };
        assert_eq!(from(Some("app"), Some("app:1"), true), "container app (0123456789ab, app:1) of pod shop/web");
        assert_eq!(from(None, None, false), "container 0123456789ab");
        let hostile = from(Some("a\nwho x"), Some("\u{1b}[2J"), true);
        assert!(!hostile.contains('\n') && !hostile.contains('\u{1b}'), "{hostile}");
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        assert!(pretty::render(&hostile(), true).starts_with("\x1b["));
        assert!(!pretty::render(&hostile(), false).contains('\x1b'));
    }
}
