//! What is done to the control plane, and what its audit log tells.

use std::{fs, thread, time::Duration};

use serde_json::{Value, json};

use super::{
    node::{Asker, NODE, STRANGER, WEBHOOK},
    stage::{Stage, Who, title},
};

/// How often the kernel tells the same connection again, and a little more.
const AGAIN: Duration = Duration::from_millis(1200);

const ALICE: Asker = Asker {
    user: "alice",
    groups: &["dev", "system:authenticated"],
    from: "10.0.0.9",
    agent: "kubectl/v1.20.2 (linux/amd64) kubernetes/faecb19",
};
const BOB: Asker = Asker { user: "bob", ..ALICE };
const CONTROLLER: Asker = Asker {
    user: "system:serviceaccount:kube-system:namespace-controller",
    groups: &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
    from: "127.0.0.1",
    agent: "kube-controller-manager/v1.20.2 (linux/amd64) kubernetes/faecb19",
};
const NOBODY: Asker =
    Asker { user: "system:anonymous", groups: &["system:unauthenticated"], from: STRANGER, agent: "curl/7.88.1" };

fn asked(user: &'static str) -> impl Fn(&Value) -> bool {
    move |alert| alert["request"]["user"] == user
}

fn events_of(namespace: &str) -> (String, Option<Value>) {
    let object = json!({"resource": "events", "namespace": namespace, "apiVersion": "v1"});
    (format!("/api/v1/namespaces/{namespace}/events"), Some(object))
}

/// etcd asked past the API server, events deleted, the audit log emptied; and who asks etcd by right, events that go with their namespace,
/// the log rotated.
pub fn delete_events(stage: &mut Stage) -> anyhow::Result<()> {
    let plane = stage.plane()?;
    let (server, etcd) = (plane.server.pid(), plane.etcd.pid());
    for address in ["127.0.0.1:2379".to_owned(), "[::1]:2379".to_owned(), format!("{NODE}:2379")] {
        let plane = stage.plane()?;
        plane.server.does(&format!("connect {address}"))?;
        plane.etcd.does(&format!("connect {address}"))?;
        let pid = plane.reach(&["connect", &address])?;
        stage.told(&format!("a client of etcd at {address}"), Who::Pid(pid), |alert| title(alert).contains(&address));
    }
    let metrics = stage.plane()?.reach(&["connect", "127.0.0.1:2381"])?;
    stage.twin_by("etcd's metrics", metrics);
    stage.twin_by("the API server asks etcd", server);
    stage.twin_by("etcd asks itself", etcd);

    let log = &mut stage.plane()?.log;
    let (uri, events) = events_of("old");
    log.request(ALICE, "list", &uri, events.clone(), &json!({}))?;
    let namespace = json!({"resource": "namespaces", "namespace": "old", "name": "old", "apiVersion": "v1"});
    log.request(ALICE, "delete", "/api/v1/namespaces/old", Some(namespace), &json!({}))?;
    log.request(CONTROLLER, "deletecollection", &uri, events, &json!({}))?;
    let (uri, events) = events_of("shop");
    log.request(ALICE, "deletecollection", &uri, events.clone(), &json!({}))?;
    stage.told("events deleted", Who::Request, asked("alice"));
    stage.twin("events that go with their namespace", asked(CONTROLLER.user));
    stage.twin("events listed, and a namespace deleted", asked("alice"));

    let log = &mut stage.plane()?.log;
    log.rotate()?;
    log.request(BOB, "deletecollection", &uri, events, &json!({}))?;
    stage.told("events deleted, in a log that was rotated", Who::Request, asked("bob"));
    stage.twin("the log rotated", |alert| title(alert).starts_with("Audit log"));
    stage.act("truncate", &stage.dir, "audit.log", "")?;
    // Where no hook sees `truncate(2)`, whoever has the log open is the one that is known.
    stage.told("the log emptied", Who::Anybody, |alert| title(alert).starts_with("Audit log emptied"));
    Ok(())
}

