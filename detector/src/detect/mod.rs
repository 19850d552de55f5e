//! Detection: one state machine a technique, each a pure function of records and context.

pub mod admission;
pub mod anonymous;
pub mod around;
pub mod audit_log;
pub mod blocked;
pub mod container_exec;
pub mod delete_events;
pub mod etcd_client;
mod held;
pub mod image_arrival;
pub mod impair;
pub(crate) mod log_acts;
pub mod network;
pub mod node_logs;
mod once;
pub mod operator;
pub mod pause;
pub mod public_api;
mod request;
mod sender;
pub mod service_account;
pub mod spawned;
pub mod static_pod;
mod stored;
pub mod supply_chain;
pub mod tamper;
pub mod technique;
pub mod token_use;
pub mod webhook_address;

use crate::{
    alert::{Evidence, File, Severity, Technique},
    context::Context,
    decode::Event,
    manifest::Manifest,
    record::{BootNs, ProcessKey, Record},
};

/// What a technique found. Who did it is a key: the pipeline describes the process from the context.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub technique: &'static Technique,
    pub severity: Severity,
    /// When the act happened, or was found.
    pub time: BootNs,
    pub title: String,
    /// The act was refused.
    pub blocked: bool,
    pub reasons: Vec<String>,
    pub actor: Option<ProcessKey>,
    /// Id of the container that it is about, where that is another than the one that the actor lives in.
    pub container: Option<String>,
    pub file: Option<File>,
    pub manifest: Option<Manifest>,
    pub evidence: Vec<Evidence>,
}

/// A technique's state machine. No I/O, no clock, bounded memory.
pub trait Detector {
    /// The kinds of kernel records that it looks at, a bit each; of all other records it sees every one.
    fn kinds(&self) -> u64 {
        !0
    }

    /// Takes one record, which `context` has learned from already. `event` is the decoded form of a kernel record.
    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding>;
}

/// A set of [`detector_common::kind`]s.
pub(crate) fn kinds(of: &[u16]) -> u64 {
    of.iter().fold(0, |set, kind| set | 1_u64.checked_shl((*kind).into()).unwrap_or(0))
}

/// The last component of a path.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, base)| base)
}
