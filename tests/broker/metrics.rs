//! `--metrics`: what is served there, in which form, to whom, and how it moves.

use crate::support::{Broker, Guest, PATIENCE, broker_log, castra, eventually, skip, slow_disk};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn start(root: &Path) -> (Broker, String) {
    let broker = Broker::start_args(root, &["--metrics", "127.0.0.1:0"]);
    let at = at(&broker);
    (broker, at)
}

/// Where its metrics are, as its status says.
fn at(broker: &Broker) -> String {
    let status = broker.status();
    let mut listeners = status["broker"]["listeners"].as_array().unwrap().iter();
    listeners.find_map(|listener| listener.as_str()?.strip_prefix("metrics:")).unwrap().to_owned()
}

#[derive(Debug)]
pub struct Page {
    status: u16,
    head: String,
    pub body: String,
}

/// Says these bytes and reads to the end, which the broker makes.
fn say(at: &str, bytes: impl AsRef<[u8]>) -> Page {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes.as_ref()).unwrap();
    answer(stream)
}

fn answer(mut stream: TcpStream) -> Page {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).expect(head).parse().unwrap();
    for line in ["\r\nContent-Type: ", "\r\nConnection: close", "\r\nCache-Control: no-store", " GMT\r\n"] {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    Page { status, head: head.to_owned(), body: body.to_owned() }
}

