//! A node's stream, made up.

use bytes::Bytes;
use detector::record::{Body, BootNs, Record, Start};
use detector_common::{Exec, Exit, Fork, Header, Shared, hook, kind};
use zerocopy::{Immutable, IntoBytes};

/// A process.
#[derive(Clone)]
struct Process {
    pid: u32,
    start: u64,
    parent: (u32, u64),
    cgroup: u64,
    /// Mount and pid namespace; the host's differ from each container's.
    spaces: [u32; 2],
    inner: u32,
    comm: [u8; 16],
}

/// Programs, their inode, and their arguments; `{}` is another number each time.
const PROGRAMS: [(&str, u64, &[&str]); 12] = [
    ("/usr/bin/sleep", 1311, &["sleep", "0.{}"]),
    ("/usr/bin/date", 1312, &["date", "+%s"]),
    ("/usr/bin/grep", 1313, &["grep", "-q", "ready", "/var/log/app-{}.log"]),
    ("/usr/bin/cat", 1314, &["cat", "/proc/loadavg"]),
    ("/usr/bin/sed", 1315, &["sed", "-e", "s/a/b/", "-e", "s/x/{}/"]),
    ("/usr/bin/dash", 1316, &["sh", "-c", "test -e /run/healthy || exit 1"]),
    ("/usr/bin/curl", 1317, &["curl", "-fsS", "--max-time", "2", "http://10.4.{}.7:8080/healthz"]),
    ("/usr/bin/stat", 1318, &["stat", "-c", "%Y", "/etc/resolv.conf"]),
    ("/usr/bin/tr", 1319, &["tr", "-d", "\\n"]),
    ("/usr/sbin/iptables-nft", 1320, &["iptables", "-w", "5", "-C", "KUBE-FORWARD", "-j", "ACCEPT"]),
    ("/opt/app/bin/worker", 1321, &["worker", "--job={}", "--queue=default"]),
    ("/usr/bin/runc", 1322, &["runc", "--root", "/run/containerd/runc/k8s.io", "state", "{}ab54cc"]),
];

/// A node's stream.
pub struct Node {
    noise: u64,
    pub now: u64,
    gap: u64,
    seq: u64,
    next_pid: u32,
    /// What loops: shells, supervisors, probes' runtimes.
    living: Vec<Process>,
    /// Children that have not executed or not ended yet.
    young: Vec<(Process, bool)>,
    next_tick: u64,
}

impl Node {
    pub fn new(gap: u64) -> Self {
        let mut node = Self {
            noise: 1,
            now: 86_400_000_000_000,
            gap,
            seq: 0,
            next_pid: 40_000,
            living: Vec::new(),
            young: Vec::new(),
            next_tick: 86_401_000_000_000,
        };
        for number in 0..100_u32 {
            let host = number % 3 == 0;
            let container = number / 4;
            let mut comm = [0; 16];
            let name = format!("daemon-{}", number % 17);
            comm[..name.len()].copy_from_slice(name.as_bytes());
            let start = node.now - u64::from(number) * 77_003_123_457;
            node.living.push(Process {
                pid: 1000 + number * 37,
                start,
                parent: (1, 25_000_000),
                cgroup: if host { 5000 } else { 7000 + u64::from(container) },
                spaces: if host {
                    [4_026_531_841, 4_026_531_836]
                } else {
                    [4_026_532_200 + container, 4_026_532_300 + container]
                },
                inner: if host { 1000 + number * 37 } else { 1 },
                comm,
            });
        }
        node
    }

