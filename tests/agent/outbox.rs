//! The outbox on real files: modes, damage, full disks, other processes beside it.

use crate::faults::{Mounted, skip};
use crate::support::eventually;
use castra::core::agent::outbox::edit::{self, State, Which};
use castra::core::agent::outbox::{Bounds, Cursor, Kept, Opened, Outbox, OutboxError, Put, Sent, WhenFull};
use castra::core::identity::VmName;
use castra::core::ids::IdSource;
use castra::core::refusal::Refusal;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

fn put(id: &str, size: usize) -> Put {
    let vm = VmName::parse("web").unwrap();
    let line = format!("{{\"topic\":\"t\",\"id\":\"{id}\",\"payload\":\"{}\"}}", "x".repeat(size));
    Put::parse(&vm, line.as_bytes(), &mut IdSource::new(0), 0).unwrap()
}

fn open(dir: &Path) -> Outbox {
    let Opened { outbox, aside } = Outbox::open(dir, Bounds::default()).unwrap();
    assert_eq!(aside, None);
    outbox
}

/// Runs on a small runtime.
fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn pending(outbox: &Outbox) -> Vec<String> {
    let entries = outbox.pending(0, usize::MAX, usize::MAX).await.unwrap();
    entries.into_iter().map(|entry| entry.id).collect()
}

/// Puts `id` until it is kept.
fn until_kept(outbox: &Outbox, id: &str) -> Kept {
    eventually("a put that is kept", || {
        block(outbox.put(vec![put(id, 10)])).ok().map(|mut kept| kept.remove(0))
    })
}

/// Puts until one is refused.
fn until_refused(outbox: &Outbox) -> Refusal {
    eventually("a refusal", || block(outbox.put(vec![put("refused", 30_000)])).err())
}

