//! Sessions that subscribe and then only are: how fast they are opened, whether they stay, what each costs the broker.
//!
//! Always holds: a session that counts as alive answered at the end. Owner: `castra bench idle`.

use super::link::{Link, Said};
use super::{BenchError, Plan, Term, connect_all, subscriber_names};
use crate::core::awake::timeout;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// At the end a session has so long to answer.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// What idle sessions were like.
#[derive(Clone, Debug)]
pub struct Idle {
    /// Until all were open and subscribed.
    pub connect_time: Duration,
    /// Until they were asked whether they live.
    pub elapsed: Duration,
    /// How many lived at the end.
    pub alive: u64,
    /// Why the others ended.
    pub ended: BTreeMap<String, u64>,
    /// The broker's memory without them and with them, in bytes.
    pub memory: Option<(u64, u64)>,
}

/// Holds so many sessions. `pid` is the broker's process, if it is on this machine and known.
///
/// # Errors
/// [`BenchError`]: one of them could not be had.
pub async fn idle(plan: &Plan, sessions: u64, pid: Option<u32>) -> Result<Idle, BenchError> {
    let before = pid.and_then(resident);
    let (names, since) = (subscriber_names(sessions), Instant::now());
    let links = connect_all(plan, names, true).await?;
    let connect_time = since.elapsed();
    let (say_over, over) = watch::channel(false);
    let (mut term, mut tasks) = (Term::begin(plan), JoinSet::new());
    for link in links {
        tasks.spawn(hold(link, over.clone()));
    }
    term.over().await;
    let (after, elapsed) = (pid.and_then(resident), term.begun.elapsed());
    let _ = say_over.send(true);
    let (mut alive, mut ended) = (0, BTreeMap::new());
    while let Some(end) = tasks.join_next().await {
        match end.map_err(|_| BenchError::Broken)? {
            None => alive += 1,
            Some(why) => *ended.entry(why).or_default() += 1,
        }
    }
    Ok(Idle { connect_time, elapsed, alive, ended, memory: before.zip(after) })
}

/// Why it ended, unless it lived at the end.
async fn hold(mut link: Link, mut over: watch::Receiver<bool>) -> Option<String> {
    let told = over.wait_for(|over| *over);
    tokio::pin!(told);
    loop {
        let stepped = tokio::select! {
            stepped = link.step() => stepped.and_then(|()| link.take(|_| false)),
            _ = &mut told => break,
        };
        if let Err(why) = stepped {
            return Some(why);
        }
    }
    link.push_heartbeat();
    let answered = async {
        let mut answered = false;
        while !answered {
            link.step().await?;
            link.take(|body| {
                let is_ack = Said::read(body).is_some_and(|said| said.answers("heartbeat"));
                answered |= is_ack;
                is_ack
            })?;
        }
        Ok(())
    };
    match timeout(LAST_ANSWER, answered).await {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("no-answer".into()),
    }
}

/// What a process has in memory, in bytes; `None` when it is gone.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
