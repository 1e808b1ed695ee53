//! The address of the metrics: three pages over HTTP/1.1, one request a connection.
//!
//! Always holds: a head is bounded, and so is the time that it takes to come, to be answered and to be taken; there are so
//! many connections at most, and at one more the oldest gives way, so whoever is slow keeps nobody out; what is not a
//! request is told so in its own terms. Nothing is changed by whoever asks. Owner: `broker.rs`.

use super::Metrics;
use super::request::{self, Page, Refused, Request};
use crate::core::awake::timeout;
use crate::core::door::listen::ListenError;
use crate::core::door::tcp;
use crate::core::limits::{Limits, METRICS_CONNECTIONS, METRICS_REQUEST_BYTES, METRICS_TIME};
use crate::core::policy::Trust;
use crate::core::stream::{Reader, Writer, linger};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// After an accept that failed (no descriptors) it rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Listens on `addr`, which must be of the loopback where `trust` is open; as the listeners have it.
///
/// # Errors
/// The address cannot be had.
pub async fn bind(addr: SocketAddr, trust: Trust) -> Result<(TcpListener, String), ListenError> {
    let failed = |error| ListenError::new(format!("metrics:{addr}"), error);
    let listener = tcp::bind(addr, trust).await.map_err(failed)?;
    let bound = listener.local_addr().unwrap_or(addr);
    Ok((listener, format!("metrics:{bound}")))
}

/// Answers whoever asks, as long as the process lives.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, limits: Limits) {
    let limits = Arc::new(limits);
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= METRICS_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let (reader, writer) = stream.into_split();
                let (metrics, limits) = (metrics.clone(), limits.clone());
                let attended = attend(Box::new(reader), Box::new(writer), metrics, limits);
                open.push_back(tokio::spawn(attended));
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: a connection could not be accepted");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// One connection to its end.
async fn attend(mut reader: Reader, mut writer: Writer, metrics: Arc<Metrics>, limits: Arc<Limits>) {
    let answer = match timeout(METRICS_TIME, hear(&mut reader)).await {
        Ok(Heard::Head(head)) => match request::read(&head) {
            Ok(request) => of(request, &metrics).await,
            Err((why, is_head)) => refusal(why).without_body(is_head),
        },
        Ok(Heard::TooLong) => Answer::text("431 Request Header Fields Too Large", "the request is too long"),
        Ok(Heard::Half) => refusal(Refused::Bad),
        Ok(Heard::Nothing) => return,
        Err(_) => Answer::text("408 Request Timeout", "the request took too long"),
    };
    if matches!(timeout(METRICS_TIME, writer.write_all(&answer.bytes())).await, Ok(Ok(()))) {
        linger(&limits, &mut reader, &mut writer).await;
    }
}

enum Heard {
    /// A whole head.
    Head(Vec<u8>),
    TooLong,
    /// It ended before its head did.
    Half,
    /// It ended without a word.
    Nothing,
}

async fn hear(reader: &mut Reader) -> Heard {
    let mut said = Vec::with_capacity(1024);
    loop {
        if let Some(end) = request::end_of(&said) {
            said.truncate(end);
            return if end > METRICS_REQUEST_BYTES { Heard::TooLong } else { Heard::Head(said) };
        }
        if said.len() > METRICS_REQUEST_BYTES {
            return Heard::TooLong;
        }
        match reader.read_buf(&mut said).await {
            Ok(n) if n > 0 => {}
            _ if said.is_empty() => return Heard::Nothing,
            _ => return Heard::Half,
        }
    }
}

async fn of(request: Request, metrics: &Metrics) -> Answer {
    let answer = match request.page {
        Page::Metrics => Answer {
            kind: request.form.content_type(),
            ..Answer::text("200 OK", metrics.text(request.form).await)
        },
        Page::Healthz => match metrics.healthy().await {
            Ok(how) => Answer::text("200 OK", how),
            Err(why) => Answer::text(UNAVAILABLE, why),
        },
        Page::Readyz => match metrics.ready() {
            (true, state) => Answer::text("200 OK", state),
            (false, state) => Answer::text(UNAVAILABLE, state),
        },
    };
    answer.without_body(request.head)
}

const UNAVAILABLE: &str = "503 Service Unavailable";

fn refusal(why: Refused) -> Answer {
    match why {
        Refused::Bad => Answer::text("400 Bad Request", "that is no request of HTTP/1.1"),
        Refused::NotFound => {
            Answer::text("404 Not Found", "not found; there are /metrics, /healthz and /readyz")
        }
        Refused::NotAllowed => Answer {
            more: "Allow: GET, HEAD\r\n",
            ..Answer::text("405 Method Not Allowed", "only GET and HEAD are of use here")
        },
        Refused::Version => Answer::text("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here"),
    }
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    /// Further lines of the head.
    more: &'static str,
    body: String,
    head_only: bool,
}

impl Answer {
    /// A text; words get an end of line.
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        let mut body = body.into();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Answer { status, kind: "text/plain; charset=utf-8", more: "", body, head_only: false }
    }

    fn without_body(self, head_only: bool) -> Self {
        Answer { head_only, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let Answer { status, kind, more, body, head_only } = self;
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\n{more}Connection: close\r\n\r\n"
        );
        let body = if *head_only { "" } else { body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}
