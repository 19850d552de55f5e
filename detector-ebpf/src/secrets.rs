//! Secrets opened for reading: service-account tokens, kubeconfigs, keys, what etcd stores.
//!
//! Every token volume is a file system of its own, so one entry, its device and inode 0, stands for whatever kubelet puts there
//! by its atomic swap.

use detector_common::{RecentKey, SECRET_BITS, WatchKey, secret_bit, setting};

use crate::{
    kernel::{Structure, current_id},
    maps::{SECRET_WORDS, SECRETS, masked, offset, setting},
    recent,
};

const WORDS: usize = SECRET_BITS as usize / 64;

/// Whether a file is a secret. Costs no hash look-up for nearly all that are none.
#[inline(always)]
pub fn is(file: impl Structure) -> bool {
    let key = key(file);
    let whole = WatchKey::new(key.dev, 0);
    let Some(words) = SECRET_WORDS.get(0) else { return false };
    if bit(words, &key) | bit(words, &whole) == 0 {
        return false;
    }
    // SAFETY: the values are not looked at.
    unsafe { SECRETS.get(key).is_some() || SECRETS.get(whole).is_some() }
}

/// Whether this process has not just read it, and is not the agent.
#[inline(always)]
pub fn is_news(file: impl Structure) -> bool {
    let key = key(file);
    let tgid = (current_id() >> 32) as u32;
    tgid != setting(setting::SELF)
        && recent::is_news(&RecentKey { what: [key.ino, u64::from(key.dev)], tgid, port: u32::MAX })
}

#[inline(always)]
fn key<S: Structure>(file: S) -> WatchKey {
    let inode = file.to(offset!(file_inode));
    WatchKey::new(inode.to(offset!(inode_sb)).field(offset!(sb_dev)), inode.field(offset!(inode_ino)))
}

#[inline(always)]
fn bit(words: &[u64; WORDS], key: &WatchKey) -> u64 {
    let bit = secret_bit(key);
    let at = masked::<{ WORDS as u64 - 1 }>(u64::from(bit / 64));
    // SAFETY: the mask keeps the index inside the array. Volatile, because the agent changes it.
    unsafe { core::ptr::read_volatile(words.as_ptr().add(at)) >> (bit & 63) & 1 }
}
