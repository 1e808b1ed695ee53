//! The local door: a unix socket where programs of this guest publish, one JSON object a line.
//!
//! ```text
//! program ──line──▶ read ──submit──▶ outbox          the answers in the order of the lines,
//!         ◀─line─── write ◀─receipt──┘               each after its event is durable
//! ```
//!
//! Always holds: every line that is not empty gets one answer, in order, and a bad one ends nothing; lines that come
//! without waiting for answers are committed together; what a program may have under way is bounded, and one that
//! takes no answers is cut off (invariant 6). Owner: the agent.

use super::outbox::{Kept, Outbox, Put, Receipt};
use crate::core::awake::timeout;
use crate::core::chance::chance;
use crate::core::clock;
use crate::core::door::unix;
use crate::core::event::string_body;
use crate::core::identity::VmName;
use crate::core::ids::IdSource;
use crate::core::limits::{FRAME_BYTES, LOCAL_CONNECTIONS, LOCAL_UNANSWERED, LOCAL_WRITE_TIME};
use crate::core::lines::{Line, Lines};
use crate::core::refusal::Refusal;
use nix::unistd::Gid;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Where the agent listens if nothing else is said.
pub const SOCKET: &str = "/run/castra/agent.sock";
/// So much is read at a time.
const PIECE: usize = 16 * 1024;
/// Answers are gathered until they are so many bytes.
const GATHER: usize = 8 * 1024;
/// After an accept that failed (no descriptors) the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At the end answers that are owed may take so long.
const END: Duration = Duration::from_secs(5);

/// A door that is bound and not served yet.
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    file: Option<unix::FileId>,
}

impl Door {
    /// Listens at `path`: mode 0660, in the group of its folder as far as this user may give it away, so that the
    /// folder's group says who may publish. A missing folder is made (0755). A socket that an earlier agent left there
    /// gives way.
    ///
    /// # Errors
    /// The path is too long, is something else than a socket, is served by somebody, or cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.exists() {
            std::fs::DirBuilder::new().mode(0o755).create(folder)?;
        }
        let listener = unix::bind(path)?;
        unix::share(path, Gid::from_raw(std::fs::metadata(folder)?.gid()))?;
        Ok(Door { listener, path: path.to_owned(), file: unix::file_id(path) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what programs publish as `vm`, until `end`: then no line is taken any more, what was taken is answered,
    /// and the socket is removed. Within about five seconds.
    pub async fn serve(self, vm: VmName, outbox: Outbox, end: impl Future<Output = ()>) {
        let (ending, ended) = watch::channel(false);
        let mut programs = JoinSet::new();
        tokio::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                accepted = self.listener.accept() => accepted,
            };
            while programs.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if programs.len() >= LOCAL_CONNECTIONS => refuse(&stream),
                Ok((stream, _)) => {
                    drop(programs.spawn(converse(stream, vm.clone(), outbox.clone(), ended.clone())));
                }
                Err(error) => {
                    tracing::warn!("{}: no connection could be taken: {error}", self.path.display());
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Somebody else may have one of this name by now.
        if self.file.is_some() && unix::file_id(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
        drop(self.listener);
        let _ = ending.send(true);
        let all = async { while programs.join_next().await.is_some() {} };
        let _ = timeout(END, all).await;
    }
}

/// One program too many. Nothing waits for it to read.
fn refuse(stream: &UnixStream) {
    let why = format!("{LOCAL_CONNECTIONS} programs are connected to the agent already; try again");
    let mut answer = Vec::new();
    write_answer(&mut answer, Err(&Refusal::new("too-many-connections", why)));
    let _ = stream.try_write(&answer);
}

/// What a line comes to.
enum Owed {
    Later(Receipt),
    Refused(Refusal),
}

async fn converse(stream: UnixStream, vm: VmName, outbox: Outbox, ended: watch::Receiver<bool>) {
    let (reader, writer) = stream.into_split();
    let (owe, owed) = mpsc::channel(LOCAL_UNANSWERED);
    let reading = read(reader, vm, outbox, owe, ended);
    tokio::pin!(reading);
    let writing = write(writer, owed);
    tokio::pin!(writing);
    tokio::select! {
        () = &mut reading => writing.await.unwrap_or_default(),
        // One that takes no answers is read no further; one that is gone is read to its end.
        cut_off = &mut writing => if cut_off.is_ok() { reading.await },
    }
}

/// Takes lines until there are no more, or until the end.
async fn read(
    mut reader: OwnedReadHalf,
    vm: VmName,
    outbox: Outbox,
    owe: mpsc::Sender<Owed>,
    mut ended: watch::Receiver<bool>,
) {
    let ids = IdSource::new(chance());
    let mut taker = Taker { vm, outbox, owe, ids };
    let (mut lines, mut piece) = (Lines::new(FRAME_BYTES), vec![0; PIECE]);
    loop {
        let length = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => return,
            read = reader.read(&mut piece) => read.unwrap_or(0),
        };
        let mut rest = &piece[..length];
        while let Some((_, line)) = lines.next(&mut rest) {
            if !taker.take(line).await {
                return;
            }
        }
        if length == 0 {
            break;
        }
    }
    if let Some((_, line)) = lines.rest() {
        taker.take(line).await;
    }
}

struct Taker {
    vm: VmName,
    outbox: Outbox,
    owe: mpsc::Sender<Owed>,
    ids: IdSource,
}

impl Taker {
    /// Takes one line; whether more may come.
    async fn take(&mut self, line: Line<'_>) -> bool {
        let put = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return true,
            Line::Whole(line) => Put::parse(&self.vm, line, &mut self.ids, clock::wall_ms()),
            Line::TooLong => {
                let why = format!("a line is at most {FRAME_BYTES} bytes");
                Err(Refusal::new("event-too-large", why))
            }
        };
        // The place for the answer comes first: what is submitted is owed.
        let Ok(place) = self.owe.reserve().await else { return false };
        place.send(match put {
            Ok(put) => Owed::Later(self.outbox.submit(vec![put]).await),
            Err(refusal) => Owed::Refused(refusal),
        });
        true
    }
}

