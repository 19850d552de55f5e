//! Paths, walked from the leaf to the root of the mount namespace.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use detector_common::{NAME_MAX, PATH_MAX, PATH_TRUNCATED};

use crate::{
    kernel::Ptr,
    maps::{SCRATCH_LEN, offset},
};

/// Most steps of a walk, mount crossings included. Deeper paths are marked truncated.
const STEPS: usize = 24;

/// Writes the components of `file`'s path into `out` from `at` on, each with its NUL, leaf first.
///
/// Returns the bytes written and the flags of the body.
#[inline(always)]
pub fn write(file: Ptr, out: *mut u8, at: usize) -> (usize, u32) {
    let Some(mut dentry) = file.follow(offset!(file_dentry)) else { return (0, PATH_TRUNCATED) };
    let Some(mut vfsmount) = file.follow(offset!(file_mnt)) else { return (0, PATH_TRUNCATED) };
    let mut len = 0;
    for _ in 0..STEPS {
        if len > PATH_MAX {
            return (len, PATH_TRUNCATED);
        }
        let parent = dentry.follow(offset!(dentry_parent));
        if parent == Some(dentry) || vfsmount.follow(offset!(vfsmount_root)) == Some(dentry) {
            // The root of this mount: go on where it is mounted. A mount that is its own parent is the namespace's root.
            let mount = Ptr(vfsmount.0.wrapping_sub(offset!(mount_mnt)));
            let (Some(above), Some(point)) =
                (mount.follow(offset!(mount_parent)), mount.follow(offset!(mount_mountpoint)))
            else {
                return (len, PATH_TRUNCATED);
            };
            if above == mount {
                return (len, 0);
            }
            vfsmount = Ptr(above.0 + offset!(mount_mnt));
            dentry = point;
            continue;
        }
        let (Some(parent), Some(name)) = (parent, dentry.follow(offset!(dentry_name))) else {
            return (len, PATH_TRUNCATED);
        };
        let to = (at + len) & (SCRATCH_LEN / 2 - 1);
        // SAFETY: the mask keeps `to` in the lower half of the scratch slot, and a name is shorter than the upper half.
        let read = unsafe { bpf_probe_read_kernel_str(out.add(to).cast(), NAME_MAX as u32, name.0 as *const _) };
        if read <= 0 {
            return (len, PATH_TRUNCATED);
        }
        // The bound is the verifier's: the helper never returns more than it was allowed.
        len += read as usize & (2 * NAME_MAX - 1);
        dentry = parent;
    }
    (len, PATH_TRUNCATED)
}