const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// The API server sends objects where it never did, as a webhook that is configured says; and does so again, and configurations that are
/// listed or say the same.
pub fn admission(stage: &mut Stage) -> anyhow::Result<()> {
    let address = format!("{WEBHOOK}:443");
    let plane = stage.plane()?;
    let other = plane.reach(&["connect", &address])?;
    plane.server.does("connect 127.0.0.1:10250")?;
    plane.server.does(&format!("connect {address}"))?;
    let server = plane.server.pid();
    stage.told("the API server connects to it", Who::Pid(server), |alert| title(alert).contains(&address));
    thread::sleep(AGAIN);
    stage.plane()?.server.does(&format!("connect {address}"))?;
    stage.twin_by("it connects there again, and to a kubelet", server);
    stage.twin_by("another connects there", other);

    let configurations = json!({
        "resource": "mutatingwebhookconfigurations", "name": "injector", "apiGroup": "admissionregistration.k8s.io", "apiVersion": "v1",
    });
    let object = json!({
        "kind": "MutatingWebhookConfiguration",
        "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": "injector"},
        "webhooks": [{
            "name": "inject.sidecar.example",
            "clientConfig": {"url": format!("https://{WEBHOOK}/inject")},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods", "secrets"]}],
            "failurePolicy": "Ignore",
        }],
    });
    let made = json!({
        "level": "RequestResponse", "requestObject": object, "responseObject": object,
        "responseStatus": {"metadata": {}, "code": 201},
    });
    let changed = json!({"level": "RequestResponse", "requestObject": object, "responseObject": object});
    let log = &mut stage.plane()?.log;
    log.request(BOB, "list", WEBHOOKS, Some(configurations.clone()), &json!({}))?;
    log.request(ALICE, "create", WEBHOOKS, Some(configurations.clone()), &made)?;
    stage.told("a webhook configured", Who::Request, asked("alice"));
    let log = &mut stage.plane()?.log;
    log.request(BOB, "update", &format!("{WEBHOOKS}/injector"), Some(configurations), &changed)?;
    stage.twin("listed, and written again as it was", asked("bob"));
    Ok(())
}

/// The API server reached and asked from outside; and from the node, and about its health.
pub fn public_api(stage: &mut Stage) -> anyhow::Result<()> {
    let plane = stage.plane()?;
    let (server, at) = (plane.server.pid(), format!("{NODE}:6443"));
    plane.reach(&["from", &format!("{NODE}:0"), &at])?;
    plane.reach(&["from", &format!("{STRANGER}:0"), &at])?;
    stage.told("a connection from outside", Who::Pid(server), |alert| title(alert).ends_with("198.51.100.0/24"));
    stage.twin_by("a connection from the node, and another one", server);
    let stranger = stage.plane()?.reach(&["from", &format!("{STRANGER}:0"), &at])?;

    let within = Asker { from: "10.0.0.1", agent: "kube-probe/1.20", ..NOBODY };
    let log = &mut stage.plane()?.log;
    log.request(within, "get", "/livez", None, &json!({}))?;
    log.request(ALICE, "get", "/version", None, &json!({}))?;
    log.request(NOBODY, "get", "/version", None, &json!({}))?;
    // Over that connection, as far as anybody can tell.
    stage.told("the version asked for without authentication", Who::Perhaps(stranger), |alert| {
        alert["request"]["source_ips"][0] == STRANGER
    });
    stage.twin("health asked for within", |alert| alert["request"]["source_ips"][0] == "10.0.0.1");
    stage.twin("the version asked for by a user", asked("alice"));
    Ok(())
}

