//! The container runtimes and kubelets that run here, and what their configuration says of images.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::record::bounded;

/// Longest command line that is read.
const ARGS_MAX: u64 = 64 * 1024;
/// Most runtimes that are believed in; a node has one or two, a developer's kind cluster a few.
const RUNTIMES_MAX: usize = 64;
/// Most files that one configuration may import.
const IMPORTS_MAX: usize = 64;

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Containerd,
    Crio,
    Kubelet,
}

/// A process that decides about images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    pub kind: Kind,
    pub pid: u32,
    pub args: Vec<String>,
}

/// What one configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub pause: Option<String>,
    /// containerd: patterns of further files, which override this one.
    pub imports: Vec<String>,
    /// Where the runtime keeps what it stores.
    pub root: Option<PathBuf>,
}

/// The runtimes and kubelets among the processes of `proc`, by pid.
#[must_use]
pub fn running(proc: &Path) -> Vec<Runtime> {
    let names = fs::read_dir(proc).into_iter().flatten().filter_map(Result::ok);
    let mut pids: Vec<u32> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let runtime = |pid: u32| {
        let dir = proc.join(pid.to_string());
        let exe = fs::read_link(dir.join("exe")).ok()?;
        let name = exe.file_name()?.to_str()?.trim_end_matches(" (deleted)");
        if !matches!(name, "containerd" | "crio" | "kubelet" | "k3s") {
            return None;
        }
        let mut bytes = Vec::new();
        fs::File::open(dir.join("cmdline")).ok()?.take(ARGS_MAX).read_to_end(&mut bytes).ok()?;
        let args = crate::argv::Argv::from_kernel(&bytes).to_vec();
        // k3s is its own containerd, under that name.
        let called = if name == "k3s" { args.first()?.rsplit('/').next()? } else { name };
        let kind = match called {
            "containerd" => Kind::Containerd,
            "crio" => Kind::Crio,
            "kubelet" => Kind::Kubelet,
            _ => return None,
        };
        Some(Runtime { kind, pid, args })
    };
    pids.into_iter().filter_map(runtime).take(RUNTIMES_MAX).collect()
}

impl Runtime {
    /// The last value of `--name=value`, `--name value` or a short form.
    #[must_use]
    pub fn flag(&self, names: &[&str]) -> Option<&str> {
        let mut found = None;
        let mut args = self.args.iter().skip(1).map(String::as_str).peekable();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg, args.peek().copied()),
            };
            if names.contains(&name) {
                found = value.or(found);
            }
        }
        found
    }
}

/// What a configuration file says; `Err` says why it cannot be told, with the line.
///
/// # Errors
/// When it is no UTF-8 or no TOML.
pub fn parse(kind: Kind, bytes: &[u8]) -> Result<Content, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("line {line}: not UTF-8")
    })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        bounded(&format!("line {line}: {}", error.message()))
    })?;
    let find = |path: &[&str]| {
        let (last, way) = path.split_last()?;
        way.iter().try_fold(&table, |table, key| table.get(*key)?.as_table())?.get(*last)
    };
    let text = |path: &[&str]| find(path).and_then(Value::as_str).filter(|text| !text.is_empty()).map(bounded);
    Ok(match kind {
        // The third version of the format, the second, the first.
        Kind::Containerd => Content {
            pause: text(&["plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"])
                .or_else(|| text(&["plugins", "io.containerd.grpc.v1.cri", "sandbox_image"]))
                .or_else(|| text(&["plugins", "cri", "sandbox_image"])),
            imports: find(&["imports"])
                .and_then(Value::as_array)
                .map(|imports| imports.iter().filter_map(Value::as_str).take(IMPORTS_MAX).map(bounded).collect())
                .unwrap_or_default(),
            root: text(&["root"]).map(PathBuf::from),
        },
        Kind::Crio => Content {
            pause: text(&["crio", "image", "pause_image"]),
            imports: Vec::new(),
            root: text(&["crio", "root"]).map(PathBuf::from),
        },
        Kind::Kubelet => Content::default(),
    })
}

