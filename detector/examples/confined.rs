//! Tries what a confined agent must not do and what it must, one attempt a process, and says what came of it: `done`, or the error.
//!
//! `confined HOW ATTEMPT FILES PID`: HOW is `free` for a process that is not confined, `main` for the main thread of one that is,
//! `thread` for a thread of it that writes into FILES/own and reads FILES/own/config, and `child` for a thread that such a one starts.
//! FILES holds what the attempts are about, PID is somebody to be attacked.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs::{self, File},
    io,
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
};

use detector::confine::{self, Files};
use nix::{
    fcntl::{OFlag, OpenHow, openat2},
    libc,
    mount::{MsFlags, mount, umount},
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [how, name, files, pid] = &arguments[..] else { panic!("confined HOW ATTEMPT FILES PID") };
    // What the agent opens before it is confined.
    let map = map().unwrap();
    let attempt = Attempt { name: name.clone(), files: PathBuf::from(files), pid: pid.parse().unwrap(), map };
    if how != "free" {
        confine::switch_on();
    }
    let own = attempt.files.join("own");
    let files = Files::default().writing_into(&own).reading(&own.join("config")).resolving();
    let result = match how.as_str() {
        "free" | "main" => {
            if let Some(line) = confine::process(|| true) {
                eprintln!("{line}");
            }
            attempt.make()
        }
        // As in the agent: they are there before the main thread confines itself.
        "thread" | "child" => {
            let (filtered, go) = mpsc::channel();
            let (held, is_held) = mpsc::channel();
            thread::scope(|scope| {
                let (how, files, attempt) = (how.as_str(), &files, &attempt);
                let thread = scope.spawn(move || {
                    confine::thread(files);
                    held.send(()).unwrap();
                    go.recv().unwrap();
                    if how == "child" {
                        thread::scope(|scope| scope.spawn(|| attempt.make()).join().unwrap())
                    } else {
                        attempt.make()
                    }
                });
                is_held.recv().unwrap();
                confine::process(|| true);
                filtered.send(()).unwrap();
                thread.join().unwrap()
            })
        }
        how => panic!("{how}"),
    };
    match result {
        Ok(()) => println!("done"),
        Err(error) => println!("{:?}", nix::errno::Errno::from_raw(error.raw_os_error().unwrap())),
    }
}

struct Attempt {
    name: String,
    files: PathBuf,
    pid: i32,
    map: OwnedFd,
}

