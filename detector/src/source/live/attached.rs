//! Whether the hooks are still attached, in the stream: who detached one is in the records before.

use super::{Live, LiveError};
use crate::{
    record::{Body, Record},
    source::{
        kernel::{self, Detached},
        proc,
    },
};

impl Live {
    /// Tells of hooks that were detached, or attached again, since the last look.
    pub(super) fn attached(&mut self, out: &mut Vec<Record>) -> Result<(), LiveError> {
        let mut detached = self.kernel.detached();
        // The number of a descriptor that is closed is soon another one's: what was found first says more.
        for one in &mut detached {
            if let Some(known) = self.detached.iter().find(|known| known.hook == one.hook) {
                *one = *known;
            }
        }
        let since = std::mem::replace(&mut self.hooks_looked, proc::now());
        if let Some(changed) = kernel::changes(&self.detached, &detached, since) {
            self.drain(out)?;
            self.push(out, proc::now(), Body::Hooks(Box::new(changed)));
        }
        self.detached = detached;
        Ok(())
    }

    /// Hooks that are detached, as of the last tick.
    #[must_use]
    pub fn detached(&self) -> &[Detached] {
        &self.detached
    }
}
