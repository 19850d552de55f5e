//! The kernel source: loads the programs, attaches what this kernel allows, and drains the rings.
//!
//! The only place that knows aya.

pub mod btf;
pub mod hooks;

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness, Pod,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use bytes::Bytes;
use detector_common::{KernelOffsets, WatchKey, setting};

use crate::{
    decode,
    record::{HookState, InodeKey, Loss},
    source::kernel::{
        btf::BtfError,
        hooks::{HOOKS, Hook, PRECISE},
    },
};

/// The kernel programs. Aligned, because the ELF reader maps structures onto the bytes.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-ebpf"));

/// What attaches on a kernel that allows nothing but tracepoints.
const TRACEPOINT: &str = "tracepoint";

/// Why the source cannot start at all. A single hook that fails is no error: see [`HookState`].
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("the kernel's types: {0}")]
    AyaBtf(#[from] aya::BtfError),
    #[error("loading the kernel programs: {}. {}", chain(&**.0), hint(&**.0))]
    Load(Box<aya::EbpfError>),
    #[error("map {name}: {error}")]
    Map { name: &'static str, error: Box<MapError> },
    #[error("the object file has no {0}: the agent and its kernel programs do not belong together")]
    Missing(&'static str),
}

/// What the source is asked to do differently from its default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// BTF of the running kernel from a file of its own; `None` for the kernel's.
    pub btf: Option<PathBuf>,
    /// Hooks that are not to be attached, by name: to see what an older kernel would.
    pub without: Vec<String>,
}

/// Newtype, because the wire type cannot promise aya that it is plain data.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: `KernelOffsets` is a repr(C) structure of u32 alone.
unsafe impl Pod for Plain<KernelOffsets> {}
// SAFETY: `WatchKey` is repr(C) with its padding explicit.
unsafe impl Pod for Plain<WatchKey> {}

/// The attached programs. Dropping it detaches them.
pub struct Kernel {
    hooks: Vec<HookState>,
    /// Owns programs, links and the maps that are not taken out below.
    _ebpf: Ebpf,
    alerting: RingBuf<MapData>,
    context: RingBuf<MapData>,
    watched: HashMap<MapData, Plain<WatchKey>, u32>,
    settings: Array<MapData, u32>,
    lost: PerCpuArray<MapData, u64>,
    lost_before: BTreeMap<(u16, usize), u64>,
    in_kernel: BTreeMap<InodeKey, u32>,
}

/// A raw record and its time, for ordering across the rings.
pub struct Raw {
    pub time_ns: u64,
    pub bytes: Bytes,
    /// From the ring of events that can raise an alert.
    pub alerting: bool,
}

impl Kernel {
    /// Loads and attaches.
    ///
    /// # Errors
    /// When nothing at all can be loaded: no BTF, no permission, no ring buffers.
    pub fn attach(options: &Options) -> Result<Self, KernelError> {
        let path = options.btf.as_deref().unwrap_or(Path::new(btf::VMLINUX));
        let bytes = btf::read(path)?;
        let offsets = btf::offsets(path, &bytes)?;
        let kernel_btf = Btf::parse(&bytes, Endianness::default())?;
        drop(bytes);
        let syscalls = crate::syscalls::table();
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&kernel_btf))
            .override_global("OFFSETS", &Plain(offsets), true)
            .override_global("SYSCALLS", &syscalls, true)
            .load(PROGRAMS)
            .map_err(|error| KernelError::Load(Box::new(error)))?;
        let settings = take(&mut ebpf, "SETTINGS")?;
        let mut settings: Array<_, u32> = settings.try_into().map_err(|source| map_error("SETTINGS", source))?;
        set(&mut settings, setting::DEPTH, 1)?;
        let hooks: Vec<_> =
            HOOKS.iter().map(|hook| attach(&mut ebpf, hook, &offsets, &kernel_btf, &options.without)).collect();
        let precise = PRECISE.iter().all(|number| {
            HOOKS.iter().zip(&hooks).any(|(hook, state)| hook.number == *number && state.backend.is_some())
        });
        set(&mut settings, setting::PRECISE, precise.into())?;
        Ok(Self {
            hooks,
            alerting: take(&mut ebpf, "ALERTING")?.try_into().map_err(|source| map_error("ALERTING", source))?,
            context: take(&mut ebpf, "CONTEXT")?.try_into().map_err(|source| map_error("CONTEXT", source))?,
            watched: take(&mut ebpf, "WATCHED")?.try_into().map_err(|source| map_error("WATCHED", source))?,
            lost: take(&mut ebpf, "LOST")?.try_into().map_err(|source| map_error("LOST", source))?,
            settings,
            lost_before: BTreeMap::new(),
            in_kernel: BTreeMap::new(),
            _ebpf: ebpf,
        })
    }

    /// Each hook, attached or not.
    #[must_use]
    pub fn hooks(&self) -> &[HookState] {
        &self.hooks
    }

    /// Descriptors that become readable when there is something to [`Self::drain`].
    #[must_use]
    pub fn fds(&self) -> [RawFd; 2] {
        [self.alerting.as_raw_fd(), self.context.as_raw_fd()]
    }

    /// Takes what the rings hold, in the order of time.
    ///
    /// The alerting ring is read first: whatever came before one of its events is then already in the context ring.
    pub fn drain(&mut self, out: &mut Vec<Raw>) {
        for (ring, alerting) in [(&mut self.alerting, true), (&mut self.context, false)] {
            while let Some(item) = ring.next() {
                let bytes = Bytes::copy_from_slice(&item);
                // A record without a header cannot be ours; the decoder will say so, in its place.
                let time_ns = decode::header(&bytes).map_or(0, |header| header.time_ns);
                out.push(Raw { time_ns, bytes, alerting });
            }
        }
        out.sort_by_key(|raw| raw.time_ns);
    }

    /// Makes the kernel watch exactly `set`; `depth` is how many directory levels above a file it compares.
    ///
    /// # Errors
    /// When the map refuses an entry, which leaves part of the set unwatched.
    pub fn watch(&mut self, set: &BTreeMap<InodeKey, u32>, depth: u32) -> Result<(), KernelError> {
        let error = |source| map_error("WATCHED", source);
        for (inode, flags) in set {
            if self.in_kernel.get(inode) != Some(flags) {
                self.watched.insert(Plain(key(inode)), flags, 0).map_err(error)?;
            }
        }
        for inode in self.in_kernel.keys().filter(|inode| !set.contains_key(inode)) {
            self.watched.remove(&Plain(key(inode))).map_err(error)?;
        }
        self.in_kernel.clone_from(set);
        set_setting(&mut self.settings, setting::DEPTH, depth)
    }

    /// Whether writes are resolved one by one: while descriptors older than the watch are about.
    ///
    /// # Errors
    /// When the settings map cannot be written.
    pub fn track_writes(&mut self, on: bool) -> Result<(), KernelError> {
        set_setting(&mut self.settings, setting::TRACK_WRITES, on.into())
    }

    /// What was lost since the last call.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn lost(&mut self) -> Result<Vec<Loss>, KernelError> {
        let mut losses = Vec::new();
        for hook in HOOKS {
            let counts = self.lost.get(&u32::from(hook.number), 0).map_err(|source| map_error("LOST", source))?;
            for (cpu, now) in counts.iter().enumerate() {
                let before = self.lost_before.insert((hook.number, cpu), *now).unwrap_or(0);
                if *now > before {
                    losses.push(Loss {
                        hook: hook.name.to_owned(),
                        cpu: u32::try_from(cpu).unwrap_or(u32::MAX),
                        lost: now - before,
                        alerting: hook.number >= detector_common::hook::SYS_EXIT
                            && hook.number <= detector_common::hook::IO_URING_SUBMIT,
                    });
                }
            }
        }
        Ok(losses)
    }
}

