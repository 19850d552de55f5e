//! Runs of a program that the kernel skipped.
//!
//! A program never runs twice at once on one CPU: when a task is preempted in the middle of it, or interrupted by what
//! reaches the same hook, the second run is left out. The kernel counts that for each program since 5.12
//! (`bpf_prog_info.recursion_misses`), and shows it in the descriptor's `fdinfo`.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::programs::Program;

/// How often the kernel skipped this program since it was loaded. `None` when it is not loaded, or the kernel does not
/// count (before 5.12).
pub fn count(program: &Program) -> Option<u64> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    parse(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?)
}

fn parse(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn skipped_runs_are_read_where_the_kernel_counts_them() {
        let old = "pos:\t0\nflags:\t02000002\nprog_type:\t29\nprog_jited:\t1\nrun_time_ns:\t0\nrun_cnt:\t0\n";
        assert_eq!(parse(old), None);
        assert_eq!(parse(&format!("{old}recursion_misses:\t17\nverified_insns:\t911\n")), Some(17));
        assert_eq!(parse("recursion_misses:\tmany\n"), None);
    }
}
