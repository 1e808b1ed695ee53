//! Serial lines: sockets of VMMs that the broker connects to, again and again.

use crate::doors_world::{Place, Say};
use crate::support::{PATIENCE, eventually, frame};
use castra::core::limits::Limits;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// The guest's end of a line, as its VMM passes it on.
struct Line(BufReader<UnixStream>);

/// The broker connects, and says its banner.
fn accept(vmm: &UnixListener) -> Line {
    vmm.set_nonblocking(true).unwrap();
    let stream = eventually("the broker to connect", || vmm.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = Line(BufReader::new(stream));
    assert!(line.line().starts_with("castra-broker "));
    line
}

fn vmm(path: &Path) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}

impl Line {
    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn greet(&mut self, epoch: &str) {
        self.say(format!("\nhello vm:web capabilities=bus-v1 epoch={epoch}\n"));
        let answer = self.line();
        assert!(
            answer.starts_with("ok session=") && answer.ends_with(&format!(" epoch={epoch}")),
            "{answer}"
        );
    }

    fn receive(&mut self) -> serde_json::Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn publish(&mut self) {
        self.say(frame(r#"{"type":"publish","topic":"t"}"#));
        assert_eq!(self.receive()["status"], "ok");
    }

    /// Nothing more comes: the broker hung up.
    fn is_over(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "{}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn a_line_is_made_again_as_long_as_it_takes() {
    let place = Place::new();
    let path = place.path("web.serial");
    // Nobody needs to speak within the time that others have.
    let limits = Limits { hello_time: Duration::from_millis(50), ..Limits::default() };
    let say = Say::default().serial("web", &path);
    let world = place.start(&say, &[], None, limits).unwrap();
    assert!(world.listeners.contains(&format!("serial:{}", path.display())), "{:?}", world.listeners);
    place.hears("nobody is there");
    let down = Instant::now();
    eventually("a few tries", || (down.elapsed() > Duration::from_millis(1500)).then_some(()));
    let first = vmm(&path);
    let mut line = accept(&first);
    place.hears("serial: connected");
    line.say(b"\0\0\0\x20{\"type\":\"heart\nlogin: \xff\nhello\n");
    line.greet("one");
    line.publish();
    assert_eq!(place.said("nobody is there").len(), 1);
    drop((first, line));
    place.hears("the connection ended");
    let second = vmm(&path);
    let mut line = accept(&second);
    line.greet("two");
    line.publish();
    let vms = eventually("its session", || {
        let status =
            crate::support::castra().arg("--state-root").arg(&world.root).args(["status", "--json"]).output();
        let status: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap();
        Some(status["vms"][0].clone()).filter(|vm| vm["sessions"] == 1)
    });
    assert_eq!((&vms["name"], &vms["identity"]), (&"web".into(), &"socket".into()));
    world.stop();
    assert_eq!(line.receive()["reason"], "draining");
    line.is_over();
}

#[test]
fn a_guest_that_rebooted_in_the_middle_of_a_frame_comes_back() {
    let place = Place::new();
    let path = place.path("web.serial");
    let vmm = vmm(&path);
    let _world = place.broker(&Say::default().serial("web", &path));
    let mut line = accept(&vmm);
    line.greet("first");
    line.publish();
    // Half a frame, then the next boot. Its hello is the rest of that frame, so nobody answers.
    line.say(b"\0\x01\x00\x00{\"type\":\"publish\",\"payload\":\"");
    line.say("\nhello vm:web capabilities=bus-v1 epoch=second\n");
    line.say("\n".repeat(65_540));
    assert_eq!(line.receive()["status"], "error", "what came instead of its rest is no JSON");
    let close = line.receive();
    assert_eq!((&close["type"], &close["reason"]), (&"close".into(), &"frame-too-large".into()));
    line.is_over();
    let mut line = accept(&vmm);
    line.greet("second");
    line.publish();
    // At the start of a frame a line end and a hello are a length that is refused at once.
    line.say("\nhello vm:web capabilities=bus-v1 epoch=third\n");
    assert_eq!(line.receive()["reason"], "frame-too-large");
    line.is_over();
    let mut line = accept(&vmm);
    line.greet("third");
    line.publish();
    // Whose line it is does not change with what is said on it.
    drop(line);
    let mut line = accept(&vmm);
    line.say("\nhello vm:other capabilities=bus-v1 epoch=x\n");
    assert_eq!(line.line(), "error: identity-mismatch");
}

#[test]
fn lines_follow_the_policy() {
    let place = Place::new();
    let (path, other) = (place.path("web.serial"), place.path("other.serial"));
    let (first, second) = (vmm(&path), vmm(&other));
    let world = place.broker(&Say::default().serial("web", &path));
    let mut line = accept(&first);
    line.greet("a");
    // The same, and one more that is no socket.
    std::fs::write(place.path("plain"), "").unwrap();
    let both = Say::default().serial("web", &path).serial("odd", &place.path("plain"));
    world.reload(&both.clone().serial("zwei", &path));
    place.hears("what is there is no socket");
    place.hears("this is the line of VM");
    line.publish();
    world.reload(&Say::default().serial("web", &other));
    let mut moved = accept(&second);
    assert_eq!(line.receive()["reason"], "identity-revoked");
    line.is_over();
    moved.greet("b");
    moved.publish();
    let began = Instant::now();
    eventually("some time", || (began.elapsed() > Duration::from_millis(1500)).then_some(()));
    assert_eq!(first.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(place.said("what is there is no socket").len(), 1);
}
