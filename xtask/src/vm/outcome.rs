//! What the suite came to on a kernel, and how that is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most instructions that the verifier may go through for one program.
const VERIFIED_MAX: u32 = 4_000;
/// Most lines of what a machine said that are told again when its suite failed.
const SAID_MAX: usize = 60;

/// What one kernel did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub series: String,
    pub version: String,
    pub seconds: f64,
    /// Set when the machine came to no verdict.
    pub error: Option<String>,
    pub cases: Vec<CaseResult>,
    /// Instructions that the verifier went through; empty on kernels that do not tell.
    pub verified: Vec<Verified>,
    /// What the machine said beside its results.
    #[serde(skip)]
    pub said: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Verified {
    pub backend: String,
    pub hook: String,
    pub count: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct CaseResult {
    pub backend: String,
    pub case: u64,
    pub name: String,
    pub result: String,
    pub ms: u64,
}

impl CaseResult {
    fn is_well(&self) -> bool {
        matches!(self.result.as_str(), "detected" | "silent" | "refused" | "told" | "no such call")
    }

    /// It was told, and of nobody.
    fn is_unattributed(&self) -> bool {
        self.result == "unattributed"
    }

    fn shown(&self) -> String {
        format!("{} case {} {}: {}", self.backend, self.case, self.name, self.result)
    }
}

impl Outcome {
    /// All that makes it a failure, a clause each.
    fn bad(&self) -> Vec<String> {
        let cases = self.cases.iter().filter(|case| !case.is_well() && !case.is_unattributed());
        let mut bad: Vec<_> = cases.map(CaseResult::shown).collect();
        let long = self.verified.iter().filter(|program| program.count >= VERIFIED_MAX);
        bad.extend(long.map(|program| {
            let Verified { backend, hook, count } = program;
            format!(
                "{hook} by {backend} too long for older kernels' verifiers: {count} instructions (bar {VERIFIED_MAX})"
            )
        }));
        bad.extend(self.error.clone());
        if self.cases.is_empty() {
            bad.push("no case was done".to_owned());
        }
        bad
    }
}

/// Whether all of them are well. What failed is told again behind everything else: of a long log the end is what is read first.
///
/// # Errors
/// When something failed, with what it was.
pub fn verdict(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.bad().is_empty()).collect();
    for outcome in &failed {
        eprintln!("\n==> failed on {}; the machine said:", outcome.version);
        let said = outcome.said.get(outcome.said.len().saturating_sub(SAID_MAX)..).unwrap_or_default();
        said.iter().for_each(|line| eprintln!("    {line}"));
        eprint!("{}", summary(outcome));
    }
    let failed: Vec<_> =
        failed.iter().map(|outcome| format!("{} ({})", outcome.version, outcome.bad().join("; "))).collect();
    anyhow::ensure!(failed.is_empty(), "the suite failed on {}", failed.join(", "));
    Ok(())
}

/// How many cases came to which result, by backend.
fn counts(outcome: &Outcome) -> BTreeMap<(&str, &str), u32> {
    let mut counts = BTreeMap::new();
    for case in outcome.cases.iter().filter(|case| case.case > 0) {
        *counts.entry((case.backend.as_str(), case.result.as_str())).or_default() += 1;
    }
    counts
}

/// In one piece: other machines have theirs.
pub fn summary(outcome: &Outcome) -> String {
    let mut lines = vec![format!("==> kernel {}: {:.0} s", outcome.version, outcome.seconds)];
    for ((backend, result), count) in counts(outcome) {
        lines.push(format!("    {backend}: {count} {result}"));
    }
    let unattributed = outcome.cases.iter().filter(|case| case.is_unattributed());
    lines.extend(unattributed.map(|case| format!("    {}", case.shown())));
    if let Some(most) = outcome.verified.iter().max_by_key(|program| program.count) {
        lines.push(format!("    most instructions verified: {}, {} by {}", most.count, most.hook, most.backend));
    }
    lines.extend(outcome.bad().iter().map(|bad| format!("    FAILED {bad}")));
    lines.join("\n") + "\n"
}

/// Results of one case, by kernel and backend.
type Row<'a> = BTreeMap<(&'a str, &'a str), &'a str>;

/// The matrix: kernels and backends across, cases down.
pub fn print(outcomes: &[Outcome]) {
    let mut columns: Vec<(&str, &str)> = Vec::new();
    let mut rows: BTreeMap<(u64, &str), Row> = BTreeMap::new();
    for outcome in outcomes {
        for case in &outcome.cases {
            let column = (outcome.series.as_str(), case.backend.as_str());
            if !columns.contains(&column) {
                columns.push(column);
            }
            rows.entry((case.case, case.name.as_str())).or_default().insert(column, case.result.as_str());
        }
    }
    print!("\n{:<24}", "case");
    for (series, backend) in &columns {
        print!(" {:<18}", format!("{series} {backend}"));
    }
    println!();
    for ((number, name), results) in rows {
        print!("{:<24}", if number == 0 { name.to_owned() } else { format!("{number:>2} {name}") });
        for column in &columns {
            print!(" {:<18}", results.get(column).unwrap_or(&"-"));
        }
        println!();
    }
}