pub fn get(at: &str, path: &str) -> Page {
    say(at, format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}

fn open_metrics(at: &str) -> Page {
    say(at, format!("GET /metrics HTTP/1.1\r\nHost: {at}\r\nAccept: application/openmetrics-text\r\n\r\n"))
}

/// Every sample, by its name with its labels.
fn samples(page: &Page) -> BTreeMap<String, f64> {
    assert_eq!(page.status, 200, "{page:?}");
    let lines = page.body.lines().filter(|line| !line.starts_with('#'));
    let mut all = BTreeMap::new();
    for line in lines {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
        let before = all.insert(name.to_owned(), value.parse().expect(line));
        assert!(before.is_none(), "twice: {line}");
    }
    all
}

pub fn metrics(at: &str) -> BTreeMap<String, f64> {
    samples(&get(at, "/metrics"))
}

fn publish(guest: &mut Guest, topic: &str) {
    let frame = serde_json::json!({"type": "publish", "topic": topic, "payload": 1}).to_string();
    assert_eq!(guest.ask(frame)["status"], "ok");
}

#[test]
fn what_happens_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let begun = std::time::SystemTime::now();
    let (broker, at) = start(dir.path());
    let before = metrics(&at);
    assert_eq!(before["castra_sessions"], 0.0);
    assert_eq!(before["castra_commits_total"], 0.0);
    assert_eq!(before["events_published_total{topic=\"$other\"}"], 0.0);

    let mut guest = broker.guest("web");
    let mut reader = broker.guest("db");
    assert_eq!(reader.ask(r#"{"type":"subscribe","topic":"load.>"}"#)["status"], "ok");
    assert_eq!(reader.ask(r#"{"type":"subscribe","topic":"news"}"#)["status"], "ok");
    for topic in ["load.cpu", "load.cpu", "news", "unheard"] {
        publish(&mut guest, topic);
    }
    for _ in 0..3 {
        assert_eq!(reader.receive().unwrap()["type"], "event");
    }
    assert_eq!(guest.ask(r#"{"type":"publish","id":"once"}"#)["status"], "ok");
    assert_eq!(guest.ask(r#"{"type":"publish","id":"once"}"#)["duplicate"], true);
    let (_, refused) = broker.greet("hello vm:host capabilities=bus-v1\n");
    assert_eq!(refused, "error: reserved-identity");
    let gone = broker.guest("gone");
    drop(gone);

    let now = eventually("all of it", || {
        let now = metrics(&at);
        let done = now["castra_sessions_closed_total{reason=\"peer-closed\"}"] == 1.0
            && now["castra_logs_seq"] == 5.0
            && now["castra_unacked_events"] == 0.0;
        done.then_some(now)
    });
    for (name, value) in [
        ("events_published_total{topic=\"load.cpu\"}", 2.0),
        ("events_published_total{topic=\"news\"}", 1.0),
        ("events_published_total{topic=\"unheard\"}", 1.0),
        ("events_published_total{topic=\"broadcast\"}", 1.0),
        ("events_published_total{topic=\"$other\"}", 0.0),
        ("castra_commit_events_sum", 5.0),
        ("castra_duplicates_total", 1.0),
        ("castra_deliveries_total{source=\"live\"}", 3.0),
        ("castra_handshakes_total{outcome=\"granted\"}", 3.0),
        ("castra_handshakes_total{outcome=\"denied\"}", 1.0),
        ("castra_hellos_refused_total", 1.0),
        ("castra_sessions", 2.0),
        ("castra_sessions_opened_total", 3.0),
        ("castra_subscriptions", 2.0),
        ("castra_vms", 3.0),
        ("castra_queued_events", 0.0),
        ("castra_lag_events", 0.0),
        ("castra_journal_first_seq", 1.0),
        ("castra_journal_head_seq", 5.0),
        ("castra_journal_segments", 1.0),
        ("castra_logs_stalled", 0.0),
        ("castra_state{state=\"running\"}", 1.0),
        ("castra_state{state=\"disk-full\"}", 0.0),
        (concat!("castra_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(now.get(name), Some(&value), "{name} in {now:#?}");
    }
    // One in flight: a commit an event, and an fdatasync a commit at the least.
    assert_eq!((now["castra_commits_total"], now["castra_commit_events_count"]), (5.0, 5.0));
    assert!(now["castra_fsync_seconds_count"] >= 5.0 && now["castra_fsync_seconds_sum"] > 0.0);
    assert_eq!(now["castra_fsync_seconds_count"], now["castra_fsync_seconds_bucket{le=\"+Inf\"}"]);
    assert!(now["castra_journal_bytes"] > 4096.0 && now["castra_disk_free_bytes"] > 0.0);
    let started = std::time::UNIX_EPOCH + Duration::from_secs_f64(now["process_start_time_seconds"]);
    assert!(started >= begun - Duration::from_secs(1) && started <= std::time::SystemTime::now());

    // What is in the journal at the start was published before.
    assert_eq!(broker.stop().0, Some(0));
    let (_broker, at) = start(dir.path());
    let after = metrics(&at);
    assert_eq!(after["castra_journal_head_seq"], 5.0);
    assert!(!after.contains_key("events_published_total{topic=\"news\"}"), "{after:#?}");
}

#[test]
fn topics_have_names_up_to_a_hundred() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let mut guest = broker.guest("web");
    // Each twice, and the first ones once more at the end.
    for n in (0..500).chain(0..500).chain(0..20) {
        publish(&mut guest, &format!("t\"\\.é{n}"));
    }
    let published = |all: BTreeMap<String, f64>| -> BTreeMap<String, f64> {
        all.into_iter().filter(|(name, _)| name.starts_with("events_published_total")).collect()
    };
    let all = eventually("all of them", || {
        let all = published(metrics(&at));
        (all.values().sum::<f64>() == 1020.0).then_some(all)
    });
    assert_eq!(all.len(), 101);
    assert_eq!(all["events_published_total{topic=\"$other\"}"], 800.0);
    assert_eq!(all["events_published_total{topic=\"t\\\"\\\\.é7\"}"], 3.0);
    assert_eq!(all["events_published_total{topic=\"t\\\"\\\\.é99\"}"], 2.0);
    assert_eq!(published(samples(&open_metrics(&at))), all);
    check_with_promtool("topics_have_names_up_to_a_hundred", &get(&at, "/metrics").body);
}

/// What Prometheus itself has to say of it.
pub fn check_with_promtool(test: &str, text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else { return skip(test, "promtool is not installed") };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn names_types_and_help_are_as_prometheus_wants_them() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    publish(&mut broker.guest("web"), "news");
    eventually("a commit", || (metrics(&at)["castra_logs_seq"] == 1.0).then_some(()));
    check_with_promtool("names_types_and_help_are_as_prometheus_wants_them", &get(&at, "/metrics").body);
}

#[test]
fn who_asks_for_openmetrics_gets_it_with_the_same_samples() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    publish(&mut broker.guest("web"), "news");
    eventually("the end of its session", || {
        (metrics(&at)["castra_sessions_closed_total{reason=\"peer-closed\"}"] == 1.0).then_some(())
    });
    let (open, text) = (open_metrics(&at), get(&at, "/metrics"));
    assert!(open.head.contains(&format!("Content-Type: {OPEN_METRICS}")), "{}", open.head);
    assert!(text.head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{}", text.head);
    assert!(open.body.ends_with("\n# EOF\n") && !text.body.contains("# EOF"));
    let names = |page: &Page| samples(page).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&open), names(&text));
    let heads = |page: &Page, what: &str| -> BTreeMap<String, String> {
        let lines = page.body.lines().filter_map(|line| line.strip_prefix("# ")?.strip_prefix(what));
        let lines: Vec<&str> = lines.collect();
        let all: BTreeMap<_, _> = lines
            .iter()
            .map(|line| line.trim().split_once(' ').unwrap())
            .map(|(a, b)| (a.into(), b.into()))
            .collect();
        assert_eq!(all.len(), lines.len(), "a name has one head: {lines:?}");
        all
    };
    for what in ["HELP", "TYPE"] {
        let (open, text) = (heads(&open, what), heads(&text, what));
        assert_eq!(open.len(), text.len());
        assert!(open.contains_key("castra_commits") && text.contains_key("castra_commits_total"));
    }
    let types = heads(&text, "TYPE");
    assert_eq!(types["events_published_total"], "counter");
    assert_eq!(types["castra_build_info"], "gauge");
    assert_eq!(types["castra_fsync_seconds"], "histogram");
}

#[test]
fn what_is_no_request_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_broker, at) = start(dir.path());
    for path in ["/metrics", "/metrics?name=x", "/healthz", "/readyz"] {
        let got = get(&at, path);
        assert_eq!(got.status, 200, "{path}");
        let head = say(&at, format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert!(head.head.contains("\r\nContent-Length: ") && !head.head.contains("\r\nContent-Length: 0"));
        assert!(got.head.contains(&format!("\r\nContent-Length: {}\r\n", got.body.len())), "{got:?}");
    }
    assert_eq!(get(&at, "/healthz").body, "ok\n");
    assert_eq!(get(&at, "/readyz").body, "running\n");
    for (said, want) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404),
        ("GET /metricsx HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody".to_owned(), 405),
        ("DELETE /readyz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
        ("hello vm:web capabilities=bus-v1\n\n".to_owned(), 400),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n".to_owned(), 400),
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        (format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(9_000)), 431),
        ("x".repeat(60_000), 431),
        (format!("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n{}", "GET /".repeat(5_000)), 200),
        (format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(8_000)), 200),
    ] {
        let page = say(&at, &said);
        assert_eq!(page.status, want, "{:.60}: {page:?}", said);
        assert_eq!(page.head.contains("\r\nAllow: GET, HEAD\r\n"), want == 405, "{page:?}");
        assert!(page.body.ends_with('\n') && page.body.len() > 1, "{page:?}");
    }
    // Half a request.
    let mut half = TcpStream::connect(&at).unwrap();
    half.write_all(b"GET /metrics HT").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(answer(half).status, 400);
    // In pieces, a byte at a time.
    let mut slow = TcpStream::connect(&at).unwrap();
    slow.set_nodelay(true).unwrap();
    for byte in b"\r\nGET http://broker/healthz HTTP/1.1\r\nHost: broker\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answer(slow).status, 200);
}

#[test]
fn who_is_slow_is_ended_and_delays_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (_broker, at) = start(dir.path());
    let since = Instant::now();
    let slow = TcpStream::connect(&at).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let dripping = slow.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        let mut dripping = dripping;
        for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" {
            if dripping.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
            if dripping.take_error().is_ok_and(|error| error.is_some()) {
                return;
            }
        }
    });
    let deadline = Duration::from_secs(2);
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(get(&at, "/metrics").status, 200);
        assert!(asked.elapsed() < deadline, "{:?}", asked.elapsed());
    }
    let page = answer(slow.try_clone().unwrap());
    assert_eq!(page.status, 408);
    let took = since.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(12)).contains(&took), "{took:?}");
    slow.shutdown(std::net::Shutdown::Both).unwrap();
    drip.join().unwrap();

    // More than may be there at once say nothing: the oldest gives way.
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&at).unwrap()).collect();
    let asked = Instant::now();
    assert_eq!(get(&at, "/metrics").status, 200);
    assert!(asked.elapsed() < deadline, "{:?}", asked.elapsed());
    let mut oldest = &silent[0];
    oldest.set_read_timeout(Some(deadline)).unwrap();
    let end = oldest.read(&mut [0]);
    assert!(
        end.as_ref().is_ok_and(|n| *n == 0)
            || end.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "{end:?}"
    );
    let mut newest = &silent[39];
    newest.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(answer(newest.try_clone().unwrap()).status, 200);
}

