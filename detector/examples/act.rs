//! Performs one way of changing a manifest directory, for real: what the live tests run beside the agent.
//!
//! `act CASE DIR NAME`: the manifest's text comes on standard input (`act held` first says `open`, then waits for it).

use std::{
    ffi::CString,
    fs,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _},
    os::unix::ffi::OsStrExt as _,
    os::unix::fs as unix,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

type Done = Result<(), Box<dyn std::error::Error>>;

fn main() -> Done {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "server" || arg.starts_with("--")) {
        return kubelet();
    }
    let [_, case, dir, name] = args.as_slice() else { return Err("usage: act CASE DIR NAME < MANIFEST".into()) };
    let dir = PathBuf::from(dir);
    let path = dir.join(name);
    if case == "held" {
        return held(&path);
    }
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    match case.as_str() {
        "create" => fs::write(&path, &text)?,
        // Other architectures never had it.
        #[cfg(target_arch = "x86_64")]
        "creat" => write_fd(call(libc::SYS_creat, &[cstr(&path)?.as_ptr() as i64, 0o600])?, &text)?,
        "openat2" => {
            // struct open_how { flags, mode, resolve }
            let how = [(libc::O_WRONLY | libc::O_CREAT) as u64, 0o600, 0];
            let path = cstr(&path)?;
            let args = [i64::from(libc::AT_FDCWD), path.as_ptr() as i64, how.as_ptr() as i64, 24];
            write_fd(call(libc::SYS_openat2, &args)?, &text)?;
        }
        "bind" => {
            let other = private_place(&dir)?;
            mount(Some(&dir), &other, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            fs::write(other.join(name), &text)?;
        }
        "symlinked" => {
            let link = beside(&dir, "link")?;
            unix::symlink(&dir, &link)?;
            fs::write(link.join(name), &text)?;
            fs::remove_file(&link)?;
        }
        "proc-root" => {
            // Some machines do not let root look into their first process.
            let of = |pid: u32| Path::new("/proc").join(pid.to_string()).join("root");
            let root = if of(1).join("proc").exists() { of(1) } else { of(std::os::unix::process::parent_id()) };
            fs::write(root.join(path.strip_prefix("/")?), &text)?;
        }
        "rename" => {
            let dot = dir.join(format!(".{name}"));
            fs::write(&dot, &text)?;
            fs::rename(&dot, &path)?;
        }
        "move" => {
            let elsewhere = beside(&dir, "move")?;
            fs::write(&elsewhere, &text)?;
            fs::rename(&elsewhere, &path)?;
        }
        "exchange" => {
            let elsewhere = beside(&dir, "exchange")?;
            fs::write(&elsewhere, &text)?;
            let (from, to) = (cstr(&elsewhere)?, cstr(&path)?);
            let at = i64::from(libc::AT_FDCWD);
            // RENAME_EXCHANGE
            call(libc::SYS_renameat2, &[at, from.as_ptr() as i64, at, to.as_ptr() as i64, 2])?;
            fs::remove_file(&elsewhere)?;
        }
        "link" => {
            let elsewhere = beside(&dir, "link")?;
            fs::write(&elsewhere, &text)?;
            fs::hard_link(&elsewhere, &path)?;
            fs::remove_file(&elsewhere)?;
        }
        "symlink" => {
            let elsewhere = beside(&dir, "symlink")?;
            fs::write(&elsewhere, &text)?;
            unix::symlink(&elsewhere, &path)?;
        }
        "chroot" => {
            let fd = fs::File::open(&dir)?;
            unix::chroot("/var/empty").or_else(|_| unix::chroot("/usr"))?;
            std::env::set_current_dir("/")?;
            let name = CString::new(name.as_str())?;
            let flags = i64::from(libc::O_WRONLY | libc::O_CREAT);
            let made = call(libc::SYS_openat, &[fd.as_raw_fd().into(), name.as_ptr() as i64, flags, 0o600])?;
            write_fd(made, &text)?;
        }
        "truncate" => {
            call(libc::SYS_truncate, &[cstr(&path)?.as_ptr() as i64, text.len() as i64])?;
        }
        "ftruncate" => fs::OpenOptions::new().write(true).open(&path)?.set_len(text.len() as u64)?,
        "copy-file-range" | "sendfile" | "splice" => copy(case, &dir, &path, &text)?,
        "mmap" => mmap(&path, &text)?,
        "io-uring" => io_uring(&path, &text)?,
        "unlink" => fs::remove_file(&path)?,
        "read" => drop(fs::read(&path)?),
        "touch" => drop(fs::OpenOptions::new().append(true).open(&path)?),
        "replace-dir" => {
            let (away, new) = (beside(&dir, "away")?, beside(&dir, "new")?);
            fs::create_dir(&new)?;
            fs::write(new.join(name), &text)?;
            fs::rename(&dir, &away)?;
            fs::rename(&new, &dir)?;
        }
        "tmpfs" => {
            mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            fs::write(&path, &text)?;
        }
        "bind-over" => {
            let elsewhere = beside(&dir, "bind-over")?;
            fs::write(&elsewhere, &text)?;
            mount(Some(&elsewhere), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        "mount-in-kubelet" => {
            // The directory's last component is the kubelet's pid.
            let pid = name.rsplit('-').next().ok_or("no pid")?;
            let namespace = fs::File::open(Path::new("/proc").join(pid).join("ns/mnt"))?;
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNS)?;
            mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            fs::write(dir.join("a.yaml"), &text)?;
        }
        "process-memory" => {
            // Opened for writing, which the kernel asks about as it does about ptrace; nothing is written.
            drop(fs::OpenOptions::new().write(true).open(Path::new("/proc").join(name).join("mem"))?);
        }
        "seize" => {
            // Traced until this process ends.
            let pid: i32 = name.parse()?;
            // SAFETY: neither address nor data is used.
            Errno::result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })?;
        }
        "flood" => flood(&dir, name.parse()?)?,
        "storm" => storm(&dir)?,
        "forks" => forks(name.parse()?)?,
        other => return Err(format!("no act is called {other}").into()),
    }
    Ok(())
}

