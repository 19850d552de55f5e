//! Capabilities of one thread.

use caps::{CapSet, Capability, CapsHashSet};

/// Keeps these, as far as they are there, and gives up all others for good.
pub fn keep(wanted: &[Capability]) -> Result<(), String> {
    // Without CAP_SETPCAP the bounding set stays; it is of use to whoever executes something, and that is refused.
    if caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP).map_err(words)? {
        lay_down(&[Capability::CAP_SETPCAP])?;
        caps::clear(None, CapSet::Bounding).map_err(words)?;
    }
    lay_down(wanted)?;
    let left = caps::read(None, CapSet::Effective).map_err(words)?;
    caps::set(None, CapSet::Permitted, &left).map_err(words)?;
    caps::clear(None, CapSet::Inheritable).map_err(words)?;
    // Goes with the others; said for kernels that think otherwise.
    caps::clear(None, CapSet::Ambient).map_err(words)
}

/// Uses these alone from now on. The others can be taken up again.
pub fn lay_down(wanted: &[Capability]) -> Result<(), String> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(words)?;
    let used: CapsHashSet = wanted.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &used).map_err(words)
}

/// Whether this thread may use it.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Those that this thread may use, in words.
pub fn names() -> String {
    let used = caps::read(None, CapSet::Effective).unwrap_or_default();
    let mut names: Vec<_> = used.iter().map(ToString::to_string).collect();
    names.sort();
    if names.is_empty() { "no capability".to_owned() } else { names.join(" and ") }
}

fn words(error: caps::errors::CapsError) -> String {
    format!("capabilities cannot be given up: {error}")
}
