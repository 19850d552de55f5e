//! Attaching hooks by the best way that this kernel lets them.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Btf, Ebpf,
    maps::ProgramArray,
    programs::{Program, ProgramError},
};
use detector_common::{KernelOffsets, hook};

use super::{
    btf::Types,
    chain,
    hooks::{Attach, Backend, GUARD, HOOKS, Hook, NO_SYSCALLS, Role},
};
use crate::{record::HookState, source::kubelet::host_root};

/// The running kernel's prototypes of all that hooks may be attached to: parsed, its types take much more memory.
pub struct Prototypes(BTreeMap<(&'static str, &'static str), Vec<String>>);

impl Prototypes {
    /// Looks them up.
    #[must_use]
    pub fn new(types: &Types) -> Self {
        let all = HOOKS.iter().flat_map(|hook| hook.attach).filter_map(|attach| {
            let found = match attach.backend {
                Backend::Lsm => types.function(&format!("bpf_lsm_{}", attach.target)),
                Backend::Fentry | Backend::Kprobe => types.function(attach.target),
                Backend::Tracepoint => types.tracepoint(attach.target),
            };
            Some((Self::key(attach), found?))
        });
        Self(all.collect())
    }

    /// Parameters, as [`Types::function`] gives them; `None` when the kernel has no such thing.
    fn of(&self, attach: &Attach) -> Option<&[String]> {
        self.0.get(&Self::key(attach)).map(Vec::as_slice)
    }

    fn key(attach: &Attach) -> (&'static str, &'static str) {
        (attach.backend.name(), attach.target)
    }
}

/// Attaches hooks, each by the first way that this kernel lets it.
pub struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub prototypes: &'a Prototypes,
    pub btf: &'a Btf,
    pub offsets: &'a KernelOffsets,
    pub without: &'a [String],
}

