//! The kernel source: loads the programs, attaches what this kernel allows, and drains the rings.
//!
//! The only place that knows aya.

mod attach;
pub mod btf;
pub mod hooks;
mod links;
mod ours;
mod ring;
mod sense;
mod skipped;

pub use ours::objects;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd as _, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness, Pod,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError, tp_btf::BtfTracePointLinkId},
};
use bytes::{Bytes, BytesMut};
use detector_common::{EndpointKey, KernelOffsets, PROTECTED_MAX, SANDBOXES_MAX, WatchKey, setting, syscall::about};

use crate::{
    decode,
    record::{HookState, InodeKey, Loss},
    source::kernel::{
        attach::{Attacher, Prototypes},
        btf::{BtfError, Types},
        hooks::{Backend, HOOKS, PRECISE, Role},
        links::Links,
    },
};

pub use links::{Detached, changes};
pub use ring::Ring;

/// The kernel programs. Aligned, because the ELF reader maps structures onto the bytes.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-ebpf"));

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
    #[error(
        "--deny needs the lsm backend, which is not attached for {0}: boot with lsm=...,bpf; `detector doctor` says more"
    )]
    NoLsm(String),
    #[error("sys_exit: {0}")]
    NoSyscalls(&'static str),
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
    /// The only backend for acts; `None` for the best that this kernel lets attach.
    pub backend: Option<Backend>,
}

/// Newtype, because the wire type cannot promise aya that it is plain data.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: `KernelOffsets` is a repr(C) structure of u32 alone.
unsafe impl Pod for Plain<KernelOffsets> {}
// SAFETY: `WatchKey` is repr(C) with its padding explicit.
unsafe impl Pod for Plain<WatchKey> {}
// SAFETY: `EndpointKey` is repr(C) without padding.
unsafe impl Pod for Plain<EndpointKey> {}

/// The attached programs. Dropping it detaches them.
pub struct Kernel {
    hooks: Vec<HookState>,
    /// Inode changes are seen exactly.
    precise: bool,
    /// Acts are seen by system calls rather than by security hooks.
    syscalls: bool,
    /// Which files lie in the upper layer of an overlay is seen.
    upper: bool,
    /// Sandboxes are about.
    sandboxed: bool,
    /// Writes are resolved one by one.
    tracked: bool,
    /// `sys_exit`, while it is attached for old descriptors alone.
    writes: Option<BtfTracePointLinkId>,
    /// Why it cannot be: it is loaded at the start, since a confined agent loads nothing.
    no_writes: Option<KernelError>,
    /// Owns programs, links and the maps that are not taken out below.
    ebpf: Ebpf,
    alerting: RingBuf<MapData>,
    context: RingBuf<MapData>,
    watched: HashMap<MapData, Plain<WatchKey>, u32>,
    trusted: HashMap<MapData, Plain<WatchKey>, u32>,
    protected: HashMap<MapData, u32, u32>,
    sandboxes: HashMap<MapData, u64, u32>,
    ours: HashMap<MapData, u64, u32>,
    sense: sense::Maps,
    settings: Array<MapData, u32>,
    lost: PerCpuArray<MapData, u64>,
    lost_before: BTreeMap<(u16, usize), u64>,
    /// By program.
    skipped_before: BTreeMap<&'static str, u64>,
    in_kernel: BTreeMap<InodeKey, u32>,
    /// What records are copied into, one behind the other.
    copies: BytesMut,
    links: Links,
    /// The alerting ring and the other one, as [`Self::rings`] tells of them.
    rings: [Ring; 2],
}