/// Attaches the empty program that the benchmark compares with, until the returned value is dropped.
///
/// # Errors
/// As [`Kernel::attach`], and when this one program cannot be attached.
pub fn floor() -> Result<Ebpf, KernelError> {
    let bytes = btf::read(Path::new(btf::VMLINUX))?;
    let kernel_btf = Btf::parse(&bytes, Endianness::default())?;
    let mut ebpf =
        EbpfLoader::new().btf(Some(&kernel_btf)).load(PROGRAMS).map_err(|e| KernelError::Load(Box::new(e)))?;
    let load = |error: ProgramError| KernelError::Load(Box::new(aya::EbpfError::ProgramError(error)));
    let program = ebpf.program_mut("floor").ok_or(KernelError::Missing("program floor"))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(load)?;
    program.load("sys_exit", &kernel_btf).map_err(load)?;
    program.attach().map_err(load)?;
    Ok(ebpf)
}

fn attach(ebpf: &mut Ebpf, hook: &Hook, offsets: &KernelOffsets, kernel_btf: &Btf, without: &[String]) -> HookState {
    let state = |backend: Option<&str>, reason: Option<String>| HookState {
        name: hook.name.to_owned(),
        backend: backend.map(str::to_owned),
        reason,
        required: hook.required,
    };
    if without.iter().any(|name| name == hook.name) {
        return state(None, Some("left out by --without-hook".to_owned()));
    }
    let missing: Vec<_> = hook
        .needs
        .iter()
        .filter(|field| offsets.get(field) == Some(KernelOffsets::MISSING))
        .map(|field| field_name(field))
        .collect();
    if !missing.is_empty() {
        return state(None, Some(format!("this kernel has no {}", missing.join(", "))));
    }
    match try_attach(ebpf, hook, kernel_btf) {
        Ok(()) => state(Some(TRACEPOINT), None),
        Err(error) => state(None, Some(format!("tracepoint {}: {error}", hook.tracepoint))),
    }
}

