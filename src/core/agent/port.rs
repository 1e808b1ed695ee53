//! A serial line: the virtio-serial port of a name, or the path of a device, as halves to read and to write.
//!
//! Always holds: nothing here blocks; a terminal line is raw, so that bytes go through as they are; only a refused read
//! says that there is nothing left. While nobody is at the other end reading says end of file. Owner: the link, which
//! keeps a port open over many sessions.

use crate::core::stream::{Reader, Writer};
use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

/// Where the kernel says what its virtio-serial ports are called.
const PORTS: &str = "/sys/class/virtio-ports";

/// Opens the port of this name, or the device of this path.
///
/// # Errors
/// There is none, or somebody has it open.
pub fn open(port: &str) -> io::Result<(Reader, Writer)> {
    let path = if port.starts_with('/') { PathBuf::from(port) } else { find(Path::new(PORTS), port)? };
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).map_err(at)?;
    // What is no terminal has no settings.
    if let Ok(mut settings) = tcgetattr(&file) {
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings).map_err(|e| at(e.into()))?;
    }
    let other = file.try_clone().map_err(at)?;
    // These take whatever can be polled, not only pipes.
    let reader = pipe::Receiver::from_owned_fd_unchecked(file.into()).map_err(at)?;
    let writer = pipe::Sender::from_owned_fd_unchecked(other.into()).map_err(at)?;
    Ok((Box::new(Incoming(reader)), Box::new(Outgoing(writer))))
}

/// What comes. The kernel's driver gives one of the host's buffers a read, however many are there: a short read is not
/// the last one, as it is of a pipe, and one notice stands for all of them.
struct Incoming(pipe::Receiver);

impl AsyncRead for Incoming {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Err(error) if is_passing(&error) => {}
                read => return Poll::Ready(read.map(|n| buf.advance(n))),
            }
        }
    }
}

/// What goes. The driver takes 32 KiB a write.
struct Outgoing(pipe::Sender);

impl AsyncWrite for Outgoing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if is_passing(&error) => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A line has no end.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The device of the port that has this name.
fn find(ports: &Path, name: &str) -> io::Result<PathBuf> {
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port is called {name}"));
    for entry in std::fs::read_dir(ports).map_err(|_| none())? {
        let entry = entry?;
        // A port without a name has no such file.
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::io::Write;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    /// A queue of packets does as the port's driver does: one a read, and one notice for all that are there.
    #[tokio::test]
    async fn a_short_read_is_not_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        let (mut reader, _writer) = open(path.to_str().unwrap()).unwrap();
        let mut host = OpenOptions::new().write(true).open(&path).unwrap();
        nix::fcntl::fcntl(&host, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_DIRECT)).unwrap();
        for packet in [b"one", b"two", b"six"] {
            host.write_all(packet).unwrap();
        }
        let mut buf = [0; 100];
        for packet in [b"one", b"two", b"six"] {
            let n =
                timeout(Duration::from_secs(20), reader.read(&mut buf)).await.expect("it is there").unwrap();
            assert_eq!(&buf[..n], packet);
        }
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (port, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport0p2", "org.castra.bus.0\n")] {
            std::fs::create_dir(dir.path().join(port)).unwrap();
            std::fs::write(dir.path().join(port).join("name"), name).unwrap();
        }
        std::fs::create_dir(dir.path().join("vport1p0")).unwrap();
        assert_eq!(find(dir.path(), "org.castra.bus.0").unwrap(), Path::new("/dev/vport0p2"));
        for (ports, name) in [(dir.path(), "org.castra.bus"), (Path::new("/nowhere"), "org.castra.bus.0")] {
            let error = find(ports, name).unwrap_err();
            assert_eq!(error.to_string(), format!("no virtio-serial port is called {name}"));
        }
    }
}
