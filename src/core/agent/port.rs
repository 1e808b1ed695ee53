//! A serial line: the virtio-serial port of a name, or the path of a device, as halves to read and to write.
//!
//! Always holds: nothing here blocks; a terminal line is raw, so that bytes go through as they are. While nobody is at
//! the other end reading says end of file. Owner: the link, which keeps a port open over many sessions.

use crate::core::stream::{Reader, Writer};
use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    let line = Arc::new(AsyncFd::new(file).map_err(at)?);
    Ok((Box::new(Line(line.clone())), Box::new(Line(line))))
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

/// One half; both are the same descriptor.
struct Line(Arc<AsyncFd<File>>);

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|line| line.get_ref().read(unfilled)) {
                Ok(result) => {
                    buf.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|line| line.get_ref().write(bytes)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

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
