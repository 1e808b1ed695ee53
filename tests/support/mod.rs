//! What the tests of the real program share: a broker as a process, and a guest that speaks raw bus-v1.
//!
//! Always holds: every broker has a port of its own (0) and a state root of its own, and is ended by its
//! pid when its handle is dropped; waiting means looking for what is waited for, with a limit.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

pub mod unread;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Says why a test does not run; with `CASTRA_TEST_ALL=1` that is a failure.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CASTRA_TEST_ALL").is_none_or(|v| v != "1"), "{test} cannot run: {why}");
    println!("skipped: {test}: {why}");
}

/// The program under test.
pub fn castra() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CASTRA_") {
            command.env_remove(name);
        }
    }
    // Nor what is installed on this machine, and its time zone.
    command.env("CASTRA_CONFIG", "/dev/null").env("TZ", "UTC").env_remove("NO_COLOR");
    command
}

/// Looks until `found` says so.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running broker.
pub struct Broker {
    pub child: Child,
    pub root: PathBuf,
    pub addr: String,
    stderr: Option<BufReader<std::process::ChildStderr>>,
}

impl Broker {
    /// Starts one on `root` and waits until its doors are open.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, castra(), &[])
    }

    /// The same with further arguments.
    pub fn start_args(root: &Path, args: &[&str]) -> Self {
        Self::start_with(root, castra(), args)
    }

    /// The same, `command` being the program (or something that runs it with the arguments appended).
    pub fn start_with(root: &Path, command: Command, args: &[&str]) -> Self {
        Self::try_start(root, command, args)
            .unwrap_or_else(|(code, stderr)| panic!("exit {code:?}: {stderr}"))
    }

    /// Starts one; its exit code and stderr when it did not come up.
    pub fn try_start(
        root: &Path,
        mut command: Command,
        args: &[&str],
    ) -> Result<Self, (Option<i32>, String)> {
        command.arg("broker").arg("--state-root").arg(root).args(["--tcp", "127.0.0.1:0"]).args(args);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while stderr.read_line(&mut said).unwrap() > 0 {
            let line = said.lines().last().unwrap_or_default();
            if let Some(rest) = line.strip_prefix("castra: broker running, listening on tcp:") {
                let addr = rest.split(' ').next().unwrap().to_owned();
                return Ok(Broker { child, root: root.to_owned(), addr, stderr: Some(stderr) });
            }
        }
        Err((child.wait().unwrap().code(), said))
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; its exit code and how long it took.
    pub fn stop(mut self) -> (Option<i32>, Duration) {
        let since = Instant::now();
        self.signal(nix::sys::signal::Signal::SIGTERM);
        (self.child.wait().unwrap().code(), since.elapsed())
    }

    /// Waits for its end; exit code and the rest of stderr.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let code = eventually("the broker's end", || self.child.try_wait().unwrap()).code();
        let mut rest = String::new();
        self.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
        (code, rest)
    }

    /// Runs `castra ARGS` on its state root.
    pub fn run(&self, args: &[&str]) -> Output {
        castra().arg("--state-root").arg(&self.root).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// `castra status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.run(&["status", "--json"]).stdout).unwrap()
    }

    /// A guest with a session.
    pub fn guest(&self, vm: &str) -> Guest {
        let (guest, answer) = self.greet(format!("hello vm:{vm} capabilities=bus-v1\n"));
        assert!(answer.starts_with("ok session="), "{answer}");
        guest
    }

    /// Connects, says these bytes, and reads the answer line (empty when it was closed without one).
    pub fn greet(&self, hello: impl AsRef<[u8]>) -> (Guest, String) {
        let mut guest = Guest::connect(&self.addr);
        guest.stream.get_mut().write_all(hello.as_ref()).unwrap();
        let answer = guest.line();
        (guest, answer)
    }

    /// The lines of a log below `logs/bus`, parsed.
    pub fn log(&self, name: &str) -> Vec<serde_json::Value> {
        eventually("whole lines", || try_read_log(&self.root, name))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of `logs/bus/<name>.log` with its rotated files, oldest first, parsed; every line must be whole.
pub fn read_log(root: &Path, name: &str) -> Vec<serde_json::Value> {
    try_read_log(root, name).unwrap_or_else(|| panic!("{name}.log: half a line"))
}

/// The same; none while a line is just being written.
fn try_read_log(root: &Path, name: &str) -> Option<Vec<serde_json::Value>> {
    let path = root.join("logs/bus").join(format!("{name}.log"));
    let mut lines = Vec::new();
    for file in castra::core::log_files::files_of(&path) {
        let text = std::fs::read_to_string(&file).unwrap();
        if !text.is_empty() && !text.ends_with('\n') {
            return None;
        }
        lines.extend(text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line)));
    }
    Some(lines)
}

