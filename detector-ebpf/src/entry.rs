//! Entries of watched directories, and attributes of watched inodes: what a security hook is asked about.
//!
//! The hooks run before the act; the agent looks for the effect shortly after.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use detector_common::{DENIED, Entry, NAME_MAX, WatchKey, hook, kind, watch};

use crate::{
    emit::{self, Ring},
    kernel::{Ptr, current},
    maps::offset,
    security::{self, May},
    watched,
};

/// An act on directory entries. Null pointers where it has no such part.
pub struct Act {
    pub hook: u16,
    pub dir: Ptr,
    pub dentry: Ptr,
    pub to_dir: Ptr,
    pub to_dentry: Ptr,
    /// Text that is no entry's name: a symbolic link's target.
    pub text: Ptr,
}

impl Act {
    #[inline(always)]
    fn on(hook: u16, dir: Ptr, dentry: Ptr) -> Self {
        Self { hook, dir, dentry, to_dir: Ptr(0), to_dentry: Ptr(0), text: Ptr(0) }
    }
}

#[inline(always)]
pub fn key(inode: Ptr) -> WatchKey {
    WatchKey::new(inode.follow(offset!(inode_sb)).read(offset!(sb_dev)), inode.read(offset!(inode_ino)))
}

#[inline(always)]
fn ino(dentry: Ptr) -> u64 {
    dentry.follow(offset!(dentry_inode)).read(offset!(inode_ino))
}

/// Copies a NUL-terminated string of the kernel; all zero when it cannot be read.
#[inline(always)]
pub fn copy(out: *mut [u8; NAME_MAX], from: Ptr) {
    // SAFETY: `out` is `NAME_MAX` bytes of ring-buffer memory; the helper checks the address, and clears on failure.
    unsafe { bpf_probe_read_kernel_str(out.cast(), NAME_MAX as u32, from.0 as *const _) };
}

/// Reports an act in a watched directory. Returns whether it is to be refused.
#[inline(always)]
fn entry(act: &Act, may: May) -> bool {
    let dir = key(act.dir);
    let mut matched = watched::flags(&dir).unwrap_or(0);
    if act.to_dir.0 != 0 && act.to_dir != act.dir {
        matched |= watched::flags(&key(act.to_dir)).unwrap_or(0);
    }
    if matched == 0 {
        return false;
    }
    // Of a store only arrivals count: removing images is every runtime's daily work.
    let arrival = act.hook == hook::INODE_RENAME || act.hook == hook::INODE_LINK;
    if matched == watch::STORE && !arrival {
        return false;
    }
    // What the entry leads to may be watched itself: a manifest, or a directory of them.
    let target = key(act.dentry.follow(offset!(dentry_inode)));
    matched |= watched::flags(&target).unwrap_or(0) & (watch::FILE | watch::DIR);
    let task = current();
    let denied = security::denies(may, task, matched);
    // What happens on the way to a directory is a hint unless it is the way itself; the agent decides.
    let ring = if matched & (watch::DIR | watch::FILE) != 0 { Ring::Alerting } else { Ring::ContextNow };
    emit::fixed(ring, kind::ENTRY, act.hook, task, |record: *mut Entry| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).ino = target.ino;
            (*record).dir_ino = dir.ino;
            (*record).to_ino = ino(act.to_dentry);
            (*record).to_dir_ino = act.to_dir.read(offset!(inode_ino));
            (*record).dev = dir.dev;
            (*record).watch = matched;
            (*record).flags = if denied { DENIED } else { 0 };
            (*record).attributes = 0;
            copy(&raw mut (*record).names[0], act.dentry.follow(offset!(dentry_name)));
            let second = if act.text.0 != 0 { act.text } else { act.to_dentry.follow(offset!(dentry_name)) };
            copy(&raw mut (*record).names[1], second);
        }
    });
    denied
}

