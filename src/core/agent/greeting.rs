//! Hello on a serial line, which is not new when it is opened: whatever an earlier session left in it is passed over.
//!
//! ```text
//! "\n" hello ── 2 s ──▶ 65,540 × "\n", hello ── 2 s ──▶ "\n" hello ── 2 s ──▶ …
//!      └─ ok session=… with our epoch: open · error: …: refused · error: hello-…: hello again
//! ```
//!
//! A broker that waits for the rest of a frame takes newlines for it; four more are a length that is refused, and it
//! begins anew. Always holds: no answer to anybody else's hello is taken; what is kept of the bytes is bounded by one
//! line. Pure. Owner: the link.

use crate::core::limits::{FRAME_BYTES, HELLO_BYTES};
use std::time::Duration;

/// An answer takes so long at the most.
pub const ANSWER: Duration = Duration::from_secs(2);
/// After an answer to half a hello the next one is said so much later: the broker connects anew.
const AGAIN: Duration = Duration::from_millis(100);
/// Newlines that end a frame of any length, and make one that is refused.
pub const FLUSH: usize = FRAME_BYTES + 4;
const MARKS: [&[u8]; 2] = [b"\nok session=", b"\nerror: "];

/// What the broker answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a session; these bytes came behind the answer.
    Open(Vec<u8>),
    /// There is none; why.
    Refused(String),
}

/// A hello that waits for its answer.
#[derive(Debug)]
pub struct Greeting {
    hello: String,
    epoch: String,
    /// The bytes that may belong to an answer.
    kept: Vec<u8>,
    /// How often it was said, and when it is to be said next.
    said: u32,
    due: Duration,
    now: Duration,
}

impl Greeting {
    /// To be said at once; `hello` is the line without its end, and has `epoch` in it.
    pub fn new(hello: &str, epoch: &str) -> Self {
        // What is read first may be the middle of a line, and may be the beginning of one.
        let kept = b"\n".to_vec();
        let (hello, epoch) = (hello.to_owned(), format!("epoch={epoch}"));
        Greeting { hello, epoch, kept, said: 0, due: Duration::ZERO, now: Duration::ZERO }
    }

    /// When something is to be sent next, on the clock of [`Greeting::due`].
    pub fn next(&self) -> Duration {
        self.due
    }

    /// What is to be sent now.
    pub fn due(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.now = now;
        if now < self.due {
            return None;
        }
        // Every other time: a broker that is not within a frame needs no newlines.
        let newlines = if self.said % 2 == 1 { FLUSH } else { 1 };
        let mut bytes = vec![b'\n'; newlines];
        bytes.extend_from_slice(self.hello.as_bytes());
        bytes.push(b'\n');
        self.said += 1;
        self.due = now + ANSWER;
        Some(bytes)
    }