/// A pod's token and the node's credentials read, and used; and read by whose they are.
pub fn service_account(stage: &mut Stage) -> anyhow::Result<()> {
    let plane = stage.plane()?;
    let token = plane.token();
    let (certificate, config) =
        (plane.volume.join("ca.crt").display().to_string(), plane.kubeconfig.display().to_string());
    plane.kubelet.does(&format!("read {token}"))?;
    plane.kubelet.does("connect 127.0.0.1:6443")?;
    let kubelet = plane.kubelet.pid();
    let certificate = plane.reach(&["read", &certificate])?;
    let administrator = plane.reach(&["both", &config, "127.0.0.1:6443"])?;
    let connects = plane.reach(&["connect", "127.0.0.1:6443"])?;
    for (name, pid) in [
        ("kubelet reads the token and connects", kubelet),
        ("the certificate read", certificate),
        ("the node's kubeconfig read and used", administrator),
        ("a connection by who read nothing", connects),
    ] {
        stage.twin_by(name, pid);
    }
    // By its name once a container of it was seen.
    let reads =
        |alert: &Value| title(alert).starts_with("Service account token of pod ") && title(alert).contains(" read by ");
    for way in ["read", "readwrite", "openat2"] {
        let pid = stage.plane()?.reach(&[way, &token])?;
        stage.told(&format!("the token: {way}"), Who::Pid(pid), reads);
    }
    stage.plane()?.rotate_token("two")?;
    let pid = stage.plane()?.reach(&["both", &token, "127.0.0.1:6443"])?;
    stage.told("the token after it was swapped", Who::Pid(pid), |alert| {
        reads(alert) && alert["file"]["path"].as_str().is_some_and(|path| path.ends_with("/..two/token"))
    });
    stage.told("the token used", Who::Pid(pid), |alert| title(alert).contains(" connected to the API server"));
    // Where anybody may write.
    let dropped = std::path::Path::new("/tmp").join(format!("dropped-{}", std::process::id()));
    fs::copy(&stage.reach, &dropped)?;
    let pid = stage.plane()?.runs(&dropped, &["read", &config]);
    fs::remove_file(&dropped)?;
    stage.told("a kubeconfig read by a dropped program", Who::Pid(pid?), |alert| {
        title(alert).starts_with("Kubeconfig ")
    });
    Ok(())
}

/// A pod's token used by a program of the node; and by a stranger, whom nobody here knows, and a request by that program without it.
pub fn token_use(stage: &mut Stage) -> anyhow::Result<()> {
    const WEB: Asker = Asker {
        user: "system:serviceaccount:shop:web",
        groups: &["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
        from: NODE,
        agent: "kubectl/v1.20.2 (linux/amd64) kubernetes/faecb19",
    };
    let dir = stage.dir.clone();
    let mut thief = stage.plane()?.other(&dir, "kubectl")?;
    thief.does(&format!("connect {NODE}:6443"))?;
    let bound = |who: Asker| {
        let extra = json!({
            "authentication.kubernetes.io/pod-name": ["web-1"],
            "authentication.kubernetes.io/pod-uid": ["0a1b2c3d-0000-4000-8000-000000000001"],
        });
        json!({"user": {"username": who.user, "groups": who.groups, "extra": extra}})
    };
    let secrets = json!({"resource": "secrets", "namespace": "shop", "apiVersion": "v1"});
    let uri = "/api/v1/namespaces/shop/secrets";
    let log = &mut stage.plane()?.log;
    log.request(Asker { from: NODE, ..ALICE }, "list", uri, Some(secrets.clone()), &json!({}))?;
    log.request(Asker { from: ALICE.from, ..WEB }, "list", uri, Some(secrets.clone()), &bound(WEB))?;
    log.request(WEB, "list", uri, Some(secrets), &bound(WEB))?;
    stage.told("a pod's token used on the node", Who::Pid(thief.pid()), |alert| {
        title(alert).starts_with("Service account token of pod shop/web-1 used by somebody else")
    });
    stage.twin("another's request over the same connection", asked("alice"));
    stage.twin("the token used from elsewhere", |alert| alert["request"]["source_ips"][0] == ALICE.from);
    Ok(())
}
