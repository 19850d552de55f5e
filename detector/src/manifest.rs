//! What a static-pod manifest asks for. Pure: bytes in, facts out.

use serde::Serialize;

use crate::yaml::{self, Malformed, Node};

/// Longest string that is kept, in characters.
pub const MAX_TEXT: usize = 256;

/// Most entries of each list.
pub const MAX_ENTRIES: usize = 64;

/// The facts of a pod manifest that decide how bad it is. All strings are the attacker's: bounded, never interpreted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Manifest {
    pub name: String,
    pub namespace: String,
    /// One per container (init and ephemeral ones too), in the manifest's order.
    pub images: Vec<String>,
    /// Names of privileged containers.
    pub privileged: Vec<String>,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub host_paths: Vec<String>,
    /// Capabilities added, without duplicates.
    pub capabilities: Vec<String>,
    /// Commands that kubelet runs in the containers by itself.
    #[serde(skip)]
    pub execs: Vec<Exec>,
}

/// A command that kubelet runs in a container: an exec probe or a life-cycle hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub container: String,
    /// `liveness probe`, `life-cycle hook`, ...
    pub kind: &'static str,
    /// Without those arguments that are no text, for which kubelet rejects the pod.
    pub command: Vec<String>,
}

/// What a file in the manifest directory is to kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Nothing but white space and comments.
    Empty,
    /// A pod. Exactly one today: kubelet takes lists of pods from URLs, not from files.
    Pods(Vec<Manifest>),
    /// Valid YAML or JSON that kubelet will not run: `kind` is what it says it is, empty when it says nothing.
    NotAPod { kind: String, why: String },
    /// Neither YAML nor JSON.
    Invalid { message: String, line: Option<usize>, column: Option<usize> },
}

impl Parsed {
    /// Whether a writer may still be at work: what is there so far is empty, broken, or the beginning of a pod.
    #[must_use]
    pub fn looks_unfinished(&self) -> bool {
        match self {
            Self::Empty | Self::Invalid { .. } => true,
            Self::NotAPod { kind, .. } => kind.is_empty() || kind == "Pod",
            Self::Pods(_) => false,
        }
    }
}

/// Reads a manifest file as kubelet does (`tryDecodeSinglePod` in its `pkg/kubelet/config/common.go`): YAML or JSON, the
/// first document only, unknown fields ignored. Any bytes are fine.
///
/// It is more tolerant than kubelet with fields that do not matter here: a pod with one that kubelet would refuse is
/// still reported as a pod.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let document = match yaml::first_document(bytes) {
        Ok(None | Some(Node::Null)) => return Parsed::Empty,
        Ok(Some(document)) => document,
        Err(Malformed { message, line, column }) => return Parsed::Invalid { message, line, column },
    };
    let kind = bounded(document.get("kind").text().unwrap_or_default());
    match pod(&document, &kind) {
        Ok(manifest) => Parsed::Pods(vec![manifest]),
        Err(why) => Parsed::NotAPod { kind, why: why.to_owned() },
    }
}

fn pod(document: &Node, kind: &str) -> Result<Manifest, &'static str> {
    let version = document.get("apiVersion").text();
    match kind {
        "Pod" if version == Some("v1") => {}
        "Pod" => return Err("its apiVersion is not v1"),
        "PodList" | "List" => return Err("kubelet takes lists of pods from URLs only"),
        "" if matches!(document, Node::Map(_)) => return Err("it has no kind"),
        "" => return Err("it is not a mapping"),
        _ => return Err("kubelet runs pods only"),
    }
    let metadata = document.get("metadata");
    let spec = document.get("spec");
    let name = metadata.get("name").text().filter(|name| !name.is_empty()).ok_or("it has no name")?;
    if spec.get("containers").items().is_empty() {
        return Err("it has no containers");
    }
    let namespace = metadata.get("namespace").text().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let mut manifest = Manifest {
        name: bounded(name),
        namespace: bounded(namespace),
        host_network: spec.get("hostNetwork").is_true(),
        host_pid: spec.get("hostPID").is_true(),
        host_ipc: spec.get("hostIPC").is_true(),
        ..Manifest::default()
    };
    for container in containers(spec) {
        add_container(&mut manifest, container);
        add_execs(&mut manifest, container);
    }
    for volume in spec.get("volumes").items() {
        if let Some(path) = volume.get("hostPath").get("path").text() {
            push(&mut manifest.host_paths, path);
        }
    }
    Ok(manifest)
}