/// Answers until nothing is owed any more. An error: the program takes no answers.
async fn write(mut writer: OwnedWriteHalf, mut owed: mpsc::Receiver<Owed>) -> Result<(), ()> {
    let (mut out, mut gone) = (Vec::new(), false);
    loop {
        let next = match owed.try_recv() {
            Ok(next) => next,
            Err(_) => {
                flush(&mut writer, &mut out, &mut gone).await?;
                let Some(next) = owed.recv().await else { return Ok(()) };
                next
            }
        };
        let answer = match next {
            Owed::Refused(refusal) => Err(refusal),
            Owed::Later(receipt) => match receipt.try_kept() {
                Ok(answer) => answer,
                Err(receipt) => {
                    flush(&mut writer, &mut out, &mut gone).await?;
                    receipt.kept().await
                }
            },
        };
        write_answer(&mut out, answer.as_ref().map(Vec::as_slice));
        if out.len() >= GATHER {
            flush(&mut writer, &mut out, &mut gone).await?;
        }
    }
}

async fn flush(writer: &mut OwnedWriteHalf, out: &mut Vec<u8>, gone: &mut bool) -> Result<(), ()> {
    if !*gone && !out.is_empty() {
        match timeout(LOCAL_WRITE_TIME, writer.write_all(out)).await {
            Ok(written) => *gone = written.is_err(),
            Err(_) => return Err(()),
        }
    }
    out.clear();
    Ok(())
}

fn write_answer(out: &mut Vec<u8>, answer: Result<&[Kept], &Refusal>) {
    match answer {
        Ok(kept) => {
            out.extend_from_slice(b"{\"status\":\"ok\",\"id\":\"");
            string_body(out, kept.first().map_or("", |kept| &kept.id));
            out.push(b'"');
            if kept.first().is_some_and(|kept| kept.duplicate) {
                out.extend_from_slice(b",\"duplicate\":true");
            }
        }
        Err(refusal) => {
            out.extend_from_slice(b"{\"status\":\"error\",\"code\":\"");
            string_body(out, refusal.code);
            out.extend_from_slice(b"\",\"reason\":\"");
            string_body(out, &refusal.reason);
            out.push(b'"');
        }
    }
    out.extend_from_slice(b"}\n");
}