/// How many bytes are set aside at once for copies of records.
const COPIES: usize = 64 << 10;

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
        // One after the other, since either parsed form takes many times what the file has.
        let (offsets, prototypes) = {
            let types = Types::parse(path, &bytes)?;
            (types.offsets(), Prototypes::new(&types))
        };
        let kernel_btf = Btf::parse(&bytes, Endianness::default())?;
        drop(bytes);
        let syscall_table = crate::syscalls::table();
        raise_memlock();
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&kernel_btf))
            .override_global("OFFSETS", &Plain(offsets), true)
            .override_global("SYSCALLS", &syscall_table, true)
            .override_global("ARGUMENTS", &arguments(&offsets), true)
            .load(PROGRAMS)
            .map_err(|error| KernelError::Load(Box::new(error)))?;
        let settings = take(&mut ebpf, "SETTINGS")?;
        let mut settings: Array<_, u32> = settings.try_into().map_err(|source| map_error("SETTINGS", source))?;
        set(&mut settings, setting::DEPTH, 1)?;
        set(&mut settings, setting::SELF, std::process::id())?;
        let mut attacher = Attacher {
            ebpf: &mut ebpf,
            prototypes: &prototypes,
            btf: &kernel_btf,
            offsets: &offsets,
            without: &options.without,
        };
        let mut hooks = attacher.role(Role::Context, &[Backend::Tracepoint]);
        hooks.extend(attacher.role(Role::Change, &[Backend::Tracepoint]));
        let precise = PRECISE.iter().all(|number| {
            hooks.iter().any(|state| state.backend.is_some() && state.name == decode::hook_name(*number))
        });
        let acts = attacher.security(options.backend);
        let syscalls = match acts {
            Ok(states) => {
                // What is missing here, the system calls' ends still see, unless only this backend is wanted.
                let whole =
                    options.backend.is_some() || states.iter().all(|state| state.backend.is_some() || !state.required);
                hooks.extend(states);
                !whole
            }
            Err(None) => true,
            Err(Some(reasons)) => {
                hooks.push(HookState {
                    name: SECURITY.to_owned(),
                    backend: None,
                    reason: Some(reasons),
                    verified: None,
                    required: options.backend.is_some(),
                });
                options.backend.is_none()
            }
        };
        set(&mut settings, setting::PRECISE, precise.into())?;
        set(&mut settings, setting::SYSCALLS, syscalls.into())?;
        set(&mut settings, setting::MATTERS, matters(precise, syscalls, false, false))?;
        if syscalls {
            hooks.extend(attacher.role(Role::Syscall, &[Backend::Tracepoint]));
        }
        let links = Links::find(&ebpf, &hooks);
        let (alerting, context) = (take(&mut ebpf, "ALERTING")?, take(&mut ebpf, "CONTEXT")?);
        let rings = [Ring::new("alerting", &alerting), Ring::new("context", &context)];
        let no_writes = match hooks::NO_SYSCALLS {
            Some(reason) => Some(KernelError::NoSyscalls(reason)),
            None if precise || syscalls => None,
            None => load_sys_exit(&mut ebpf, "sys_exit", &kernel_btf).err(),
        };
        let ours = take(&mut ebpf, "OURS")?.try_into().map_err(|source| map_error("OURS", source))?;
        let mut kernel = Self {
            hooks,
            precise,
            syscalls,
            upper: offsets.ovl_upper != KernelOffsets::MISSING,
            sandboxed: false,
            tracked: false,
            writes: None,
            no_writes,
            alerting: alerting.try_into().map_err(|source| map_error("ALERTING", source))?,
            context: context.try_into().map_err(|source| map_error("CONTEXT", source))?,
            watched: take(&mut ebpf, "WATCHED")?.try_into().map_err(|source| map_error("WATCHED", source))?,
            protected: take(&mut ebpf, "PROTECTED")?.try_into().map_err(|source| map_error("PROTECTED", source))?,
            sandboxes: take(&mut ebpf, "SANDBOXES")?.try_into().map_err(|source| map_error("SANDBOXES", source))?,
            sense: sense::Maps::take(&mut ebpf)?,
            trusted: take(&mut ebpf, "TRUSTED")?.try_into().map_err(|source| map_error("TRUSTED", source))?,
            lost: take(&mut ebpf, "LOST")?.try_into().map_err(|source| map_error("LOST", source))?,
            settings,
            lost_before: BTreeMap::new(),
            skipped_before: BTreeMap::new(),
            in_kernel: BTreeMap::new(),
            copies: BytesMut::new(),
            ours,
            links,
            rings,
            ebpf,
        };
        kernel.guard()?;
        Ok(kernel)
    }

    /// Reports what others do with the maps, programs and links that there are now.
    fn guard(&mut self) -> Result<(), KernelError> {
        for (object, id) in objects("self") {
            let key = u64::from(object) << 32 | u64::from(id);
            self.ours.insert(key, 1, 0).map_err(|source| map_error("OURS", source))?;
        }
        Ok(())
    }

    /// Each hook, attached or not.
    #[must_use]
    pub fn hooks(&self) -> &[HookState] {
        &self.hooks
    }

    /// Whether every change of a watched inode is seen exactly, so that descriptors older than the watch need no care.
    #[must_use]
    pub fn is_precise(&self) -> bool {
        self.precise
    }

    /// Whether it is seen which files lie in the upper layer of an overlay.
    #[must_use]
    pub fn sees_upper(&self) -> bool {
        self.upper
    }

    /// Descriptors that become readable when there is something to [`Self::drain`].
    #[must_use]
    pub fn fds(&self) -> [RawFd; 2] {
        [self.alerting.as_raw_fd(), self.context.as_raw_fd()]
    }

    /// Hooks that were attached and are not any more.
    #[must_use]
    pub fn detached(&self) -> Vec<Detached> {
        self.links.detached()
    }

    /// The rings, and the most that was found in each at once since the last call.
    pub fn rings(&mut self) -> [Ring; 2] {
        self.rings.each_mut().map(Ring::take)
    }

    /// Takes what the rings hold, in the order of time.
    ///
    /// The alerting ring is read first: whatever came before one of its events is then already in the context ring.
    pub fn drain(&mut self, out: &mut Vec<Raw>) {
        let rings = [(&mut self.alerting, true), (&mut self.context, false)];
        for ((ring, alerting), shown) in rings.into_iter().zip(&mut self.rings) {
            let mut filled = 0;
            while let Some(item) = ring.next() {
                filled += ring::taken_by(item.len());
                if self.copies.capacity() < item.len() {
                    self.copies = BytesMut::with_capacity(COPIES.max(item.len()));
                }
                self.copies.extend_from_slice(&item);
                let bytes = self.copies.split().freeze();
                // A record without a header cannot be ours; the decoder will say so, in its place.
                let time_ns = decode::header(&bytes).map_or(0, |header| header.time_ns);
                out.push(Raw { time_ns, bytes, alerting });
            }
            shown.found(filled);
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

    /// Reports access to the memory of exactly these processes, at most [`PROTECTED_MAX`] of them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn protect(&mut self, pids: &BTreeSet<u32>) -> Result<(), KernelError> {
        let error = |source| map_error("PROTECTED", source);
        let before: Vec<u32> = self.protected.keys().filter_map(Result::ok).collect();
        for pid in before.iter().filter(|pid| !pids.contains(pid)) {
            self.protected.remove(pid).map_err(error)?;
        }
        for pid in pids.iter().take(PROTECTED_MAX as usize) {
            self.protected.insert(*pid, 1, 0).map_err(error)?;
        }
        Ok(())
    }

    /// Reports sockets, and opens for writing, of tasks in exactly these cgroups, at most [`SANDBOXES_MAX`] of them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn sandboxes(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), KernelError> {
        let error = |source| map_error("SANDBOXES", source);
        let before: BTreeSet<u64> = self.sandboxes.keys().filter_map(Result::ok).collect();
        for cgroup in before.difference(cgroups) {
            self.sandboxes.remove(cgroup).map_err(error)?;
        }
        let room = (SANDBOXES_MAX as usize).saturating_sub(before.intersection(cgroups).count());
        for cgroup in cgroups.difference(&before).take(room) {
            self.sandboxes.insert(*cgroup, 1, 0).map_err(error)?;
        }
        set_setting(&mut self.settings, setting::SANDBOXES, (!cgroups.is_empty()).into())?;
        self.sandboxed = !cgroups.is_empty();
        self.matters()
    }

    /// What is executed in this mount namespace need not be told at once for where it lies: it is in no container.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn host(&mut self, mnt_ns: u32) -> Result<(), KernelError> {
        set_setting(&mut self.settings, setting::HOST_MNT, mnt_ns)
    }

    /// Refuses acts on what is watched, except by processes of these executables.
    ///
    /// # Errors
    /// When acts are not seen by LSM programs, which alone can refuse, or the maps cannot be written.
    pub fn deny(&mut self, trusted: &BTreeSet<InodeKey>) -> Result<(), KernelError> {
        let by_lsm = |hook: &HookState| hook.backend.as_deref() == Some(Backend::Lsm.name());
        let other: Vec<_> = HOOKS
            .iter()
            .filter(|hook| hook.role == Role::Security && hook.required)
            .filter(|hook| !self.hooks.iter().any(|state| state.name == hook.name && by_lsm(state)))
            .map(|hook| hook.name)
            .collect();
        if !other.is_empty() {
            return Err(KernelError::NoLsm(other.join(", ")));
        }
        let error = |source| map_error("TRUSTED", source);
        let before: Vec<Plain<WatchKey>> = self.trusted.keys().filter_map(Result::ok).collect();
        for known in before {
            if !trusted.contains(&InodeKey { dev: known.0.dev, ino: known.0.ino }) {
                self.trusted.remove(&known).map_err(error)?;
            }
        }
        for inode in trusted {
            self.trusted.insert(Plain(key(inode)), 1, 0).map_err(error)?;
        }
        set_setting(&mut self.settings, setting::DENY, 1)
    }

    /// Whether writes are resolved one by one: while descriptors older than the watch are about.
    ///
    /// # Errors
    /// When the settings map cannot be written, or the hook that sees writes cannot be attached.
    pub fn track_writes(&mut self, on: bool) -> Result<(), KernelError> {
        if !self.syscalls {
            match (on, self.writes.take()) {
                (true, None) => {
                    if let Some(error) = self.no_writes.take() {
                        return Err(error);
                    }
                    set_setting(&mut self.settings, setting::WRITES_ONLY, 1)?;
                    let program = sys_exit(&mut self.ebpf, "sys_exit")?;
                    self.writes = Some(program.attach().map_err(load_error)?);
                    self.guard()?;
                }
                (false, Some(link)) => {
                    sys_exit(&mut self.ebpf, "sys_exit")?.detach(link).map_err(load_error)?;
                }
                (_, link) => self.writes = link,
            }
        }
        set_setting(&mut self.settings, setting::TRACK_WRITES, on.into())?;
        self.tracked = on;
        self.matters()
    }

    /// Tells `sys_exit` which calls matter at any time.
    fn matters(&mut self) -> Result<(), KernelError> {
        let bits = matters(self.precise, self.syscalls, self.tracked, self.sandboxed);
        set_setting(&mut self.settings, setting::MATTERS, bits)
    }

    /// Does what may have to be done later, and leaves everything as it is: whether that takes privileges is the kernel's to say.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rehearse(&mut self) -> Result<(), KernelError> {
        let error = |source| map_error("SETTINGS", source);
        let depth = self.settings.get(&setting::DEPTH, 0).map_err(error)?;
        set_setting(&mut self.settings, setting::DEPTH, depth)?;
        if !self.precise && !self.syscalls && self.no_writes.is_none() && self.writes.is_none() {
            let program = sys_exit(&mut self.ebpf, "sys_exit")?;
            let link = program.attach().map_err(load_error)?;
            program.detach(link).map_err(load_error)?;
        }
        Ok(())
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
                        cpu: u32::try_from(cpu).ok(),
                        lost: now - before,
                        skipped: false,
                        alerting: hook.alerting,
                    });
                }
            }
        }
        losses.extend(self.skipped());
        Ok(losses)
    }

    /// Runs of attached programs that the kernel skipped since the last call.
    fn skipped(&mut self) -> Vec<Loss> {
        let mut losses = Vec::new();
        for hook in HOOKS {
            for attach in hook.attach {
                let Some(now) = self.ebpf.program(attach.program).and_then(skipped::count) else { continue };
                let before = self.skipped_before.insert(attach.program, now).unwrap_or(0);
                // Less than before: it was unloaded in between, and counts anew.
                let lost = if now < before { now } else { now - before };
                if lost > 0 {
                    losses.push(Loss {
                        hook: hook.name.to_owned(),
                        cpu: None,
                        lost,
                        skipped: true,
                        alerting: hook.alerting,
                    });
                }
            }
        }
        losses
    }
}

