//! Records in, alerts out: decode, context, detection, in that order. Pure.

use crate::{
    alert::{Alert, Origin, Process, Request, TraceRef},
    context::{Context, container::Container},
    decode::{self, Event},
    detect::{
        Detector, Finding, admission::Admission, anonymous::Anonymous, around::Around, audit_log::AuditLogs,
        blocked::Blocked, container_exec::ContainerExec, delete_events::DeleteEvents, etcd_client::EtcdClient,
        image_arrival::ImageArrivals, impair::Impair, node_logs::NodeLogs, operator::Operator, pause::Pause,
        public_api::PublicApi, service_account::ServiceAccount, spawned::Spawned, static_pod::StaticPod,
        supply_chain::SupplyChain, tamper::Tamper, token_use::TokenUse, webhook_address::WebhookAddress,
    },
    record::{Body, Record},
};

/// What the pipeline could not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernel records that are none.
    pub undecodable: u64,
}

/// The pipeline and its state.
pub struct Pipeline {
    context: Context,
    detectors: Vec<Box<dyn Detector>>,
    /// Which of them look at kernel records of each kind, a bit each.
    by_kind: [u64; 64],
    stats: Stats,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self::new()
    }
}

impl Pipeline {
    #[must_use]
    pub fn new() -> Self {
        let detectors: Vec<Box<dyn Detector>> = vec![
            Box::<StaticPod>::default(),
            Box::<Around>::default(),
            Box::<Blocked>::default(),
            Box::<ImageArrivals>::default(),
            Box::<Pause>::default(),
            Box::<Impair>::default(),
            Box::<ContainerExec>::default(),
            Box::<SupplyChain>::default(),
            Box::<Operator>::default(),
            Box::<Tamper>::default(),
            Box::<ServiceAccount>::default(),
            Box::<EtcdClient>::default(),
            Box::<WebhookAddress>::default(),
            Box::<PublicApi>::default(),
            Box::<DeleteEvents>::default(),
            Box::<AuditLogs>::default(),
            Box::<Admission>::default(),
            Box::<Anonymous>::default(),
            Box::<NodeLogs>::default(),
            Box::<TokenUse>::default(),
            Box::<Spawned>::default(),
        ];
        let mut by_kind = [0; 64];
        for (kind, set) in by_kind.iter_mut().enumerate() {
            for (number, detector) in detectors.iter().enumerate() {
                *set |= (detector.kinds() >> kind & 1) << number;
            }
        }
        Self { context: Context::default(), detectors, by_kind, stats: Stats::default() }
    }

    /// Takes the next record of the stream; yields the alerts that it completes.
    pub fn push(&mut self, record: &Record) -> Vec<Alert> {
        let Body::Kernel { raw } = &record.body else { return self.detect(record, None, u64::MAX) };
        match &decode::event(raw) {
            Ok(event) => {
                let kind = usize::from(event.header().kind);
                self.detect(record, Some(event), self.by_kind.get(kind).copied().unwrap_or(0))
            }
            Err(_) => {
                self.stats.undecodable += 1;
                Vec::new()
            }
        }
    }

    /// Has those detectors look at a record whose bits are set.
    fn detect(&mut self, record: &Record, event: Option<&Event>, mut detectors: u64) -> Vec<Alert> {
        self.context.learn(record.time, &record.body, event);
        self.context.connected(record, event);
        let mut alerts = Vec::new();
        while detectors != 0 {
            let number = detectors.trailing_zeros() as usize;
            detectors &= detectors - 1;
            let Some(detector) = self.detectors.get_mut(number) else { break };
            let findings = detector.observe(record, event, &self.context);
            if !findings.is_empty() {
                alerts.extend(findings.into_iter().map(|finding| alert(finding, record, &self.context)));
            }
        }
        alerts
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }
}

fn alert(finding: Finding, record: &Record, context: &Context) -> Alert {
    let (origin, lives_in) = finding.actor.map_or((Origin::Unknown, None), |actor| context.origin(actor));
    let container = finding.container.as_deref().map_or(lives_in, |id| context.containers.get(id));
    let process = finding.actor.and_then(|actor| {
        let sha256 = context.acting.sha256(actor, finding.time).map(str::to_owned);
        Some(Process { sha256, ..context.describe(actor)? })
    });
    Alert {
        time: context.wall(finding.time),
        node: context.start.node.clone(),
        severity: finding.severity,
        technique: finding.technique.clone(),
        title: finding.title,
        blocked: finding.blocked,
        reasons: finding.reasons,
        origin,
        process,
        container: container.map(Container::shown),
        pod: container.and_then(Container::pod),
        file: finding.file,
        manifest: finding.manifest,
        request: request(record).filter(|_| finding.evidence.iter().any(|part| part.sequence == record.seq)),
        evidence: finding.evidence,
        trace: TraceRef { sequence: record.seq },
        count: 1,
        first_time: None,
        last_time: None,
    }
}

