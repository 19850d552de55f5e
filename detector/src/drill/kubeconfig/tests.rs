use std::{fs, process::Command};

use super::*;

/// A directory with an authority, a client's certificate and key, another key, and a token.
fn credentials() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &str| {
        let made = Command::new("openssl").args(args.split(' ')).current_dir(dir.path()).output().unwrap();
        assert!(made.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&made.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "client", "other"] {
        openssl(&format!("{new} -keyout {name}.key -out {name}.crt -subj /CN={name}"));
    }
    fs::write(dir.path().join("token"), "from-file\n").unwrap();
    dir
}

const CONFIG: &str = "apiVersion: v1
kind: Config
current-context: c
contexts:
- {name: c, context: {cluster: k, user: u, namespace: n}}
clusters:
- name: k
  cluster: {server: 'https://127.0.0.1:6443/', CLUSTER}
users:
- name: u
  user: {USER}
preferences: {}
";

fn load(dir: &Path, cluster: &str, user: &str) -> Result<Kubeconfig, String> {
    let text = CONFIG.replace(", CLUSTER", &format!(", {cluster}")).replace("USER", user);
    written(dir, &text)
}

fn written(dir: &Path, text: &str) -> Result<Kubeconfig, String> {
    let path = dir.join("config");
    fs::write(&path, text).unwrap();
    let shown = path.display().to_string();
    Kubeconfig::load(&path).map_err(|problem| problem.to_string().replace(&shown, "FILE"))
}

#[test]
fn tokens_and_certificates_come_by_themselves_and_from_files_beside_it() {
    let dir = credentials();
    let at = dir.path();
    let base64 = |name: &str| BASE64_STANDARD.encode(fs::read(at.join(name)).unwrap());
    let config = load(at, "", "token: abc").unwrap();
    assert_eq!((config.server.as_str(), config.token.as_deref()), ("https://127.0.0.1:6443", Some("abc")));
    assert!(config.client.is_none() && config.roots.is_empty() && !config.takes_any_certificate);
    assert_eq!(load(at, "", "tokenFile: token").unwrap().token.as_deref(), Some("from-file"));
    let authority = format!("certificate-authority-data: {}", base64("ca.crt"));
    let data = format!("client-certificate-data: {}, client-key-data: {}", base64("client.crt"), base64("client.key"));
    let files = "client-certificate: client.crt, client-key: client.key";
    let configs = [load(at, &authority, &data), load(at, "certificate-authority: ca.crt", files)].map(Result::unwrap);
    let [data, files] = configs.map(|config| {
        let client = config.client.unwrap();
        assert_eq!((config.roots.len(), client.certs().len()), (1, 1));
        [config.roots[0].der().to_vec(), client.certs()[0].der().to_vec(), client.private_key().der().to_vec()]
    });
    assert_eq!(data, files);
    assert!(load(at, "insecure-skip-tls-verify: true", "token: a").unwrap().takes_any_certificate);
    // As a credential that can be used stands beside it, the plugin is not needed. JSON is YAML.
    assert!(load(at, "", "token: a, exec: {command: aws}").is_ok());
    let json = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],"clusters":[{"name":"k","cluster":{"server":"https://h:1/p"}}],"users":[{"name":"u","user":{"token":"a"}}]}"#;
    assert_eq!(written(at, json).unwrap().server, "https://h:1/p");
}

#[test]
fn what_cannot_be_used_says_where_and_what_instead() {
    let dir = credentials();
    let at = dir.path();
    fs::write(at.join("empty"), "").unwrap();
    for (cluster, user, place, says) in [
        ("", "exec: {command: aws}", "FILE:11:16:", "exec: plugins are not run; expected a token"),
        ("", "auth-provider: {name: gcp}", "FILE:11:25:", "auth-provider: plugins are not run"),
        ("", "username: a, password: b", "FILE:11:20:", "names with passwords are not supported"),
        ("", "", "FILE:10:9:", "user u has no credential; expected a token"),
        ("", "token: a, as: bob", "FILE:11:24:", "the drill acts as nobody else"),
        ("", "token: 'a b'", "FILE:11:17:", "token: no token"),
        ("", "tokenFile: none", "FILE:11:21:", "none: No such file or directory"),
        ("", "tokenFile: empty", "FILE:11:21:", "tokenFile: no token"),
        ("", "tokenFile: /dev/zero", "FILE:11:21:", "no regular file"),
        ("", "client-certificate: client.crt", "FILE:11:30:", "without its client-key"),
        ("", "client-key: client.key", "FILE:11:22:", "without its client-certificate"),
        ("", "client-certificate-data: '?', client-key-data: '?'", "FILE:11:35:", "client-certificate-data: no base64"),
        ("", "client-certificate: token, client-key: client.key", "FILE:11:30:", "token: no certificate"),
        ("", "client-certificate: client.crt, client-key: client.crt", "FILE:11:54:", "client.crt: no private key"),
        ("", "client-certificate: client.crt, client-key: other.key", "FILE:11:54:", "does not fit client-certificate"),
        ("certificate-authority: token", "token: a", "FILE:8:71:", "token: no certificate"),
        ("certificate-authority-data: YQ==", "token: a", "FILE:8:76:", "no certificate"),
        ("proxy-url: 'http://p'", "token: a", "FILE:8:59:", "proxy-url is not supported"),
        ("tls-server-name: k", "token: a", "FILE:8:65:", "tls-server-name is not supported"),
    ] {
        let Err(said) = load(at, cluster, user) else { panic!("{cluster} {user}") };
        assert!(said.starts_with(place) && said.contains(says), "{cluster} {user}: {said}");
    }
    for (from, to, says) in [
        ("current-context: c\n", "", "FILE: no current-context"),
        ("current-context: c", "current-context: x", "FILE:3:18: no context is called x"),
        ("cluster: k,", "cluster: x,", "FILE:5:32: no cluster is called x"),
        ("user: u,", "user: x,", "FILE:5:41: no user is called x"),
        ("https://127.0.0.1:6443/", "127.0.0.1:6443", "FILE:8:21: server: "),
        ("https://127.0.0.1:6443/", "ftp://h", "FILE:8:21: server: no address of an API server"),
        ("https://127.0.0.1:6443/", "https://a:b@h", "FILE:8:21: server: more than an address"),
        ("server: 'https://127.0.0.1:6443/', ", "", "the key `server` is missing"),
        ("- name: k", "- nam: k", "the key `name` is missing"),
        ("users:\n", "users: [\n", "FILE:"),
    ] {
        let text = CONFIG.replace(", CLUSTER", ", ").replace("USER", "token: a");
        assert!(text.contains(from), "{from}");
        let Err(said) = written(at, &text.replace(from, to)) else { panic!("{from}") };
        assert!(said.contains(says), "{from}: {said}");
    }
    let missing = Kubeconfig::load(&at.join("absent")).unwrap_err().to_string();
    assert!(missing.ends_with("expected a kubeconfig"), "{missing}");
}
