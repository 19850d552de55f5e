//! What anybody may repeat at will is reported once a second, so that it floods nothing.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use detector_common::{RECENT_NS, RecentKey};

use crate::maps::RECENT;

/// Whether this was not reported within the last second. It is taken to be reported now.
#[inline(always)]
pub fn is_news(key: &RecentKey) -> bool {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: a number that is replaced as a whole.
    let last = unsafe { RECENT.get(key) }.copied().unwrap_or(0);
    if last != 0 && now.wrapping_sub(last) < RECENT_NS {
        return false;
    }
    // Where it cannot be remembered it is reported again.
    let _ = RECENT.insert(key, now, 0);
    true
}
