//! What is done on the node, and what the agent must say.

pub mod act;
mod static_pod;

use super::{Options, daemons::Node};

/// One kind of act, with its twins.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub run: fn(&mut Node, &Options, &mut Checks) -> anyhow::Result<()>,
}

pub const ALL: &[Scenario] =
    &[Scenario { name: "static-pod-from-pod", what: "a pod plants a static pod", run: static_pod::from_pod }];

/// What a scenario found out.
#[derive(Default)]
pub struct Checks {
    /// What failed, and why.
    pub failed: Vec<String>,
}

impl Checks {
    /// Notes and says how a check went.
    pub fn check(&mut self, what: &str, done: anyhow::Result<()>) {
        match done {
            Ok(()) => eprintln!("    ok      {what}"),
            Err(error) => {
                eprintln!("    FAILED  {what}: {error:#}");
                self.failed.push(format!("{what}: {error:#}"));
            }
        }
    }
}

/// The beginning of scenarios' names.
#[derive(Clone)]
pub struct Names(String);

impl Names {
    pub fn contains(&self, scenario: &Scenario) -> bool {
        scenario.name.starts_with(&self.0)
    }
}

/// The scenarios whose names begin so.
///
/// # Errors
/// When there is none; says which there are.
pub fn parse(name: &str) -> Result<Names, String> {
    let names = Names(name.trim_end_matches('*').to_owned());
    if ALL.iter().any(|scenario| names.contains(scenario)) {
        return Ok(names);
    }
    let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
    Err(format!("no scenario begins so; there are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_the_beginning_of_their_names() {
        assert!(parse("static").unwrap().contains(&ALL[0]));
        assert!(parse("static-pod-*").unwrap().contains(&ALL[0]));
        assert!(parse("nothing").is_err());
        for (number, one) in ALL.iter().enumerate() {
            assert!(ALL[..number].iter().all(|other| other.name != one.name), "{}", one.name);
        }
    }
}
