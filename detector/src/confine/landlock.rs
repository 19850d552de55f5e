//! Which files a thread may use.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use caps::Capability;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, Scope,
};
use nix::libc;

/// Version of the interface whose restrictions are asked for; of an older kernel what it has.
const ASKED: ABI = ABI::V6;
/// The first that lets a file be linked from one directory into another, which the recorder does with evidence.
const OLDEST: i64 = 2;

/// The version that this kernel has; `None` without Landlock.
pub fn abi() -> Option<i64> {
    const VERSION: u32 = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for its version the kernel reads no structure.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    (abi > 0).then_some(abi)
}

/// Whether Landlock is of use here.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), String> {
    match abi() {
        Some(abi) if abi >= OLDEST => Ok(()),
        Some(abi) => Err(format!("Landlock {abi} forbids links between directories; Linux 5.19 has the next")),
        None => {
            let why = match io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOSYS) => "Linux has it since 5.13",
                Some(libc::EOPNOTSUPP) => "this kernel was booted without it in lsm=",
                _ => "a filter of system calls refuses it",
            };
            Err(format!("no Landlock: {why}"))
        }
    }
}

/// What a thread does with files: nothing, unless said here. What is open already stays open.
#[derive(Clone, Debug, Default)]
pub struct Files {
    written: Vec<PathBuf>,
    read: Vec<PathBuf>,
    /// Somebody else than whom this process is owns something of that.
    foreign: bool,
}

impl Files {
    /// Writes this file, and others beside it when it is put aside.
    #[must_use]
    pub fn writing(self, file: &Path) -> Self {
        let beside = places(file);
        self.writing_below(file, beside)
    }

    /// Writes into this directory.
    #[must_use]
    pub fn writing_into(self, dir: &Path) -> Self {
        self.writing_below(dir, vec![dir.to_owned()])
    }

    /// Reads this file, and what takes its place.
    #[must_use]
    pub fn reading(mut self, file: &Path) -> Self {
        self.read.extend(places(file));
        self
    }

    /// Finds the addresses of hosts.
    #[must_use]
    pub fn resolving(mut self) -> Self {
        self.read.push("/etc".into());
        // What /etc/resolv.conf leads to is written anew in its directory.
        self.read.extend(places(Path::new("/etc/resolv.conf")));
        if cfg!(target_env = "gnu") {
            // This C library loads what nsswitch.conf names.
            self.read.extend(["/usr", "/lib", "/lib64"].map(PathBuf::from));
        }
        self
    }

    fn writing_below(mut self, path: &Path, dirs: Vec<PathBuf>) -> Self {
        let dirs: Vec<_> = dirs.into_iter().map(|dir| standing(&dir)).collect();
        let us = nix::unistd::geteuid().as_raw();
        let is_foreign = |path: &Path| fs::metadata(path).is_ok_and(|found| found.uid() != us);
        self.foreign |= is_foreign(path) || dirs.iter().any(|dir| is_foreign(dir));
        self.written.extend(dirs);
        self
    }

    /// What it takes to use them: root owns them, as a rule, and needs nothing for that.
    pub(super) fn capabilities(&self) -> Vec<Capability> {
        let read = (!self.read.is_empty()).then_some(Capability::CAP_DAC_READ_SEARCH);
        read.into_iter().chain(self.foreign.then_some(Capability::CAP_DAC_OVERRIDE)).collect()
    }

    /// Lets this thread, and those that it starts, use nothing else. No error without Landlock: that is said once, and not by each
    /// thread.
    pub(super) fn enforce(&self) -> Result<(), String> {
        if available().is_err() {
            return Ok(());
        }
        self.ruleset().map_err(|error| format!("Landlock: {error}"))
    }

    fn ruleset(&self) -> Result<(), RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let written = read
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::RemoveFile
            // From one directory of them into another.
            | AccessFs::Refer;
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(ASKED))?
            // Nobody of them listens, signals or talks to what has no file.
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(ASKED))?
            .create()?;
        let of = |dirs: &[PathBuf], access: BitFlags<AccessFs>| {
            let opened = dirs.iter().filter_map(|dir| PathFd::new(standing(dir)).ok());
            opened.map(|dir| PathBeneath::new(dir, access)).collect::<Vec<_>>()
        };
        for rule in of(&self.written, written).into_iter().chain(of(&self.read, read)) {
            rules = rules.add_rule(rule)?;
        }
        rules.restrict_self().map(drop)
    }
}

/// The directories in which a file is replaced: its own, and that of what it leads to.
fn places(file: &Path) -> Vec<PathBuf> {
    let led = fs::canonicalize(file).ok();
    let files = [Some(file.to_owned()), led];
    let mut dirs: Vec<_> = files.iter().flatten().filter_map(|file| file.parent().map(dir)).collect();
    dirs.dedup();
    dirs
}

/// Where a file without a directory in its name is.
fn dir(parent: &Path) -> PathBuf {
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() }
}

/// The directory, or the closest one above it that is there: it may be made later.
fn standing(dir: &Path) -> PathBuf {
    let found = dir.ancestors().find(|dir| dir.is_dir());
    found.map_or_else(|| PathBuf::from("/"), self::dir)
}
