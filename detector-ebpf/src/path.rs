//! Paths, walked from the leaf to the root of the mount namespace.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use detector_common::{NAME_MAX, PATH_MAX, PATH_TRUNCATED};

use crate::{
    kernel::{Ptr, Structure, Typed},
    maps::{SCRATCH_LEN, Scratch, offset},
};

/// A number that grows in a loop, kept in map memory.
///
/// The verifier follows a register's range through every round and so never finds two rounds alike; what it loads from
/// a map it knows nothing about, and one round is as good as the other: 3,000 instructions instead of 200,000.
#[derive(Clone, Copy)]
pub struct Length(*mut u16);

impl Length {
    /// # Safety
    /// `field` points to a field of a record in a scratch slot.
    #[inline(always)]
    pub unsafe fn new(field: *mut u16) -> Self {
        let length = Self(field);
        length.set(0);
        length
    }

    #[inline(always)]
    pub fn get(self) -> usize {
        // SAFETY: promised to `new`.
        usize::from(unsafe { core::ptr::read_volatile(self.0) }) & (2 * PATH_MAX - 1)
    }

    #[inline(always)]
    pub fn set(self, length: usize) {
        // SAFETY: promised to `new`.
        unsafe { core::ptr::write_volatile(self.0, length as u16) };
    }
}

/// Whether a file was made by `memfd_create`, whose name is then written to `out` as its path: it lies in no directory.
#[inline(always)]
pub fn memory(file: Typed, out: *mut Scratch, at: usize, len: Length) -> bool {
    /// `memfd:` as the first bytes of a word in memory.
    const PREFIX: u64 = u64::from_le_bytes(*b"memfd:\0\0");
    const MASK: u64 = (1 << 48) - 1;
    let dentry = file.to(offset!(file_dentry));
    if dentry.to(offset!(dentry_parent)) != dentry {
        return false;
    }
    let name = Ptr(dentry.field(offset!(dentry_name)));
    if u64::from_le(name.read::<u64>(0)) & MASK != PREFIX {
        return false;
    }
    // SAFETY: `at` is a body's length, and a name is shorter than what is left of the scratch slot.
    let read =
        unsafe { bpf_probe_read_kernel_str(out.cast::<u8>().add(at).cast(), NAME_MAX as u32, name.0 as *const _) };
    if read > 0 {
        len.set(read as usize);
    }
    true
}

/// Writes the components of `file`'s path into the scratch slot `out` from `at` on, each with its NUL, leaf first, and their
/// length into `len`. Paths of more than `STEPS` components, mounts on the way included, are marked truncated. Returns the
/// flags of the body.
#[inline(always)]
pub fn write<const STEPS: u32>(file: Ptr, out: *mut Scratch, at: usize, len: Length) -> u32 {
    let dentry: usize = file.read(offset!(file_dentry));
    let vfsmount: usize = file.read(offset!(file_mnt));
    walk::<STEPS>(dentry, vfsmount, Ptr(vfsmount).read(offset!(vfsmount_root)), out, at, len)
}

/// The same by plain loads as far as they go: `NEAR` components in the file's own mount, with which most paths end. `STEPS`
/// more may follow.
#[inline(always)]
pub fn write_typed<const NEAR: u32, const STEPS: u32>(file: Typed, out: *mut Scratch, at: usize, len: Length) -> u32 {
    let vfsmount = file.to(offset!(file_mnt));
    let root = vfsmount.to(offset!(vfsmount_root));
    let mut dentry = file.to(offset!(file_dentry));
    for _ in 0..NEAR {
        let parent = dentry.to(offset!(dentry_parent));
        if parent == dentry || root == dentry {
            break;
        }
        if !component(dentry.field(offset!(dentry_name)), out, at, len) {
            return PATH_TRUNCATED;
        }
        dentry = parent;
    }
    // Through map memory they come back as numbers: the verifier follows the rest once, and not for each type.
    // SAFETY: no path comes near the end of the slot.
    let [dentry, vfsmount, root] = unsafe {
        let way = out.cast::<u8>().add(SCRATCH_LEN - size_of::<[usize; 3]>()).cast::<[usize; 3]>();
        core::ptr::write_volatile(way, [dentry, vfsmount, root].map(|typed| typed.address().0));
        core::ptr::read_volatile(way)
    };
    walk::<STEPS>(dentry, vfsmount, root, out, at, len)
}

#[inline(always)]
fn walk<const STEPS: u32>(
    mut dentry: usize,
    mut vfsmount: usize,
    mut root: usize,
    out: *mut Scratch,
    at: usize,
    len: Length,
) -> u32 {
    for _ in 0..STEPS {
        let parent: usize = Ptr(dentry).read(offset!(dentry_parent));
        if parent == dentry || root == dentry {
            // The root of this mount: go on where it is mounted. A mount that is its own parent is the namespace's root.
            let mount = vfsmount.wrapping_sub(offset!(mount_mnt));
            let above: usize = Ptr(mount).read(offset!(mount_parent));
            if above == mount {
                return 0;
            }
            dentry = Ptr(mount).read(offset!(mount_mountpoint));
            vfsmount = above.wrapping_add(offset!(mount_mnt));
            root = Ptr(vfsmount).read(offset!(vfsmount_root));
            continue;
        }
        if !component(Ptr(dentry).read(offset!(dentry_name)), out, at, len) {
            break;
        }
        dentry = parent;
    }
    PATH_TRUNCATED
}

/// Writes one component behind those that are there. Whether there was room for it.
#[inline(always)]
fn component(name: usize, out: *mut Scratch, at: usize, len: Length) -> bool {
    let before = len.get();
    if before > PATH_MAX {
        return false;
    }
    let to = (at + before) & (SCRATCH_LEN / 2 - 1);
    // SAFETY: the mask keeps `to` in the lower half of the scratch slot, and a name is shorter than the upper half.
    let read = unsafe { bpf_probe_read_kernel_str(out.cast::<u8>().add(to).cast(), NAME_MAX as u32, name as *const _) };
    if read > 0 {
        len.set(before + read as usize);
    }
    read > 0
}
