//! Memory that is not needed any more.

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

/// Lets each large table have memory of its own from the system. Otherwise one that has grown leaves where it was before in the heap,
/// and the allocator, having seen it freed, would keep more and more for the next.
pub fn settle() {
    /// A table of some ten thousand processes; buffers, which come and go, are smaller.
    #[cfg(target_env = "gnu")]
    const LARGE: nix::libc::c_int = 1 << 20;
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Hands freed memory back to the system, after something that took much more than what is left of it, and the pages of the program that
/// only that needed: the start goes through most of the program, what follows through a small part.
pub fn give_back() {
    // A hint: without smaps the pages stay.
    for map in Process::myself().and_then(|process| process.smaps()).into_iter().flatten() {
        if is_file_alone(&map) {
            let (start, end) = map.address;
            // SAFETY: a private mapping that cannot be written and has no page of its own holds what its file holds. The kernel reads a
            // page from there again when it is touched.
            unsafe { nix::libc::madvise(start as *mut _, (end - start) as usize, nix::libc::MADV_DONTNEED) };
        }
    }
    trim();
}

/// Hands freed memory back alone: after a burst, whose buffers lie all over the heap.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Every page of it is the file's. Relocated tables are read-only as well, but have pages of their own.
fn is_file_alone(map: &MemoryMap) -> bool {
    matches!(map.pathname, MMapPath::Path(_))
        && map.perms.contains(MMPermissions::PRIVATE)
        && !map.perms.contains(MMPermissions::WRITE)
        && map.extension.map.get("Anonymous") == Some(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relocated_and_written_pages_are_kept_and_those_of_the_program_are_not() {
        let maps = Process::myself().unwrap().smaps().unwrap();
        let (given, kept): (Vec<_>, Vec<_>) = maps.into_iter().partition(is_file_alone);
        assert!(given.iter().any(|map| map.perms.contains(MMPermissions::EXECUTE)));
        let own = |map: &&MemoryMap| !matches!(map.extension.map.get("Anonymous"), None | Some(0));
        let relocated =
            |map: &&MemoryMap| matches!(map.pathname, MMapPath::Path(_)) && !map.perms.contains(MMPermissions::WRITE);
        assert!(kept.iter().filter(own).any(|map| relocated(&map)), "there are relocated tables");
        give_back();
    }
}