/// A guest on a raw TCP connection.
pub struct Guest {
    pub stream: BufReader<TcpStream>,
}

impl Guest {
    /// Connects and reads the banner.
    pub fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Guest { stream: BufReader::new(stream) };
        let banner = guest.line();
        assert_eq!(banner, concat!("castra-broker ", env!("CARGO_PKG_VERSION"), " ready"));
        guest
    }

    /// The next line, without its end; empty at the end of the stream.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let _ = self.stream.read_until(b'\n', &mut line);
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Sends one frame with this body.
    pub fn send(&mut self, body: impl AsRef<[u8]>) {
        self.try_send(body).unwrap();
    }

    pub fn try_send(&mut self, body: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.get_mut().write_all(&frame(body))
    }

    /// The next frame; `None` when the connection ended before one.
    pub fn receive(&mut self) -> Option<serde_json::Value> {
        Some(serde_json::from_slice(&self.receive_body()?).unwrap())
    }

    /// The same, byte for byte.
    pub fn receive_body(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// Sends one frame and reads the next one.
    pub fn ask(&mut self, body: impl AsRef<[u8]>) -> serde_json::Value {
        self.send(body);
        self.receive().expect("an answer")
    }
}

/// A body with its length in front.
pub fn frame(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

/// The whole lines of `handshakes/<file>.jsonl`, parsed.
pub fn records(root: &Path, file: &str) -> Vec<serde_json::Value> {
    let text =
        std::fs::read_to_string(root.join("handshakes").join(format!("{file}.jsonl"))).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The lines of the broker's own log.
pub fn broker_log(root: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(root.join("logs/broker.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The resident memory of a process, in KiB.
pub fn rss_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A peer on a unix socket.
pub struct LocalGuest {
    pub stream: BufReader<std::os::unix::net::UnixStream>,
}

impl LocalGuest {
    /// Connects, reads the banner, says these bytes, reads the answer line.
    pub fn greet(path: &Path, hello: &str) -> (Self, String) {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = LocalGuest { stream: BufReader::new(stream) };
        assert!(guest.line().starts_with("castra-broker "));
        guest.stream.get_mut().write_all(hello.as_bytes()).unwrap();
        let answer = guest.line();
        (guest, answer)
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line);
        line.trim_end().to_owned()
    }

    /// Sends one frame and reads the next one.
    pub fn ask(&mut self, body: &str) -> serde_json::Value {
        self.stream.get_mut().write_all(&frame(body)).unwrap();
        self.receive()
    }

    /// The next frame.
    pub fn receive(&mut self) -> serde_json::Value {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

/// A broker whose `calls` (`fdatasync`, `fdatasync,fsync`) take so much longer, those of each thread that
/// `when` counts (`1+` all, `1..8` the first ones); needs strace. To be started with [`Broker::start_with`];
/// its pid is the broker's own.
pub fn slow_disk(calls: &str, delay: Duration, when: &str) -> Command {
    let mut command = Command::new("strace");
    let (trace, inject) =
        (format!("trace={calls}"), format!("inject={calls}:delay_enter={}:when={when}", delay.as_micros()));
    command.args(["-D", "-f", "-q", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
    command.arg(env!("CARGO_BIN_EXE_castra")).env("CASTRA_CONFIG", "/dev/null");
    command
}
