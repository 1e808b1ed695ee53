//! A broker of the test's own: it says what it is told to, so that answers can be played that a real one seldom gives.

#![allow(dead_code)]

use crate::support::{PATIENCE, eventually, frame};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// One session, from behind its handshake.
pub struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    /// The next frame; `None` at the end.
    pub fn receive(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(serde_json::from_slice(&body).unwrap())
    }

    /// The next so many frames.
    pub fn receive_all(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.receive().expect("a frame")).collect()
    }

    pub fn send(&mut self, body: &Value) {
        self.send_bytes(body.to_string());
    }

    pub fn send_bytes(&mut self, body: impl AsRef<[u8]>) {
        self.try_send(body).unwrap();
    }

    pub fn try_send(&mut self, body: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.get_mut().write_all(&frame(body))
    }

    /// Sends bytes that are frames, or not.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next frame if one has begun to come: `Some(None)` at the end.
    pub fn poll(&mut self) -> Option<Option<Value>> {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let there = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_ref().set_nonblocking(false).unwrap();
        match there {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            _ => Some(self.receive()),
        }
    }

    /// Acks what was published, as stored.
    pub fn ack(&mut self, publish: &Value, seq: u64) {
        self.send(&json!({
            "type": "ack", "ack": "publish", "status": "ok", "topic": publish["topic"], "seq": seq, "id": publish["id"],
        }));
    }

    pub fn refuse(&mut self, code: &str) {
        self.send(&json!({
            "type": "ack", "ack": "publish", "status": "error", "code": code, "reason": "because",
        }));
    }

    /// The next frame subscribes from `from`; it is told that `next_seq` comes.
    pub fn subscribed(&mut self, from: Value, next_seq: u64) {
        let asked = self.receive().expect("a subscribe");
        assert_eq!((&asked["type"], &asked["from"]), (&json!("subscribe"), &from), "{asked}");
        self.accept(next_seq);
    }

    /// Acks a subscribe.
    pub fn accept(&mut self, next_seq: u64) {
        self.send(
            &json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "cli", "next_seq": next_seq}),
        );
    }

    /// Delivers events as [`line`] has them, to a peer that may have enough of them.
    pub fn events(&mut self, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            let _ = self.try_send(delivered(&line(seq, "t", &seq.to_string())));
        }
    }

    pub fn close(&mut self, reason: &str) {
        self.close_for(reason, 1000);
    }

    pub fn close_for(&mut self, reason: &str, retry_after_ms: u64) {
        self.send(&json!({"type": "close", "reason": reason, "retry_after_ms": retry_after_ms}));
    }

    /// Reads until the peer is gone.
    pub fn drain(&mut self) {
        while self.receive().is_some() {}
    }
}

/// An event as a log has it.
pub fn line(seq: u64, topic: &str, payload: &str) -> String {
    format!(
        r#"{{"seq":{seq},"ts":{},"id":"id-{seq}","vm":"dev","topic":"{topic}","payload":{payload}}}"#,
        1_000 * seq
    )
}

/// The frame of an event with this line.
pub fn delivered(line: &str) -> String {
    format!(r#"{{"type":"event","sub":"cli",{}"#, &line[1..])
}

/// Listens on a unix socket until it is dropped.
pub struct FakeBroker {
    path: PathBuf,
    listener: UnixListener,
}

impl FakeBroker {
    /// Listens as the broker of `root`.
    pub fn start(root: &Path) -> Self {
        let path = root.join("castra.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        FakeBroker { path, listener }
    }

    /// The next connection, the banner said; its hello.
    pub fn connection(&self) -> (BufReader<UnixStream>, String) {
        let (stream, _) = eventually("a connection", || self.listener.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"castra-broker 0.1.0 ready\n").unwrap();
        let mut hello = String::new();
        stream.read_line(&mut hello).unwrap();
        (stream, hello)
    }

    /// Lets one peer in, which says this.
    pub fn session(&self, said: &str) -> Session {
        let (mut stream, hello) = self.connection();
        assert_eq!(hello.trim_end(), said);
        stream.get_mut().write_all(b"ok session=0123\n").unwrap();
        Session { stream }
    }

    /// Lets one peer in, whoever it is; what it said.
    pub fn guest(&self) -> (Session, String) {
        let (mut stream, hello) = self.connection();
        stream.get_mut().write_all(b"ok session=0123\n").unwrap();
        (Session { stream }, hello)
    }

    /// Whether somebody waits to be let in.
    pub fn is_called(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    /// Answers one peer's hello with this line, and closes.
    pub fn answer(&self, line: &str) {
        let (mut stream, _) = self.connection();
        stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens as the broker of `root`, lets one peer in, and plays it `script`.
pub fn play<T: Send + 'static>(
    root: &Path,
    script: impl FnOnce(Session) -> T + Send + 'static,
) -> JoinHandle<T> {
    let broker = FakeBroker::start(root);
    std::thread::spawn(move || script(broker.session("hello vm:host capabilities=bus-v1,host-bus")))
}

/// The same for `count` guests, each with its hello and a thread of its own.
pub fn play_guests(
    root: &Path,
    count: usize,
    script: impl Fn(&str, Session) + Clone + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(root.join("castra.sock")).unwrap();
    std::thread::spawn(move || {
        let guest = |_| {
            let ((hello, session), script) = (greet(&listener, "ok session=0123"), script.clone());
            std::thread::spawn(move || script(&hello, session))
        };
        let guests: Vec<_> = (0..count).map(guest).collect();
        guests.into_iter().for_each(|guest| guest.join().unwrap());
    })
}

/// The same for one guest who gets this answer to its hello, and nothing else.
pub fn answer_hello(root: &Path, answer: &'static str) -> JoinHandle<()> {
    let listener = UnixListener::bind(root.join("castra.sock")).unwrap();
    std::thread::spawn(move || drop(greet(&listener, answer)))
}

fn greet(listener: &UnixListener, answer: &str) -> (String, Session) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"castra-broker 0.1.0 ready\n").unwrap();
    let mut hello = String::new();
    stream.read_line(&mut hello).unwrap();
    stream.get_mut().write_all(format!("{answer}\n").as_bytes()).unwrap();
    (hello, Session { stream })
}