/// Name of the entry that stands for all security hooks where none can be attached.
pub const SECURITY: &str = "security-hooks";

/// Attaches the empty programs that the benchmark compares with, until the returned value is dropped.
///
/// # Errors
/// As [`Kernel::attach`], and when one of these programs cannot be attached.
pub fn floor(backend: Backend) -> Result<Ebpf, KernelError> {
    let bytes = btf::read(Path::new(btf::VMLINUX))?;
    let kernel_btf = Btf::parse(&bytes, Endianness::default())?;
    raise_memlock();
    let mut ebpf =
        EbpfLoader::new().btf(Some(&kernel_btf)).load(PROGRAMS).map_err(|e| KernelError::Load(Box::new(e)))?;
    if backend == Backend::Tracepoint {
        load_sys_exit(&mut ebpf, "floor", &kernel_btf)?;
        sys_exit(&mut ebpf, "floor")?.attach().map_err(load_error)?;
        return Ok(ebpf);
    }
    for (name, target) in [
        (format!("floor_{}_open", backend.name()), "file_open"),
        (format!("floor_{}_rename", backend.name()), "inode_rename"),
    ] {
        let program = ebpf.program_mut(&name).ok_or(KernelError::Missing("floor program"))?;
        let function = format!("security_{target}");
        match program {
            Program::Lsm(program) => program.load(target, &kernel_btf).and_then(|()| program.attach().map(drop)),
            Program::FEntry(program) => program.load(&function, &kernel_btf).and_then(|()| program.attach().map(drop)),
            Program::KProbe(program) => program.load().and_then(|()| program.attach(function, 0).map(drop)),
            _ => return Err(KernelError::Missing("floor program")),
        }
        .map_err(load_error)?;
    }
    Ok(ebpf)
}