/// Stands in for a kubelet: a process with a kubelet's name, command line and mount namespace, until its input ends.
fn kubelet() -> Done {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    println!("open");
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// So many file events, as fast as they go.
fn flood(dir: &Path, events: u64) -> Done {
    let names = ["a", "b"].map(|end| dir.join(format!("flood-{}-{end}", std::process::id())));
    for _ in 0..events.div_ceil(3) {
        fs::write(&names[0], "x")?;
        fs::rename(&names[0], &names[1])?;
        fs::remove_file(&names[1])?;
    }
    Ok(())
}

/// Processes that execute a program and end, one after the other, until `stop` appears; prints how many.
fn storm(dir: &Path) -> Done {
    let mut count = 0_u64;
    while !dir.join("stop").exists() {
        std::process::Command::new("/proc/self/exe").stderr(std::process::Stdio::null()).status()?;
        count += 1;
    }
    println!("{count}");
    Ok(())
}

/// So many processes that end at once, one after the other.
fn forks(count: u64) -> Done {
    for _ in 0..count {
        // SAFETY: this process has one thread, and the child does nothing but end.
        match unsafe { nix::unistd::fork() }? {
            // SAFETY: always allowed.
            nix::unistd::ForkResult::Child => unsafe { libc::_exit(0) },
            nix::unistd::ForkResult::Parent { child } => drop(nix::sys::wait::waitpid(child, None)?),
        }
    }
    Ok(())
}

/// Opens for writing, says so, and writes when the text comes.
fn held(path: &Path) -> Done {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    println!("open");
    io::stdout().flush()?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    file.write_all(&text)?;
    file.set_len(text.len() as u64)?;
    Ok(())
}

/// A mount namespace of our own, and an empty directory in it.
fn private_place(dir: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let place = beside(dir, "private")?;
    // Pids come around: an earlier act may have had this one.
    if !place.is_dir() {
        fs::create_dir(&place)?;
    }
    Ok(place)
}

/// A path next to the directory, on the same file system.
fn beside(dir: &Path, what: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    Ok(dir.parent().ok_or("the directory has no parent")?.join(format!("{what}-{}", std::process::id())))
}

fn copy(how: &str, dir: &Path, path: &Path, text: &[u8]) -> Done {
    let from = beside(dir, "from")?;
    fs::write(&from, text)?;
    let source = fs::File::open(&from)?;
    let target = fs::File::create(path)?;
    let (from_fd, to_fd, len) = (source.as_raw_fd().into(), target.as_raw_fd().into(), text.len() as i64);
    match how {
        "copy-file-range" => call(libc::SYS_copy_file_range, &[from_fd, 0, to_fd, 0, len, 0])?,
        "sendfile" => call(libc::SYS_sendfile, &[to_fd, from_fd, 0, len])?,
        _ => {
            let (read, write) = nix::unistd::pipe()?;
            call(libc::SYS_splice, &[from_fd, 0, write.as_raw_fd().into(), 0, len, 0])?;
            call(libc::SYS_splice, &[read.as_raw_fd().into(), 0, to_fd, 0, len, 0])?
        }
    };
    fs::remove_file(&from)?;
    Ok(())
}

/// Changes an existing file through a shared mapping; the text must not be longer than the file.
fn mmap(path: &Path, text: &[u8]) -> Done {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: a shared mapping of a file that is at least as long as the text, used within its length.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            text.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        std::ptr::copy_nonoverlapping(text.as_ptr(), map.cast(), text.len());
    }
    drop(file);
    // No system call on the way out may be needed to be seen.
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(())
}

fn io_uring(path: &Path, text: &[u8]) -> Done {
    use io_uring::{IoUring, opcode, types};
    let mut ring = IoUring::new(4)?;
    let path = cstr(path)?;
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(libc::O_WRONLY | libc::O_CREAT)
        .mode(0o600)
        .build();
    let mut submit = |entry: io_uring::squeue::Entry| -> Result<i32, Box<dyn std::error::Error>> {
        // SAFETY: what the entry points to outlives the wait below.
        unsafe { ring.submission().push(&entry)? };
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().ok_or("no completion")?.result();
        if result < 0 { Err(io::Error::from_raw_os_error(-result).into()) } else { Ok(result) }
    };
    let fd = submit(open)?;
    submit(opcode::Write::new(types::Fd(fd), text.as_ptr(), u32::try_from(text.len())?).build())?;
    Ok(())
}

fn write_fd(fd: i64, text: &[u8]) -> Done {
    // SAFETY: the descriptor was just opened here and has no other owner.
    let mut file = unsafe { fs::File::from_raw_fd(i32::try_from(fd)?) };
    file.write_all(text)?;
    let _ = file.into_raw_fd();
    Ok(())
}

fn cstr(path: &Path) -> Result<CString, std::ffi::NulError> {
    CString::new(path.as_os_str().as_bytes())
}

/// A raw system call: the point is which one is made.
fn call(number: i64, args: &[i64]) -> Result<i64, Errno> {
    let arg = |n: usize| args.get(n).copied().unwrap_or(0);
    // SAFETY: every caller passes what the system call of that number takes.
    Errno::result(unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) })
}