/// The containers of all three lists, the lists in the manifest's order.
fn containers(spec: &Node) -> impl Iterator<Item = &Node> {
    const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
    let entries: &[(String, Node)] = match spec {
        Node::Map(entries) => entries,
        _ => &[],
    };
    entries
        .iter()
        // Of a list that is there twice, `get` finds the one that counts.
        .filter(|(key, list)| LISTS.contains(&key.as_str()) && std::ptr::eq(spec.get(key), list))
        .flat_map(|(_, list)| list.items())
}

fn add_container(manifest: &mut Manifest, container: &Node) {
    push(&mut manifest.images, container.get("image").text().unwrap_or_default());
    let security = container.get("securityContext");
    if security.get("privileged").is_true() {
        push(&mut manifest.privileged, container.get("name").text().unwrap_or_default());
    }
    for capability in security.get("capabilities").get("add").items() {
        if let Some(capability) = capability.text()
            && !manifest.capabilities.contains(&bounded(capability))
        {
            push(&mut manifest.capabilities, capability);
        }
    }
}

/// Where a container's specification has kubelet execute something.
const EXECS: [(&str, &[&str]); 5] = [
    ("liveness probe", &["livenessProbe"]),
    ("readiness probe", &["readinessProbe"]),
    ("startup probe", &["startupProbe"]),
    ("life-cycle hook", &["lifecycle", "postStart"]),
    ("life-cycle hook", &["lifecycle", "preStop"]),
];

fn add_execs(manifest: &mut Manifest, container: &Node) {
    for (kind, path) in EXECS {
        let at = path.iter().fold(container, |node, key| node.get(key));
        let command: Vec<_> = at
            .get("exec")
            .get("command")
            .items()
            .iter()
            .filter_map(Node::text)
            .take(MAX_ENTRIES)
            .map(bounded)
            .collect();
        if !command.is_empty() && manifest.execs.len() < MAX_ENTRIES {
            let container = bounded(container.get("name").text().unwrap_or_default());
            manifest.execs.push(Exec { container, kind, command });
        }
    }
}

