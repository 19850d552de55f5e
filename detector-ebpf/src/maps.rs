//! Maps and read-only globals.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use detector_common::{
    ENDPOINTS_MAX, EndpointKey, KernelOffsets, OURS_MAX, PROTECTED_MAX, RECENT_MAX, RUNTIMES_MAX, RecentKey,
    SANDBOXES_MAX, SECRET_BITS, SECRETS_MAX, SERVERS_MAX, TRUSTED_MAX, WATCHED_MAX, WatchKey, hook, scratch, setting,
    syscall,
};

/// Field offsets of the running kernel. Read-only once loaded, so the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: KernelOffsets = KernelOffsets::NONE;

/// Class of each system call: native numbers, then those of 32-bit callers.
#[unsafe(no_mangle)]
static SYSCALLS: [u8; 2 * syscall::TABLE] = [0; 2 * syscall::TABLE];

/// Offsets in `struct pt_regs` of a system call's first four arguments: native ones, then those of 32-bit callers.
#[unsafe(no_mangle)]
static ARGUMENTS: [u32; 8] = [0; 8];

/// Events that can raise an alert.
#[map]
pub static ALERTING: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Context. Its flood cannot cost an alerting event.
#[map]
pub static CONTEXT: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Events lost per hook and CPU.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(hook::COUNT, 0);

/// Watched inodes and what they are ([`detector_common::watch`]).
#[map]
pub static WATCHED: HashMap<WatchKey, u32> = HashMap::with_max_entries(WATCHED_MAX, 0);

/// Executables whose processes may change what is watched although [`setting::DENY`] is set.
#[map]
pub static TRUSTED: HashMap<WatchKey, u32> = HashMap::with_max_entries(TRUSTED_MAX, 0);

/// Thread groups that nobody else may trace unseen: the agent and the node's kubelets.
#[map]
pub static PROTECTED: HashMap<u32, u32> = HashMap::with_max_entries(PROTECTED_MAX, 0);

/// The agent's own maps, programs and links, by `object << 32 | id` ([`detector_common::object`]).
#[map]
pub static OURS: HashMap<u64, u32> = HashMap::with_max_entries(OURS_MAX, 0);

/// The second program at `sys_exit`, which the first one calls.
#[map]
pub static GUARD: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Cgroups of the pods' sandboxes, in which nothing but a pause process should live.
#[map]
pub static SANDBOXES: HashMap<u64, u32> = HashMap::with_max_entries(SANDBOXES_MAX, 0);

/// Files, and by inode 0 whole file systems, whose opens for reading are reported.
#[map]
pub static SECRETS: HashMap<WatchKey, u32> = HashMap::with_max_entries(SECRETS_MAX, 0);

/// A bit for each of [`SECRETS`], by [`detector_common::secret_bit`]; in one value, so that there is one look-up.
#[map]
pub static SECRET_WORDS: Array<[u64; SECRET_BITS as usize / 64]> = Array::with_max_entries(1, 0);

/// Addresses whose connections are reported, and what they are ([`detector_common::endpoint`]).
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, u32> = HashMap::with_max_entries(ENDPOINTS_MAX, 0);

/// Thread groups whose connections are reported, and which of them ([`detector_common::server`]).
#[map]
pub static SERVERS: HashMap<u32, u32> = HashMap::with_max_entries(SERVERS_MAX, 0);

/// Sockets by which container runtimes are asked, and directories of such: who connects is reported.
#[map]
pub static RUNTIMES: HashMap<WatchKey, u32> = HashMap::with_max_entries(RUNTIMES_MAX, 0);

/// When what anybody may repeat at will was last reported.
#[map]
pub static RECENT: LruHashMap<RecentKey, u64> = LruHashMap::with_max_entries(RECENT_MAX, 0);

/// Written by the agent while it runs ([`setting`]).
#[map]
pub static SETTINGS: Array<u32> = Array::with_max_entries(setting::COUNT, 0);

/// A watched inode that a thread changed in the system call it is in.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Touch {
    pub key: WatchKey,
    pub watch: u32,
    pub zero: u32,
}

/// Threads that changed a watched inode and have not left their system call yet, by `pid_tgid`.
#[map]
pub static TOUCHED: HashMap<u64, Touch> = HashMap::with_max_entries(4096, 0);

/// How many entries `TOUCHED` has: with none, a system call's exit costs no hash look-up.
#[map]
pub static TOUCHES: Array<i64> = Array::with_max_entries(1, 0);

/// Where records with a tail are put together: larger than the stack ([`detector_common::scratch`]).
pub const SCRATCH_LEN: usize = 4096;

#[repr(C, align(8))]
pub struct Scratch(pub [u8; SCRATCH_LEN]);

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(scratch::COUNT, 0);

/// Runs that have claimed, or just try to claim, a slot of `SCRATCH`.
#[map]
pub static CLAIMED: PerCpuArray<u64> = PerCpuArray::with_max_entries(scratch::COUNT, 0);

/// Adds to a number in a map, atomically.
///
/// # Safety
/// `number` points to a map's value.
#[inline(always)]
pub unsafe fn add(number: *mut u64, by: i64) {
    // `core` offers no atomics for this target, and the compiler no plain addition that it may not split.
    // SAFETY: a map's value is aligned and never goes away.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) by) };
}

/// One field's offset, as a constant to the verifier.
macro_rules! offset {
    ($field:ident) => {
        $crate::maps::offset_at(core::mem::offset_of!(detector_common::KernelOffsets, $field))
    };
}
pub(crate) use offset;

#[inline(always)]
pub fn offset_at(field: usize) -> usize {
    // SAFETY: `field` is the offset of a u32 of `OFFSETS`. Volatile, because the agent replaces the value before load.
    unsafe { core::ptr::read_volatile((&raw const OFFSETS).cast::<u8>().add(field).cast::<u32>()) as usize }
}

/// Class of system call `index`; the table's length bounds it for the verifier.
#[inline(always)]
pub fn syscall_class(index: usize) -> u8 {
    let index = index & (2 * syscall::TABLE - 1);
    // SAFETY: the mask keeps `index` inside the table.
    unsafe { core::ptr::read_volatile((&raw const SYSCALLS).cast::<u8>().add(index)) }
}

/// Offset of argument `index` of [`ARGUMENTS`].
#[inline(always)]
pub fn argument_offset(index: u32) -> usize {
    // SAFETY: the mask keeps the offset inside the table.
    unsafe {
        let at = masked::<{ 7 * size_of::<u32>() as u64 }>(u64::from(index) * size_of::<u32>() as u64);
        core::ptr::read_volatile((&raw const ARGUMENTS).cast::<u8>().add(at).cast::<u32>()) as usize
    }
}

/// A masked index, for a look into a table right behind. The compiler drops a mask that it can prove to be superfluous; the
/// verifier, 5.10's above all, has lost what proves it.
#[inline(always)]
pub fn masked<const MASK: u64>(index: u64) -> usize {
    let mut index = index;
    // SAFETY: clears bits of a register.
    unsafe { core::arch::asm!("{0} &= {mask}", inout(reg) index, mask = const MASK, options(pure, nomem, nostack)) };
    index as usize
}

#[inline(always)]
pub fn setting(index: u32) -> u32 {
    SETTINGS.get(index).copied().unwrap_or(0)
}