    /// Takes what was read.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Answer> {
        self.kept.extend_from_slice(bytes);
        loop {
            let found =
                MARKS.iter().filter_map(|mark| self.kept.windows(mark.len()).position(|w| w == *mark));
            let Some(at) = found.min() else {
                // The last bytes may be the beginning of a mark.
                let longest = MARKS.iter().map(|mark| mark.len()).max().unwrap_or(0);
                let past = self.kept.len().saturating_sub(longest - 1);
                self.kept.drain(..past);
                return None;
            };
            self.kept.drain(..at);
            let end = self.kept.iter().skip(1).take(HELLO_BYTES).position(|b| matches!(b, b'\n' | b'\0'));
            let Some(end) = end.map(|end| end + 1) else {
                if self.kept.len() <= HELLO_BYTES {
                    return None;
                }
                self.kept.drain(..1);
                continue;
            };
            let line = String::from_utf8_lossy(&self.kept[1..end]).trim_end().to_owned();
            let is_whole = self.kept[end] == b'\n';
            // Its end may be the beginning of the next one.
            self.kept.drain(..if is_whole { end } else { 1 });
            if is_whole && let Some(answer) = self.answer(&line) {
                return Some(answer);
            }
        }
    }

    fn answer(&mut self, line: &str) -> Option<Answer> {
        if let Some(reason) = line.strip_prefix("error: ") {
            // Of something that was no hello, as far as the broker saw.
            if reason.starts_with("hello-") {
                self.due = self.due.min(self.now + AGAIN);
                return None;
            }
            return Some(Answer::Refused(reason.to_owned()));
        }
        let ours = line.split_ascii_whitespace().any(|word| word == self.epoch);
        ours.then(|| Answer::Open(self.kept.split_off(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn greeting() -> Greeting {
        Greeting::new("hello vm:a epoch=0123", "0123")
    }

    #[test]
    fn it_is_said_again_and_ends_half_a_frame() {
        let mut greeting = greeting();
        assert_eq!(greeting.due(Duration::ZERO).unwrap(), b"\nhello vm:a epoch=0123\n");
        assert_eq!((greeting.due(S), greeting.next()), (None, 2 * S));
        let second = greeting.due(2 * S).unwrap();
        assert!(
            second[..FLUSH].iter().all(|b| *b == b'\n') && &second[FLUSH..] == b"hello vm:a epoch=0123\n"
        );
        assert_eq!(greeting.due(4 * S).unwrap().len(), 23);
        // What the broker says of the newlines is no refusal.
        assert_eq!(greeting.take(b"castra-broker 0.1.0 ready\nerror: hello-empty\n"), None);
        assert_eq!(greeting.next(), 4 * S + AGAIN);
        assert_eq!(greeting.take(b"error: wrong-token\n"), Some(Answer::Refused("wrong-token".into())));
    }

    #[test]
    fn only_our_own_answer_is_taken() {
        let mut greeting = greeting();
        for other in [
            "ok session=1\n",
            "ok session=1 epoch=0\n",
            "ok session=1 epoch=01234\n",
            "x ok session=2 epoch=0123\n",
        ] {
            assert_eq!(greeting.take(other.as_bytes()), None, "{other}");
        }
        let whole = greeting.take(b"ok session=1 epoch=0123\n\0\0\0\x02{}");
        assert_eq!(whole, Some(Answer::Open(b"\0\0\0\x02{}".to_vec())));
    }

    proptest! {
        /// Whatever is in the line before it, and however it is cut, the answer is found, and what is behind it.
        #[test]
        fn an_answer_behind_garbage(
            garbage in vec(prop_oneof![
                vec(any::<u8>(), 0..600),
                Just(b"\nok session=".to_vec()),
                Just(b"\nerror: ".to_vec()),
                Just(b"ok session=1 epoch=9999\n".to_vec()),
                Just(b"castra-broker 0.1.0 ready\n".to_vec()),
                Just(vec![b'\n'; 700]),
            ], 0..8),
            rest in vec(any::<u8>(), 0..50),
            cuts in vec(1usize..200, 1..20),
        ) {
            // Garbage may be a refusal by chance: it is none here.
            let mut bytes: Vec<u8> = garbage.concat();
            while let Some(at) = bytes.windows(8).position(|w| w == b"\nerror: ") {
                bytes[at + 1] = b'E';
            }
            if bytes.starts_with(b"error: ") {
                bytes[0] = b'E';
            }
            bytes.extend_from_slice(b"\ncastra-broker 0.1.0 ready\nok session=77 epoch=0123\n");
            let end = bytes.len();
            bytes.extend_from_slice(&rest);
            let (mut greeting, mut at, mut cuts) = (greeting(), 0, cuts.iter().cycle());
            let answer = loop {
                prop_assert!(at < end, "no answer was found");
                let next = (at + cuts.next().unwrap()).min(bytes.len());
                let answer = greeting.take(&bytes[at..next]);
                prop_assert!(greeting.kept.len() <= HELLO_BYTES + 200);
                at = next;
                if let Some(answer) = answer {
                    break answer;
                }
            };
            prop_assert_eq!(answer, Answer::Open(bytes[end..at].to_vec()));
        }

        #[test]
        fn no_bytes_panic(all in vec(vec(any::<u8>(), 0..100), 0..20)) {
            let mut greeting = greeting();
            for bytes in all {
                let _ = greeting.take(&bytes);
            }
        }
    }
}