fn push(list: &mut Vec<String>, text: &str) {
    if list.len() < MAX_ENTRIES {
        list.push(bounded(text));
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Noise;

    fn pod(text: &str) -> Manifest {
        match parse(text.as_bytes()) {
            Parsed::Pods(mut pods) if pods.len() == 1 => pods.remove(0),
            other => panic!("{other:?} of {text}"),
        }
    }

    fn with_spec(spec: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n{spec}\n")
    }

    #[test]
    fn everything_that_decides_how_bad_it_is() {
        let manifest = pod(&with_spec(
            "  hostPID: true
  hostIPC: true
  hostNetwork: true
  initContainers:
  - name: first
    image: one
    securityContext: {privileged: true, capabilities: {add: [SYS_ADMIN, NET_ADMIN]}}
  containers:
  - name: second
    image: two
    securityContext: {privileged: false, capabilities: {add: [SYS_ADMIN]}}
  volumes:
  - {name: a, hostPath: {path: /}}
  - {name: b, emptyDir: {}}",
        ));
        assert_eq!(manifest.namespace, "default");
        assert_eq!(manifest.images, ["one", "two"]);
        assert_eq!(manifest.privileged, ["first"]);
        assert!(manifest.host_pid && manifest.host_ipc && manifest.host_network);
        assert_eq!(manifest.host_paths, ["/"]);
        assert_eq!(manifest.capabilities, ["SYS_ADMIN", "NET_ADMIN"]);
    }

    #[test]
    fn json_anchors_and_merge_keys_are_read_as_kubelet_reads_them() {
        let json = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"web\"},\n\t\"spec\": {\"containers\": [{\"image\": \"x\"}]}\n}";
        assert_eq!(pod(json).images, ["x"]);
        let anchors = with_spec(
            "  containers:\n  - &a\n    image: x\n    securityContext: {privileged: true}\n  - <<: *a\n    name: b",
        );
        assert_eq!(pod(&anchors).privileged, ["", "b"]);
        // Only the first document counts, and of equal keys the last.
        let two = with_spec("  containers: [{image: x}]\n  hostPID: true\n  hostPID: false\n---\nkind: Secret");
        assert!(!pod(&two).host_pid);
    }

    #[test]
    fn what_kubelet_will_not_run_says_why() {
        let cases = [
            ("apiVersion: apps/v1\nkind: Deployment", "Deployment", "kubelet runs pods only"),
            ("apiVersion: v2\nkind: Pod", "Pod", "its apiVersion is not v1"),
            ("apiVersion: v1\nkind: Pod", "Pod", "it has no name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}", "Pod", "it has no containers"),
            ("apiVersion: v1\nkind: PodList", "PodList", "kubelet takes lists of pods from URLs only"),
            ("[1, 2]", "", "it is not a mapping"),
            ("just text", "", "it is not a mapping"),
            ("a: b", "", "it has no kind"),
        ];
        for (text, kind, why) in cases {
            let expected = Parsed::NotAPod { kind: kind.to_owned(), why: why.to_owned() };
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
        for text in ["", "  \n\n", "# a comment\n", "---\n", "null"] {
            assert_eq!(parse(text.as_bytes()), Parsed::Empty, "{text:?}");
        }
    }

    #[test]
    fn what_does_not_parse_says_where() {
        for (bytes, line) in [
            (&b"a: b\nc: [1, 2\nd: e\n"[..], 3),
            (b"a: b\n\x00\x01\x02", 2),
            (b"a: b\nb: c\n\xff\xfe", 3),
            (b"\x7fELF\x02\x01\x01\x00", 1),
        ] {
            match parse(bytes) {
                Parsed::Invalid { line: Some(found), .. } => assert_eq!(found, line, "{bytes:?}"),
                other => panic!("{other:?} of {bytes:?}"),
            }
        }
    }

    #[test]
    fn bombs_are_refused_and_never_expanded() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let last = n - 1;
            laughs += &format!("a{n}: &a{n} [*a{last}, *a{last}, *a{last}, *a{last}, *a{last}, *a{last}, *a{last}]\n");
        }
        let deep = "[".repeat(100_000);
        let nested = format!("{}x", "a:\n".repeat(50_000));
        let many = "- x\n".repeat(300_000);
        let json = format!("[{}0]", "0,\t".repeat(300_000));
        for text in [laughs, deep, nested, many, json] {
            assert!(matches!(parse(text.as_bytes()), Parsed::Invalid { .. }), "{}", &text[..40]);
        }
    }

    #[test]
    fn strings_and_lists_are_bounded() {
        let long = "x".repeat(10_000);
        let containers: String = (0..1000).map(|n| format!("  - {{name: c{n}, image: \"{long}\"}}\n")).collect();
        let manifest = pod(&with_spec(&format!("  containers:\n{containers}")));
        assert_eq!(manifest.images.len(), MAX_ENTRIES);
        assert_eq!(manifest.images[0].len(), MAX_TEXT);
    }

    #[test]
    fn any_bytes_are_read_to_an_answer() {
        let mut noise = Noise(7);
        let text = with_spec("  containers:\n  - {name: a, image: b}\n  volumes:\n  - &v {hostPath: {path: /}}");
        for _ in 0..3_000 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..1 + noise.next() % 6 {
                let at = usize::try_from(noise.next()).unwrap() % bytes.len();
                bytes[at] = noise.next().to_le_bytes()[0];
            }
            let _ = parse(&bytes);
        }
    }
}