/// The request that a record is about.
fn request(record: &Record) -> Option<Request> {
    let Body::Audit(event) = &record.body else { return None };
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let object = event.object.as_ref();
    Some(Request {
        user: event.user.clone(),
        groups: event.groups.clone(),
        impersonated_user: event.impersonated.clone(),
        source_ips: event.sources.iter().map(ToString::to_string).collect(),
        user_agent: event.agent.clone(),
        verb: event.verb.clone(),
        uri: event.uri.clone(),
        resource: object.map(ToString::to_string),
        namespace: object.and_then(|object| some(&object.namespace)),
        name: object.and_then(|object| some(&object.name)),
        code: event.code,
        audit_id: event.id.clone(),
        time: event.received.clone(),
        pod: event.pod.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{ChangeKind, ExecutedFile, ProcessKey},
        sink,
        testing::{self, Actor, DIR, FILE, POD, Stream, manifest},
    };

    #[test]
    fn the_same_records_give_the_same_bytes_also_after_they_were_written_and_read() {
        let mut stream = Stream::new();
        let actor = Actor::host(60, 90);
        stream.kernel(testing::fork(Actor::host(50, 10), actor));
        let since = stream.now();
        stream.kernel(testing::open(actor, FILE, DIR, "/manifests/web.yaml"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        let lines =
            |stream: &Stream| -> String { stream.alerts().iter().map(|alert| sink::json(alert).unwrap()).collect() };
        let first = lines(&stream);
        assert!(!first.is_empty());
        assert_eq!(lines(&stream), first);
        let text: Vec<_> = stream.records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
        stream.records = text.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines(&stream), first);
    }

    #[test]
    fn an_alert_has_the_digest_of_what_acted_unless_that_executed_something_since() {
        let (shell, actor) = (Actor::host(50, 10), Actor::host(60, 90));
        let sha256 = |executes: bool| {
            let mut stream = Stream::new();
            stream.kernel(testing::exec(actor, shell, "/usr/bin/kubeadm", &["kubeadm"]));
            let since = stream.now();
            stream.kernel(testing::open(actor, FILE, DIR, "/manifests/web.yaml"));
            stream.push(Body::Executed(Box::new(ExecutedFile {
                process: ProcessKey::from_ns(actor.pid, actor.start * testing::SECOND),
                sha256: Some("cd".repeat(32)),
                size: 1,
                unreadable: None,
                acted: Some(stream.now()),
            })));
            if executes {
                stream.kernel(testing::exec(actor, shell, "/usr/bin/other", &["other"]));
            }
            stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
            let alert = stream.alerts().remove(0);
            alert.process.unwrap().sha256
        };
        assert_eq!(sha256(false), Some("cd".repeat(32)));
        assert_eq!(sha256(true), None);
    }

    /// Every detector but those named here: without it some golden trace tells less, or something else.
    #[test]
    fn every_detector_is_needed_for_a_golden_trace() {
        use crate::trace::{Item, Reader};
        // No small trace has losses; of the other none is recorded yet.
        const IMPAIR: usize = 5;
        const SPAWNED: usize = 20;
        /// In the place of one that is taken out: the others keep theirs.
        struct Nothing;
        impl Detector for Nothing {
            fn observe(&mut self, _: &Record, _: Option<&Event>, _: &Context) -> Vec<Finding> {
                Vec::new()
            }
        }
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/techniques");
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let traces: Vec<Vec<Record>> = files
            .filter(|path| path.extension().is_some_and(|is| is == "trace"))
            .map(|path| {
                let reader = Reader::new(std::fs::File::open(path).unwrap()).unwrap();
                let items = reader.map(|item| match item.unwrap() {
                    Item::Record(record) => record,
                    other => panic!("{other:?}"),
                });
                items.collect()
            })
            .collect();
        let told = |trace: &Vec<Record>, without: Option<usize>| -> Vec<Alert> {
            let mut pipeline = Pipeline::new();
            if let Some(at) = without {
                pipeline.detectors[at] = Box::new(Nothing);
            }
            trace.iter().flat_map(|record| pipeline.push(record)).collect()
        };
        let all: Vec<_> = traces.iter().map(|trace| told(trace, None)).collect();
        let idle = (0..Pipeline::new().detectors.len())
            .filter(|at| traces.iter().zip(&all).all(|(trace, all)| told(trace, Some(*at)) == *all));
        assert_eq!(idle.collect::<Vec<_>>(), [IMPAIR, SPAWNED]);
    }

    #[test]
    fn a_record_that_cannot_be_decoded_is_counted_and_the_stream_goes_on() {
        let mut stream = Stream::new();
        stream.kernel(bytes::Bytes::from_static(b"\x01\x00nonsense"));
        let since = stream.now();
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        let mut pipeline = Pipeline::new();
        let alerts: usize = stream.records.iter().map(|record| pipeline.push(record).len()).sum();
        assert_eq!(pipeline.stats().undecodable, 1);
        assert_eq!(alerts, 1);
    }
}
