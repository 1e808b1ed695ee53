//! The hello line and its answers.
//!
//! `hello vm:<name> [capabilities=a,b,…] [token=…]\n`, at most 512 bytes, `vm:` may be left out, unknown
//! words are ignored. Always holds: no input panics; capabilities come out lower-case, sorted, once each.
//! Owner: `door`, once per connection.

use crate::core::identity::{NameError, VmName};
use crate::core::limits::{EPOCH_BYTES, HELLO_BYTES};

/// The capability that opens a session of frames.
pub const BUS_V1: &str = "bus-v1";
/// The capability that asks for heartbeats of the broker.
pub const HEARTBEAT: &str = "heartbeat";
/// The capability that asks for the host's rights.
pub const HOST_BUS: &str = "host-bus";

/// What a peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name it goes by.
    pub name: VmName,
    /// Lower-case, sorted, each once.
    pub capabilities: Vec<String>,
    /// A proof of identity.
    pub token: Option<String>,
    /// What the answer repeats, so that a peer on a line which outlives sessions knows which hello it answers.
    pub epoch: Option<String>,
    /// The program that says it: it has one session at a time.
    pub instance: Option<String>,
}

impl Hello {
    /// Whether `capability` was listed, in any case.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }
}

/// Why a line is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// No line end within [`HELLO_BYTES`].
    TooLong,
    /// An empty line.
    Empty,
    /// Not UTF-8.
    NotUtf8,
    /// Something else than `hello`.
    NotHello,
    /// No name, or one that breaks the rules.
    BadName,
}

impl HelloError {
    /// The reason that the peer and the record get.
    pub fn reason(self) -> &'static str {
        match self {
            HelloError::TooLong => "hello-too-long",
            HelloError::Empty => "hello-empty",
            HelloError::NotUtf8 => "hello-not-utf8",
            HelloError::NotHello => "hello-expected",
            HelloError::BadName => "bad-name",
        }
    }
}

impl From<NameError> for HelloError {
    fn from(_: NameError) -> Self {
        HelloError::BadName
    }
}

fn is_plain(text: &str) -> bool {
    (1..=EPOCH_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The answer to a hello that opens a session, without its line end.
pub fn granted(session: &str, epoch: Option<&str>) -> String {
    epoch.map_or_else(
        || format!("ok session={session}"),
        |epoch| format!("ok session={session} epoch={epoch}"),
    )
}

/// Takes the next hello out of what came by a line whose bytes may begin anywhere: everything before it is dropped, and
/// so is a line that is too long.
pub fn skip_to_hello(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let mut line: Vec<u8> = bytes.drain(..=end).collect();
        line.truncate(end);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.starts_with(b"hello ") && end < HELLO_BYTES {
            return Some(line.to_vec());
        }
    }
    if bytes.len() >= HELLO_BYTES {
        bytes.clear();
    }
    None
}

/// Finds the end of the line in what was read so far: the line without its end, and how many bytes it took.
///
/// # Errors
/// [`HelloError::TooLong`] when [`HELLO_BYTES`] have no line end.
pub fn take_line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, HelloError> {
    let window = &bytes[..bytes.len().min(HELLO_BYTES)];
    match window.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let line = &bytes[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1)))
        }
        None if bytes.len() >= HELLO_BYTES => Err(HelloError::TooLong),
        None => Ok(None),
    }
}

