//! What a peer asks for: the head of one request of HTTP/1.1, and of nothing else.
//!
//! Always holds: a head is read as RFC 9112 has it, and what is not one is refused; what is not of use here (bodies,
//! other methods, further requests) is not read. Pure. Owner: `serve.rs`.

use super::text::Form;

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// What is counted.
    Metrics,
    /// Whether the process serves.
    Healthz,
    /// Whether it takes publishes.
    Readyz,
}

/// A request that is answered with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub page: Page,
    /// The head of the answer is wanted, and no more.
    pub head: bool,
    /// How metrics are to be written.
    pub form: Form,
}

/// Why a request is answered with no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no request.
    Bad,
    /// There is no such page.
    NotFound,
    /// There is nothing to be done here but looking.
    NotAllowed,
    /// Another version of HTTP.
    Version,
}

/// Where the head ends in what came so far; `None` when it goes on.
pub fn end_of(bytes: &[u8]) -> Option<usize> {
    let mut at = begin_of(bytes);
    loop {
        let line = bytes.get(at..)?.iter().position(|byte| *byte == b'\n')?;
        let is_last = matches!(&bytes[at..at + line], b"" | b"\r");
        at += line + 1;
        if is_last {
            return Some(at);
        }
    }
}

/// Empty lines may come before a request.
fn begin_of(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len())
}

/// Reads a whole head.
///
/// # Errors
/// [`Refused`], and whether only the head of the answer is wanted.
pub fn read(head: &[u8]) -> Result<Request, (Refused, bool)> {
    let begin = begin_of(head);
    let mut lines =
        head[begin..].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let bad = (Refused::Bad, false);
    let (method, target, minor) =
        request_line(lines.next().unwrap_or_default()).map_err(|why| (why, false))?;
    let is_head = method == b"HEAD";
    let (mut hosts, mut accept) = (0, String::new());
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = header(line).ok_or(bad)?;
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"accept") {
            accept.push_str(&String::from_utf8_lossy(value));
            accept.push(',');
        }
    }
    if hosts > 1 || (hosts == 0 && minor > 0) {
        return Err(bad);
    }
    let page = match path(target).ok_or(bad)? {
        b"/metrics" => Page::Metrics,
        b"/healthz" => Page::Healthz,
        b"/readyz" => Page::Readyz,
        _ => return Err((Refused::NotFound, is_head)),
    };
    if !is_head && method != b"GET" {
        return Err((Refused::NotAllowed, false));
    }
    Ok(Request { page, head: is_head, form: Form::wanted(&accept) })
}

/// Method, target, and the minor version of HTTP/1.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], u8), Refused> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refused::Bad);
    };
    if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Refused::Bad);
    }
    match version.strip_prefix(b"HTTP/") {
        Some([b'1', b'.', minor @ b'0'..=b'9']) => Ok((method, target, minor - b'0')),
        Some([b'0'..=b'9', b'.', b'0'..=b'9']) => Err(Refused::Version),
        _ => Err(Refused::Bad),
    }
}

fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    (is_token(name) && value.iter().all(is_text)).then(|| (name, value.trim_ascii()))
}

fn is_token(word: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(is_token)
}

/// The path of a target, without what is asked of it; a proxy's has the address before it.
fn path(target: &[u8]) -> Option<&[u8]> {
    let asked = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let whole = &target[..asked];
    if whole.starts_with(b"/") || target == b"*" {
        return Some(whole);
    }
    let scheme = whole.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"http://"))?;
    let behind = &whole[scheme.len()..];
    let path = behind.iter().position(|byte| *byte == b'/').map_or(&b"/"[..], |at| &behind[at..]);
    (behind != path && !behind.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(head: &str) -> Result<Request, (Refused, bool)> {
        assert_eq!(end_of(head.as_bytes()), Some(head.len()), "{head:?}");
        read(head.as_bytes())
    }

    #[test]
    fn requests_are_read() {
        let page = |page, head| Ok(Request { page, head, form: Form::Text });
        for (head, want) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", page(Page::Metrics, false)),
            ("GET /metrics HTTP/1.0\r\n\r\n", page(Page::Metrics, false)),
            ("GET /healthz?now HTTP/1.1\nhost:x\n\n", page(Page::Healthz, false)),
            ("\r\nHEAD /readyz HTTP/1.9\r\nHost:\r\nX-\u{e4}: \r\n\r\n", Err((Refused::Bad, false))),
            ("\r\n\r\nHEAD /readyz HTTP/1.9\r\nHost:\r\nX: \u{e4}\t\r\n\r\n", page(Page::Readyz, true)),
            ("GET http://h:1/metrics?a HTTP/1.1\r\nHost: h\r\n\r\n", page(Page::Metrics, false)),
            ("GET HTTP://h HTTP/1.1\r\nHost: h\r\n\r\n", Err((Refused::NotFound, false))),
            ("GET http:///metrics HTTP/1.1\r\nHost: h\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::NotFound, false))),
            ("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::NotFound, true))),
            (
                "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
                Err((Refused::NotAllowed, false)),
            ),
            ("get /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::NotAllowed, false))),
            ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::NotFound, false))),
            ("PRI * HTTP/2.0\r\n\r\n", Err((Refused::Version, false))),
            ("GET /metrics HTTP/1.1\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics\r\n\r\n", Err((Refused::Bad, false))),
            ("GET  /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1 \r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.11\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics http/1.1\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1\r\nHost : x\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n more\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n", Err((Refused::Bad, false))),
            ("GET /metrics HTTP/1.1\r\nHost: a\rb\r\n\r\n", Err((Refused::Bad, false))),
            ("G\u{e4}T /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err((Refused::Bad, false))),
        ] {
            assert_eq!(of(head), want, "{head:?}");
        }
    }

    proptest! {
        /// Whatever comes, in whatever pieces, it is read or refused, and the head ends where it ends.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r')], 0..80)) {
            if let Some(end) = end_of(&bytes) {
                prop_assert!(end <= bytes.len() && end_of(&bytes[..end]) == Some(end));
                let _ = read(&bytes[..end]);
                for cut in begin_of(&bytes)..end {
                    prop_assert_eq!(end_of(&bytes[..cut]), None);
                }
            }
            let _ = read(&bytes);
        }
    }
}