fn try_attach(ebpf: &mut Ebpf, hook: &Hook, kernel_btf: &Btf) -> Result<(), String> {
    let program = ebpf.program_mut(hook.program).ok_or("not in the object file")?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error| chain(&error))?;
    program.load(hook.tracepoint, kernel_btf).map_err(|error| match error {
        ProgramError::Btf(_) => "this kernel does not have it".to_owned(),
        error => refusal(&error),
    })?;
    program.attach().map_err(|error| chain(&error))?;
    Ok(())
}

/// `type.member` of an offset, as the kernel calls it.
fn field_name(field: &str) -> String {
    KernelOffsets::FIELDS
        .iter()
        .find(|(name, ..)| *name == field)
        .map_or_else(|| field.to_owned(), |(_, of, member)| format!("{of}.{member}"))
}

fn key(inode: &InodeKey) -> WatchKey {
    WatchKey::new(inode.dev, inode.ino)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Missing(name))
}

fn map_error(name: &'static str, source: MapError) -> KernelError {
    KernelError::Map { name, error: Box::new(source) }
}

fn set_setting(settings: &mut Array<MapData, u32>, index: u32, value: u32) -> Result<(), KernelError> {
    settings.set(index, value, 0).map_err(|source| map_error("SETTINGS", source))
}

use set_setting as set;

/// An error with everything that caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Why the kernel refused a program: its verifier's last words when it has some.
fn refusal(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // Statistics come behind what it complains of.
        let statistics = ["processed ", "stack depth ", "verification time ", "max_states_per_insn "];
        let last = log
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty() && !statistics.iter().any(|word| line.starts_with(word)));
        return match last {
            Some(line) => format!("the verifier refuses it: {line} ({io_error})"),
            None => format!("the kernel refuses it: {io_error}"),
        };
    }
    chain(error)
}

fn hint(error: &aya::EbpfError) -> &'static str {
    let text = chain(error);
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        "BPF needs root, or CAP_BPF and CAP_PERFMON"
    } else {
        "`detector doctor` says what this kernel lacks"
    }
}
