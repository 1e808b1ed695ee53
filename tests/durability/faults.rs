//! Faults that only root can make: mounted images and injected errors. What cannot be had is skipped by name.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

pub use crate::support::skip;

/// Runs a command to its end; its stderr when it failed.
pub fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A loop-mounted ext4, unmounted when it is dropped.
pub struct Mounted {
    image: PathBuf,
    pub at: PathBuf,
    mounted: bool,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(mib: u64) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it needs root to mount an image".into());
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("disk.img"), dir.path().join("m"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image.to_str().unwrap()])?;
        let mut mounted = Mounted { image, at, mounted: false, _dir: dir };
        mounted.mount()?;
        Ok(mounted)
    }

    pub fn root(&self) -> PathBuf {
        self.at.join("state")
    }

    pub fn mount(&mut self) -> Result<(), String> {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.at.to_str().unwrap()])?;
        self.mounted = true;
        Ok(())
    }

    pub fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}"), self.at.to_str().unwrap()]).unwrap();
    }

    pub fn unmount(&mut self) {
        crate::support::eventually("umount", || run("umount", &[self.at.to_str().unwrap()]).ok());
        self.mounted = false;
    }

    /// Something that cuts the power at once when it is told to.
    pub fn switch(&self) -> Result<Switch, String> {
        const CUT: &str = "import fcntl, os, struct, sys\n\
            disk = os.open(sys.argv[1], os.O_RDONLY)\n\
            print(flush=True)\n\
            sys.stdin.readline()\n\
            fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))";
        let mut command = Command::new("python3");
        command.args(["-c", CUT, self.at.to_str().unwrap()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("python3: {e}"))?;
        let mut ready = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        Ok(Switch(child))
    }

    /// Fills it to the last byte, again and again whatever is freed, until the filler is dropped.
    pub fn fill(&self) -> Filler {
        let path = self.at.join("filler");
        let (stop, full): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let (at, stopped) = (path.clone(), stop.clone());
        let said = full.clone();
        let thread = std::thread::spawn(move || {
            let mut file = std::fs::File::create(&path).unwrap();
            while !stop.load(SeqCst) {
                for size in [1 << 20, 4096] {
                    let bytes = vec![7; size];
                    while !stop.load(SeqCst) && file.write_all(&bytes).and_then(|()| file.sync_data()).is_ok()
                    {
                    }
                }
                said.store(true, SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        crate::support::eventually("a full disk", || full.load(SeqCst).then_some(()));
        Filler { path: at, stop: stopped, thread: Some(thread) }
    }
}

/// Keeps a disk full.
pub struct Filler {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// See [`Mounted::switch`].
pub struct Switch(Child);

impl Switch {
    /// Cuts the power: nothing that is not on the disk by now will ever be.
    pub fn cut(mut self) -> Result<(), String> {
        drop(self.0.stdin.take());
        let ended = self.0.wait().unwrap();
        if ended.success() { Ok(()) } else { Err("FS_IOC_SHUTDOWN was refused".into()) }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap();
        if self.mounted && run("umount", &[at]).is_err() {
            let _ = run("umount", &["-l", at]);
        }
    }
}

/// The broker under strace with these options, as the child itself; `None` when there is no strace.
pub fn strace(options: &[&str]) -> Option<Command> {
    let probe = ["-D", "-f", "-o", "/dev/null", "-e", "trace=none", "true"];
    run("strace", &probe).ok()?;
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-o", "/dev/null"]).args(options).arg(env!("CARGO_BIN_EXE_castra"));
    command.env_remove("CASTRA_STATE_ROOT").env_remove("CASTRA_TCP").env("CASTRA_CONFIG", "/dev/null");
    Some(command)
}

/// Copies a state root.
pub fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", "--sparse=never", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
}
