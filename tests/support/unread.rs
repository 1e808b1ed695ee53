//! A process whose stderr nobody reads.

use super::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io::{BufReader, ErrorKind, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};

/// A process whose stderr is a pipe that is full.
pub struct Unread {
    pub child: Child,
    pub out: BufReader<PipeReader>,
    pub kept: PipeWriter,
}

impl Unread {
    pub fn start(command: &mut Command) -> Self {
        let (out, kept) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(kept.try_clone().unwrap());
        Unread { child: command.spawn().unwrap(), out: BufReader::new(out), kept }
    }

    /// Another description of the same pipe, so that the process still blocks.
    pub fn fill(&self) {
        let path = format!("/proc/self/fd/{}", self.kept.as_raw_fd());
        let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut pipe = OpenOptions::new().write(true).custom_flags(nonblocking).open(path).unwrap();
        for size in [512, 1] {
            loop {
                match pipe.write(&vec![b'x'; size]) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn end(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        eventually("the end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
