//! `detector explain`: what a technique is, what watches it here, what its alerts mean, and what to do then.

mod page;
mod render;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    alert::Technique,
    cli,
    detect::technique::ALL,
    escape::escape,
    record::HookState,
    source::kernel::{
        self, Kernel,
        hooks::{HOOKS, Hook},
    },
    trace::command::is_broken_pipe,
};
use page::Page;

/// Widest page, in characters: longer lines are hard to read.
const WIDTH_MAX: usize = 100;

/// What to explain.
#[derive(Args, Debug)]
pub struct Options {
    /// By its id or name, or by ATT&CK's or Microsoft's id (T1543.005, MS-TA9017) [default: list all of them]
    #[arg(value_name = "TECHNIQUE", value_parser = page::technique)]
    technique: Option<&'static Technique>,
    /// How it is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal, as wide as that is, with what works on this host
    Text,
    /// The page as it was written
    Markdown,
    /// For programs
    Json,
}

/// Prints it on standard output.
///
/// # Errors
/// When nobody wrote the technique's page, or standard output is gone.
pub fn explain(options: &Options) -> anyhow::Result<ExitCode> {
    let (width, colour) = (width(), cli::usual().1);
    let text = match (options.technique, options.format) {
        (None, Format::Json) => serde_json::to_string_pretty(&ALL)? + "\n",
        (None, Format::Markdown) => list(),
        (None, Format::Text) => {
            render::render(&list(), width, colour) + "\n  detector explain TECHNIQUE says more of one.\n"
        }
        (Some(technique), format) => {
            let page = Page::of(technique).with_context(|| format!("this build has no page of {}", technique.id))?;
            match format {
                Format::Markdown => page.text.to_owned(),
                Format::Text => render::render(&(page.text.to_owned() + &here(&page, &Here::look())), width, colour),
                Format::Json => serde_json::to_string_pretty(&whole(&page, &Here::look()))? + "\n",
            }
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()).map_err(anyhow::Error::from) {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// As wide as the terminal is, within reason.
fn width() -> usize {
    terminal_size::terminal_size_of(io::stdout()).map_or(WIDTH_MAX, |(width, _)| usize::from(width.0).min(WIDTH_MAX))
}

/// Every technique in a line.
fn list() -> String {
    let mut list =
        "| technique | what it is called | tactic | ATT&CK | Microsoft |\n|---|---|---|---|---|\n".to_owned();
    for technique in ALL {
        let Technique { id, name, tactic, attack, microsoft } = technique;
        // Writing to a string cannot fail.
        let _ = writeln!(list, "| `{id}` | {name} | {tactic} | {} | {} |", attack.join(", "), microsoft.join(", "));
    }
    list
}

/// Which hooks work on this host.
enum Here {
    /// Whoever asks may not attach hooks.
    NotAllowed,
    /// No hook can be attached, and why.
    None(String),
    Hooks(Vec<HookState>),
}

impl Here {
    /// Attaches the hooks for a moment, as `detector doctor` does.
    fn look() -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self::NotAllowed;
        }
        match Kernel::attach(&kernel::Options::default()) {
            Ok(kernel) => Self::Hooks(kernel.hooks().to_vec()),
            Err(error) => Self::None(error.to_string()),
        }
    }
}

/// What a hook does here.
#[derive(Serialize)]
struct State<'a> {
    hook: &'a str,
    /// `lsm`, `fentry`, `kprobe` or `tracepoint`; `None` where it is not attached.
    attached_by: Option<&'a str>,
    /// Why it is not, and what that means.
    reason: Option<&'a str>,
    without: Option<&'a str>,
}

/// The page's hooks as they are here. One that was not tried is missing: another sees what it would.
fn states<'a>(page: &Page, hooks: &'a [HookState]) -> Vec<State<'a>> {
    let of = |name: &str| -> Option<&'a HookState> { hooks.iter().find(|state| state.name == name) };
    let without = |state: &HookState| HOOKS.iter().find(|hook| hook.name == state.name).map(|hook: &Hook| hook.without);
    page.hooks()
        .into_iter()
        .filter_map(of)
        .map(|state| {
            let missing = state.backend.is_none();
            State {
                hook: &state.name,
                attached_by: state.backend.as_deref(),
                reason: state.reason.as_deref().filter(|_| missing),
                without: without(state).filter(|_| missing),
            }
        })
        .collect()
}

