//! The filter: is this inode watched, or does it lie in a watched directory?

use detector_common::{MAX_DEPTH, WatchKey, setting, watch};

use crate::{
    kernel::Ptr,
    maps::{TOUCHED, TOUCHES, Touch, WATCHED, offset, setting},
};

/// Flags of a watched inode.
#[inline(always)]
pub fn flags(key: &WatchKey) -> Option<u32> {
    // SAFETY: values are plain integers that the agent alone replaces as a whole.
    unsafe { WATCHED.get(key) }.copied()
}

/// An opened file that matched.
pub struct Match {
    pub key: WatchKey,
    pub parent_ino: u64,
    pub watch: u32,
}

/// Compares the file's inode, its directory's, and as many further ancestors as the agent asks for.
#[inline(always)]
pub fn file(file: Ptr) -> Option<Match> {
    let inode = file.follow(offset!(file_inode));
    let key = WatchKey::new(inode.follow(offset!(inode_sb)).read(offset!(sb_dev)), inode.read(offset!(inode_ino)));
    let mut matched = flags(&key).unwrap_or(0) & watch::FILE;
    let mut parent_ino = 0;
    let mut dentry = file.follow(offset!(file_dentry));
    let depth = setting(setting::DEPTH);
    for level in 0..MAX_DEPTH {
        if level > 0 && (matched != 0 || level >= depth) {
            break;
        }
        let parent = dentry.follow(offset!(dentry_parent));
        if parent == dentry {
            break;
        }
        let ino: u64 = parent.follow(offset!(dentry_inode)).read(offset!(inode_ino));
        let wanted = if level == 0 {
            parent_ino = ino;
            watch::DIR | watch::SUBTREE
        } else {
            watch::SUBTREE
        };
        // Dentries of one tree share a super block.
        matched |= flags(&WatchKey::new(key.dev, ino)).unwrap_or(0) & wanted;
        dentry = parent;
    }
    (matched != 0).then_some(Match { key, parent_ino, watch: matched })
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

/// Takes what the current thread touched; all zero when it touched nothing.
///
/// No `Option`: verifiers before 6.3 refuse to copy the part of one that was never written.
#[inline(always)]
pub fn take_touch(id: u64) -> Touch {
    let mut touch = Touch { key: WatchKey::new(0, 0), watch: 0, zero: 0 };
    if TOUCHES.get(0).copied().unwrap_or(0) == 0 {
        return touch;
    }
    // SAFETY: only this thread writes its entry.
    if let Some(seen) = unsafe { TOUCHED.get(id) } {
        touch = *seen;
        if TOUCHED.remove(id).is_ok() {
            count(-1);
        }
    }
    touch
}

#[inline(always)]
fn count(by: i64) {
    if let Some(touches) = TOUCHES.get_ptr_mut(0) {
        // `core` offers no atomics for this target, and the compiler no plain addition that it may not split.
        // SAFETY: an array map's value is aligned and never goes away.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) touches, in(reg) by) };
    }
}