    fn random(&mut self, below: u64) -> u64 {
        self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 24) % below
    }

    fn header(&self, of: &Process, kind: u16, hook: u16) -> Header {
        Header {
            kind,
            hook,
            len: 0,
            time_ns: self.now,
            start_ns: of.start,
            cgroup: of.cgroup,
            tgid: of.pid,
            tid: of.pid,
            uid: 0,
            login_uid: u32::MAX,
            mnt_ns: of.spaces[0],
            pid_ns: of.spaces[1],
            comm: of.comm,
        }
    }

    fn fork(&mut self) -> Bytes {
        // A few loop all the time, the others now and then.
        let busy = if self.random(10) < 8 { 12 } else { 100 };
        let at = self.random(busy) as usize;
        let parent = self.living[at].clone();
        self.next_pid = if self.next_pid > 4_000_000 { 1000 } else { self.next_pid + 1 + (self.random(8) == 0) as u32 };
        let start = self.now - 20_000 - self.random(30_000);
        let header = Header { mnt_ns: 0, pid_ns: 0, ..self.header(&parent, kind::FORK, hook::FORK) };
        let inner = if parent.inner == parent.pid { self.next_pid } else { 2 + self.random(500) as u32 };
        let child = Process { pid: self.next_pid, start, parent: (parent.pid, parent.start), inner, ..parent.clone() };
        self.young.push((child, false));
        raw(
            &Fork {
                header,
                child_start_ns: start,
                child_tgid: self.next_pid,
                zero: 0,
                parent_start_ns: parent.start,
                parent_tgid: parent.pid,
                zero2: 0,
            },
            &[],
        )
    }

    fn exec(&mut self, at: usize) -> Bytes {
        let choice = self.random(12).min(self.random(12)) as usize;
        let (path, ino, arguments) = PROGRAMS[choice];
        let number = self.random(200).to_string();
        let argv: Vec<u8> =
            arguments.iter().flat_map(|arg| [arg.replace("{}", &number).as_bytes(), &[0]].concat()).collect();
        let walked: Vec<u8> = path
            .split('/')
            .rev()
            .filter(|part| !part.is_empty())
            .flat_map(|part| [part.as_bytes(), &[0]].concat())
            .collect();
        let name = path.rsplit('/').next().unwrap_or_default().as_bytes();
        let (process, executed) = &mut self.young[at];
        *executed = true;
        process.comm = [0; 16];
        let len = name.len().min(15);
        process.comm[..len].copy_from_slice(&name[..len]);
        let process = process.clone();
        let host = process.inner == process.pid;
        let event = Exec {
            header: self.header(&process, kind::EXEC, hook::EXEC),
            ino,
            parent_start_ns: process.parent.1,
            parent_tgid: process.parent.0,
            // Each container has a file system of its own.
            dev: if host { 8_388_609 } else { 40 + process.spaces[0] % 100 },
            flags: 0,
            path_len: walked.len() as u16,
            argv_len: argv.len() as u16,
            tty: [0; 16],
            shared: Shared {
                net: process.spaces[0] + 50,
                ipc: process.spaces[0] + 51,
                uts: process.spaces[0] + 52,
                cgroup: 4_026_531_835,
                user: 4_026_531_837,
            },
            inner_pid: process.inner,
        };
        raw(&event, &[walked, argv].concat())
    }

    fn exit(&mut self, at: usize) -> Bytes {
        let (process, _) = self.young.remove(at);
        let code = if self.random(10) == 0 { 256 } else { 0 };
        let header = Header {
            cgroup: 0,
            uid: 0,
            mnt_ns: 0,
            pid_ns: 0,
            comm: [0; 16],
            ..self.header(&process, kind::EXIT, hook::EXIT)
        };
        raw(&Exit { header, code, zero: 0 }, &[])
    }
}

impl Iterator for Node {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.seq += 1;
        // Bursts and pauses, `gap` on average.
        let scale = 1 << self.random(6);
        self.now += 1_000 + self.random(self.gap * scale * 4 / 21);
        let body = if self.seq == 1 {
            Body::Start(Box::new(Start { node: "node".to_owned(), ..Start::default() }))
        } else if self.now >= self.next_tick {
            self.next_tick += 1_000_000_000;
            Body::Tick
        } else {
            let fork = self.young.is_empty() || self.young.len() < 12 && self.random(3) == 0;
            let at = if fork { 0 } else { self.random(self.young.len() as u64) as usize };
            let raw = if fork {
                self.fork()
            } else if self.young[at].1 {
                self.exit(at)
            } else {
                self.exec(at)
            };
            Body::Kernel { raw }
        };
        Some(Record { seq: self.seq, time: BootNs(self.now), body })
    }
}

fn raw(event: &(impl IntoBytes + Immutable), tail: &[u8]) -> Bytes {
    let mut bytes = event.as_bytes().to_vec();
    bytes.extend_from_slice(tail);
    let len = (bytes.len() as u32).to_ne_bytes();
    bytes[4..8].copy_from_slice(&len);
    bytes.into()
}
