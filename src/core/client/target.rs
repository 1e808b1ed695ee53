//! Where a broker listens, and the way there.
//!
//! Always holds: what is printed is what is parsed. Owner: whoever connects.

use crate::core::stream::{Reader, Writer};
use crate::core::threads::look_up;
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, io};
use tokio::net::{TcpStream, UnixStream};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockStream};

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `HOST:PORT`; the host is an address or a name.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
    /// `CID:PORT`, out of a virtual machine; the host's CID is 2.
    Vsock(u32, u32),
}

/// What is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a broker is at tcp:HOST:PORT, unix:PATH or vsock:CID:PORT")]
pub struct TargetError;

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once(':') {
            Some(("tcp", address)) => match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Target::Tcp(address.to_owned()))
                }
                _ => Err(TargetError),
            },
            Some(("unix", path)) if !path.is_empty() => Ok(Target::Unix(path.into())),
            Some(("vsock", address)) => {
                let parts = address.split_once(':').ok_or(TargetError)?;
                match (parts.0.parse(), parts.1.parse()) {
                    (Ok(cid), Ok(port)) if cid != VMADDR_CID_ANY => Ok(Target::Vsock(cid, port)),
                    _ => Err(TargetError),
                }
            }
            _ => Err(TargetError),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "tcp:{address}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
            Target::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Target {
    /// Connects; nothing is said yet.
    ///
    /// # Errors
    /// Nobody listens there, or the system cannot go there.
    pub async fn open(&self) -> io::Result<(Reader, Writer)> {
        Ok(match self {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect(&look_up(addr).await?[..]).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Target::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Target::Vsock(cid, port) => {
                let (reader, writer) = VsockStream::connect(VsockAddr::new(*cid, *port)).await?.into_split();
                (Box::new(reader), Box::new(writer))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for good in [
            "tcp:127.0.0.1:7070",
            "tcp:[::1]:1",
            "tcp:host.lan:65535",
            "unix:/run/castra.sock",
            "unix:a:b",
            "vsock:2:7070",
        ] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "tcp",
            "tcp:",
            "tcp:7070",
            "tcp::7070",
            "tcp:a:x",
            "tcp:a:65536",
            "unix:",
            "vsock:2",
            "vsock:a:1",
            "vsock:4294967295:1",
        ] {
            assert_eq!(bad.parse::<Target>(), Err(TargetError), "{bad}");
        }
    }
}
