//! What the OTLP sink sends, read with OpenTelemetry's own types, and what it makes of each answer that the specification has.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value as Any},
};
use serde_json::Value;

use crate::{
    assert_whole,
    receivers::{Http, wait_for},
    send, start,
};

/// The titles of a request's records, in order.
fn titles(body: &Value) -> Vec<String> {
    let request: ExportLogsServiceRequest = serde_json::from_value(body.clone()).unwrap();
    let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
    let title = |body: &Option<AnyValue>| match body {
        Some(AnyValue { value: Some(Any::StringValue(title)), .. }) => title.clone(),
        other => panic!("{other:?}"),
    };
    scopes.flat_map(|scope| &scope.log_records).map(|record| title(&record.body)).collect()
}

fn alerts(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| format!("alert {number}")).collect()
}

#[test]
fn a_collector_gets_requests_of_many_records_at_the_path_of_logs() {
    let server = Http::start(0);
    let mut sinks = start(&[&format!("otlp+http://127.0.0.1:{}", server.port)], None);
    send(&mut sinks, 0..1000);
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    assert_eq!((states[0].delivered, states[0].dropped), (1000, 0));
    let requests = server.requests();
    assert!(requests.len() < 1000, "{} requests", requests.len());
    assert!(requests.iter().all(|request| request.path == "/v1/logs"));
    assert!(requests.iter().all(|request| request.headers["content-type"] == "application/json"));
    assert_eq!(requests.iter().flat_map(|request| titles(&request.body)).collect::<Vec<_>>(), alerts(0..1000));
}

#[test]
fn a_collector_that_is_busy_is_asked_again_when_it_says_and_not_before() {
    let server = Http::start(0);
    // Without it the sink would try again after half a second, and a second.
    server.answers(&[(429, Some("2"), ""), (503, Some("3"), r#"{"code":14,"message":"overloaded"}"#)]);
    let mut sinks = start(&[&format!("otlp+http://127.0.0.1:{}", server.port)], None);
    send(&mut sinks, 0..3);
    wait_for("delivery", || sinks.states()[0].waiting == 0);
    let states = sinks.finish().unwrap();
    assert_eq!((states[0].delivered, states[0].dropped), (3, 0));
    let (busy, taken) = (server.answered(), server.requests());
    assert!(busy[1].when.duration_since(busy[0].when) >= Duration::from_secs(2));
    assert!(taken[0].when.duration_since(busy[1].when) >= Duration::from_secs(3));
    assert_eq!(taken.iter().flat_map(|request| titles(&request.body)).collect::<Vec<_>>(), alerts(0..3));
}

#[test]
fn records_that_a_collector_rejects_are_dropped_and_the_rest_is_delivered() {
    let server = Http::start(0);
    server.answers(&[
        (200, None, r#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"too old"}}"#),
        // A warning and nothing more.
        (200, None, r#"{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":"use gRPC"}}"#),
        (200, None, r#"{"partialSuccess":{}}"#),
    ]);
    let mut sinks = start(&[&format!("otlp+http://127.0.0.1:{}", server.port)], None);
    for number in 0..3 {
        send(&mut sinks, number..number + 1);
        wait_for("an answer", || sinks.states()[0].waiting == 0);
    }
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    assert_eq!((states[0].delivered, states[0].dropped), (2, 1));
    assert_eq!(server.answered().iter().flat_map(|request| titles(&request.body)).collect::<Vec<_>>(), alerts(0..3));
}

#[test]
fn a_record_that_is_bad_is_not_sent_again_and_costs_no_other() {
    let server = Http::start(0);
    server.fail(0, Some(7));
    let mut sinks = start(&[&format!("otlp+http://127.0.0.1:{}", server.port)], None);
    send(&mut sinks, 0..20);
    wait_for("delivery", || sinks.states()[0].waiting == 0);
    let states = sinks.finish().unwrap();
    assert_whole(&states[0]);
    assert_eq!((states[0].delivered, states[0].dropped), (19, 1));
    let taken: Vec<_> = server.requests().iter().flat_map(|request| titles(&request.body)).collect();
    assert_eq!(taken, [alerts(0..7), alerts(8..20)].concat());
}
