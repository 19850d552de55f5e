use std::{fs, future::Future, os::unix::fs::symlink, time::Instant};

use serde_json::{Value, json};

use super::*;

/// What a configuration file of this text comes to, as `config check` says it.
fn check(text: &str) -> String {
    match file::interpret("c.yaml", text, |_| {}) {
        Ok(_) => "fine".to_owned(),
        Err(problem) => problem.to_string(),
    }
}

fn with_exception(fields: &str) -> String {
    format!("exceptions:\n- name: one\n  reason: because\n  expires: 2027-01-01T00:00:00Z\n{fields}")
}

#[test]
fn typical_mistakes_are_named_with_their_place_and_what_is_expected() {
    let second = with_exception("  path: /a\n") + "- {name: one, reason: b, expires: 2027-01-01T00:00:00Z, path: /b}\n";
    for (text, says) in [
        ("manifest_dir: [/a]\n", "c.yaml:1:1: unknown key `manifest_dir`; did you mean manifest_dirs?"),
        (
            "record:\n  directory: /a\n",
            "c.yaml:2:3: unknown key `directory`; expected one of dir, size, age, free_percent",
        ),
        ("hooks: lms\n", "c.yaml:1:8: unknown value `lms`; did you mean lsm?"),
        (
            "manifest_dirs: /etc/kubernetes/manifests\n",
            "c.yaml:1:16: another kind of value; expected a list: [a, b], or lines that begin with -",
        ),
        ("cri:\n  ask: maybe\n", "c.yaml:2:8: neither true nor false; expected one of them"),
        ("rate_limit: {alerts: many}\n", "c.yaml:1:22: no number that fits; expected a whole number"),
        ("rate_limit: {alerts: -1}\n", "c.yaml:1:22: no number that fits; expected a whole number"),
        ("grouping:\n  window: 60\n", "c.yaml:2:11: no time; expected a number with a unit, such as 30s, 5m or 24h"),
        ("record: {size: big}\n", "c.yaml:1:16: no size; expected a number with a unit, such as 512MiB"),
        (
            "metrics: {listen: localhost:9469}\n",
            "c.yaml:1:19: no address; expected ADDR:PORT, such as 127.0.0.1:9469 or [::]:9469",
        ),
        (
            "outputs:\n- stdout:jsn\n",
            "c.yaml:2:3: standard output has the formats stdout:pretty, stdout:json, stdout:ocsf and stdout:falco",
        ),
        (
            "pause:\n  digests:\n  - sha256:12\n",
            "c.yaml:3:5: not a digest: sha256: and 64 hex digits, as in `crictl images --digests`",
        ),
        ("hooks: lsm\nhooks: kprobe\n", "c.yaml:2:1: the key `hooks` stands here twice; expected it once"),
        ("manifest_dirs:\n\t- b\n", "c.yaml:2:2: tabs disallowed within this context (block indentation)"),
        (
            "allowed_networks: [10.0.0.0/8, 10.0.0.0/33]\n",
            "c.yaml:1:32: no network; expected an address, or one with the length of its prefix: 10.0.0.0/8, 2001:db8::/32",
        ),
        ("node_name: \"a\n", "c.yaml:1:12: unclosed quote"),
        ("- a\n", "c.yaml:1:1: another kind of value; expected keys with values: KEY: VALUE"),
        ("cri: {}\n---\ncri: {}\n", "c.yaml:3:1: a second document begins; expected one"),
        (
            "exceptions:\n- name: one\n  expires: 2027-01-01T00:00:00Z\n  path: /a\n",
            "c.yaml:4:3: the key `reason` is missing; it is required here",
        ),
        (
            &with_exception("  technique: static-pods\n"),
            "c.yaml:5:14: no technique has that id; there are static-pod, container-exec, malicious-pause-container, supply-chain-compromise, detector-tampering, malicious-operator, container-service-account, delete-kubernetes-events, malicious-admission-controller, public-api-endpoint",
        ),
        (
            &with_exception("  when: alert.proces.exe == 'x'\n"),
            "c.yaml:5:9: an alert has no `alert.proces`; did you mean process?",
        ),
        (
            &with_exception("  path: /a[b\n"),
            "c.yaml:5:9: no pattern: unclosed character class; missing ']'; expected a path in which * stands for anything but a slash, and ** for anything",
        ),
        (
            &with_exception("").replace("2027-01-01T00:00:00Z", "in May"),
            "c.yaml:4:12: no time; expected RFC 3339, such as 2027-01-31T00:00:00Z",
        ),
        // Each value is right, and together they are not.
        (
            &with_exception(""),
            "c.yaml:2:3: exceptions: it would silence everything; expected one or more of technique, namespace, image, digest, binary, path, when",
        ),
        (&second, "c.yaml:6:3: exceptions: another exception has this name; expected one of its own"),
        (
            "node_name: a\ndefault_dirs: false\n",
            "c.yaml:2:15: default_dirs: nothing would be watched; expected true, or manifest_dirs with a directory",
        ),
        (
            "deny:\n  trust: [/bin/a]\n",
            "c.yaml:2:10: deny.trust: programs to trust, and nothing is denied; expected deny.static_pod: true",
        ),
        (
            "cri:\n  ask: false\n  sockets: [/a]\n",
            "c.yaml:3:12: cri.sockets: sockets to ask, and cri.ask is false; expected one or the other",
        ),
        ("record:\n  free_percent: 100\n", "c.yaml:2:17: record.free_percent: more than there is; expected 0 to 99"),
        (
            "outputs: [stdout:json, stdout:pretty]\n",
            "c.yaml:1:24: outputs: standard output twice; expected one of its forms",
        ),
    ] {
        assert_eq!(check(text), says, "{text}");
    }
}

