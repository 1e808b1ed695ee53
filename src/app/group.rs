//! `castra bus group`: what groups there are, how they stand, and where they go on.
//!
//! Always holds: what is said to be so is durable; nothing is asked of a broker that has no answer within
//! [`PATIENCE`]. Owner: the operator.

use super::failure::{Exit, Failure};
use super::stderr::say;
use super::terminal::{cut, print_all, stdout_width};
use super::words::{at_least, count, list};
use super::{dlq, given, host};
use crate::cli::{GroupArgs, GroupCommand, GroupCreateArgs, GroupLagArgs, GroupRmArgs, GroupSeekArgs};
use crate::core::client::{Bus, Error, Group};
use crate::core::harmless::harmless;
use crate::core::state_root::StateRoot;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The broker answers at once, or something is wrong with it. A look for a time or an id may take a while.
const PATIENCE: Duration = Duration::from_secs(20);
/// The broker counts lags for so long; it goes on where it was when it is asked again.
const COUNTING: Duration = Duration::from_secs(10);

pub fn run(root: &StateRoot, command: &GroupCommand) -> Result<Exit, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let asked = async {
        let bus = host::bus(root).await?;
        match command {
            GroupCommand::Ls(args) => ls(&bus, args.json).await,
            GroupCommand::Show(args) => show(&bus, args).await,
            GroupCommand::Create(args) => create(&bus, args).await,
            GroupCommand::Rm(args) => remove(&bus, &args.group).await,
            GroupCommand::Seek(args) => seek(&bus, args).await,
            GroupCommand::Lag(args) => lag(&bus, args).await,
        }
    };
    let (text, exit) = runtime.block_on(async { host::within(PATIENCE, asked).await }).map_err(|_| {
        let why = format!("no answer within {PATIENCE:?}; 'castra status' says how the broker is");
        Failure::new(Exit::Timeout, "timeout", why)
    })??;
    let text = match command {
        GroupCommand::Rm(args) => removed(root, args)?,
        _ => text,
    };
    print_all(text.as_bytes())?;
    Ok(exit)
}

/// What is printed, and how it ends.
type Said = Result<(String, Exit), Failure>;

fn ok(text: impl Into<String>) -> Said {
    Ok((text.into() + "\n", Exit::Ok))
}

async fn ls(bus: &Bus, json: bool) -> Said {
    let mut groups = bus.groups().await.map_err(refused)?;
    counted(bus, &mut groups, None).await?;
    if json {
        return ok(json!({"schema": 1, "groups": groups}).to_string());
    }
    if groups.is_empty() {
        return ok("no groups; 'castra bus group create' or 'castra bus subscribe --group' makes one");
    }
    Ok((table(&groups, stdout_width().unwrap_or(usize::MAX)), Exit::Ok))
}

const COLUMNS: [&str; 11] = [
    "GROUP", "CURSOR", "LAG", "MEMBERS", "HELD", "WAITING", "DELAYED", "DEAD", "EXPIRED", "STALLED", "TOPICS",
];

/// Columns as wide as they have to be; a line is cut at the terminal's width.
fn table(groups: &[Group], width: usize) -> String {
    let rows: Vec<[String; COLUMNS.len()]> = groups.iter().map(cells).collect();
    let width_of = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        widest.max(COLUMNS[column].len())
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width_of).collect();
    let mut out = String::new();
    for row in std::iter::once(&COLUMNS.map(str::to_owned)).chain(&rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Words to the left, numbers to the right.
            let is_word = column == 0 || column + 2 >= COLUMNS.len();
            line += &if is_word { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
        out += cut(line.trim_end(), width).as_str();
        out.push('\n');
    }
    out
}

fn cells(group: &Group) -> [String; COLUMNS.len()] {
    let lag = at_least(group.lag, group.lag_at_least);
    let numbers = [
        group.cursor,
        group.members,
        group.held,
        group.waiting,
        group.delayed,
        group.dead,
        group.expired_undelivered,
    ];
    let [cursor, members, held, waiting, delayed, dead, expired] = numbers.map(|n| n.to_string());
    let stalled = group.stalled.clone().unwrap_or_else(|| "-".to_owned());
    let topics = list(&group.spec.topics);
    [group.group.clone(), cursor, lag, members, held, waiting, delayed, dead, expired, stalled, topics]
}

