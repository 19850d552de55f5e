//! Memory that is not needed any more.

/// Hands freed memory back to the system, after something that took much more than what is left of it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
