//! What is longer than a datagram may be, as journald takes it: a sealed file without a name, handed over beside an empty datagram
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
    },
};

/// How the file is made: it can be sealed, and never executed. Linux before 6.3 does not know the last one.
pub(crate) const FLAGS: [MFdFlags; 2] = [PLAIN.union(MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL)), PLAIN];
const PLAIN: MFdFlags = MFdFlags::MFD_CLOEXEC.union(MFdFlags::MFD_ALLOW_SEALING);

/// Hands a message over to who reads the connected socket.
///
/// # Errors
/// When there is no memory for it, or nobody takes it.
pub(super) fn over(socket: &UnixDatagram, message: &[u8]) -> io::Result<()> {
    let [wanted, plain] = FLAGS;
    let made = match memfd_create(c"detector", wanted) {
        Err(nix::Error::EINVAL) => memfd_create(c"detector", plain),
        made => made,
    };
    let mut file = File::from(made?);
    file.write_all(message)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE))?;
    let files = [file.as_raw_fd()];
    let none = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[], &[ControlMessage::ScmRights(&files)], none, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSliceMut, Read as _, Seek as _},
        os::fd::{FromRawFd as _, RawFd},
        path::Path,
        time::Duration,
    };

    use nix::{
        cmsg_space,
        sys::socket::{ControlMessageOwned, recvmsg},
    };

    use super::*;
    use crate::sink::{
        remote::{Peer as _, Trouble},
        syslog::Unix,
    };

    fn bound(dir: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    /// The next message, as journald reads it.
    fn read(socket: &UnixDatagram) -> (Vec<u8>, Option<File>) {
        let mut buffer = vec![0; 1 << 20];
        let mut space = cmsg_space!(RawFd);
        let mut room = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut room, Some(&mut space), flags).unwrap();
        let file = message.cmsgs().unwrap().find_map(|part| match part {
            // SAFETY: it was just received, and is nobody else's.
            ControlMessageOwned::ScmRights(files) => Some(unsafe { File::from_raw_fd(files[0]) }),
            _ => None,
        });
        let length = message.bytes;
        buffer.truncate(length);
        (buffer, file)
    }

    #[test]
    fn journald_is_handed_a_file_that_nobody_can_change_when_a_message_is_longer_than_a_datagram() {
        let dir = tempfile::tempdir().unwrap();
        let journald = bound(dir.path());
        let mut peer = Unix::journald(dir.path().join("socket"));
        let long: Vec<u8> = (0..900_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        assert!(peer.send(&[b"one".to_vec(), long.clone(), b"three".to_vec()]).is_ok());
        let (sent, arrived) = peer.sent().unwrap();
        assert!(arrived < sent, "what is not read has not arrived");
        assert_eq!(read(&journald).0, b"one");
        let (datagram, file) = read(&journald);
        let mut file = file.unwrap();
        assert_eq!(datagram, b"");
        assert!(file.set_len(0).is_err() && file.write_all(b"x").is_err());
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert!(content == long);
        assert_eq!(read(&journald).0, b"three");
        assert_eq!(peer.sent().unwrap(), (8, 8));
        // A file alone counts as unread, too.
        assert!(peer.send(&[long]).is_ok());
        assert!(peer.sent().unwrap().1 < 8);
        read(&journald);
        assert_eq!(peer.sent().unwrap(), (8, 8));
    }

    #[test]
    fn a_syslog_server_is_handed_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let server = bound(dir.path());
        let mut peer = Unix::new(dir.path().join("socket"));
        assert!(matches!(peer.send(&[vec![b'x'; 900_000]]), Err(Trouble::Refused(_))));
        assert!(peer.send(&[b"short".to_vec()]).is_ok());
        assert_eq!(read(&server).0, b"short");
    }
}
