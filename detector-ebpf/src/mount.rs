//! Mounts and unmounts: rare, and each may change what kubelet sees. All are reported.

use detector_common::{DENIED, Entry, hook, kind};

use crate::{
    emit::{self, Ring},
    entry::{copy, key},
    kernel::{Ptr, current},
    maps::offset,
    security::{self, May},
    watched,
};

/// Reports what is mounted (`source` may be null), and on which dentry. Returns whether it is to be refused.
#[inline(always)]
fn mount(hook: u16, source: Ptr, point: Ptr, may: May) -> bool {
    let key = key(point.follow(offset!(dentry_inode)));
    let matched = watched::flags(&key).unwrap_or(0);
    let task = current();
    let denied = security::denies(may, task, matched);
    emit::fixed(Ring::Alerting, kind::ENTRY, hook, task, |record: *mut Entry| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).ino = key.ino;
            (*record).dir_ino = 0;
            (*record).to_ino = 0;
            (*record).to_dir_ino = 0;
            (*record).dev = key.dev;
            (*record).watch = matched;
            (*record).flags = if denied { DENIED } else { 0 };
            (*record).attributes = 0;
            copy(&raw mut (*record).names[0], source);
            copy(&raw mut (*record).names[1], point.follow(offset!(dentry_name)));
        }
    });
    denied
}

// `security_sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)`.
security::wrappers!(lsm_sb_mount, fentry_sb_mount, kprobe_sb_mount, 2, |args: [Ptr; 2], may: May| {
    mount(hook::SB_MOUNT, args[0], args[1].follow(offset!(path_dentry)), may)
});

// `security_move_mount(const struct path *from_path, const struct path *to_path)`, since 5.2.
security::wrappers!(lsm_move_mount, fentry_move_mount, kprobe_move_mount, 2, |args: [Ptr; 2], may: May| {
    let from = args[0].follow(offset!(path_dentry)).follow(offset!(dentry_name));
    mount(hook::MOVE_MOUNT, from, args[1].follow(offset!(path_dentry)), may)
});

// `security_sb_umount(struct vfsmount *mnt, int flags)`. The mount point is in the `struct mount` around it.
security::wrappers!(lsm_sb_umount, fentry_sb_umount, kprobe_sb_umount, 1, |args: [Ptr; 1], may: May| {
    let around = Ptr(args[0].0.wrapping_sub(offset!(mount_mnt)));
    mount(hook::SB_UMOUNT, Ptr(0), around.follow(offset!(mount_mountpoint)), may)
});

// `security_sb_pivotroot(const struct path *old_path, const struct path *new_path)`.
security::wrappers!(lsm_sb_pivotroot, fentry_sb_pivotroot, kprobe_sb_pivotroot, 2, |args: [Ptr; 2], may: May| {
    let new = args[1].follow(offset!(path_dentry)).follow(offset!(dentry_name));
    mount(hook::PIVOT_ROOT, new, args[0].follow(offset!(path_dentry)), may)
});
