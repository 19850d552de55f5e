//! What is done on the node, and what the agent must say.

pub mod act;
pub mod control_plane;
mod deployed;
mod drill;
mod exec;
mod image;
mod logs;
mod own;
mod pause;
mod probe;
mod static_pod;
mod thousand;
pub mod workload;

use std::sync::atomic::Ordering;

use super::{INTERRUPTED, Options, daemons::Node};

type Run = fn(&mut Node, &Options, &mut Checks) -> anyhow::Result<()>;

/// One kind of act, with its twins.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub run: Run,
    /// Whether the node is to have an API server.
    pub api: bool,
}

pub const ALL: &[Scenario] = &[
    scenario("static-pod-from-pod", "a pod plants a static pod", static_pod::from_pod),
    scenario("kubelet-run", "kubelet's /run endpoint", exec::kubelet_run),
    scenario(
        "kubelet-exec",
        "kubelet's /exec endpoint, as kubectl exec, without and with a terminal",
        exec::kubelet_exec,
    ),
    scenario("ctr-exec", "ctr task exec", exec::ctr_exec),
    scenario("runc-exec", "runc exec", exec::runc_exec),
    scenario("nsenter", "nsenter with all namespaces, with each, and with some", exec::nsenter),
    scenario("by-hand", "setns without exec, and processes moved into a container's cgroup", exec::by_hand),
    scenario("ephemeral-container", "a debug container among a pod's processes", exec::ephemeral),
    scenario("exec-probe", "a liveness probe that execs, and another exec beside it", probe::exec_probe),
    scenario("pause-honest", "a pod under a known pause image", pause::honest),
    scenario("pause-digest", "a pod under an unknown pause image that behaves", pause::digest),
    scenario("pause-binary", "a pod under a pause image whose program is another", pause::binary),
    scenario("pause-fork", "a pod under a pause image that starts a program", pause::forks),
    scenario("pause-connect", "a pod under a pause image that connects", pause::connects),
    scenario("pause-config", "containerd's configuration names another pause image", pause::config),
    scenario("image-arrival", "images imported and pulled", image::arrival),
    scenario("deployed", "the agent's image, in the pod of deploy/ and with no more than that", deployed::deployed),
    scenario("thousand", "containers by the thousand, started and removed through the CRI", thousand::thousand),
    scenario("dropped-binary", "programs executed that are not in the image", workload::dropped),
    scenario("privileged-pod", "a pod that may do anything on the node", workload::privileged),
    scenario("agent-attacked", "a pod with the node's processes stops the agent", workload::agent_attacked),
    scenario("pod-logs-wiped", "logs of pods emptied and removed, by hand, by a pod and by kubelet", logs::wiped),
    // Those with an API server last: it is brought up once, and kubelet belongs to it from then on.
    with_api("events-deleted", "a user deletes events through the API server", control_plane::events_deleted),
    with_api("etcd-client", "events deleted in etcd, behind the API server's back", control_plane::etcd_client),
    with_api("webhook", "a webhook outside of the cluster is told of secrets", control_plane::webhook),
    with_api("anonymous", "somebody outside asks the API server without a name", control_plane::anonymous),
    with_api("token", "a service account's token read and used by others", workload::token),
    with_api("operator-turned", "a workload with the API server's trust runs what it brought", workload::turned),
    with_api("drills", "drills that ask the API server, with kubeconfigs of every form", drill::drills),
    with_api("own-execs", "probes and hooks of a pod from the API server, and sessions in one", own::own),
    with_api("audit-log-cleared", "the audit log rotated, truncated and removed", control_plane::audit_log_cleared),
];

const fn scenario(name: &'static str, what: &'static str, run: Run) -> Scenario {
    Scenario { name, what, run, api: false }
}

const fn with_api(name: &'static str, what: &'static str, run: Run) -> Scenario {
    Scenario { name, what, run, api: true }
}

/// What a scenario found out.
#[derive(Default)]
pub struct Checks {
    /// What failed, and why.
    pub failed: Vec<String>,
}

impl Checks {
    /// Notes and says how a check went.
    pub fn check(&mut self, what: &str, done: anyhow::Result<()>) {
        match done {
            // The node goes down under the scenario: that says nothing.
            _ if INTERRUPTED.load(Ordering::SeqCst) => {}
            Ok(()) => eprintln!("    ok      {what}"),
            Err(error) => {
                eprintln!("    FAILED  {what}: {error:#}");
                self.failed.push(format!("{what}: {error:#}"));
            }
        }
    }
}

/// The beginning of scenarios' names.
#[derive(Clone)]
pub struct Names(String);

impl Names {
    pub fn contains(&self, scenario: &Scenario) -> bool {
        scenario.name.starts_with(&self.0)
    }
}

/// The scenarios whose names begin so.
///
/// # Errors
/// When there is none; says which there are.
pub fn parse(name: &str) -> Result<Names, String> {
    let names = Names(name.trim_end_matches('*').to_owned());
    if ALL.iter().any(|scenario| names.contains(scenario)) {
        return Ok(names);
    }
    let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
    Err(format!("no scenario begins so; there are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_the_beginning_of_their_names() {
        assert!(parse("static").unwrap().contains(&ALL[0]));
        assert!(parse("static-pod-*").unwrap().contains(&ALL[0]));
        assert!(parse("nothing").is_err());
        for (number, one) in ALL.iter().enumerate() {
            assert!(ALL[..number].iter().all(|other| other.name != one.name), "{}", one.name);
        }
    }
}