#[test]
fn what_is_fine_is_taken_and_what_is_left_out_has_its_default() {
    for text in ["", "# nothing\n", "{}", "cri: {}\n"] {
        assert_eq!(file::parse("c.yaml", text), Ok(Config::default()), "{text:?}");
    }
    let digest = "ab".repeat(32);
    let text = format!(
        "manifest_dirs: [/a]\ndefault_dirs: false\nnode_name: n\nhooks: kprobe\nwithout_hooks: [mmap]\nbtf: /b\n\
         cri: {{sockets: [/c]}}\naudit: {{logs: [/g], find: false, whole: true, state: /h}}\npod_log_dirs: [/i]\n\
         allowed_networks: [10.0.0.0/8, '::1']\nwebhook_networks: [10.96.0.0/12, '::1']\nadmission_webhooks: ['https://policy.example/**', policy/*]\npause: {{digests: ['sha256:{digest}'], binaries: ['{digest}']}}\n\
         deny: {{static_pod: true, trust: [/d, /e={digest}]}}\n\
         record: {{dir: /f, size: 3MiB, age: 90m, free_percent: 20}}\noutputs: [stdout:json]\n\
         grouping: {{window: 0s}}\nrate_limit: {{alerts: 5, per: 1h 30m}}\nconfine: false\n{}",
        with_exception(
            "  namespace: shop\n  image: a/*\n  when: |\n    alert.title == 'reason: x'\n    && !alert.blocked\n"
        )
    );
    let config = file::interpret("c.yaml", &text, |_| {}).unwrap();
    let options = config.options();
    assert_eq!(options.discovery.explicit, [PathBuf::from("/a")]);
    assert!(!options.discovery.defaults);
    assert_eq!(options.audit.logs, [PathBuf::from("/g")]);
    assert_eq!((options.audit.whole, options.audit.state), (true, Some("/h".into())));
    assert_eq!(options.pod_logs, [PathBuf::from("/i")]);
    assert_eq!(options.cri, Some(vec![PathBuf::from("/c")]));
    assert_eq!(options.deny.unwrap()[1].sha256.as_deref(), Some(digest.as_str()));
    assert_eq!((config.limits().size, config.limits().age.as_secs()), (3 << 20, 90 * 60));
    let rules = config.rules();
    assert_eq!(rules.policy.webhook_networks, ["10.96.0.0/12", "::1"]);
    assert_eq!((rules.group_ns, rules.limit, rules.limit_ns), (0, 5, 5_400_000_000_000));
    assert_eq!(rules.exceptions[0].namespace.as_deref(), Some("shop"));
    // What is shown is the same again.
    let shown = show::render(&config).unwrap();
    assert_eq!(file::parse("c.yaml", &shown), Ok(config), "{shown}");
}

