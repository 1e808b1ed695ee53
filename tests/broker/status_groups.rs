//! What `castra status` says of consumer groups, whether somebody answers or not.

use crate::subscribe::publish;
use crate::support::{Broker, castra, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn groups_are_shown_the_worst_first() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let text = || String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(!text().contains("GROUP"));
    let mut member = broker.guest("worker");
    for group in ["near", "far"] {
        let wish = format!(r#"{{"type":"subscribe","topic":"t","group":"{group}","max_in_flight":2}}"#);
        assert_eq!(member.ask(wish)["status"], "ok");
    }
    let mut guest = broker.guest("web");
    for _ in 0..3 {
        publish(&mut guest, "t");
    }
    for _ in 0..4 {
        member.receive().unwrap();
    }
    member.send(r#"{"type":"ack","group":"near","through":2}"#);
    let far = json!({"name": "far", "lag": 3, "members": 1, "in_flight": 2, "dead": 0, "expired_undelivered": 0,
        "stalled": "in-flight full"});
    let near = json!({"name": "near", "lag": 1, "members": 1, "in_flight": 1, "dead": 0, "expired_undelivered": 0,
        "stalled": null});
    eventually("both groups", || {
        let status = broker.status();
        (status["groups"] == json!([far, near]) && status["groups_count"] == 2).then_some(())
    });
    let shown = text();
    let lines: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("GROUP")).take(3).collect();
    let want = [
        "GROUP  LAG  MEMBERS  IN FLIGHT  DEAD  EXPIRED  STALLED",
        "far      3        1          2     0        0  in-flight full",
        "near     1        1          1     0        0  -",
    ];
    assert_eq!(lines, want, "{shown}");
    // Nobody is asked: a broker that stands still is shown all the same.
    broker.signal(Signal::SIGSTOP);
    assert_eq!(broker.status()["groups"][0], far);
    broker.signal(Signal::SIGCONT);
    assert_eq!(broker.stop().0, Some(0));
    let offline = castra().arg("--state-root").arg(dir.path()).args(["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&offline.stdout).unwrap();
    assert_eq!(
        (&status["groups"][0]["members"], &status["groups"][0]["lag"]),
        (&json!(0), &json!(3)),
        "{status}"
    );
}

#[test]
fn many_groups_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    for n in 0..70 {
        let wish = format!(r#"{{"type":"group_create","topic":"t","group":"g{n:02}"}}"#);
        assert_eq!(guest.ask(wish)["status"], "ok");
    }
    let status = eventually("all groups", || {
        let status = broker.status();
        (status["groups_count"] == 70).then_some(status)
    });
    assert_eq!(status["groups"].as_array().unwrap().len(), 64);
    let shown = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(shown.contains("and 6 groups more; 'castra bus group ls' has all"), "{shown}");
}