fn load_error(error: ProgramError) -> KernelError {
    KernelError::Load(Box::new(aya::EbpfError::ProgramError(error)))
}

fn sys_exit<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, KernelError> {
    ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into().map_err(load_error)
}

fn load_sys_exit(ebpf: &mut Ebpf, name: &'static str, btf: &Btf) -> Result<(), KernelError> {
    sys_exit(ebpf, name)?.load("sys_exit", btf).map_err(load_error)
}

/// System calls that `sys_exit` looks at although nothing watched was touched, as bits of [`about`]. `all`: no security hooks
/// see the rest.
fn matters(precise: bool, all: bool, tracked: bool, sandboxed: bool) -> u32 {
    let bits = [
        (about::OPENS | about::MOUNTS | about::NAMESPACES, all),
        (about::NAMES, all && !precise),
        (about::SOCKETS, all && sandboxed),
        (about::WRITES, tracked),
    ];
    bits.iter().filter(|(_, counts)| *counts).fold(0, |sum, (bit, _)| sum | u32::from(*bit))
}

/// Where system calls' arguments are in the registers: native ones, then those of 32-bit callers.
fn arguments(offsets: &KernelOffsets) -> [u32; 8] {
    let of = offsets;
    let native = [of.x86_regs_di, of.x86_regs_si, of.x86_regs_dx, of.x86_regs_r10];
    let compat = [of.x86_regs_bx, of.x86_regs_cx, of.x86_regs_dx, of.x86_regs_si];
    std::array::from_fn(|n| if n < 4 { native[n] } else { compat[n - 4] })
}

/// Kernels before 5.11 account BPF memory as locked memory. Where it cannot be raised, it need not be.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
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

fn hint(error: &aya::EbpfError) -> &'static str {
    let text = chain(error);
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        "BPF needs root, or CAP_BPF and CAP_PERFMON"
    } else {
        "`detector doctor` says what this kernel lacks"
    }
}
