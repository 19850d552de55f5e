//! `detector drill`: a technique, performed harmlessly, and whether the alert came.

mod agent;
mod api;
pub mod container;
mod container_exec;
mod dropped;
mod kubeconfig;
mod malicious_pause;
mod service_account;
mod static_pod;
mod supply_chain;
pub mod tampering;

use std::{path::Path, process::ExitCode, time::Duration};

use clap::ValueEnum;

use crate::{cli::Source, escape::escape};
use agent::Seen;

/// How long the agent may take to start, and an alert to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be drilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Technique {
    /// Plant a manifest that kubelet rejects, and take it away again
    StaticPod,
    /// Make a container of namespaces and a cgroup that does nothing, and enter it
    ContainerExec,
    /// Make pods' sandboxes of namespaces and a cgroup, whose pauses open a file, make a socket, make a process
    MaliciousPauseContainer,
    /// Make a container of namespaces and a cgroup, whose process executes this program from memory, a tmpfs and an overlay
    SupplyChainCompromise,
    /// Open one of the agent's BPF maps, and stop the agent for a moment
    DetectorTampering,
    /// Make a token volume of a pod that does not exist, and read the token, which opens nothing
    ContainerServiceAccount,
    /// Ask the API server to delete the events about an object that does not exist; needs --kubeconfig of a user who may
    /// `deletecollection` events in `default`, on a node whose kube-apiserver writes an audit log
    DeleteKubernetesEvents,
    /// Make a webhook configuration that matches no resource, and delete it; needs --kubeconfig of a user who may create and delete
    /// `mutatingwebhookconfigurations`, on such a node
    MaliciousAdmissionController,
    /// Ask the API server for its version without a credential; needs --kubeconfig, of which no credential is used, on such a node
    PublicApiEndpoint,
}

/// Performs the technique beside an agent of its own, and says what came of it on standard output.
///
/// # Errors
/// When there is nowhere to perform it, or the agent does not start.
pub fn drill(technique: Technique, source: &Source, kubeconfig: Option<&Path>) -> anyhow::Result<ExitCode> {
    match technique {
        Technique::StaticPod => static_pod::drill(source),
        Technique::ContainerExec => container_exec::drill(source),
        Technique::MaliciousPauseContainer => malicious_pause::drill(source),
        Technique::SupplyChainCompromise => supply_chain::drill(source),
        Technique::DetectorTampering => tampering::drill(source),
        Technique::ContainerServiceAccount => service_account::drill(source),
        Technique::DeleteKubernetesEvents => api::drill(api::Act::DeleteEvents, source, kubeconfig),
        Technique::MaliciousAdmissionController => api::drill(api::Act::Webhook, source, kubeconfig),
        Technique::PublicApiEndpoint => api::drill(api::Act::Anonymous, source, kubeconfig),
    }
}

/// Says whether every alert came, and with what status to end.
fn verdict(fine: bool) -> ExitCode {
    if fine {
        println!("drill: PASSED");
        ExitCode::SUCCESS
    } else {
        println!(
            "drill: FAILED: an alert did not come, or did not name the process that did it; see `detector doctor`"
        );
        ExitCode::FAILURE
    }
}

/// Says when an alert came, and whether it names the process `pid`, which did it.
fn say(act: &str, seen: Option<Seen>, pid: u32) -> bool {
    match seen {
        Some(seen) => {
            println!(
                "drill: {act} seen after {:.1} ms: {} [{}], attributed to {}",
                seen.after.as_secs_f64() * 1e3,
                escape(&seen.title),
                seen.severity,
                if seen.pid == Some(pid) { "the process that did it" } else { "nobody or somebody else" },
            );
            seen.pid == Some(pid)
        }
        None => {
            println!("drill: no alert for the {act} within {} s", PATIENCE.as_secs());
            false
        }
    }
}
