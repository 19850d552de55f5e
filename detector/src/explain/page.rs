//! The pages of `docs/techniques/`, compiled in.

use crate::{alert::Technique, detect::technique::ALL, nearest};

/// By the technique's id; listed by the build script.
pub const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// What every page says, in this order. It may say more.
#[cfg(test)]
pub const SECTIONS: [&str; 6] =
    ["What it is", "What is watched", "What an alert looks like", "Benign twins", "How to respond", "Not seen"];

/// What begins the paragraph that names the hooks.
const HOOKS: &str = "Hooks: ";

/// What is known of a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub technique: &'static Technique,
    /// Markdown.
    pub text: &'static str,
}

/// A part of a page under a heading of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    pub title: &'a str,
    /// Markdown, without the heading.
    pub text: &'a str,
}

impl Page {
    /// A technique's page; `None` when nobody wrote one.
    #[must_use]
    pub fn of(technique: &'static Technique) -> Option<Self> {
        let (_, text) = PAGES.iter().find(|(id, _)| *id == technique.id)?;
        Some(Self { technique, text })
    }

    /// What is below each heading, in order.
    pub fn sections(&self) -> impl Iterator<Item = Section<'static>> {
        self.text.split("\n## ").skip(1).map(|section| {
            let (title, text) = section.split_once('\n').unwrap_or((section, ""));
            Section { title: title.trim(), text: text.trim_matches('\n') }
        })
    }

    /// Hooks that the page names, as `detector doctor` calls them.
    #[must_use]
    pub fn hooks(&self) -> Vec<&'static str> {
        let paragraph = self.text.split("\n\n").find_map(|paragraph| paragraph.strip_prefix(HOOKS));
        // What stands between two backticks is every second part.
        paragraph.map_or_else(Vec::new, |paragraph| paragraph.split('`').skip(1).step_by(2).collect())
    }
}

/// The technique that a person means: by its id or name, or by ATT&CK's or Microsoft's id.
///
/// # Errors
/// When there is none or more than one, in words.
pub fn technique(text: &str) -> Result<&'static Technique, String> {
    let is = |known: &str| known.eq_ignore_ascii_case(text);
    if let Some(found) = ALL.iter().find(|technique| is(technique.id) || is(technique.name)) {
        return Ok(found);
    }
    let numbered: Vec<_> =
        ALL.iter().filter(|technique| technique.attack.iter().chain(technique.microsoft).any(|id| is(id))).collect();
    match numbered.as_slice() {
        [one] => Ok(one),
        [] => Err(format!("no technique is called so{}", nearest::near(text, ALL.iter().map(|known| known.id)))),
        several => {
            let ids: Vec<_> = several.iter().map(|technique| technique.id).collect();
            Err(format!("more than one technique has that number; name one of {}", ids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kernel::hooks;

    #[test]
    fn every_technique_has_a_page_that_says_everything() {
        for technique in ALL {
            let id = technique.id;
            let page = Page::of(technique).unwrap_or_else(|| panic!("docs/techniques/{id}.md is missing"));
            let heading = format!("# {} (`{id}`)", technique.name);
            assert_eq!(page.text.lines().next().map(str::to_lowercase), Some(heading.to_lowercase()), "{id}");
            let below = page.text.lines().nth(2).unwrap_or_default();
            for number in [technique.tactic].iter().chain(technique.attack).chain(technique.microsoft) {
                assert!(below.contains(number), "{id}: {number} is not in {below:?}");
            }
            let mut titles = page.sections().map(|section| section.title);
            for section in SECTIONS {
                assert!(titles.any(|title| title == section), "{id}: no section {section:?}, or not in its place");
            }
            for section in page.sections() {
                assert!(!section.text.is_empty(), "{id}: nothing below {:?}", section.title);
            }
            let alert = page.sections().find(|section| section.title == "What an alert looks like").unwrap();
            assert!(alert.text.contains(id), "{id}: the alert shown is another technique's");
            for hook in page.hooks() {
                assert!(hooks::HOOKS.iter().any(|known| known.name == hook), "{id}: there is no hook {hook}");
            }
        }
    }

    #[test]
    fn every_page_is_a_techniques() {
        for (id, _) in PAGES {
            assert!(ALL.iter().any(|technique| technique.id == *id), "docs/techniques/{id}.md is of no technique");
        }
    }

    #[test]
    fn a_technique_is_found_by_whatever_names_it_and_a_slip_is_guessed() {
        let found = |text: &str| technique(text).map(|technique| technique.id);
        assert_eq!(found("static-pod"), Ok("static-pod"));
        assert_eq!(found("Static pod"), Ok("static-pod"));
        assert_eq!(found("t1609"), Ok("container-exec"));
        assert_eq!(found("MS-TA9006"), Ok("container-exec"));
        assert!(found("T1525").unwrap_err().contains("malicious-pause-container, supply-chain-compromise"));
        assert!(found("statc-pod").unwrap_err().ends_with("did you mean static-pod?"));
        assert!(found("frobnicate").unwrap_err().contains("expected one of static-pod, "));
    }

    #[test]
    fn hooks_are_what_the_page_names_over_several_lines() {
        let text = "# T\n\n## What is watched\n\nSee `exec`.\n\nHooks: `exec`,\n`fork`\n\n## Not seen\n";
        let page = Page { technique: ALL[0], text };
        assert_eq!(page.hooks(), ["exec", "fork"]);
        assert_eq!(page.sections().map(|section| section.title).collect::<Vec<_>>(), ["What is watched", "Not seen"]);
    }
}
