//! Into the ring buffers, and what is lost on the way.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_ringbuf_output,
    maps::RingBuf,
};
use detector_common::{Header, scratch};

use crate::{
    kernel::{Detail, Ptr, Structure},
    maps::{ALERTING, CLAIMED, CONTEXT, LOST, SCRATCH, SCRATCH_LEN, Scratch, add},
};

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    Alerting,
    /// Read when something alerts, on a timer, or when a quarter of the ring is full: a busy node's forks and execs do
    /// not wake the agent one by one.
    Context,
    /// Context that something may be waiting for.
    ContextNow,
}

/// Bytes in the context ring from which on the agent is woken.
const WAKE_AT: u64 = 2 << 20;

impl Ring {
    #[inline(always)]
    fn map(self) -> &'static RingBuf {
        match self {
            Self::Alerting => &ALERTING,
            Self::Context | Self::ContextNow => &CONTEXT,
        }
    }

    #[inline(always)]
    fn wake(self) -> u64 {
        match self {
            Self::Context if CONTEXT.query(u64::from(BPF_RB_AVAIL_DATA)) < WAKE_AT => u64::from(BPF_RB_NO_WAKEUP),
            // By itself the kernel wakes a reader only when nothing unread lies before; here that is the rule.
            Self::Context | Self::ContextNow => u64::from(BPF_RB_FORCE_WAKEUP),
            Self::Alerting => 0,
        }
    }
}

/// Counts an event that could not be delivered.
#[inline(always)]
pub fn lost(hook: u16) {
    if let Some(lost) = LOST.get_ptr_mut(u32::from(hook)) {
        // SAFETY: the slot is this CPU's own.
        unsafe { *lost += 1 };
    }
}

/// Reserves a record without tail, lets `fill` write it in place, and submits it.
///
/// `T` starts with a [`Header`]; `fill` writes every field after it.
#[inline(always)]
pub fn fixed<T: 'static>(ring: Ring, kind: u16, hook: u16, task: Ptr, fill: impl FnOnce(*mut T)) {
    detailed(ring, kind, hook, task, Detail::Full, fill);
}

/// The same with less of a header.
#[inline(always)]
pub fn detailed<T: 'static>(
    ring: Ring,
    kind: u16,
    hook: u16,
    task: impl Structure,
    detail: Detail,
    fill: impl FnOnce(*mut T),
) {
    let Some(mut entry) = ring.map().reserve::<T>(0) else {
        lost(hook);
        return;
    };
    let record = entry.as_mut_ptr();
    let header = record.cast::<Header>();
    crate::kernel::header(header, kind, hook, task, detail);
    // SAFETY: the entry is as long as `T`, which starts with a header.
    unsafe { (*header).len = size_of::<T>() as u32 };
    fill(record);
    entry.submit(ring.wake());
}

/// A scratch slot, one of [`detector_common::scratch`].
#[inline(always)]
pub fn scratch(slot: u32) -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(slot)
}

/// A scratch slot that is one run's own. Pointers rather than the slot's number: to the verifier those of one slot are like
/// those of another, and it follows what comes behind once.
pub struct Claim {
    pub scratch: *mut Scratch,
    runs: *mut u64,
}

/// Claims one of a reporter's scratch slots, which starts at `first`, until [`release`]; none when all are claimed.
///
/// Since 6.2 an LSM program that is preempted does not keep the next task on that CPU from running it too, and the two must
/// not write one record. Whoever finds itself alone after it has added itself has the slot; additions are atomic in
/// the oldest kernels too, exchanges are not.
#[inline(always)]
pub fn claim(first: u32) -> Option<Claim> {
    for slot in first..first + scratch::CLAIMS {
        let (scratch, runs) = (SCRATCH.get_ptr_mut(slot)?, CLAIMED.get_ptr_mut(slot)?);
        // SAFETY: a map's value; volatile, because other runs change it.
        unsafe {
            add(runs, 1);
            if core::ptr::read_volatile(runs) == 1 {
                return Some(Claim { scratch, runs });
            }
            add(runs, -1);
        }
    }
    None
}

/// Gives a slot back.
#[inline(always)]
pub fn release(claim: Claim) {
    // SAFETY: a map's value.
    unsafe { add(claim.runs, -1) };
}

/// Sends the first `len` bytes of a scratch slot, in which a record with tail was put together.
#[inline(always)]
pub fn scratched(ring: Ring, hook: u16, scratch: *mut Scratch, len: usize) {
    // The verifier needs the bound; no record comes near it.
    let len = len & (SCRATCH_LEN - 1);
    // SAFETY: the slot is at least a header and `len` bytes long.
    let failed = unsafe {
        (*scratch.cast::<Header>()).len = len as u32;
        bpf_ringbuf_output(core::ptr::from_ref(ring.map()).cast_mut().cast(), scratch.cast(), len as u64, ring.wake())
    };
    if failed != 0 {
        lost(hook);
    }
}