/// The section that is about this host.
fn here(page: &Page, here: &Here) -> String {
    let mut text = "\n## On this host\n\n".to_owned();
    let hooks = match here {
        _ if page.hooks().is_empty() => {
            return text + "`detector doctor` says which hooks work.\n";
        }
        Here::NotAllowed => {
            return text
                + "Only root can tell which of the hooks work here: `sudo detector explain` or `detector doctor`.\n";
        }
        Here::None(why) => return format!("{text}No hook can be attached: {}\n", escape(why)),
        Here::Hooks(hooks) => states(page, hooks),
    };
    let mut attached = BTreeMap::<_, Vec<_>>::new();
    for state in &hooks {
        if let Some(backend) = state.attached_by {
            attached.entry(backend).or_default().push(format!("`{}`", state.hook));
        }
    }
    if attached.is_empty() {
        text += "No hook that sees it works.\n";
    }
    for (backend, hooks) in attached {
        let _ = writeln!(text, "- Watched by {backend}: {}", hooks.join(", "));
    }
    for state in hooks.iter().filter(|state| state.attached_by.is_none()) {
        let reason = escape(state.reason.unwrap_or("not attached"));
        let without = state.without.unwrap_or("see `detector doctor`");
        let _ = writeln!(text, "- `{}` does not work ({reason}): {without}", state.hook);
    }
    text
}

/// Everything, for programs.
fn whole(page: &Page, here: &Here) -> serde_json::Value {
    let sections: Vec<_> = page
        .sections()
        .map(|section| serde_json::json!({ "title": section.title, "markdown": section.text }))
        .collect();
    let states = match here {
        Here::Hooks(hooks) => Some(states(page, hooks)),
        Here::NotAllowed | Here::None(_) => None,
    };
    serde_json::json!({
        "technique": page.technique,
        "sections": sections,
        "hooks": page.hooks(),
        "here": states,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str, backend: Option<&str>) -> HookState {
        HookState {
            name: name.to_owned(),
            backend: backend.map(str::to_owned),
            reason: backend.is_none().then(|| "the kernel\nrefuses".to_owned()),
            verified: None,
            required: false,
        }
    }

    fn exec() -> Page {
        Page::of(ALL.iter().find(|technique| technique.id == "container-exec").unwrap()).unwrap()
    }

    #[test]
    fn what_works_here_and_what_its_absence_means_is_said_and_what_another_hook_does_is_not_missed() {
        let hooks = [hook("exec", Some("tracepoint")), hook("fork", None), hook("mount", None)];
        let text = here(&exec(), &Here::Hooks(hooks.to_vec()));
        assert!(text.contains("- Watched by tracepoint: `exec`\n"), "{text}");
        assert!(text.contains("- `fork` does not work (the kernel\\nrefuses): new processes are known"), "{text}");
        assert!(!text.contains("mount") && !text.contains("cgroup"), "{text}");
        let json = whole(&exec(), &Here::Hooks(hooks.to_vec()));
        assert_eq!(json["here"][0]["attached_by"], "tracepoint");
        assert_eq!(json["here"][1]["attached_by"], serde_json::Value::Null);
        assert_eq!(json["here"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn without_root_nothing_is_claimed() {
        assert!(here(&exec(), &Here::NotAllowed).contains("Only root"));
        let json = whole(&exec(), &Here::NotAllowed);
        assert_eq!(json["here"], serde_json::Value::Null);
        assert_eq!(json["technique"]["id"], "container-exec");
        assert_eq!(json["sections"][0]["title"], "What it is");
    }

    #[test]
    fn the_list_names_every_technique() {
        let text = render::render(&list(), 80, false);
        assert!(ALL.iter().all(|technique| text.contains(technique.id)), "{text}");
    }
}