async fn show(bus: &Bus, args: &GroupArgs) -> Said {
    let Some(group) = bus.group(&args.group).await.map_err(refused)? else {
        return Err(unknown(&args.group));
    };
    if args.json {
        let mut said = json!(group);
        said["schema"] = 1.into();
        return ok(said.to_string());
    }
    let spec = &group.spec;
    let mut lines = vec![("topics", spec.topics.join(" "))];
    lines.extend(spec.headers.iter().map(|(name, value)| ("header", format!("{name}={value}"))));
    lines.extend(spec.tags.iter().map(|tag| ("tag", tag.clone())));
    let time = humantime::format_duration(Duration::from_millis(spec.ack_timeout_ms)).to_string();
    lines.extend([
        ("batch", spec.batch.to_string()),
        ("ack timeout", time),
        ("max attempts", spec.max_attempts.to_string()),
        ("ordered by key", if spec.ordered_by_key { "yes" } else { "no" }.to_owned()),
    ]);
    let numbers = ["cursor", "lag", "members", "held", "waiting", "delayed", "dead", "expired", "stalled"];
    let [_, rest @ .., _] = cells(&group);
    lines.extend(numbers.into_iter().zip(rest));
    let lines: Vec<String> =
        lines.iter().map(|(name, value)| format!("{name:<16}{}", harmless(value))).collect();
    ok(format!("{:<16}{}\n{}", "group", group.group, lines.join("\n")))
}

async fn create(bus: &Bus, args: &GroupCreateArgs) -> Said {
    let begin = given::begin("--from", &args.from, args.id_vm.as_deref(), true)?;
    let mut topics = args.topics.iter();
    let first = topics.next().cloned().unwrap_or_default();
    let mut wish = bus.create_group(first, &args.group).topics(topics).from(begin);
    if let Some(events) = args.batch {
        wish = wish.batch(events);
    }
    if let Some(time) = args.ack_timeout {
        wish = wish.ack_timeout(time);
    }
    if let Some(attempts) = args.max_attempts {
        wish = wish.max_attempts(attempts);
    }
    for (name, value) in &args.headers {
        wish = wish.header(name, value);
    }
    for tag in &args.tags {
        wish = wish.tag(tag);
    }
    if args.ordered_by_key {
        wish = wish.ordered_by_key();
    }
    let made = wish.await.map_err(refused)?;
    // What was not typed is not wished for either.
    let is_wish = |name: &&String| match name.as_str() {
        "filter" => !args.headers.is_empty() || !args.tags.is_empty(),
        "batch" => args.batch.is_some(),
        "ack_timeout_ms" => args.ack_timeout.is_some(),
        "max_attempts" => args.max_attempts.is_some(),
        "ordered_by_key" => args.ordered_by_key,
        _ => true,
    };
    let differs: Vec<&str> = made.differs.iter().filter(is_wish).map(String::as_str).collect();
    let (group, cursor, created) = (&args.group, made.cursor, made.created);
    if args.json {
        let said = json!({
            "schema": 1, "group": group, "cursor": cursor, "created": created, "differs": differs,
        });
        return ok(said.to_string());
    }
    let there = format!("{group} was there already, and is at event {cursor}");
    let show = format!("'castra bus group show {group}'");
    ok(match (created, &differs[..]) {
        (true, _) => format!("{group} begins behind event {cursor}"),
        (false, []) => format!("{there}; its options stay: {show}"),
        (false, differs) => format!("{there}; it keeps its own {}: {show}", differs.join(", ")),
    })
}

async fn remove(bus: &Bus, group: &str) -> Said {
    bus.remove_group(group).await.map_err(refused)?;
    ok("")
}

/// The group is gone; its dead letters go as well, if that is wanted.
fn removed(root: &StateRoot, args: &GroupRmArgs) -> Result<String, Failure> {
    let group = &args.group;
    let letters = if args.dead_letters { dlq::purge_all(root, group)? } else { 0 };
    let said = match (args.json, args.dead_letters) {
        (true, true) => json!({"schema": 1, "removed": group, "dead_letters": letters}).to_string(),
        (true, false) => json!({"schema": 1, "removed": group}).to_string(),
        (false, true) => format!("{group} is removed, and {} of it", count(letters, "dead letter")),
        (false, false) => format!("{group} is removed"),
    };
    Ok(said + "\n")
}