fn rows(path: &Path) -> Vec<edit::Row> {
    let mut rows = Vec::new();
    edit::list(path, None, None, |row| {
        rows.push(row);
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

#[test]
fn what_was_kept_is_there_again_in_order_and_the_files_are_the_owners() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("new/state");
    let outbox = open(&state);
    block(async {
        let kept = outbox.put(vec![put("a", 1), put("b", 1)]).await.unwrap();
        assert_eq!(
            kept,
            [
                Kept { n: 1, id: "a".into(), duplicate: false },
                Kept { n: 2, id: "b".into(), duplicate: false }
            ]
        );
        outbox.put(vec![put("c", 1)]).await.unwrap();
        outbox.sent(vec![Sent { n: 2, seq: 70, duplicate: true }]).await;
        outbox.failed(3, "bad-topic", "no such thing").await;
        outbox.set_cursor("h", Cursor { seq: 5, ts: 6, id: "e".into() }).await.unwrap();
        outbox.said("no route").await;
    });
    for (name, mode) in
        [("", 0o700), ("outbox.db", 0o600), ("outbox.db-wal", 0o600), ("outbox.db-shm", 0o600)]
    {
        assert_eq!(std::fs::metadata(state.join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
    block(outbox.close());

    let outbox = open(&state);
    let counts = outbox.counts();
    assert_eq!((counts.pending, counts.error, counts.sent, counts.duplicate), (1, 1, 1, 1));
    assert_eq!(block(pending(&outbox)), ["a"]);
    assert_eq!(block(outbox.cursor("h")).unwrap().unwrap().id, "e");
    assert_eq!(block(outbox.cursor("other")).unwrap(), None);
    let path = state.join("outbox.db");
    let listed: Vec<_> = rows(&path).into_iter().map(|row| (row.id, row.state, row.seq, row.code)).collect();
    let want = [
        ("a".into(), State::Pending, None, None),
        ("b".into(), State::Sent, Some(70), None),
        ("c".into(), State::Error, None, Some("bad-topic".into())),
    ];
    assert_eq!(listed, want);
    assert_eq!(edit::summary(&path).unwrap().said.as_deref(), Some("no route"));
    block(outbox.clone().close());
    assert_eq!(block(outbox.put(vec![put("d", 1)])).unwrap_err().code, "outbox-closed");
}

#[test]
fn puts_that_wait_are_all_kept_in_the_order_in_which_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir.path().join("s"));
    block(async {
        let mut receipts = Vec::new();
        for n in 0..500 {
            receipts.push(outbox.submit(vec![put(&format!("{n:03}"), n)]).await);
        }
        for (n, receipt) in receipts.into_iter().enumerate() {
            assert_eq!(receipt.kept().await.unwrap()[0].n, n as u64 + 1);
        }
        assert!(pending(&outbox).await.is_sorted());
    });
}

#[test]
fn a_full_outbox_refuses_or_drops_the_oldest_and_counts_it_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, when_full| {
        let bounds = Bounds { bytes: 10_000, when_full, ..Bounds::default() };
        Outbox::open(&dir.path().join(name), bounds).unwrap().outbox
    };
    block(async {
        let outbox = open("refuse", WhenFull::Refuse);
        for n in 0..9 {
            outbox.put(vec![put(&n.to_string(), 900)]).await.unwrap();
        }
        let refusal = outbox.put(vec![put("9", 900), put("10", 900)]).await.unwrap_err();
        assert_eq!(refusal.code, "outbox-full");
        assert_eq!((outbox.counts().refused, outbox.counts().pending), (1, 9));
        outbox
            .sent(vec![Sent { n: 1, seq: 1, duplicate: false }, Sent { n: 2, seq: 2, duplicate: false }])
            .await;
        outbox.put(vec![put("9", 900), put("10", 900)]).await.unwrap();

        let outbox = open("drop", WhenFull::DropOldest);
        for n in 0..20 {
            outbox.put(vec![put(&n.to_string(), 900)]).await.unwrap();
        }
        assert!(outbox.counts().bytes <= 10_000);
        let left = pending(&outbox).await;
        assert_eq!(left.last().unwrap(), "19");
        assert_eq!(outbox.counts().dropped, 20 - left.len() as u64);
        assert_eq!(outbox.put(vec![put("large", 11_000)]).await.unwrap_err().code, "outbox-full");
        assert_eq!(pending(&outbox).await, left, "nothing went for what does not fit");
        let counts = outbox.counts();
        outbox.close().await;
        let again = open("drop", WhenFull::DropOldest).counts();
        assert_eq!((again.dropped, again.refused), (counts.dropped, counts.refused));
        assert_eq!(edit::summary(&dir.path().join("drop/outbox.db")).unwrap().counts, counts);
    });
}

#[test]
fn what_is_pending_for_too_long_is_an_error_and_can_be_retried() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { age: Duration::from_millis(300), ..Bounds::default() };
    let outbox = Outbox::open(&dir.path().join("s"), bounds).unwrap().outbox;
    block(outbox.put(vec![put("old", 1)])).unwrap();
    eventually("expired", || (outbox.counts().expired == 1).then_some(()));
    assert_eq!((outbox.counts().pending, outbox.counts().error), (0, 1));
    let path = dir.path().join("s/outbox.db");
    assert_eq!(rows(&path)[0].code.as_deref(), Some("expired"));
    block(outbox.close());
    let outbox = open(&dir.path().join("s"));
    assert_eq!(edit::retry(&path, Which::All(State::Error)).unwrap().retried, 1);
    eventually("pending again", || (outbox.counts().pending == 1).then_some(()));
    assert_eq!(rows(&path)[0].n, 2, "behind all others");
}

#[test]
fn who_waits_is_told_of_what_another_process_made_pending() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir.path().join("s"));
    let path = dir.path().join("s/outbox.db");
    block(async {
        let changed = outbox.changed();
        outbox.put(vec![put("a", 1)]).await.unwrap();
        outbox.failed(1, "refused", "no").await;
        // What is told of the put, and of the opening.
        changed.notified().await;
        assert_eq!(pending(&outbox).await, [""; 0]);
        let ids = ["a".to_owned(), "b".to_owned()];
        let want = edit::Retried { retried: 1, removed: 0, unknown: vec!["b".to_owned()] };
        assert_eq!(edit::retry(&path, Which::Ids(&ids)).unwrap(), want);
        tokio::time::timeout(Duration::from_secs(20), changed.notified()).await.unwrap();
        let found = outbox.pending(1, 10, 1 << 20).await.unwrap();
        assert_eq!(found.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["a"]);
    });
}

/// What is done to a database.
type Harm = (&'static str, fn(&Path));

#[test]
fn what_is_damaged_is_put_aside_and_a_new_one_begun() {
    let harms: [Harm; 5] = [
        ("no database", |path| std::fs::write(path, "not SQLite at all\n".repeat(100)).unwrap()),
        ("half of it", |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2 + 1).unwrap();
        }),
        ("a bad page", |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            let end = file.metadata().unwrap().len();
            file.write_all_at(&[0xa5; 4096], end - 4096).unwrap();
        }),
        ("somebody else's", |path| {
            rusqlite::Connection::open(path).unwrap().execute_batch("PRAGMA application_id = 7").unwrap();
        }),
        ("a newer one", |path| {
            rusqlite::Connection::open(path).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
        }),
    ];
    for (what, harm) in harms {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        for n in 0..40 {
            block(outbox.put(vec![put(&n.to_string(), 2_000)])).unwrap();
        }
        block(outbox.close());
        let path = dir.path().join("outbox.db");
        harm(&path);
        let bytes = std::fs::read(&path).unwrap();
        let Opened { outbox, aside } = Outbox::open(dir.path(), Bounds::default()).unwrap();
        let aside = aside.unwrap_or_else(|| panic!("{what} was taken"));
        assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("outbox.db.damaged-"), "{aside:?}");
        assert_eq!(std::fs::read(&aside).unwrap(), bytes, "{what}: nothing of it is changed");
        assert_eq!(outbox.counts(), Default::default());
        block(outbox.put(vec![put("new", 1)])).unwrap();
        block(outbox.close());
        block(open(dir.path()).close());
    }
}

