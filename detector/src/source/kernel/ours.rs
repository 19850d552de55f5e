//! The agent's own BPF objects, by the ids that the kernel gives them.

use std::fs;

use detector_common::{OURS_MAX, object};

/// Most descriptors that are looked at.
const FDS_MAX: usize = 4096;

/// Every map, program and link that a descriptor of a process is of, at most [`OURS_MAX`]: what it is ([`object`]), and its id. `process`
/// is a pid, or `self`. The kernel tells in `fdinfo`: of maps and programs since 4.14, of links since 5.8.
#[must_use]
pub fn objects(process: &str) -> Vec<(u32, u32)> {
    let fds = fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> =
        fds.take(FDS_MAX).filter_map(|fd| parse(&fs::read_to_string(fd.path()).unwrap_or_default())).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(OURS_MAX as usize);
    found
}

/// What one descriptor is of. A link's also names its program.
fn parse(fdinfo: &str) -> Option<(u32, u32)> {
    let kinds = [("link_id:", object::LINK), ("map_id:", object::MAP), ("prog_id:", object::PROGRAM)];
    kinds.into_iter().find_map(|(name, object)| {
        let id = fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()?;
        Some((object, id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_says_what_it_is_of() {
        assert_eq!(parse("pos:\t0\nflags:\t02\nmap_type:\t27\nmap_id:\t17\n"), Some((object::MAP, 17)));
        assert_eq!(parse("prog_type:\t26\nprog_tag:\tab\nprog_id:\t18\n"), Some((object::PROGRAM, 18)));
        assert_eq!(
            parse("link_type:\traw_tracepoint\nlink_id:\t3\nprog_tag:\tab\nprog_id:\t18\n"),
            Some((object::LINK, 3))
        );
        assert_eq!(parse("pos:\t0\nflags:\t02\nmnt_id:\t9\n"), None);
        assert_eq!(parse("map_id:\tmany\n"), None);
    }
}