/// Reads a line (without its end).
///
/// # Errors
/// The first rule that is broken.
pub fn parse_hello(line: &[u8]) -> Result<Hello, HelloError> {
    let text = std::str::from_utf8(line).map_err(|_| HelloError::NotUtf8)?;
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        None => return Err(HelloError::Empty),
        Some("hello") => {}
        Some(_) => return Err(HelloError::NotHello),
    }
    let name = words.next().ok_or(HelloError::BadName)?;
    let mut hello = Hello {
        name: VmName::parse(name.strip_prefix("vm:").unwrap_or(name))?,
        capabilities: Vec::new(),
        token: None,
        epoch: None,
        instance: None,
    };
    for word in words {
        if let Some(list) = word.strip_prefix("capabilities=") {
            let listed = list.split(',').filter(|c| !c.is_empty()).map(str::to_ascii_lowercase);
            hello.capabilities.extend(listed);
        } else if let Some(token) = word.strip_prefix("token=") {
            hello.token = Some(token.to_owned());
        } else if let Some(epoch) = word.strip_prefix("epoch=").filter(|epoch| is_plain(epoch)) {
            hello.epoch = Some(epoch.to_owned());
        } else if let Some(instance) = word.strip_prefix("instance=").filter(|word| is_plain(word)) {
            hello.instance = Some(instance.to_owned());
        }
    }
    hello.capabilities.sort();
    hello.capabilities.dedup();
    Ok(hello)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hellos() {
        let hello =
            parse_hello(b"hello vm:dev capabilities=Heartbeat,BUS-V1,,bus-v1 lang=go token=s3").unwrap();
        assert_eq!(hello.name.as_str(), "dev");
        assert_eq!(hello.capabilities, ["bus-v1", "heartbeat"]);
        assert_eq!((hello.token.as_deref(), &hello.epoch), (Some("s3"), &None));
        let epoch = |word: &str| parse_hello(format!("hello dev {word}").as_bytes()).unwrap().epoch;
        assert_eq!(epoch("instance=9b epoch=7f3A").as_deref(), Some("7f3A"));
        assert_eq!(parse_hello(b"hello dev instance=9b").unwrap().instance.as_deref(), Some("9b"));
        assert_eq!(
            (epoch("epoch="), epoch("epoch=a\u{7f}b"), epoch(&format!("epoch={}", "a".repeat(33)))),
            (None, None, None)
        );
        assert!(hello.has(BUS_V1) && !hello.has(HOST_BUS));
        assert_eq!(parse_hello(b"hello dev").unwrap().capabilities, Vec::<String>::new());
        for (line, error) in [
            (&b""[..], HelloError::Empty),
            (b"   ", HelloError::Empty),
            (b"\xff\xfe", HelloError::NotUtf8),
            (b"GET / HTTP/1.1", HelloError::NotHello),
            (b"HELLO vm:a", HelloError::NotHello),
            (b"hello", HelloError::BadName),
            (b"hello vm:", HelloError::BadName),
            (b"hello vm:a/b", HelloError::BadName),
        ] {
            assert_eq!(parse_hello(line), Err(error), "{line:?}");
        }
    }

    #[test]
    fn lines() {
        assert_eq!(take_line(b"hello a\r\nrest"), Ok(Some((&b"hello a"[..], 9))));
        assert_eq!(take_line(b"hello a"), Ok(None));
        assert_eq!(take_line(&[b'x'; 511]), Ok(None));
        assert_eq!(take_line(&[b'x'; 512]), Err(HelloError::TooLong));
        let mut longest = [b'x'; 512];
        longest[511] = b'\n';
        assert_eq!(take_line(&longest), Ok(Some((&longest[..511], 512))));
    }

    #[test]
    fn a_hello_is_found_behind_anything() {
        let mut input = b"\0\0\0\x14{\"type\":\"heartbeat\"}\nhell\n\n\nhello a\r\n\0\0".to_vec();
        assert_eq!(skip_to_hello(&mut input).as_deref(), Some(&b"hello a"[..]));
        assert_eq!(input, b"\0\0");
        for garbage in
            [vec![b'x'; 70_000], vec![b'\n'; 65_540], [vec![b'h'; 600], b"\nhello".to_vec()].concat()]
        {
            input = garbage;
            assert_eq!(skip_to_hello(&mut input), None);
            assert!(input.len() < HELLO_BYTES, "bounded");
        }
    }

    proptest! {
        #[test]
        fn a_hello_is_found_in_any_pieces(
            garbage in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..700),
            cut in 1usize..40,
        ) {
            prop_assume!(!garbage.windows(6).any(|w| w == b"hello "));
            let whole = [&garbage[..], b"\nhello vm:a epoch=1\nrest"].concat();
            let (mut input, mut found) = (Vec::new(), None);
            for piece in whole.chunks(cut) {
                input.extend_from_slice(piece);
                found = found.or_else(|| skip_to_hello(&mut input));
            }
            prop_assert_eq!(found.as_deref(), Some(&b"hello vm:a epoch=1"[..]));
            prop_assert_eq!(&input[..], b"rest");
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = take_line(&line);
            if let Ok(hello) = parse_hello(&line) {
                prop_assert!(hello.capabilities.is_sorted());
            }
        }
    }
}