// `security_inode_create(struct inode *dir, struct dentry *dentry, umode_t mode)`, since 3.1, and its like.
security::wrappers!(lsm_inode_create, fentry_inode_create, kprobe_inode_create, 2, |args: [Ptr; 2], may: May| {
    entry(&Act::on(hook::INODE_CREATE, args[0], args[1]), may)
});
security::wrappers!(lsm_inode_mkdir, fentry_inode_mkdir, kprobe_inode_mkdir, 2, |args: [Ptr; 2], may: May| {
    entry(&Act::on(hook::INODE_MKDIR, args[0], args[1]), may)
});
security::wrappers!(lsm_inode_mknod, fentry_inode_mknod, kprobe_inode_mknod, 2, |args: [Ptr; 2], may: May| {
    entry(&Act::on(hook::INODE_MKNOD, args[0], args[1]), may)
});
security::wrappers!(lsm_inode_unlink, fentry_inode_unlink, kprobe_inode_unlink, 2, |args: [Ptr; 2], may: May| {
    entry(&Act::on(hook::INODE_UNLINK, args[0], args[1]), may)
});
security::wrappers!(lsm_inode_rmdir, fentry_inode_rmdir, kprobe_inode_rmdir, 2, |args: [Ptr; 2], may: May| {
    entry(&Act::on(hook::INODE_RMDIR, args[0], args[1]), may)
});

// `security_inode_symlink(struct inode *dir, struct dentry *dentry, const char *old_name)`.
security::wrappers!(lsm_inode_symlink, fentry_inode_symlink, kprobe_inode_symlink, 3, |args: [Ptr; 3], may: May| {
    entry(&Act { text: args[2], ..Act::on(hook::INODE_SYMLINK, args[0], args[1]) }, may)
});

// `security_inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`.
security::wrappers!(lsm_inode_link, fentry_inode_link, kprobe_inode_link, 3, |args: [Ptr; 3], may: May| {
    entry(&Act { to_dir: args[1], to_dentry: args[2], ..Act::on(hook::INODE_LINK, args[1], args[0]) }, may)
});

// `security_inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry
// *new_dentry, unsigned int flags)`; the LSM hook has no flags, and runs once for each side of an exchange.
security::wrappers!(lsm_inode_rename, fentry_inode_rename, kprobe_inode_rename, 4, |args: [Ptr; 4], may: May| {
    entry(&Act { to_dir: args[2], to_dentry: args[3], ..Act::on(hook::INODE_RENAME, args[0], args[1]) }, may)
});

/// Truncation, mode, owner, times of a watched inode.
#[inline(always)]
fn attribute(dentry: Ptr, attributes: Ptr, may: May) -> bool {
    let inode = dentry.follow(offset!(dentry_inode));
    let key = key(inode);
    let matched = watched::flags(&key).unwrap_or(0) & (watch::FILE | watch::DIR | watch::OWN);
    if matched == 0 {
        return false;
    }
    let task = current();
    let denied = security::denies(may, task, matched);
    emit::fixed(Ring::Alerting, kind::ENTRY, hook::INODE_SETATTR, task, |record: *mut Entry| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).ino = key.ino;
            (*record).dir_ino = ino(dentry.follow(offset!(dentry_parent)));
            (*record).to_ino = 0;
            (*record).to_dir_ino = 0;
            (*record).dev = key.dev;
            (*record).watch = matched;
            (*record).flags = if denied { DENIED } else { 0 };
            (*record).attributes = attributes.read(offset!(iattr_valid));
            copy(&raw mut (*record).names[0], dentry.follow(offset!(dentry_name)));
            copy(&raw mut (*record).names[1], Ptr(0));
        }
    });
    denied
}

// `security_inode_setattr(struct dentry *dentry, struct iattr *attr)` until 5.19 and in the LSM hook until 6.8; behind a user
// namespace, later an idmap, since then.
security::wrappers!(lsm_inode_setattr, fentry_inode_setattr, kprobe_inode_setattr, 2, |args: [Ptr; 2], may: May| {
    attribute(args[0], args[1], may)
});
security::wrappers!(
    lsm_inode_setattr_idmap,
    fentry_inode_setattr_idmap,
    kprobe_inode_setattr_idmap,
    3,
    |args: [Ptr; 3], may: May| { attribute(args[1], args[2], may) }
);
