//! What a real Prometheus makes of `/metrics`: no series twice, and a quantile of every histogram.

use crate::metrics::{get, start};
use crate::subscribe::publish;
use crate::support::{eventually, skip};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A Prometheus that scrapes one address.
struct Prometheus {
    child: Child,
    at: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// `None` when there is no such program.
    fn start(dir: &Path, target: &str) -> Option<Self> {
        let config = dir.join("prometheus.yml");
        let text = json!({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{"job_name": "castra", "static_configs": [{"targets": [target]}]}],
        });
        std::fs::write(&config, text.to_string()).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        // It says the port that it was given; what it says later is read, so that it never waits.
        let at = lines.find_map(|line| {
            let (_, at) = line.split_once("msg=\"Listening on\" address=")?;
            Some(at.trim_matches('"').to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Some(Prometheus { child, at: at.expect("it listens") })
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.at).unwrap();
        // 1.0: the answer ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.at).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").expect("an answer").1.to_owned()
    }

    /// Labels and value of each series of the result. While it starts there is none.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Ok(answer) = serde_json::from_str::<Value>(&self.get(&format!("/api/v1/query?query={encoded}")))
        else {
            return Vec::new();
        };
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap().iter().map(|series| {
            let mut labels = series["metric"].clone();
            labels.as_object_mut().unwrap().remove("__name__");
            (labels, series["value"][1].as_str().unwrap().parse().unwrap())
        });
        series.collect()
    }
}

#[test]
fn prometheus_takes_every_series_once_and_has_quantiles() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(&dir.path().join("root"));
    let Some(prometheus) = Prometheus::start(dir.path(), &at) else {
        return skip("prometheus_takes_every_series_once_and_has_quantiles", "prometheus is not installed");
    };
    // More topics and groups than have a label, and those that are called like the rest of them used to be.
    let mut guest = broker.guest("web");
    for topic in ["other", "le", "q\"x", "back\\slash", "é", "{x=1}"] {
        publish(&mut guest, topic);
    }
    for n in 0..150 {
        publish(&mut guest, &format!("t.{n}"));
    }
    let mut member = broker.guest("worker");
    for group in ["other".to_owned(), "le".to_owned()].into_iter().chain((0..60).map(|n| format!("g{n:02}")))
    {
        let join = json!({"type": "subscribe", "topic": ">", "group": group, "from": "earliest", "max_in_flight": 1});
        member.send(join.to_string());
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 62 {
        let frame = member.receive().unwrap();
        if frame["type"] == "ack" {
            assert_eq!(frame["status"], "ok", "{frame}");
        } else if seen.insert(frame["group"].to_string()) {
            member.send(json!({"type": "ack", "group": frame["group"], "seq": frame["seq"]}).to_string());
        }
    }

    // It has what the broker says now, as many series as lines.
    let page = eventually("a scrape of what holds", || {
        let page = get(&at, "/metrics").body;
        let lines = page.lines().filter(|line| !line.starts_with('#')).count() as f64;
        let handled: f64 = page
            .lines()
            .filter(|line| line.starts_with("delivery_handler_duration_seconds_count"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum();
        let value = |query: &str| prometheus.query(query).first().map_or(0.0, |(_, value)| *value);
        let is_all = handled == 62.0
            && value("sum(delivery_handler_duration_seconds_count)") == handled
            && value("scrape_samples_scraped") == lines;
        is_all.then_some(page)
    });
    let scraped = prometheus.query("scrape_samples_scraped")[0].1;
    let own = prometheus.query(r#"count({job="castra"})"#)[0].1;
    let of_the_scrape = prometheus.query(r#"count({job="castra",__name__=~"up|scrape_.*"})"#)[0].1;
    assert_eq!(own - of_the_scrape, scraped, "each line is a series of its own");
    let twice = prometheus.get("/metrics");
    let twice = twice
        .lines()
        .find_map(|line| line.strip_prefix("prometheus_target_scrapes_sample_duplicate_timestamp_total "));
    assert_eq!(twice, Some("0"));
    for label in ["other", "$other"] {
        let of = |name: &str, by: &str| prometheus.query(&format!(r#"{name}{{{by}="{label}"}}"#)).len();
        assert_eq!(of("castra_group_lag_events", "group"), 1, "{label}");
        assert_eq!(of("events_published_total", "topic"), 1, "{label}");
    }

    let histograms: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    assert!(histograms.len() >= 4, "{histograms:?}");
    for name in histograms {
        let counts = prometheus.query(&format!("{name}_count > 0"));
        assert!(!counts.is_empty(), "nothing was observed: {name}");
        for quantile in [0.5, 0.99] {
            let all = prometheus.query(&format!("histogram_quantile({quantile}, {name}_bucket)"));
            for (labels, _) in &counts {
                let (_, value) = all.iter().find(|(of, _)| of == labels).expect("a quantile");
                assert!(value.is_finite(), "{quantile} of {name} {labels}: {value}");
            }
        }
    }
}
