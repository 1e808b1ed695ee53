//! The broker under a service manager: what it tells (`sd_notify`), and the sockets it is handed.

use crate::support::{Broker, LocalGuest, castra, eventually, skip, slow_disk};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What systemd would hear.
pub struct Manager {
    socket: UnixDatagram,
    pub path: PathBuf,
    /// The lines, and when.
    pub heard: Vec<(Instant, String)>,
}

impl Manager {
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Manager { socket, path, heard: Vec::new() }
    }

    /// Takes in what was said by now, line by line.
    pub fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..n]).unwrap();
            self.heard.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
        }
    }

    /// Waits for a line that begins so, behind the first `skip` lines; where it is.
    pub fn wait(&mut self, skip: usize, begins: &str) -> usize {
        eventually(begins, || {
            self.listen();
            let found = self.heard.iter().skip(skip).position(|(_, line)| line.starts_with(begins));
            Some(found? + skip)
        })
    }

    pub fn count(&self, begins: &str) -> usize {
        self.heard.iter().filter(|(_, line)| line.starts_with(begins)).count()
    }
}

fn has_strace() -> bool {
    let probe = ["-D", "-f", "-o", "/dev/null", "-e", "trace=none", "true"];
    Command::new("strace").args(probe).output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_manager_hears_ready_status_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let mut command = castra();
    command.env("NOTIFY_SOCKET", &manager.path);
    let broker = Broker::start_with(&dir.path().join("state"), command, &[]);
    manager.wait(0, "READY=1");
    manager.wait(0, "STATUS=running; no events; sessions 0, VMs 0");
    let mut guest = broker.guest("dev");
    let _second = broker.guest("dev");
    guest.ask(r#"{"type":"publish"}"#);
    manager.wait(0, "STATUS=running; events 1..1; sessions 2, VMs 1");
    assert_eq!(manager.count("WATCHDOG=1"), 0, "nobody asked for it");
    // What changes all the time is not said all the time.
    let (since, begun) = (manager.count("STATUS="), Instant::now());
    for _ in 0..40 {
        guest.ask(r#"{"type":"publish"}"#);
        std::thread::sleep(Duration::from_millis(25));
    }
    manager.listen();
    // Every 3 s at the most.
    let may = 1 + begun.elapsed().as_secs() as usize / 3;
    assert!(manager.count("STATUS=") - since <= may, "{may}: {:?}", manager.heard);
    let before = manager.heard.len();
    assert_eq!(broker.stop().0, Some(0));
    let stopping = manager.wait(before, "STOPPING=1");
    assert!(manager.heard[stopping + 1].1.starts_with("STATUS=draining"), "{:?}", manager.heard);
    manager.wait(stopping, "STATUS=ended");
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 1), "{:?}", manager.heard);
}

#[test]
fn a_start_that_fails_tells_the_manager_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let first = Broker::start(&dir.path().join("first"));
    let mut command = castra();
    command.env("NOTIFY_SOCKET", &manager.path);
    let failed = Broker::try_start(&dir.path().join("state"), command, &["--tcp", &first.addr]);
    assert_eq!(failed.err().unwrap().0, Some(73));
    manager.wait(0, "STOPPING=1");
    manager.wait(0, &format!("STATUS=failed: cannot listen on tcp:{}", first.addr));
    assert_eq!(manager.count("READY=1"), 0);
}

