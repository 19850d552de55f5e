//! `bpf(2)` on the agent's own maps, programs and links, by anybody else.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use detector_common::{Bpf, hook, kind, object, setting};

use crate::{
    emit::{self, Ring},
    kernel::{self, Ptr, current, current_id},
    maps::{OURS, masked, offset, setting},
    security::{self, May},
};

/// How a command names its object: one of [`object`], and the bits below.
static COMMANDS: [u8; 64] = {
    let mut commands = [0; 64];
    // `enum bpf_cmd`: MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_FREEZE.
    commands[2] = object::MAP as u8;
    commands[3] = object::MAP as u8;
    commands[22] = object::MAP as u8;
    // MAP_UPDATE_BATCH, MAP_DELETE_BATCH.
    commands[26] = object::MAP as u8 | BATCH;
    commands[27] = object::MAP as u8 | BATCH;
    // PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, LINK_GET_FD_BY_ID.
    commands[13] = object::PROGRAM as u8 | BY_ID;
    commands[14] = object::MAP as u8 | BY_ID;
    commands[30] = object::LINK as u8 | BY_ID;
    // LINK_UPDATE, LINK_DETACH.
    commands[29] = object::LINK as u8;
    commands[34] = object::LINK as u8;
    commands
};
const OBJECT: u8 = 3;
/// By its id, in the first word of the attributes; else by a descriptor there.
const BY_ID: u8 = 1 << 2;
/// By a descriptor behind four pointers and a count: `attr.batch.map_fd`.
const BATCH: u8 = 1 << 3;

#[inline(always)]
fn form(command: u64) -> u8 {
    if command > 63 {
        return 0;
    }
    // SAFETY: the mask keeps the index inside the table.
    unsafe { core::ptr::read_volatile((&raw const COMMANDS).cast::<u8>().add(masked::<63>(command))) }
}

/// The id of the object that is behind a descriptor of the current task.
#[inline(always)]
fn id_behind(task: Ptr, fd: u32, kind: u32) -> u32 {
    let private = kernel::file_of(task, fd).follow(offset!(file_private));
    match kind {
        object::MAP => private.read(offset!(bpf_map_id)),
        object::PROGRAM => private.follow(offset!(bpf_prog_aux)).read(offset!(bpf_prog_id)),
        // Before 5.8 there are none.
        _ => private.read(offset!(bpf_link_id)),
    }
}

#[inline(always)]
fn report(task: Ptr, hook: u16, command: u32, object: u32, id: u32) {
    // SAFETY: the value is not looked at.
    if unsafe { OURS.get(u64::from(object) << 32 | u64::from(id)) }.is_none() {
        return;
    }
    emit::fixed(Ring::Alerting, kind::BPF, hook, task, |record: *mut Bpf| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).command = command;
            (*record).object = object;
            (*record).id = id;
            (*record).zero = 0;
        }
    });
}

#[inline(always)]
fn is_self() -> bool {
    (current_id() >> 32) as u32 == setting(setting::SELF)
}

/// Where the descriptor or id is in `union bpf_attr`.
#[inline(always)]
fn at(form: u8) -> usize {
    if form & BATCH != 0 { 36 } else { 0 }
}

/// A security hook: `attributes` is the kernel's copy.
#[inline(always)]
fn asked(command: u64, attributes: Ptr) -> bool {
    let form = form(command);
    if form == 0 || is_self() {
        return false;
    }
    let task = current();
    let object = u32::from(form & OBJECT);
    let word: u32 = attributes.read(at(form));
    let id = if form & BY_ID != 0 { word } else { id_behind(task, word, object) };
    report(task, hook::BPF, command as u32, object, id);
    false
}

/// A call that succeeded. A descriptor that it gave says what it is of, whatever the caller's memory says now.
#[inline(always)]
pub fn called(task: Ptr, command: u64, attributes: u64, ret: u32) {
    let form = form(command);
    if form == 0 || is_self() {
        return;
    }
    let mut fd = ret;
    if form & BY_ID == 0 {
        let from = attributes as usize + at(form);
        // SAFETY: the helper checks the address and writes four bytes in any case.
        unsafe { bpf_probe_read_user((&raw mut fd).cast(), 4, from as *const _) };
    }
    let object = u32::from(form & OBJECT);
    report(task, hook::SYS_EXIT_GUARD, command as u32, object, id_behind(task, fd, object));
}

// `security_bpf(int cmd, union bpf_attr *attr, unsigned int size)`, since 4.15; one more argument since 6.15.
security::wrappers!(lsm_bpf, fentry_bpf, kprobe_bpf, 2, |args: [Ptr; 2], _may: May| {
    asked(args[0].0 as u64 & 0xffff_ffff, args[1])
});
