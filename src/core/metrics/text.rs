//! How metrics are written: as OpenMetrics, or as the text of Prometheus made of that.
//!
//! The crate that encodes them knows OpenMetrics alone. The older text is what everything reads, and what somebody gets
//! who asks for nothing: it calls a counter `…_total` in its head as well, has no `info`, no `# UNIT` and no `# EOF`.
//! Always holds: both have the same samples. Pure. Owner: [`super::Metrics`].

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus text, 0.0.4.
    Text,
    /// OpenMetrics text, 1.0.0.
    OpenMetrics,
}

impl Form {
    /// As `Content-Type` has it.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Text => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What somebody wants who says this in `Accept`: OpenMetrics, if it is named there and nothing is liked better.
    pub fn wanted(accept: &str) -> Form {
        let (mut text, mut open) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut words = range.split(';').map(str::trim);
            let kind = words.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut is_known) = (1.0, true);
            for (name, value) in words.filter_map(|word| word.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = value.trim().parse().unwrap_or(0.0),
                    "version" => {
                        is_known &= kind != "application/openmetrics-text" || value.trim() == "1.0.0"
                    }
                    _ => {}
                }
            }
            match kind.as_str() {
                "application/openmetrics-text" if is_known => open = open.max(weight),
                "text/plain" | "text/*" | "*/*" => text = text.max(weight),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Form::OpenMetrics } else { Form::Text }
    }
}

/// The text of Prometheus, made of OpenMetrics.
pub fn prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help = "";
    for line in open_metrics.split_inclusive('\n') {
        if let Some(said) = line.strip_prefix("# HELP ") {
            // What kind it is stands in the next line, and what it is called depends on that.
            help = said.split_once(' ').map_or("\n", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter\n" => ("_total", kind),
                "info\n" => ("_info", "gauge\n"),
                "unknown\n" => ("", "untyped\n"),
                kind => ("", kind),
            };
            for part in ["# HELP ", name, suffix, " ", help, "# TYPE ", name, suffix, " ", kind] {
                out.push_str(part);
            }
        } else if !line.starts_with("# ") {
            out.push_str(line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, want) in [
            ("", Form::Text),
            ("*/*", Form::Text),
            ("application/openmetrics-text", Form::OpenMetrics),
            ("Application/OpenMetrics-Text ; Version=1.0.0 , */*;q=0.9", Form::OpenMetrics),
            ("application/openmetrics-text;q=0.5,text/plain", Form::Text),
            ("application/openmetrics-text;q=0", Form::Text),
            ("application/openmetrics-text;q=much", Form::Text),
            ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5", Form::Text),
            ("text/html,;,=;q=1", Form::Text),
            (prometheus_3, Form::OpenMetrics),
        ] {
            assert_eq!(Form::wanted(accept), want, "{accept}");
        }
    }

    #[test]
    fn the_older_text_has_the_same_samples() {
        let open = "# HELP a Some a.\n# TYPE a counter\na_total{x=\"# EOF\"} 1\n# HELP b Its b.\n# TYPE b info\n\
                    b_info{v=\"1\"} 1\n# HELP c_seconds A c.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\n\
                    c_seconds 0.5\n# EOF\n";
        let want = "# HELP a_total Some a.\n# TYPE a_total counter\na_total{x=\"# EOF\"} 1\n# HELP b_info Its b.\n\
                    # TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c_seconds A c.\n# TYPE c_seconds gauge\n\
                    c_seconds 0.5\n";
        assert_eq!(prometheus(open), want);
    }
}