#[test]
fn a_broker_that_drains_is_not_ready_and_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    // It takes no ack, so its session is not settled before its time is over.
    let mut deaf = broker.guest("deaf");
    nix::sys::socket::setsockopt(deaf.stream.get_ref(), nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let many: Vec<u8> = (0..1000).flat_map(|_| crate::support::frame(r#"{"type":"publish"}"#)).collect();
    while deaf.stream.get_mut().write_all(&many).is_ok() {}
    assert_eq!(get(&at, "/readyz").status, 200);
    broker.signal(Signal::SIGTERM);
    let page = eventually("not ready", || Some(get(&at, "/readyz")).filter(|page| page.status != 200));
    assert_eq!((page.status, page.body.as_str()), (503, "draining\n"));
    assert_eq!(get(&at, "/healthz").status, 200);
    assert_eq!(metrics(&at)["castra_state{state=\"draining\"}"], 1.0);
    assert_eq!(broker.wait().0, Some(0));
}

#[test]
fn a_start_that_takes_long_is_seen() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("a_start_that_takes_long_is_seen", "strace is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let starting = std::thread::spawn(move || {
        let command = slow_disk("fdatasync,fsync", Duration::from_millis(700), "1+");
        Broker::start_with(&root, command, &["--metrics", "127.0.0.1:0"])
    });
    let at = eventually("the address in the log", || {
        let log = broker_log(dir.path());
        let line = log.iter().find(|line| line.contains("metrics: served"))?;
        Some(line.split("metrics:127").nth(1)?.split('"').next()?.to_owned())
    });
    let at = format!("127{at}");
    let ready = get(&at, "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "starting\n"));
    assert_eq!(get(&at, "/healthz").body, "starting\n");
    let all = metrics(&at);
    assert_eq!(all["castra_state{state=\"starting\"}"], 1.0);
    assert!(!all.contains_key("castra_journal_head_seq"), "what is not known is left out: {all:#?}");
    let broker = starting.join().unwrap();
    assert_eq!(get(&at, "/readyz").status, 200);
    drop(broker);
}

#[test]
fn a_disk_that_hangs_is_said_by_healthz() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("a_disk_that_hangs_is_said_by_healthz", "strace is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    // No other thread has so many: the start is not slow.
    let command = slow_disk("fdatasync", Duration::from_secs(10), "20+");
    let broker = Broker::start_with(dir.path(), command, &["--metrics", "127.0.0.1:0"]);
    let at = at(&broker);
    assert_eq!(get(&at, "/healthz").body, "ok\n");
    let mut guest = broker.guest("web");
    for n in 0..60 {
        guest.send(format!("{{\"type\":\"publish\",\"payload\":{n}}}"));
        // An fdatasync each, until one hangs.
        guest.stream.get_ref().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        if guest.receive().is_none() {
            break;
        }
    }
    // They ask at once, and the commit thread is asked once.
    let asking = |_| {
        let at = at.clone();
        std::thread::spawn(move || get(&at, "/healthz"))
    };
    let asking: Vec<_> = (0..3).map(asking).collect();
    let pages: Vec<Page> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
    for page in pages {
        assert_eq!(page.status, 503, "{page:?}");
        assert!(page.body.contains("does not come round"), "{page:?}");
    }
    // What is known is told all the same.
    assert!(metrics(&at)["castra_commits_total"] > 0.0);
    broker.kill();
}

#[test]
fn without_the_flag_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let listeners = broker.status()["broker"]["listeners"].to_string();
    assert!(!listeners.contains("metrics"), "{listeners}");
}