#[test]
fn the_file_that_is_shipped_has_every_key_with_its_default() {
    let shipped = include_str!("../../../deploy/config.yaml");
    assert_eq!(file::parse("config.yaml", shipped), Ok(Config::default()));
    assert_eq!(shipped, show::render(&Config::default()).unwrap(), "detector config show > deploy/config.yaml");
}

#[test]
fn every_key_says_what_it_is_for_and_the_schema_allows_no_other() {
    fn look(name: &str, of: &Value, keys: &mut Vec<String>) {
        let Some(properties) = of.get("properties").and_then(Value::as_object) else { return };
        assert_eq!(of["additionalProperties"], json!(false), "{name}");
        for (key, value) in properties {
            assert!(value["description"].as_str().is_some_and(|text| text.len() > 10), "{name}.{key}");
            keys.push(format!("{name}.{key}"));
        }
    }
    let schema = show::schema();
    let mut keys = Vec::new();
    look("", &schema, &mut keys);
    for (name, of) in schema["$defs"].as_object().unwrap() {
        look(name, of, &mut keys);
    }
    assert!(keys.len() > 30, "{keys:?}");
    let shown = show::render(&Config::default()).unwrap();
    let undescribed = shown.lines().zip(shown.lines().skip(1)).find(|(above, line)| {
        // Entries of a list are described as one.
        let entry = line.starts_with("- ") || above.starts_with("- ");
        line.trim_start().split_once(':').is_some_and(|_| !line.contains('#') && !entry)
            && !above.trim_start().starts_with('#')
    });
    assert_eq!(undescribed, None);
}

#[test]
fn hostile_files_are_refused_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    let load = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let started = Instant::now();
        let loaded = file::load(&path, |_| {}).map(|_| ()).map_err(|problem| problem.to_string());
        // It is bounded work, not a matter of how fast this machine is.
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
        loaded.map_err(|problem| problem.strip_prefix(path.to_str().unwrap()).unwrap_or(&problem).to_owned())
    };
    assert_eq!(
        load(&b"#".repeat(10 << 20)).unwrap_err(),
        ": larger than a configuration may be; expected at most 1 MiB"
    );
    assert_eq!(load(b"node_name: a\nbtf: \xff\n").unwrap_err(), ":2:6: the byte 0xff is no text; expected UTF-8");
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        laughs += &format!("a{n}: &a{n} [{}]\n", format!("*a{}, ", n - 1).repeat(9));
    }
    for text in [
        laughs.replace("a11:", "manifest_dirs:"),
        format!("manifest_dirs: {}", laughs.replace('\n', " ")),
        "[".repeat(1 << 20),
        "a: ".repeat(300_000),
        "- ".repeat(500_000),
        format!("manifest_dirs: [{}]", "x, ".repeat(300_000)),
        format!("{}: 1", "k".repeat(1 << 19)),
        "\0".repeat(1000),
    ] {
        let problem = load(text.as_bytes()).unwrap_err();
        assert!(problem.starts_with(':') && problem.len() < 1000, "{}: {problem}", &text[..20]);
    }
    let thousand: String =
        (0..1000).map(|n| format!("- {{name: n{n}, reason: r, expires: 2027-01-01T00:00:00Z, path: /a}}\n")).collect();
    assert!(
        load(format!("exceptions:\n{thousand}").as_bytes())
            .unwrap_err()
            .contains("1000 exceptions; expected at most 256")
    );
    // What is no file does not make anybody wait.
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [path.as_path(), dir.path()] {
        assert!(file::load(path, |_| {}).unwrap_err().to_string().contains("no regular file"));
    }
    // A name with an escape sequence does not reach the terminal.
    let problem = file::parse("a\x1b[2J", "x: 1\n").unwrap_err().to_string();
    assert!(!problem.contains('\x1b'), "{problem:?}");
    assert!(!check("\"\\e[2J\": 1\n").contains('\x1b'));
}

