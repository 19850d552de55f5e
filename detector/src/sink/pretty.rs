//! An alert as a tired person reads it.

use std::fmt::Write as _;

use crate::{
    alert::{Alert, Container, Origin, Pod, Process, Severity},
    escape::{escape, escape_to},
};

/// Widest value on a line, in characters.
const WIDTH: usize = 160;

/// A few lines, the worst first, an empty one at the end.
#[must_use]
pub fn render(alert: &Alert, colour: bool) -> String {
    let (word, code) = match alert.severity {
        Severity::Info => ("INFO", "36"),
        Severity::Low => ("LOW", "34"),
        Severity::Medium => ("MEDIUM", "33"),
        Severity::High => ("HIGH", "31"),
        Severity::Critical => ("CRITICAL", "1;97;41"),
    };
    let paint = |text: &str, code: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let blocked = if alert.blocked { "BLOCKED " } else { "" };
    let mut out = format!("{} {blocked}{}\n", paint(word, code), paint(&escape_to(&alert.title, 2 * WIDTH), "1"));
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {} {value}", paint(&format!("{name:<9}"), "2"));
        }
    };
    line("why", &alert.reasons.iter().map(|reason| escape_to(reason, WIDTH)).collect::<Vec<_>>().join("; "));
    match &alert.process {
        Some(process) => {
            line("who", &who(process));
            line("command", &escape_to(&process.argv.join(" "), WIDTH));
            line("lineage", &lineage(process));
        }
        None if alert.file.is_some() => line("who", "unattributed: no hook saw an act"),
        None => {}
    }
    let container = alert.container.as_ref().map(|found| container(found, alert.pod.as_ref()));
    let origin = match alert.origin {
        Origin::Host => match &container {
            Some(container) => format!("the host, into {container}"),
            None => "the host".to_owned(),
        },
        Origin::Container => container.unwrap_or_else(|| "a container".to_owned()),
        Origin::Unknown if alert.process.is_some() => {
            "not known: neither the host's namespaces nor a container's cgroup".to_owned()
        }
        Origin::Unknown => String::new(),
    };
    line("from", &origin);
    if let Some(file) = &alert.file {
        let sha =
            file.sha256.as_deref().map(|sha| format!("  sha256 {}", sha.get(..16).unwrap_or(sha))).unwrap_or_default();
        let link = file.symlink.as_deref().map(|to| format!(" -> {}", escape_to(to, WIDTH))).unwrap_or_default();
        line("file", &format!("{}{link}  {}{sha}", escape_to(&file.path, WIDTH), file.change));
    }
    if let Some(request) = &alert.request {
        let user = if request.user.is_empty() { "nobody that could be authenticated" } else { &request.user };
        let source = request.source_ips.last().map_or("an unknown address", String::as_str);
        let client = escape_to(&request.user_agent, WIDTH);
        line("user", &format!("{} from {source} with {client}", escape_to(user, WIDTH)));
        line(
            "request",
            &format!("{} {}: {}", escape_to(&request.verb, 24), escape_to(&request.uri, WIDTH), request.code),
        );
    }
    if let Some(manifest) = &alert.manifest {
        line("images", &manifest.images.iter().map(|image| escape_to(image, WIDTH)).collect::<Vec<_>>().join(", "));
    }
    line(
        "technique",
        &format!("{} ({}) on {}", alert.technique.id, alert.technique.attack.join(", "), escape(&alert.node)),
    );
    if let (Some(first), Some(last)) = (&alert.first_time, &alert.last_time) {
        line("times", &format!("{} from {first} to {last}", alert.count));
    }
    line("when", &format!("{}  record {}, {} of evidence", alert.time, alert.trace.sequence, alert.evidence.len()));
    out.push('\n');
    out
}

/// `container app (0123456789ab, app:1) of pod shop/web`.
fn container(found: &Container, pod: Option<&Pod>) -> String {
    let id = escape_to(found.id.get(..12).unwrap_or(&found.id), 12);
    let image = found.image.as_deref().map(|image| escape_to(image, WIDTH));
    let mut text = match (&found.name, image) {
        (Some(name), Some(image)) => format!("container {} ({id}, {image})", escape_to(name, WIDTH)),
        (Some(name), None) => format!("container {} ({id})", escape_to(name, WIDTH)),
        (None, Some(image)) => format!("container {id} ({image})"),
        (None, None) => format!("container {id}"),
    };
    if let Some(pod) = pod {
        let _ = write!(text, " of pod {}/{}", escape_to(&pod.namespace, WIDTH), escape_to(&pod.name, WIDTH));
    }
    text
}

fn who(process: &Process) -> String {
    let mut who = format!("{} pid {} uid {}", escape_to(&process.exe, WIDTH), process.pid, process.uid);
    if let Some(login) = process.login_uid {
        let _ = write!(who, " (logged in as {login})");
    }
    if let Some(tty) = &process.tty {
        let _ = write!(who, " on {}", escape_to(tty, 16));
    }
    if let Some(sha) = &process.sha256 {
        let _ = write!(who, "  sha256 {}", sha.get(..16).unwrap_or(sha));
    }
    who
}

/// Oldest first, short names: `systemd > sshd > bash > cp`.
fn lineage(process: &Process) -> String {
    let short = |exe: &str| escape_to(exe.rsplit('/').next().unwrap_or(exe), 24);
    let mut names: Vec<_> = process.ancestors.iter().rev().map(|ancestor| short(&ancestor.exe)).collect();
    if names.len() > 8 {
        names.splice(1..names.len() - 6, ["…".to_owned()]);
    }
    names.push(short(&process.exe));
    names.join(" > ")
}