async fn seek(bus: &Bus, args: &GroupSeekArgs) -> Said {
    let group = &args.group;
    let cursor =
        bus.seek(group, given::begin("TO", &args.to, args.id_vm.as_deref(), true)?).await.map_err(refused)?;
    ok(match args.json {
        true => json!({"schema": 1, "group": group, "cursor": cursor}).to_string(),
        false => format!("{group} goes on behind event {cursor}"),
    })
}

/// It is not known whether the group is behind by more than this; without it, by how much.
fn is_open(group: &Group, over: Option<u64>) -> bool {
    group.lag_at_least && over.is_none_or(|over| group.lag <= over)
}

/// Asks on for lags that are lower bounds, for [`COUNTING`] at the most: once for each group, or until it is known whether
/// one is above `over`.
async fn counted(bus: &Bus, groups: &mut [Group], over: Option<u64>) -> Result<(), Failure> {
    let until = Instant::now() + COUNTING;
    for group in groups {
        while is_open(group, over) && Instant::now() < until {
            // It may be gone by now; then it stays as it was.
            let Some(now) = bus.group(&group.group).await.map_err(refused)? else { break };
            *group = now;
            match over {
                Some(over) if group.lag > over => return Ok(()),
                Some(_) => {}
                None => break,
            }
        }
    }
    Ok(())
}

async fn lag(bus: &Bus, args: &GroupLagArgs) -> Said {
    let mut groups = match &args.group {
        Some(name) => vec![bus.group(name).await.map_err(refused)?.ok_or_else(|| unknown(name))?],
        None => bus.groups().await.map_err(refused)?,
    };
    let is_over =
        |groups: &[Group]| args.over.is_some_and(|over| groups.iter().any(|group| group.lag > over));
    if !is_over(&groups) {
        counted(bus, &mut groups, args.over).await?;
    }
    let is_over = is_over(&groups);
    let is_undecided =
        !is_over && args.over.is_some() && groups.iter().any(|group| is_open(group, args.over));
    let text = if args.json {
        let each = |group: &Group| {
            let mut each = json!({"group": group.group, "lag": group.lag, "stalled": group.stalled});
            if group.lag_at_least {
                each["lag_at_least"] = true.into();
            }
            each
        };
        let groups: Vec<Value> = groups.iter().map(each).collect();
        let mut said = json!({"schema": 1, "groups": groups, "over": is_over});
        if is_undecided {
            said["undecided"] = true.into();
        }
        said.to_string() + "\n"
    } else {
        let line = |group: &Group| {
            let stalled = group.stalled.as_deref().unwrap_or("-");
            format!("{} {} {stalled}\n", group.group, at_least(group.lag, group.lag_at_least))
        };
        groups.iter().map(line).collect()
    };
    if is_undecided {
        say("not all events could be counted in time; ask again, the broker goes on where it was");
    }
    let exit = match (is_over, is_undecided) {
        (true, _) => Exit::Degraded,
        (false, true) => Exit::TryAgain,
        (false, false) => Exit::Ok,
    };
    Ok((text, exit))
}

fn unknown(group: &str) -> Failure {
    let why = format!("no group {group}; 'castra bus group ls' shows those that are");
    Failure::new(Exit::Degraded, "unknown-group", why)
}

/// What is refused with this code may be taken a while later.
pub fn may_pass(code: &str) -> bool {
    matches!(code, "seek-under-way" | "journal-unreadable" | "disk-full" | "outcome-unknown")
}

/// What the broker refuses.
fn refused(error: Error) -> Failure {
    let exit = match error.code() {
        Some("unknown-group") => Exit::Degraded,
        Some("seq-ahead" | "unknown-id") => Exit::BadData,
        Some(code) if may_pass(code) => Exit::TryAgain,
        Some(code) if code.starts_with("bad-") => Exit::BadData,
        Some(_) => Exit::Refused,
        None => return host::lost(&error),
    };
    let code = error.code().unwrap_or_default().to_owned();
    Failure::new(exit, code, error.to_string())
}