#[test]
fn a_manager_that_is_gone_or_does_not_read_delays_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    for path in [manager.path.clone(), dir.path().join("nobody")] {
        let mut command = castra();
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "2000");
        let broker = Broker::start_with(&dir.path().join("state"), command, &[]);
        // Long enough that what nobody reads fills the socket.
        let mut guest = broker.guest("dev");
        for _ in 0..20 {
            guest.ask(r#"{"type":"publish"}"#);
            std::thread::sleep(Duration::from_millis(20));
        }
        let (code, took) = broker.stop();
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn the_watchdog_is_fed_unless_the_disk_hangs() {
    const NAME: &str = "the_watchdog_is_fed_unless_the_disk_hangs";
    const HANGS: Duration = Duration::from_secs(2);
    if !has_strace() {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    assert_eq!(Broker::start(&root).stop().0, Some(0));
    let mut manager = Manager::new(dir.path());
    // The first of each thread: the commit thread's is that of the first publish.
    let mut command = slow_disk("fdatasync", HANGS, "1");
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "200000")
        .env("CASTRA_CONFIG", "/dev/null");
    let broker = Broker::start_with(&root, command, &[]);
    let ready = manager.wait(0, "READY=1");
    (0..5).fold(ready, |after, _| manager.wait(after + 1, "WATCHDOG=1"));
    let mut guest = broker.guest("dev");
    let sent = Instant::now();
    guest.send(r#"{"type":"publish"}"#);
    let answer = std::thread::spawn(move || guest.receive().unwrap());
    while !answer.is_finished() {
        manager.listen();
    }
    assert_eq!(answer.join().unwrap()["seq"], 1);
    assert!(sent.elapsed() >= HANGS, "the disk did not hang: {:?}", sent.elapsed());
    manager.wait(manager.heard.len(), "WATCHDOG=1");
    let fed: Vec<Instant> =
        manager.heard[ready..].iter().filter(|(_, line)| line == "WATCHDOG=1").map(|(at, _)| *at).collect();
    // What was on its way came; after that nothing did, as long as the disk hung.
    let silence = fed.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(silence >= HANGS - Duration::from_millis(500), "fed while the disk hangs: {silence:?}");
}

#[test]
fn a_start_that_takes_long_asks_for_more_time() {
    const NAME: &str = "a_start_that_takes_long_asks_for_more_time";
    if !has_strace() {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    assert_eq!(Broker::start(&root).stop().0, Some(0));
    let mut manager = Manager::new(dir.path());
    let mut command = slow_disk("fdatasync,fsync", Duration::from_millis(1500), "1+");
    command.env("NOTIFY_SOCKET", &manager.path).env("CASTRA_CONFIG", "/dev/null");
    let _broker = Broker::start_with(&root, command, &[]);
    let ready = manager.wait(0, "READY=1");
    let asked = manager.wait(0, "EXTEND_TIMEOUT_USEC=30000000");
    assert!(asked < ready && manager.wait(0, "STATUS=starting: reading the journal") < ready);
}

#[test]
fn a_full_disk_is_said() {
    const NAME: &str = "a_full_disk_is_said";
    if !has_strace() {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let mut manager = Manager::new(dir.path());
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-q", "-o", "/dev/null", "-e", "trace=pwrite64"]);
    command.args(["-e", "inject=pwrite64:error=ENOSPC:when=1+"]);
    for name in ["spare.new", "spare.0", "spare.1"] {
        command.arg("-P").arg(root.join("journal").join(name));
    }
    command.arg(env!("CARGO_BIN_EXE_castra"));
    command.env("NOTIFY_SOCKET", &manager.path).env("CASTRA_CONFIG", "/dev/null");
    let _broker = Broker::try_start(&root, command, &["--segment-bytes", "1MiB"]);
    manager.wait(0, "STATUS=disk full, publishers are refused until there is room");
}

/// Binds what `binds` says (lines of Python that append to `fds`), and becomes the program with those sockets.
fn launcher(binds: &str) -> Option<Command> {
    let script = format!(
        "import os, socket, sys\n\
         fds = []\n\
         {binds}\n\
         kept = [os.dup(s.fileno()) for s in fds]\n\
         high = [__import__('fcntl').fcntl(fd, 0, 100) for fd in kept]\n\
         for n, fd in enumerate(high): os.dup2(fd, 3 + n)\n\
         os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))\n\
         os.execv(sys.argv[1], sys.argv[1:])\n"
    );
    let is_there =
        Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    let mut command = Command::new("python3");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_castra")]).env("CASTRA_CONFIG", "/dev/null");
    is_there.then_some(command)
}

#[test]
fn sockets_that_are_handed_over_are_doors_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (root, guests) = (dir.path().join("state"), dir.path().join("guests.sock"));
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let binds = format!(
        "t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind(('127.0.0.1', {port})); t.listen(5); fds.append(t)\n\
         u = socket.socket(socket.AF_UNIX); u.bind({guests:?}); u.listen(5); fds.append(u)"
    );
    let Some(command) = launcher(&binds) else {
        return skip("sockets_that_are_handed_over_are_doors_and_stay", "there is no python3");
    };
    // The same addresses are configured as well: they are opened once.
    let (tcp, unix) = (format!("127.0.0.1:{port}"), guests.to_str().unwrap());
    let own = dir.path().join("own.sock");
    let broker =
        Broker::start_with(&root, command, &["--tcp", &tcp, "--unix", unix, "--unix", own.to_str().unwrap()]);
    assert_eq!(broker.addr, tcp);
    let listeners = broker.status()["broker"]["listeners"].clone();
    let listeners: Vec<&str> = listeners.as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert_eq!(listeners.iter().filter(|l| l.contains(&tcp)).count(), 1, "{listeners:?}");
    assert_eq!(listeners.iter().filter(|l| l.contains("guests.sock")).count(), 1, "{listeners:?}");
    assert_eq!(broker.guest("dev").ask(r#"{"type":"publish"}"#)["seq"], 1);
    let (mut local, answer) = LocalGuest::greet(&guests, "hello vm:web capabilities=bus-v1\n");
    assert!(answer.starts_with("ok session="), "{answer}");
    assert_eq!(local.ask(r#"{"type":"publish"}"#)["seq"], 2);
    // They are guests' doors.
    let (_, answer) = LocalGuest::greet(&guests, "hello vm:host capabilities=bus-v1,host-bus\n");
    assert_eq!(answer, "error: reserved-identity");
    assert!(broker.run(&["bus", "publish", "t"]).status.success(), "the host's own is there too");
    assert_eq!(broker.stop().0, Some(0));
    assert!(guests.exists(), "it is its maker's to remove");
    assert!(!own.exists() && !root.join("castra.sock").exists());
}

#[test]
fn the_hosts_socket_may_be_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let own = root.join("castra.sock");
    std::fs::create_dir(&root).unwrap();
    let binds = format!("u = socket.socket(socket.AF_UNIX); u.bind({own:?}); u.listen(5); fds.append(u)");
    let Some(command) = launcher(&binds) else {
        return skip("the_hosts_socket_may_be_handed_over", "there is no python3");
    };
    let broker = Broker::start_with(&root, command, &[]);
    assert!(broker.run(&["bus", "publish", "t"]).status.success());
    assert_eq!(broker.stop().0, Some(0));
    assert!(own.exists());
}

#[test]
fn sockets_that_cannot_be_served_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (binds, code, word) in [
        ("t = socket.socket(); t.bind(('0.0.0.0', 0)); t.listen(5); fds.append(t)", 78, "loopback"),
        ("t = socket.socket(socket.AF_INET6); t.bind(('::', 0)); t.listen(5); fds.append(t)", 78, "loopback"),
        (
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); fds.append(u)",
            78,
            "ListenStream=",
        ),
        ("fds.append(open('/dev/null'))", 78, "ListenStream="),
        ("a, b = socket.socketpair(); fds.append(a)", 73, "handed over"),
    ] {
        let Some(command) = launcher(binds) else {
            return skip("sockets_that_cannot_be_served_are_refused", "there is no python3");
        };
        let refused = Broker::try_start(&dir.path().join("state"), command, &[]);
        let (got, said) = refused.err().unwrap_or_else(|| panic!("{binds}: it started"));
        assert_eq!(got, Some(code), "{binds}: {said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
}

/// With systemd's own tool, which starts the program when somebody connects.
#[test]
fn systemd_starts_it_with_the_first_guest() {
    const NAME: &str = "systemd_starts_it_with_the_first_guest";
    let dir = tempfile::tempdir().unwrap();
    let (root, guests) = (dir.path().join("state"), dir.path().join("guests.sock"));
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&guests).args(["--setenv", "CASTRA_CONFIG=/dev/null"]);
    command.arg(env!("CARGO_BIN_EXE_castra")).args(["broker", "--no-tcp", "--state-root"]).arg(&root);
    let Ok(mut child) = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return skip(NAME, "there is no systemd-socket-activate");
    };
    // The file is there before it listens; 00010000 is what the kernel says of a socket that does.
    let listens = |line: &str| line.ends_with(guests.to_str().unwrap()) && line.contains(" 00010000 ");
    eventually("the socket", || {
        std::fs::read_to_string("/proc/net/unix").unwrap().lines().any(listens).then_some(())
    });
    assert!(!root.exists());
    let (mut guest, answer) = LocalGuest::greet(&guests, "hello vm:dev capabilities=bus-v1\n");
    assert!(answer.starts_with("ok session="), "{answer}");
    assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(guests.exists());
}
