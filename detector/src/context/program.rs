//! What processes run, each program with its arguments kept once.

use std::{collections::hash_map::Entry, hash::BuildHasher as _, sync::Arc};

use detector_common as wire;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::{argv::Argv, decode::Exec};

/// What follows the path of a file that has been removed.
const DELETED: &str = " (deleted)";

/// What a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Program {
    /// Path of the executable in the process's mount namespace; in brackets, its short name, when only that is known.
    pub exe: String,
    pub argv: Argv,
    pub argv_truncated: bool,
    pub tty: Option<Box<str>>,
}

impl Program {
    /// Whether it is what an exec tells of, said without putting that together.
    fn is(&self, exec: &Exec) -> bool {
        let flags = exec.event.flags;
        let exe = if flags & wire::EXE_DELETED != 0 { self.exe.strip_suffix(DELETED) } else { Some(&*self.exe) };
        exe.is_some_and(|exe| exec.path.is(exe))
            && exec.argv.is(&self.argv)
            && self.argv_truncated == (flags & wire::ARGV_TRUNCATED != 0)
            && self.tty.as_deref().unwrap_or_default().as_bytes() == tty(exec)
    }
}

/// A program under a hash of what it was told by. Shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept(Arc<(u64, Program)>);

impl std::ops::Deref for Kept {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.0.1
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Programs(FxHashMap<u64, Kept>);

impl Programs {
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The program that an exec tells of. Nearly always it is known, and then its texts need not be put together.
    pub fn executed(&mut self, exec: &Exec) -> Kept {
        let event = &exec.event;
        let key = FxBuildHasher.hash_one((exec.path.raw(), exec.argv.raw(), event.flags, tty(exec)));
        if let Some(known) = self.0.get(&key)
            && known.is(exec)
        {
            return known.clone();
        }
        // A file that is mounted by itself, as runc mounts itself, has no name in any directory.
        let mut exe = if &*exec.path == "/" { comm(&event.header) } else { (*exec.path).to_owned() };
        if event.flags & wire::EXE_DELETED != 0 {
            exe.push_str(DELETED);
        }
        let program = Program {
            exe,
            argv: Argv::clone(&exec.argv),
            argv_truncated: event.flags & wire::ARGV_TRUNCATED != 0,
            tty: Some(String::from_utf8_lossy(tty(exec))).filter(|tty| !tty.is_empty()).map(Into::into),
        };
        self.under(key, program)
    }

    /// The program of a process of which only the short name is known.
    pub fn named(&mut self, header: &wire::Header) -> Kept {
        self.keep(Program { exe: comm(header), ..Program::default() })
    }

    pub fn keep(&mut self, program: Program) -> Kept {
        self.under(FxBuildHasher.hash_one(&program), program)
    }

    fn under(&mut self, key: u64, program: Program) -> Kept {
        match self.0.entry(key) {
            Entry::Occupied(known) if **known.get() == program => known.get().clone(),
            // Two that have one hash: the other one was first.
            Entry::Occupied(_) => Kept(Arc::new((key, program))),
            Entry::Vacant(free) => free.insert(Kept(Arc::new((key, program)))).clone(),
        }
    }

    /// A process no longer runs this.
    pub fn unused(&mut self, program: Kept) {
        // The map's copy and this one: nobody else runs it.
        if Arc::strong_count(&program.0) <= 2
            && let Entry::Occupied(known) = self.0.entry(program.0.0)
            && Arc::ptr_eq(&known.get().0, &program.0)
        {
            known.remove();
        }
    }
}

/// The terminal's name as the kernel has it.
fn tty<'a>(exec: &'a Exec) -> &'a [u8] {
    let tty = &exec.event.tty;
    &tty[..tty.iter().position(|byte| *byte == 0).unwrap_or(tty.len())]
}

/// A task's short name, in brackets.
fn comm(header: &wire::Header) -> String {
    let len = header.comm.iter().position(|b| *b == 0).unwrap_or(header.comm.len());
    format!("[{}]", String::from_utf8_lossy(&header.comm[..len]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode::{self, Event},
        testing::{self, Actor},
    };

    fn executed(programs: &mut Programs, raw: &[u8]) -> Kept {
        let Event::Exec(exec) = decode::event(raw).unwrap() else { panic!() };
        programs.executed(&exec)
    }

    fn exec(exe: &str, argv: &[&str]) -> Vec<u8> {
        testing::exec(Actor::host(60, 20), Actor::host(50, 10), exe, argv).to_vec()
    }

    #[test]
    fn each_program_is_kept_once_and_as_long_as_somebody_runs_it() {
        let mut programs = Programs::default();
        let raws = [exec("/bin/a", &["a"]), exec("/bin/a", &["a", "b"]), exec("/bin/b", &["a"])];
        let first: Vec<_> = raws.iter().map(|raw| executed(&mut programs, raw)).collect();
        let again: Vec<_> = raws.iter().map(|raw| executed(&mut programs, raw)).collect();
        for (first, again) in first.iter().zip(&again) {
            assert!(Arc::ptr_eq(&first.0, &again.0));
        }
        assert_eq!(programs.count(), 3);
        first.into_iter().for_each(|program| programs.unused(program));
        assert_eq!(programs.count(), 3);
        again.into_iter().for_each(|program| programs.unused(program));
        assert_eq!(programs.count(), 0);
    }

    #[test]
    fn texts_that_are_no_utf8_are_one_program_as_well() {
        let mut programs = Programs::default();
        let mut raw = exec("/bin/a", &["x"]);
        let len = raw.len();
        raw[len - 2] = 0xff;
        let programs: Vec<_> = (0..2).map(|_| executed(&mut programs, &raw)).collect();
        assert!(Arc::ptr_eq(&programs[0].0, &programs[1].0));
        assert_eq!(programs[0].argv.to_vec(), ["\u{fffd}"]);
    }

    #[test]
    fn two_programs_with_one_hash_are_two() {
        let mut programs = Programs::default();
        let of = |exe: &str| Program { exe: exe.to_owned(), ..Program::default() };
        let (first, second) = (programs.under(1, of("a")), programs.under(1, of("b")));
        assert_eq!((&*first.exe, &*second.exe), ("a", "b"));
        // The one that is not in the map does not take the other one with it.
        programs.unused(second);
        assert_eq!(programs.count(), 1);
        programs.unused(first);
        assert_eq!(programs.count(), 0);
    }
}
