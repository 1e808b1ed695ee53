//! docs/OPERATIONS.md, Metrics: the table is what is served.

use crate::markdown::{read, table, ticked};
use crate::support::{Broker, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;

const DOC: &str = "docs/OPERATIONS.md";

/// Type and labels.
type Kind = (String, BTreeSet<String>);

fn served(text: &str) -> BTreeMap<String, Kind> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut all: BTreeMap<String, Kind> =
        types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new()))).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        // No label's value has a comma here.
        let labels =
            rest.rsplit_once('}').unwrap().0.split(',').map(|label| label.split('=').next().unwrap());
        let of_histogram = |suffix| name.strip_suffix(suffix).filter(|name| all.contains_key(*name));
        let name = ["_bucket", "_sum", "_count"].into_iter().find_map(of_histogram).unwrap_or(name);
        let labels = labels.filter(|label| *label != "le").map(str::to_owned);
        all.get_mut(name).unwrap_or_else(|| panic!("{line} has no type")).1.extend(labels);
    }
    all
}

#[test]
fn the_table_of_metrics_is_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--metrics", "127.0.0.1:0"]);
    let (mut web, mut worker) = (broker.guest("web"), broker.guest("worker"));
    worker.ask(r#"{"type":"subscribe","topic":"broadcast","group":"g"}"#);
    web.ask(r#"{"type":"publish"}"#);
    assert_eq!(worker.receive().unwrap()["attempt"], 1);
    worker.send(r#"{"type":"nack","group":"g","seq":1,"delay_ms":0}"#);
    assert_eq!(worker.receive().unwrap()["attempt"], 2);
    worker.ask(r#"{"type":"ack","group":"g","seq":1,"confirm":true}"#);
    // What is given up becomes a dead letter, and these are kept by key.
    web.ask(r#"{"type":"publish"}"#);
    assert_eq!(worker.receive().unwrap()["seq"], 2);
    worker.send(r#"{"type":"term","group":"g","seq":2}"#);
    let listeners = broker.status()["broker"]["listeners"].to_string();
    let at = listeners.split("metrics:").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let text = eventually("the event's topic", || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let (_, text) = page.split_once("\r\n\r\n").unwrap();
        (text.contains("broadcast") && text.contains("castra_latest_seq ")).then(|| text.to_owned())
    });
    let rows = table(&read(DOC), "Metrics");
    let rows: Vec<_> = rows.iter().filter(|row| row.len() == 4).collect();
    let labels = |cell: &str| {
        cell.split(", ").filter(|label| !label.is_empty()).map(|label| ticked(label).to_owned()).collect()
    };
    let listed: BTreeMap<String, Kind> =
        rows.iter().map(|row| (ticked(&row[0]).to_owned(), (row[1].clone(), labels(&row[2])))).collect();
    assert_eq!(rows.len(), listed.len(), "{DOC}, Metrics: a metric is there twice");
    assert_eq!(listed, served(&text), "{DOC}, Metrics: on the left the table, on the right what is served");
}