impl Attacher<'_> {
    /// Every hook of a role.
    pub fn role(&mut self, role: Role, backends: &[Backend]) -> Vec<HookState> {
        HOOKS.iter().filter(|hook| hook.role == role).map(|hook| self.hook(hook, backends)).collect()
    }

    /// The security hooks, by the only backend that is wanted or the best there is. `Err` says why there is none, or
    /// nothing when system calls are what is wanted.
    pub fn security(&mut self, only: Option<Backend>) -> Result<Vec<HookState>, Option<String>> {
        let wanted = match only {
            Some(Backend::Tracepoint) => return Err(None),
            Some(backend) => vec![backend],
            None => vec![Backend::Lsm, Backend::Fentry, Backend::Kprobe],
        };
        let mut usable = Vec::new();
        let mut reasons = Vec::new();
        for backend in wanted {
            if backend == Backend::Lsm
                && let Err(reason) = lsm_is_active()
            {
                reasons.push(format!("lsm: {reason}"));
                continue;
            }
            usable.push(backend);
        }
        // One hook tells what the kernel lets attach; what it refuses there need not be tried fourteen times more.
        let first = HOOKS.iter().find(|hook| hook.role == Role::Security).ok_or(None)?;
        while let Some(backend) = usable.first().copied() {
            let state = self.hook(first, &[backend]);
            if state.backend.is_some() {
                let rest = HOOKS.iter().filter(|hook| hook.role == Role::Security && hook.number != first.number);
                let mut states = vec![state];
                // What no security module is asked about is a plain function, whatever the others attach by.
                let plain = [Backend::Fentry, Backend::Kprobe];
                states.extend(rest.map(|hook| {
                    let lost = !hook.attach.iter().any(|attach| usable.contains(&attach.backend));
                    self.hook(hook, if lost { &plain } else { &usable })
                }));
                return Ok(states);
            }
            reasons.push(state.reason.unwrap_or_default());
            usable.remove(0);
        }
        Err(Some(reasons.join("; ")))
    }

    fn hook(&mut self, hook: &Hook, backends: &[Backend]) -> HookState {
        let state = |backend: Option<Backend>, reason: Option<String>| HookState {
            name: hook.name.to_owned(),
            backend: backend.map(|backend| backend.name().to_owned()),
            reason,
            verified: None,
            required: hook.required,
        };
        if self.without.iter().any(|name| name == hook.name) {
            return state(None, Some("left out by --without-hook".to_owned()));
        }
        if let (hook::SYS_EXIT | hook::SYS_EXIT_GUARD, Some(reason)) = (hook.number, NO_SYSCALLS) {
            return state(None, Some(reason.to_owned()));
        }
        let missing: Vec<_> = hook
            .needs
            .iter()
            .filter(|field| self.offsets.get(field) == Some(KernelOffsets::MISSING))
            .map(|field| field_name(field))
            .collect();
        if !missing.is_empty() {
            return state(None, Some(format!("this kernel has no {}", missing.join(", "))));
        }
        let mut reasons: Vec<String> = Vec::new();
        for backend in backends {
            for attach in hook.attach.iter().filter(|attach| attach.backend == *backend) {
                match self.attach(attach) {
                    Ok(verified) => return HookState { verified, ..state(Some(*backend), None) },
                    Err(reason) => reasons.push(format!("{} {}: {reason}", backend.name(), attach.target)),
                }
            }
        }
        state(None, Some(reasons.join("; ")))
    }

    /// Loads and attaches; yields how many instructions the verifier went through, where the kernel tells.
    fn attach(&mut self, attach: &Attach) -> Result<Option<u32>, String> {
        let found = self.prototypes.of(attach).ok_or("this kernel does not have it")?;
        let fits = attach.prototype.len() <= found.len()
            && attach.prototype.iter().zip(found).all(|(wanted, found)| wanted.is_empty() || wanted == found);
        if !fits {
            return Err(format!("its parameters are ({}), not ({})", found.join(", "), attach.prototype.join(", ")));
        }
        let program = self.ebpf.program_mut(attach.program).ok_or("not in the object file")?;
        let done = match program {
            Program::Lsm(program) => program.load(attach.target, self.btf).and_then(|()| program.attach().map(drop)),
            Program::FEntry(program) => program.load(attach.target, self.btf).and_then(|()| program.attach().map(drop)),
            Program::KProbe(program) => program.load().and_then(|()| program.attach(attach.target, 0).map(drop)),
            Program::BtfTracePoint(program) if attach.program == GUARD => program.load(attach.target, self.btf),
            Program::BtfTracePoint(program) => {
                program.load(attach.target, self.btf).and_then(|()| program.attach().map(drop))
            }
            _ => return Err("a program of another type".to_owned()),
        };
        done.map_err(|error| refusal(&error))?;
        let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
        if attach.program == GUARD {
            self.call_guard()?;
        }
        Ok(verified)
    }

    /// Lets the program at `sys_exit` call the one beside it.
    fn call_guard(&mut self) -> Result<(), String> {
        let fd = self.ebpf.program(GUARD).map(Program::fd).ok_or("not in the object file")?;
        let fd = fd.and_then(|fd| fd.try_clone().map_err(ProgramError::IOError)).map_err(|error| chain(&error))?;
        let map = self.ebpf.map_mut("GUARD").ok_or("its table is not in the object file")?;
        let set = ProgramArray::try_from(map).and_then(|mut table| table.set(0, &fd, 0));
        set.map_err(|error| chain(&error))
    }
}

/// A BPF LSM program attaches on kernels where `bpf` is no active security module, and then never runs.
fn lsm_is_active() -> Result<(), &'static str> {
    // In a container securityfs is not mounted: the host's is looked at.
    let host = host_root(Path::new("/proc"));
    match std::fs::read_to_string(host.join("sys/kernel/security/lsm")) {
        Ok(list) if list.trim().split(',').any(|name| name == "bpf") => Ok(()),
        Ok(_) => Err("bpf is not an active security module (boot with lsm=...,bpf)"),
        Err(_) => Err("whether bpf is an active security module cannot be told: securityfs is not mounted"),
    }
}

/// `type.member` of an offset, as the kernel calls it.
fn field_name(field: &str) -> String {
    KernelOffsets::FIELDS
        .iter()
        .find(|(name, ..)| *name == field)
        .map_or_else(|| field.to_owned(), |(_, of, member)| format!("{of}.{member}"))
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
