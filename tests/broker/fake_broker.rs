//! A broker of the test's own: it says what it is told to, so that answers can be played that a real one seldom gives.

use crate::support::{PATIENCE, frame};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

/// One session, from behind its handshake.
pub struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    /// The next frame; `None` at the end.
    pub fn receive(&mut self) -> Option<serde_json::Value> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(serde_json::from_slice(&body).unwrap())
    }

    /// The next so many frames.
    pub fn receive_all(&mut self, count: usize) -> Vec<serde_json::Value> {
        (0..count).map(|_| self.receive().expect("a frame")).collect()
    }

    pub fn send(&mut self, body: &serde_json::Value) {
        self.stream.get_mut().write_all(&frame(body.to_string())).unwrap();
    }

    /// Acks what was published, as stored.
    pub fn ack(&mut self, publish: &serde_json::Value, seq: u64) {
        self.send(&serde_json::json!({
            "type": "ack", "ack": "publish", "status": "ok", "topic": publish["topic"], "seq": seq, "id": publish["id"],
        }));
    }

    pub fn refuse(&mut self, code: &str) {
        self.send(&serde_json::json!({
            "type": "ack", "ack": "publish", "status": "error", "code": code, "reason": "because",
        }));
    }

    pub fn close(&mut self, reason: &str) {
        self.send(&serde_json::json!({"type": "close", "reason": reason, "retry_after_ms": 1000}));
    }
}

/// Listens as the broker of `root`, lets one peer in, and plays it `script`.
pub fn play<T: Send + 'static>(
    root: &Path,
    script: impl FnOnce(Session) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(root.join("castra.sock")).unwrap();
    std::thread::spawn(move || {
        let (hello, session) = greet(&listener, "ok session=0123");
        assert_eq!(hello, "hello vm:host capabilities=bus-v1,host-bus\n");
        script(session)
    })
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
