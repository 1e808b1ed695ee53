//! Threads that the system may refuse (EAGAIN).
//!
//! Always holds: tokio never asks for a thread whose refusal it answers with a panic. Its workers are tried out before they
//! are started, and its pool for blocking work keeps its threads: while it has one, work waits for that one. Owner:
//! whoever starts a runtime with workers, and whoever looks up a name.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, available_parallelism, scope, sleep};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A thread that has ended is counted by the system a moment longer.
const GONE: Duration = Duration::from_secs(1);
/// Longer than any process runs.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A runtime with a worker for each processor, in a process that can have `more` threads beside them.
///
/// # Errors
/// It cannot have all of them (`WouldBlock`), or the system gives the runtime no descriptors.
pub fn runtime(more: usize) -> io::Result<Runtime> {
    let workers = available_parallelism().map_or(1, usize::from);
    try_out(workers + 1 + more)?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).thread_keep_alive(FOR_EVER).enable_all().build()?;
    // The first one of the pool; it stays.
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// Has `count` threads at once for a moment.
fn try_out(count: usize) -> io::Result<()> {
    let before = threads();
    let gate = Mutex::new(());
    let tried = scope(|scope| {
        let _shut = gate.lock().unwrap_or_else(PoisonError::into_inner);
        (0..count).try_for_each(|have| {
            let wait = || drop(gate.lock());
            let thread = Builder::new().name("castra-trial".into()).spawn_scoped(scope, wait);
            thread.map(drop).map_err(|error| io::Error::new(error.kind(), too_few(have, count, &error)))
        })
    });
    let until = Instant::now() + GONE;
    while threads() > before && Instant::now() < until {
        sleep(Duration::from_millis(1));
    }
    tried
}

fn too_few(have: usize, count: usize, error: &io::Error) -> String {
    format!("{have} of the {count} further ones that it needs: {error}")
}

/// How many this process has; 0 where the system does not say.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// The addresses of `HOST:PORT`. The system's resolver blocks, so it has a thread of its own.
///
/// # Errors
/// There is no such name, or no thread to be had.
pub async fn look_up(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (name, (said, heard)) = (address.to_owned(), oneshot::channel());
    let ask = move || {
        // Nobody may be waiting any more.
        let _ = said.send(name.to_socket_addrs().map(Iterator::collect));
    };
    Builder::new().name("castra-lookup".into()).spawn(ask)?;
    heard.await.map_err(io::Error::other)?
}
