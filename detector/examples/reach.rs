//! Connects, listens and reads, for real: what the tests of secrets and connections run beside the agent.
//!
//! `reach listen ADDRESS... [-- FLAGS]` accepts until its standard input ends, and does each line that it reads there (`connect ADDRESS`,
//! `read FILE`). `reach connect ADDRESS`, `reach from ADDRESS ADDRESS`, `reach read|readwrite|openat2 FILE` and `reach both FILE ADDRESS`
//! do it once.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::FromRawFd as _,
    thread,
};

use nix::libc;

type Done = Result<(), Box<dyn std::error::Error>>;

fn main() -> Done {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["listen", rest @ ..] => listen(rest),
        ["connect", address] => connect(address),
        ["from", own, address] => from(own.parse()?, address.parse()?),
        ["read", file] => Ok(fs::read(file).map(drop)?),
        ["readwrite", file] => read(File::options().read(true).write(true).open(file)?),
        ["openat2", file] => {
            let path = CString::new(*file)?;
            let how = [0_u64; 3];
            // SAFETY: the path and the structure live across the call, whose result is checked.
            let fd = unsafe { libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), how.as_ptr(), 24) };
            if fd < 0 {
                return Err(io::Error::last_os_error().into());
            }
            // SAFETY: the kernel just gave it.
            read(unsafe { File::from_raw_fd(i32::try_from(fd)?) })
        }
        ["both", file, address] => {
            fs::read(file)?;
            connect(address)
        }
        other => Err(format!("{other:?}: unknown").into()),
    }
}

fn read(mut file: File) -> Done {
    file.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Nobody need answer: to have tried is what counts.
fn connect(address: &str) -> Done {
    let _ = TcpStream::connect(address);
    Ok(())
}

/// Connects from one of the node's addresses.
fn from(own: SocketAddr, address: SocketAddr) -> Done {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(own)?;
        socket.connect(address).await?;
        Ok(())
    })
}

fn listen(addresses: &[&str]) -> Done {
    for address in addresses.iter().take_while(|address| **address != "--") {
        let listener = TcpListener::bind(address)?;
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    writeln!(io::stdout(), "listening")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("connect", address)) => connect(address)?,
            Some(("read", file)) => drop(fs::read(file)?),
            _ => return Err(format!("{line}: unknown").into()),
        }
        writeln!(io::stdout(), "done")?;
    }
    Ok(())
}
