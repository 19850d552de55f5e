//! The agent's own BPF objects, by the ids that the kernel gives them.

use std::fs;

use detector_common::{OURS_MAX, object};

/// Most descriptors that are looked at.
const FDS_MAX: usize = 4096;

/// Keys of the `OURS` map: every map, program and link that a descriptor of this process is of. The kernel tells in `fdinfo`: maps
/// and programs since 4.14, links since 5.8.
pub fn objects() -> Vec<u64> {
    let fds = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> =
        fds.take(FDS_MAX).filter_map(|fd| key(&fs::read_to_string(fd.path()).unwrap_or_default())).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(OURS_MAX as usize);
    found
}

/// What one descriptor is of. A link's also names its program.
fn key(fdinfo: &str) -> Option<u64> {
    let kinds = [("link_id:", object::LINK), ("map_id:", object::MAP), ("prog_id:", object::PROGRAM)];
    kinds.into_iter().find_map(|(name, object)| {
        let id: u32 = fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()?;
        Some(u64::from(object) << 32 | u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_says_what_it_is_of() {
        assert_eq!(key("pos:\t0\nflags:\t02\nmap_type:\t27\nmap_id:\t17\n"), Some(1 << 32 | 17));
        assert_eq!(key("prog_type:\t26\nprog_tag:\tab\nprog_id:\t18\n"), Some(2 << 32 | 18));
        assert_eq!(key("link_type:\traw_tracepoint\nlink_id:\t3\nprog_tag:\tab\nprog_id:\t18\n"), Some(3 << 32 | 3));
        assert_eq!(key("pos:\t0\nflags:\t02\nmnt_id:\t9\n"), None);
        assert_eq!(key("map_id:\tmany\n"), None);
    }
}