/// Whether a name fits a pattern with `*` for anything: the patterns of imports have nothing else.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_of_the_format_names_the_pause_image_elsewhere() {
        let v1 = "[plugins.cri]\nsandbox_image = \"a:1\"\n";
        let v2 = "version = 2\nroot = \"/data\"\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"a:2\"\n";
        let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'a:3'\n";
        let pause = |text: &str| parse(Kind::Containerd, text.as_bytes()).unwrap().pause;
        assert_eq!([v1, v2, v3].map(pause), ["a:1", "a:2", "a:3"].map(|name| Some(name.to_owned())));
        let found = parse(Kind::Containerd, v2.as_bytes()).unwrap();
        assert_eq!(
            (found.root, found.imports),
            (Some("/data".into()), vec!["/etc/containerd/conf.d/*.toml".to_owned()])
        );
        assert_eq!(parse(Kind::Containerd, b"").unwrap(), Content::default());
        let crio = "[crio]\nroot = \"/var/lib/x\"\n[crio.image]\npause_image = \"p:1\"\n";
        assert_eq!(parse(Kind::Crio, crio.as_bytes()).unwrap().pause.as_deref(), Some("p:1"));
    }

    #[test]
    fn a_file_that_does_not_parse_is_named_by_its_line() {
        let error = parse(Kind::Containerd, b"version = 2\n\n[plugins\n").unwrap_err();
        assert!(error.starts_with("line 3: "), "{error}");
        let error = parse(Kind::Containerd, b"a = 1\nb = \"\xff\"\n").unwrap_err();
        assert_eq!(error, "line 2: not UTF-8");
        // Values of other types are no names; nesting without end is an error.
        assert_eq!(parse(Kind::Containerd, b"plugins = 7\nimports = 3\n").unwrap(), Content::default());
        let deep = format!("a = {}", "[".repeat(100_000));
        assert!(parse(Kind::Containerd, deep.as_bytes()).is_err());
    }

    #[test]
    fn flags_in_every_spelling_and_the_last_one_counts() {
        let runtime = |args: &[&str]| Runtime {
            kind: Kind::Containerd,
            pid: 1,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        let names = ["--config", "-c"];
        assert_eq!(runtime(&["containerd", "-c", "/a"]).flag(&names), Some("/a"));
        assert_eq!(runtime(&["containerd", "--config=/a", "--config", "/b"]).flag(&names), Some("/b"));
        assert_eq!(runtime(&["--config", "/a"]).flag(&names), None);
        assert_eq!(runtime(&["containerd", "--config"]).flag(&names), None);
    }

    #[test]
    fn patterns_of_imports() {
        for (pattern, name) in [("*.toml", "a.toml"), ("a*b*c", "a1b2c"), ("x", "x"), ("*", ""), ("*a*", "bab")] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.toml", "a.tom"), ("a*b", "b"), ("x", "xy"), ("a*", "b")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn runtimes_are_found_by_what_they_execute() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, exe, args) in [
            ("7", "/usr/bin/containerd", "containerd\0--root\0/data\0"),
            ("8", "/usr/bin/containerd-shim-runc-v2", "x\0"),
            ("10", "/data/bin/k3s", "containerd\0-c\0/k3s.toml\0"),
            ("11", "/usr/local/bin/k3s", "/usr/local/bin/k3s\0server\0"),
            ("9", "/usr/bin/kubelet (deleted)", "kubelet\0--pod-infra-container-image=p:1\0"),
        ] {
            let process = dir.path().join(pid);
            fs::create_dir(&process).unwrap();
            std::os::unix::fs::symlink(exe, process.join("exe")).unwrap();
            fs::write(process.join("cmdline"), args).unwrap();
        }
        let found = running(dir.path());
        assert_eq!(
            found.iter().map(|one| (one.kind, one.pid)).collect::<Vec<_>>(),
            [(Kind::Containerd, 7), (Kind::Kubelet, 9), (Kind::Containerd, 10)]
        );
        assert_eq!(found[2].flag(&["--config", "-c"]), Some("/k3s.toml"));
        assert_eq!(found[0].flag(&["--root"]), Some("/data"));
        assert_eq!(found[1].flag(&["--pod-infra-container-image"]), Some("p:1"));
    }
}
