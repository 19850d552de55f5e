//! What kernel records say of logs, for the view of them.

use detector_common::watch;

use super::{Batch, Live};
use crate::{
    decode::Event,
    detect::base,
    record::{BootNs, ComponentKind, InodeKey},
};

impl Live {
    /// Lets the view of logs know where somebody acted.
    pub(super) fn acted_on_logs(&mut self, event: &Event, now: BootNs) {
        let key = |dev, ino| InodeKey { dev, ino };
        match event {
            Event::Open(open) | Event::Write(open) | Event::Map(open) if open.event.watch & watch::OWN != 0 => {
                let wire = &open.event;
                self.logs.acted(&[key(wire.dev, wire.ino), key(wire.dev, wire.parent_ino)], now);
            }
            Event::Entry(entry) if entry.watch & watch::OWN != 0 => {
                let inodes = [entry.ino, entry.dir_ino, entry.to_dir_ino].map(|ino| key(entry.dev, ino));
                self.logs.acted(&inodes, now);
            }
            Event::Path(call) if call.event.watch & watch::OWN != 0 => {
                self.logs.acted(&[key(call.event.dev, call.event.ino)], now);
            }
            // Without the change hooks it is not told what was touched.
            Event::Path(call) if call.event.watch == 0 && call.paths.iter().any(|path| base(path).contains(".log")) => {
                self.logs.hinted(now);
            }
            _ => {}
        }
    }

    /// Looks at logs where that is due.
    pub(super) fn look_at_logs(&mut self, now: BootNs, batch: &mut Batch) {
        let servers: Vec<u32> = self.sense.processes(ComponentKind::ApiServer).collect();
        let found = self.logs.poll(now, &servers);
        batch.bodies.extend(found.bodies);
        batch.watch_changed |= found.watch_changed;
    }
}