#[test]
fn what_changes_is_in_force_at_once_or_named_as_waiting_for_a_restart() {
    let default = serde_json::to_value(Config::default()).unwrap();
    let digest = "ab".repeat(32);
    let others = json!({
        "manifest_dirs": ["/a"], "default_dirs": false, "node_name": "n", "hooks": "lsm", "without_hooks": ["mmap"],
        "btf": "/b", "cri": {"ask": false}, "audit": {"find": false}, "pod_log_dirs": ["/i"], "webhook_networks": ["10.0.0.0/8"], "allowed_networks": ["10.0.0.0/8"],
        "admission_webhooks": ["policy/webhook"], "pause": {"binaries": [digest]},
        "images": {"allow": ["registry.example/**"]}, "privileged_workloads": [], "deny": {"static_pod": true},
        "record": {"dir": "/a"}, "outputs": ["stdout:json"], "spool": "/s", "grouping": {"window": "1s"}, "rate_limit": {"alerts": 1},
        "metrics": {"listen": "[::1]:1"},
        "exceptions": [{"name": "a", "reason": "b", "expires": "2027-01-01T00:00:00Z", "path": "/a"}],
        "confine": false,
    });
    let at_once = [
        "webhook_networks",
        "allowed_networks",
        "admission_webhooks",
        "pause",
        "images",
        "privileged_workloads",
        "outputs",
        "grouping",
        "rate_limit",
        "exceptions",
    ];
    for key in default.as_object().unwrap().keys() {
        let mut changed = default.clone();
        changed[key] = others[key].clone();
        let (old, new): (Config, Config) = (Config::default(), serde_json::from_value(changed).unwrap());
        let later = old.needs_restart(&new);
        let now = old.rules() != new.rules() || old.outputs != new.outputs;
        assert_eq!(
            (now, later),
            if at_once.contains(&key.as_str()) { (true, vec![]) } else { (false, vec![key.as_str()]) }
        );
    }
}

#[test]
fn expired_exceptions_are_warned_of() {
    let config = file::parse("c.yaml", &with_exception("  path: /a\n")).unwrap();
    let at = |text: &str| config.expired(text.parse().unwrap());
    assert_eq!(at("2026-12-31T23:59:59Z"), Vec::<String>::new());
    assert_eq!(
        at("2027-01-01T00:00:00Z"),
        ["exception \"one\" expired at 2027-01-01T00:00:00Z and does not apply any more"]
    );
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing came") })
}

/// A watch on a directory as kubelet makes it for a ConfigMap: the file is a symlink through `..data`, which is replaced.
#[test]
fn a_file_is_read_again_when_it_changes_in_any_way_and_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let version = |n: u32, text: &str| {
        let dir = root.path().join(format!("..{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("c.yaml"), text).unwrap();
        let link = root.path().join("..data_tmp");
        symlink(&dir, &link).unwrap();
        fs::rename(&link, root.path().join("..data")).unwrap();
    };
    version(1, "node_name: one\n");
    let path = root.path().join("c.yaml");
    symlink("..data/c.yaml", &path).unwrap();
    let flags = || |config: &mut Config| config.btf = Some("/flag".into());
    let (text, config) = file::load(&path, flags()).unwrap();
    assert_eq!(config.node_name.as_deref(), Some("one"));
    let every = Duration::from_millis(10);
    let mut watch = watch::Watch::every(every, path.clone(), text, Box::new(flags())).unwrap();
    let mut name = || {
        wait(watch.next()).map(|config| {
            assert_eq!(config.btf, Some("/flag".into()), "flags go before the file");
            config.node_name.unwrap_or_default()
        })
    };
    version(2, "node_name: two\n");
    assert_eq!(name(), Ok("two".to_owned()));
    // In place, as an editor does.
    fs::write(&path, "node_name: red\n").unwrap();
    let edited = name();
    // It may have been read between its being emptied and its being written.
    assert_eq!(if edited == Ok(String::new()) { name() } else { edited }, Ok("red".to_owned()));
    version(3, "node_nme: three\n");
    let problem = name().unwrap_err();
    assert_eq!(problem.what, "unknown key `node_nme`; did you mean node_name?");
    // Said once, although it is looked at again and again.
    fs::remove_file(&path).unwrap();
    assert!(name().unwrap_err().what.starts_with("No such file"));
    symlink("..data/c.yaml", &path).unwrap();
    version(4, "node_name: four\n");
    let after: Vec<_> = std::iter::from_fn(|| Some(name())).take_while(|name| name.is_err()).collect();
    assert!(after.len() <= 1, "{after:?}");
    watch.ask();
    assert_eq!(wait(watch.next()).unwrap().node_name.as_deref(), Some("four"), "asked for, though nothing changed");
}