#[test]
fn an_address_that_cannot_be_had_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_broker, at) = start(&dir.path().join("first"));
    let refused = |args: &[&str]| {
        Broker::try_start(&dir.path().join("second"), castra(), args).err().expect("no start")
    };
    let (code, said) = refused(&["--metrics", &at]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains(&format!("metrics:{at}")) && said.contains("--metrics\n"), "{said}");
    let (code, said) = refused(&["--metrics", "0.0.0.0:0"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("broker.metrics") && said.contains("trust = \"known\""), "{said}");
    let (code, said) = refused(&["--metrics", "localhost"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("CASTRA_METRICS") && said.contains("an IP and a port"), "{said}");
}

#[test]
fn castra_toml_has_it_and_a_reload_does_not_move_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, root) = (dir.path().join("c.toml"), dir.path().join("root"));
    let write = |trust: &str, metrics: &str| {
        let text = format!("[broker]\ntrust = {trust:?}\nmetrics = {metrics:?}\n[[vms]]\nname = \"web\"\n");
        std::fs::write(&config, text).unwrap();
    };
    write("known", "0.0.0.0:0");
    let mut command = castra();
    command.env("CASTRA_CONFIG", &config);
    let broker = Broker::start_with(&root, command, &[]);
    let port = at(&broker).rsplit(':').next().unwrap().to_owned();
    let at = format!("127.0.0.1:{port}");
    assert_eq!(get(&at, "/readyz").status, 200);
    let hears = |what: &str| {
        broker.signal(Signal::SIGHUP);
        eventually(what, || broker_log(&root).into_iter().find(|line| line.contains(what)))
    };
    let warned = hears("sees what is counted");
    assert!(warned.contains("0.0.0.0:0"), "{warned}");
    // Under open it would be anybody's, whatever the file says by now.
    write("open", "127.0.0.1:0");
    let wrong = hears("nothing is shown beyond this machine");
    assert!(wrong.contains("broker.metrics: 0.0.0.0:0"), "{wrong}");
    write("known", "127.0.0.1:9");
    let later = hears("takes effect at the next start");
    assert!(later.contains("broker.metrics"), "{later}");
    assert_eq!(get(&at, "/readyz").status, 200);
}
