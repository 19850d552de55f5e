//! What must hold of any bytes in an audit log.

use std::{fs::File, io::Write as _};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    file::{LINE_MAX, Open, Read},
    line,
};
use crate::record::{AUDIT_LIST_MAX, AuditEvent, TEXT_MAX};

/// A log: its lines are events or errors, and it is read to the same lines in pieces of any length, also by an agent that comes after.
pub fn audit(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        for whole in [true, false] {
            match line::event(line, whole) {
                Ok(Some(event)) => bounded(&event),
                Ok(None) => {}
                Err(why) => assert!(!why.is_empty() && why.chars().count() < 300, "{why}"),
            }
        }
    }
    let mut file = File::from(memfd_create("audit", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("memory takes everything");
    let again = || file.try_clone().expect("a descriptor");
    let open = || Open::at_start(again()).expect("a file in memory");
    let whole = lines(&mut open(), usize::MAX);
    let ends: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).collect();
    let expected = ends.iter().map(|line| line[..(line.len() - 1).min(LINE_MAX)].to_vec());
    assert_eq!(whole, expected.collect::<Vec<_>>());
    let mut first = open();
    let mut read = lines(&mut first, bytes.len() / 2 + 1);
    let second = Open::resume(again(), &first.position()).expect("a file in memory");
    read.extend(lines(&mut second.expect("it is the same file"), usize::MAX));
    assert_eq!(read, whole, "an agent that comes after reads something else");
}

/// At most `budget` bytes, a few at a time.
fn lines(open: &mut Open, budget: usize) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut left = budget;
    while left > 0 {
        let mut some = left.min(if budget == usize::MAX { budget } else { 61 });
        left -= some;
        match open.read(&mut some, |line| lines.push(line.bytes.to_vec())).expect("a file in memory") {
            Read::All => break,
            Read::More => {}
            Read::Rewritten { .. } => panic!("nobody wrote"),
        }
    }
    lines
}

fn bounded(event: &AuditEvent) {
    let AuditEvent { id, stage, verb, uri, user, uid, agent, received, groups, sources, webhooks, .. } = event;
    assert!([id, stage, verb, uri, user, uid, agent, received].iter().all(|text| text.len() <= TEXT_MAX));
    assert!(groups.len() <= AUDIT_LIST_MAX && sources.len() <= AUDIT_LIST_MAX);
    assert!(webhooks.iter().flatten().count() <= AUDIT_LIST_MAX);
    let json = serde_json::to_string(event).expect("events are JSON");
    let read: AuditEvent = serde_json::from_str(&json).expect("it was written just now");
    assert_eq!(&read, event);
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let event = |verb: &str, rest: &str| {
        format!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"5f","stage":"ResponseComplete","requestURI":"/x","verb":"{verb}","user":{{"username":"alice","groups":["system:authenticated"]}},"sourceIPs":["10.0.0.9"],"userAgent":"kubectl","objectRef":{{"resource":"mutatingwebhookconfigurations","name":"w"}},"responseStatus":{{"code":201}}{rest}}}"#
        )
    };
    let object = r#"{"webhooks":[{"name":"a.b","clientConfig":{"url":"https://x/"},"rules":[{"operations":["*"],"resources":["secrets"]}],"namespaceSelector":{}}]}"#;
    vec![
        ("delete", format!("{}\n{}\n", event("delete", ""), event("deletecollection", "")).into_bytes()),
        (
            "object",
            format!("{}\n", event("create", &format!(r#","requestObject":{object},"responseObject":{object}"#)))
                .into_bytes(),
        ),
        (
            "patch",
            format!(
                "{}\nnone\n{{",
                event(
                    "patch",
                    r#","requestObject":[{"op":"replace","path":"/webhooks/0/clientConfig/url","value":"https://x/"}]"#
                )
            )
            .into_bytes(),
        ),
        ("empty", b"\n\n\0\0{}\n".to_vec()),
    ]
}