#[test]
fn no_more_than_so_many_damaged_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..castra::core::limits::OUTBOX_ASIDES {
        std::fs::write(dir.path().join("outbox.db"), "damaged\n".repeat(200)).unwrap();
        let opened = Outbox::open(dir.path(), Bounds::default()).unwrap();
        assert!(opened.aside.is_some());
        block(opened.outbox.close());
    }
    std::fs::write(dir.path().join("outbox.db"), "damaged\n".repeat(200)).unwrap();
    let Err(OutboxError::Io { what: "put aside", .. }) = Outbox::open(dir.path(), Bounds::default()) else {
        panic!("one more")
    };
}

#[test]
fn a_folder_of_somebody_or_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let before = std::fs::metadata(dir.path()).unwrap().mode();
    let Err(OutboxError::Foreign { name, .. }) = Outbox::open(dir.path(), Bounds::default()) else {
        panic!()
    };
    assert_eq!(name, "letter.txt");
    assert_eq!(std::fs::metadata(dir.path()).unwrap().mode(), before);
}

#[test]
fn a_database_that_goes_while_the_agent_runs_is_said_and_begun_anew() {
    for how in ["removed", "damaged"] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("s");
        let outbox = open(&state);
        // More than SQLite keeps in memory, and than stands in the log before it is written back.
        for n in 0..10 {
            let puts = (0..20).map(|m| put(&format!("{n}-{m}"), 30_000)).collect();
            block(outbox.put(puts)).unwrap();
        }
        let path = state.join("outbox.db");
        if how == "removed" {
            std::fs::remove_file(&path).unwrap();
        } else {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            file.write_all_at(&vec![0xa5; length as usize - 8192], 8192).unwrap();
            assert_eq!(block(pending(&outbox)), [""; 0]);
        }
        let refusal = until_refused(&outbox);
        assert_eq!(
            refusal.code,
            if how == "removed" { "outbox-failed" } else { "outbox-damaged" },
            "{refusal}"
        );
        let kept = until_kept(&outbox, "new");
        assert!(kept.n > 200, "{how}: numbers go on, so that a reader behind 200 sees it: {kept:?}");
        let found = block(outbox.pending(200, 10, 1 << 20)).unwrap();
        assert!(found.iter().any(|entry| entry.id == "new"), "{how}");
        let is_aside = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().to_str().unwrap().contains("damaged")
        };
        assert_eq!(std::fs::read_dir(&state).unwrap().any(is_aside), how == "damaged");
        assert_eq!(outbox.counts().lost, 200, "{how}");
        block(outbox.close());
    }
}

#[test]
fn a_full_disk_refuses_keeps_what_was_answered_and_resumes_by_itself() {
    let disk = match Mounted::new(16) {
        Ok(disk) => disk,
        Err(why) => return skip("a_full_disk_refuses_keeps_what_was_answered_and_resumes_by_itself", &why),
    };
    let outbox = open(&disk.root());
    let mut answered = Vec::new();
    let mut go_on = |outbox: &Outbox, from: usize| {
        for n in from..from + 50 {
            let id = format!("{n:05}");
            if block(outbox.put(vec![put(&id, 500)])).is_ok() {
                answered.push(id);
            }
        }
        answered.clone()
    };
    go_on(&outbox, 0);
    let filler = disk.fill();
    let refusal = until_refused(&outbox);
    assert_eq!(refusal.code, "outbox-disk-full", "{refusal}");
    go_on(&outbox, 100);
    // The broker takes some: what cannot be written down is not sent a second time.
    block(outbox.sent((1..=5).map(|n| Sent { n, seq: n, duplicate: false }).collect()));
    assert_eq!(block(pending(&outbox)).first().unwrap(), "00005");
    drop(filler);
    until_kept(&outbox, "resumed");
    let answered = go_on(&outbox, 200);
    eventually("marked", || (outbox.counts().sent == 5).then_some(()));
    block(outbox.close());
    let outbox = open(&disk.root());
    let left = block(pending(&outbox));
    let ours: Vec<&String> = left.iter().filter(|id| id.starts_with('0')).collect();
    assert_eq!(ours, answered.iter().skip(5).collect::<Vec<_>>());
    assert!(left.contains(&"resumed".to_owned()));
    block(outbox.close());
}
