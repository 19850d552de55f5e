//! Which audit logs the kube-apiservers of this node write.

use std::path::{Path, PathBuf};

use crate::source::kubelet::{bounded_cmdline, pids};

/// Most API servers that are believed in.
const SERVERS_MAX: usize = 8;
const FLAG: &str = "audit-log-path";

/// A log as the process that writes it names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `/proc/<pid>/root`.
    pub root: PathBuf,
    /// Absolute inside it.
    pub path: PathBuf,
}

/// Whether a program of this name may be, or contain, an API server.
#[must_use]
pub fn runs_apiserver(name: &str) -> bool {
    matches!(name, "kube-apiserver" | "hyperkube" | "k3s" | "rke2")
}

/// The logs of those that run. One that logs to its standard output is none of them.
#[must_use]
pub fn logs(proc: &Path) -> Vec<Found> {
    let log = |pid: u32| {
        let dir = proc.join(pid.to_string());
        let name = std::fs::read_link(dir.join("exe")).ok()?;
        let name = name.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
        if !runs_apiserver(&name) {
            return None;
        }
        let path =
            flag(&name, &bounded_cmdline(&dir.join("cmdline"))?).filter(|path| !matches!(path.as_str(), "" | "-"))?;
        // Where it is relative, it is so to the directory that the process runs in.
        let base = std::fs::read_link(dir.join("cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        Some(Found { root: dir.join("root"), path: base.join(path) })
    };
    pids(proc).into_iter().filter_map(log).take(SERVERS_MAX).collect()
}

/// The last value of the flag: as a flag of its own, or of k3s in one that passes it on.
fn flag(program: &str, arguments: &[String]) -> Option<String> {
    let mut found = None;
    for (at, word) in arguments.iter().enumerate().skip(1) {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        let value = || value.or(arguments.get(at + 1).map(String::as_str));
        // pflag takes one for the other.
        if name.replace('_', "-") == FLAG {
            found = value().map(str::to_owned);
        } else if name == "kube-apiserver-arg" && matches!(program, "k3s" | "rke2") {
            let passed = value().and_then(|value| value.trim_start_matches('-').split_once('='));
            found = passed.filter(|(name, _)| *name == FLAG).map(|(_, value)| value.to_owned()).or(found);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn found(exe: &str, arguments: &[&str]) -> Option<String> {
        let proc = tempfile::tempdir().unwrap();
        let dir = proc.path().join("7");
        fs::create_dir(&dir).unwrap();
        symlink(exe, dir.join("exe")).unwrap();
        symlink("/srv", dir.join("cwd")).unwrap();
        let cmdline: String = arguments.iter().map(|argument| format!("{argument}\0")).collect();
        fs::write(dir.join("cmdline"), cmdline).unwrap();
        let found = logs(proc.path());
        assert!(found.iter().all(|found| found.root == dir.join("root")));
        found.first().map(|found| found.path.display().to_string())
    }

    #[test]
    fn the_log_that_an_api_server_was_told_to_write_is_found() {
        for (exe, arguments, path) in [
            (
                "/usr/bin/kube-apiserver",
                &["kube-apiserver", "--audit-log-path=/var/log/a.log"][..],
                Some("/var/log/a.log"),
            ),
            ("/usr/bin/kube-apiserver (deleted)", &["x", "--audit-log-path", "/a.log", "--v=2"], Some("/a.log")),
            ("/usr/bin/kube-apiserver", &["kube-apiserver", "--audit-log-path=/a", "--audit_log_path=/b"], Some("/b")),
            ("/usr/bin/kube-apiserver", &["kube-apiserver", "--audit-log-path=a.log"], Some("/srv/a.log")),
            ("/usr/bin/kube-apiserver", &["kube-apiserver", "--audit-log-path=-"], None),
            ("/usr/bin/kube-apiserver", &["kube-apiserver", "--audit-log-path"], None),
            ("/usr/bin/kube-apiserver", &["kube-apiserver"], None),
            ("/usr/bin/k3s", &["k3s", "server", "--kube-apiserver-arg=audit-log-path=/a.log"], Some("/a.log")),
            ("/usr/bin/k3s", &["k3s", "server", "--kube-apiserver-arg", "audit-log-path=/a.log"], Some("/a.log")),
            ("/usr/bin/k3s", &["k3s", "server", "--kube-apiserver-arg=v=2"], None),
            ("/usr/bin/cat", &["kube-apiserver", "--audit-log-path=/a.log"], None),
            ("/usr/bin/kube-apiserver", &[], None),
        ] {
            assert_eq!(found(exe, arguments).as_deref(), path, "{arguments:?}");
        }
    }
}
