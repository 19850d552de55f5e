//! What this node has, found out as `detector doctor` does.

use super::Facts;
use crate::{
    doctor,
    source::{cri, kernel::Kernel, live::Options, proc},
};

/// Attaches the hooks for a moment, and looks around.
pub fn of(options: &Options) -> Facts {
    let attached = Kernel::attach(&options.kernel);
    if let Err(error) = &attached {
        eprintln!("degraded: no hook can be attached: {}", crate::escape::escape(&error.to_string()));
    }
    let start = proc::start(attached.as_ref().map(Kernel::hooks).unwrap_or_default(), options.node.clone());
    let upper = attached.as_ref().is_ok_and(Kernel::sees_upper);
    drop(attached);
    let watched = doctor::watched(options);
    let mut facts = Facts {
        cgroups: proc::cgroup2_root().is_some(),
        runtime: Some(
            options.cri.as_ref().is_some_and(|sockets| !cri::sockets(sockets, &options.discovery.proc).is_empty()),
        ),
        upper: Some(upper),
        audit_logs: doctor::audit_logs(options).len(),
        ..Facts::default()
    };
    facts.started(&start);
    facts.watches(&watched);
    facts
}