impl Attempt {
    fn make(&self) -> io::Result<()> {
        let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", self.pid));
        let file = |name: &str| self.files.join(name);
        let them = Pid::from_raw(self.pid);
        match self.name.as_str() {
            "execute" => Err(Command::new("/bin/echo").arg("done").exec()),
            "fork" => {
                // SAFETY: the child ends at once.
                match unsafe { fork() }? {
                    // SAFETY: as it says.
                    ForkResult::Child => unsafe { libc::_exit(0) },
                    ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None).map(drop)?,
                }
                Ok(())
            }
            "start a thread" => thread::Builder::new().spawn(|| {}).map(|thread| thread.join().unwrap()),
            "mount" => {
                mount(Some("none"), &file("own"), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
                Ok(umount(&file("own"))?)
            }
            "trace a process" => {
                let seize = usize::try_from(libc::PTRACE_SEIZE).unwrap();
                call(libc::SYS_ptrace, [seize, usize::try_from(self.pid).unwrap(), 0])
            }
            "write to a process" => File::options().write(true).open(of("mem")).map(drop),
            "signal a process" => Ok(kill(them, Signal::SIGCONT)?),
            "look into a process" => fs::metadata(of("root/etc")).map(drop),
            "ask which program a process is" => File::open(of("exe")).map(drop),
            "load a program" => bpf(5, &program()).map(drop),
            "make a map" => map().map(drop),
            "use a map" => {
                let (key, value) = ([0_u8; 4], [1_u8; 4]);
                let mut update = [0_u64; 4];
                update[0] = u64::from(self.map.as_raw_fd().unsigned_abs());
                update[1] = key.as_ptr().addr() as u64;
                update[2] = value.as_ptr().addr() as u64;
                bpf(2, &update).map(drop)
            }
            "join namespaces" => {
                let namespace = File::open("/proc/thread-self/ns/uts")?;
                Ok(nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWUTS)?)
            }
            "make namespaces" => Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS)?),
            // What is no module is refused by who loads modules, and in another way.
            "load a module" => call(libc::SYS_init_module, [std::ptr::null::<u8>().addr(), 0, c"".as_ptr().addr()]),
            "open a device by its number" => {
                let device = file("own/device");
                let kind = nix::sys::stat::SFlag::S_IFCHR;
                nix::sys::stat::mknod(&device, kind, nix::sys::stat::Mode::S_IRUSR, nix::sys::stat::makedev(1, 3))?;
                fs::remove_file(device)
            }
            "make code" => {
                let (rwx, private) = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE);
                let anonymous = private | libc::MAP_ANONYMOUS;
                // SAFETY: new memory, which nobody uses.
                let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rwx, anonymous, -1, 0) };
                if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
            }
            "be root again" => {
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
                File::options().append(true).open(file("roots")).map(drop)
            }
            "raise capabilities" => caps::set(None, caps::CapSet::Effective, &caps::all())
                .map_err(|_| io::Error::from_raw_os_error(libc::EPERM)),
            "open a raw socket" => {
                use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
                Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).map(drop)?)
            }
            "listen" => TcpListener::bind("127.0.0.1:0").map(drop),
            "send" => UdpSocket::bind("127.0.0.1:0")?.send_to(b"", "127.0.0.1:9").map(drop),
            "find an address" => std::net::ToSocketAddrs::to_socket_addrs("localhost:9").map(drop),
            "connect to root's socket" => UnixStream::connect(file("socket")).map(drop),
            "connect to everybody's socket" => UnixStream::connect(file("open-socket")).map(drop),
            "write root's file" => File::options().append(true).open(file("roots")).map(drop),
            "write root's file by openat2" => {
                let how = OpenHow::new().flags(OFlag::O_WRONLY);
                Ok(openat2(File::open("/")?, &file("roots"), how).map(drop)?)
            }
            "write root's file by its process" => {
                File::options().append(true).open(self.through_them("roots")).map(drop)
            }
            "make a file" => make(&file("own/../new")),
            "remove root's file" => {
                fs::remove_file(file("removable"))?;
                fs::write(file("removable"), "")
            }
            "read root's file" => fs::read(file("roots")).map(drop),
            "read somebody's file" => fs::read(file("somebodys")).map(drop),
            "read somebody's file by his process" => fs::read(self.through_them("somebodys")).map(drop),
            "read the own file" => fs::read(file("own/config")).map(drop),
            "write an own file" => make(&file("own/new")),
            "put an own file aside" => {
                let (old, new) = (file("own/old"), file("own/evidence/old"));
                fs::write(&old, "")?;
                fs::hard_link(&old, &new)?;
                fs::rename(&old, file("own/older"))?;
                fs::remove_file(file("own/older"))?;
                fs::remove_file(new)
            }
            name => panic!("{name}"),
        }
    }

    fn through_them(&self, name: &str) -> PathBuf {
        let path = self.files.join(name);
        Path::new(&format!("/proc/{}/root", self.pid)).join(path.strip_prefix("/").unwrap())
    }
}

fn make(path: &Path) -> io::Result<()> {
    File::options().write(true).create_new(true).open(path)?;
    fs::remove_file(path)
}

fn call(number: libc::c_long, arguments: [usize; 3]) -> io::Result<()> {
    // SAFETY: the callers' pointers are valid or null.
    let answer = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An array with one value of four bytes.
fn map() -> io::Result<OwnedFd> {
    // Type, size of the key, size of the value, entries: four bytes each.
    let fd = bpf(0, &[2 | 4 << 32, 4 | 1 << 32])?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A filter of sockets that returns 0, as the attributes of its loading.
fn program() -> [u64; 16] {
    static RETURN_0: [u64; 2] = [0xb7, 0x95];
    static LICENCE: &std::ffi::CStr = c"GPL";
    let mut attributes = [0; 16];
    attributes[0] = 1 | 2 << 32;
    attributes[1] = RETURN_0.as_ptr().addr() as u64;
    attributes[2] = LICENCE.as_ptr().addr() as u64;
    attributes
}

fn bpf(command: usize, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the kernel reads as much as it is told; what the attributes point to is static or lives in the caller.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(answer).unwrap()) }
}
