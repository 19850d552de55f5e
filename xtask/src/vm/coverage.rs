//! The matrix as a page of the documentation.

use std::{collections::BTreeMap, fmt::Write as _};

use super::outcome::{CaseResult, Outcome};

/// What the cases of each number do.
const CASES: [(u64, &str); 34] = [
    (1, "`open(O_CREAT)` and `write`"),
    (2, "`creat`"),
    (3, "`openat2`"),
    (4, "through a bind mount in another mount namespace"),
    (5, "through a symlinked parent directory"),
    (6, "through `/proc/1/root`"),
    (7, "a dotfile, renamed"),
    (8, "renamed in from elsewhere, and exchanged"),
    (9, "a hard link"),
    (10, "a symbolic link, then an edit of its target"),
    (11, "an inherited directory descriptor after `chroot`"),
    (12, "`truncate` and `ftruncate`"),
    (13, "`copy_file_range`, `sendfile`, `splice`"),
    (14, "io_uring"),
    (15, "a bind mount over one manifest"),
    (16, "tmpfs over the directory"),
    (17, "a mount in kubelet's mount namespace only"),
    (18, "the directory replaced by another"),
    (19, "another path in kubelet's configuration, or on a new kubelet's command line"),
    (20, "a manifest URL in kubelet's configuration"),
    (21, "a distribution's own directory (k3s)"),
    (22, "a writable descriptor older than the agent"),
    (23, "a process called `kubelet`, `sed`, `dpkg`, `iou-wrk-1`"),
    (24, "several of these under a flood of file events"),
    (25, "besides: kubelet's memory, and the agent's, opened for writing"),
    (26, "besides: a container entered past its runtime, by any namespace or by its cgroup (`examples/entries.rs`)"),
    (
        27,
        "besides: a pause process that opens, connects, forks or runs a program; another pause image, configured or arriving",
    ),
    (28, "besides: a container that executes what was not in its image; an image that arrives"),
    (29, "besides: a container that has the node"),
    (30, "besides: etcd asked past the API server, events deleted, the audit log emptied"),
    (31, "besides: a webhook configured, and the API server connecting to it"),
    (32, "besides: the API server reached from outside, and asked without authentication"),
    (33, "besides: the agent's maps opened and changed, the agent stopped and traced"),
    (34, "besides: a pod's token and the node's credentials read and used"),
];

/// The page.
pub fn page(outcomes: &[Outcome]) -> String {
    let mut page = "# Coverage of the evasion suite\n\n\
        Every way of changing a node's static pods that we know, done for real beside the agent, on Debian's kernels in\n\
        virtual machines and by each way to attach. Written by `cargo xtask vm --all --coverage docs/coverage.md`; the acts are\n\
        `detector/examples/act.rs`, the suite `detector/examples/evasion.rs`, and from case 27 on `detector/examples/techniques`, where each act has\n\
        twins of its own that have to be silent.\n\n\
        **detected**: an alert that names the process that did it, **told** in case 27. **unattributed**: an alert that names nobody. **missed**: no\n\
        alert. **refused**: under `--deny static-pod`, with an alert. **no such call**: this architecture never had it. **-**: no\n\
        hook, or not tried. A case with several variants shows the worst. All of it on ext4, and once more on tmpfs by the best\n\
        backend there is.\n\n"
        .to_owned();
    for outcome in outcomes {
        table(&mut page, outcome);
    }
    page.push_str(
        "The tracepoint backend sees io_uring requests from 6.4 on only: before that, what they did is found by the slow timer. A \
         descriptor that is\nopen for writing before `--deny` is not taken away.\n",
    );
    page
}

/// One kernel's cases down, backends across.
fn table(page: &mut String, outcome: &Outcome) {
    let mut columns: Vec<&str> = Vec::new();
    let mut worst: BTreeMap<(u64, &str), &str> = BTreeMap::new();
    // A case's own twin that is silent says nothing of whether the case was seen.
    let says = |case: &&CaseResult| case.backend != "doctor" && (case.case == 0 || case.result != "silent");
    for case in outcome.cases.iter().filter(says) {
        if !columns.contains(&case.backend.as_str()) {
            columns.push(&case.backend);
        }
        let known = worst.entry((case.case, &case.backend)).or_insert(&case.result);
        if rank(&case.result) > rank(known) {
            *known = &case.result;
        }
    }
    let row = |number: u64| -> Vec<&str> {
        columns.iter().map(|column| *worst.get(&(number, *column)).unwrap_or(&"-")).collect()
    };
    // Writing to a string cannot fail.
    let _ = writeln!(page, "## {}\n", outcome.version);
    let _ = writeln!(page, "| # | act | {} |", columns.join(" | "));
    let _ = writeln!(page, "|---|---|{}", "---|".repeat(columns.len()));
    for (number, what) in CASES {
        let _ = writeln!(page, "| {number} | {what} | {} |", row(number).join(" | "));
    }
    let _ = writeln!(page, "| | benign twins: the same calls next door, reads, touches | {} |\n", row(0).join(" | "));
}

fn rank(result: &str) -> u32 {
    match result {
        "no such call" => 0,
        "detected" | "refused" | "told" => 0,
        "silent" => 1,
        "unattributed" => 2,
        "misattributed" => 3,
        _ => 4,
    }
}
