//! The filter: is this inode watched, or does it lie in a watched directory?

use aya_ebpf::helpers::bpf_get_current_cgroup_id;
use detector_common::{MAX_DEPTH, WatchKey, setting, watch};

use crate::{
    kernel::Ptr,
    maps::{SANDBOXES, TOUCHED, TOUCHES, Touch, WATCHED, add, offset, setting},
};

/// Flags of a watched inode.
#[inline(always)]
pub fn flags(key: &WatchKey) -> Option<u32> {
    // SAFETY: values are plain integers that the agent alone replaces as a whole.
    unsafe { WATCHED.get(key) }.copied()
}

/// [`watch::SANDBOX`] when the current task lives in a pod's sandbox. Costs next to nothing while there is none.
#[inline(always)]
pub fn sandbox() -> u32 {
    if setting(setting::SANDBOXES) == 0 {
        return 0;
    }
    // SAFETY: the helper has no preconditions, and the value is not looked at.
    let found = unsafe { SANDBOXES.get(bpf_get_current_cgroup_id()) };
    if found.is_some() { watch::SANDBOX } else { 0 }
}

/// An opened file that matched.
pub struct Match {
    pub key: WatchKey,
    pub parent_ino: u64,
    pub watch: u32,
}

/// Compares the file's inode, its directory's, and as many further ancestors as the agent asks for.
///
/// `already` are flags that it has in any case. `seen` is where the flags come together: in map memory, so that the verifier takes one round of the loop for the other.
///
/// # Safety
/// `seen` points to a field of a record in a scratch slot.
#[inline(always)]
pub unsafe fn file(file: Ptr, seen: *mut u32, already: u32) -> Option<Match> {
    // SAFETY: promised by the caller.
    let add = |flags: u32| unsafe { core::ptr::write_volatile(seen, core::ptr::read_volatile(seen) | flags) };
    let inode = file.follow(offset!(file_inode));
    let key = WatchKey::new(inode.follow(offset!(inode_sb)).read(offset!(sb_dev)), inode.read(offset!(inode_ino)));
    // SAFETY: as above.
    unsafe {
        let flags = flags(&key).unwrap_or(0) & (watch::FILE | watch::STORE | watch::OWN);
        core::ptr::write_volatile(seen, already | flags);
    }
    add(sandbox());
    /// `S_IFMT` and `S_IFBLK` of `inode->i_mode`.
    const TYPE: u16 = 0o170_000;
    const BLOCK_DEVICE: u16 = 0o060_000;
    if inode.read::<u16>(offset!(inode_mode)) & TYPE == BLOCK_DEVICE {
        add(flags(&WatchKey::new(inode.read(offset!(inode_rdev)), 0)).unwrap_or(0) & watch::BLOCK);
    }
    let mut dentry = file.follow(offset!(file_dentry)).follow(offset!(dentry_parent));
    let parent_ino: u64 = dentry.follow(offset!(dentry_inode)).read(offset!(inode_ino));
    // Dentries of one tree share a super block.
    add(flags(&WatchKey::new(key.dev, parent_ino)).unwrap_or(0)
        & (watch::DIR | watch::SUBTREE | watch::STORE | watch::OWN));
    let depth = setting(setting::DEPTH);
    for level in 1..MAX_DEPTH {
        if level >= depth {
            break;
        }
        // The root is its own parent: looking at it again changes nothing.
        dentry = dentry.follow(offset!(dentry_parent));
        let ino: u64 = dentry.follow(offset!(dentry_inode)).read(offset!(inode_ino));
        add(flags(&WatchKey::new(key.dev, ino)).unwrap_or(0) & watch::SUBTREE);
    }
    // SAFETY: as above.
    let watch = unsafe { core::ptr::read_volatile(seen) };
    (watch != 0).then_some(Match { key, parent_ino, watch })
}

/// Remembers that the current thread changed a watched inode, until its system call ends. What kubelet reads counts
/// more than an ancestor directory of it.
#[inline(always)]
pub fn touch(id: u64, key: WatchKey, watch: u32) {
    let seen = TOUCHED.get_ptr(id);
    if let Some(seen) = seen {
        // SAFETY: only this thread writes its entry.
        if unsafe { (*seen).watch } & (watch::FILE | watch::DIR) != 0 {
            return;
        }
    }
    let inserted = TOUCHED.insert(id, Touch { key, watch, zero: 0 }, 0).is_ok();
    if inserted && seen.is_none() {
        count(1);
    }
}

/// How many threads changed something watched and have not left their system call yet.
#[inline(always)]
pub fn touches() -> i64 {
    TOUCHES.get(0).copied().unwrap_or(0)
}

/// Takes what the current thread touched into `out`; all zero when it touched nothing.
///
/// Into map memory, of which the verifier knows nothing: whether there was something or not, it follows what comes after once.
///
/// # Safety
/// `out` points to map memory.
#[inline(always)]
pub unsafe fn take_touch(id: u64, out: *mut Touch) {
    // SAFETY: promised by the caller.
    unsafe { core::ptr::write_volatile(out, Touch { key: WatchKey::new(0, 0), watch: 0, zero: 0 }) };
    if touches() == 0 {
        return;
    }
    // SAFETY: only this thread writes its entry.
    if let Some(seen) = unsafe { TOUCHED.get(id) } {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(out, *seen) };
        forget_touch(id);
    }
}

/// Forgets what a thread touched.
#[inline(always)]
pub fn forget_touch(id: u64) {
    if touches() != 0 && TOUCHED.remove(id).is_ok() {
        count(-1);
    }
}

#[inline(always)]
fn count(by: i64) {
    if let Some(touches) = TOUCHES.get_ptr_mut(0) {
        // SAFETY: an array map's value.
        unsafe { add(touches.cast(), by) };
    }
}
