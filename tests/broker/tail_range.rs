//! `castra bus tail`: which events, from where to where; what is refused.

use crate::support::{castra, skip};
use crate::tail::{printed, tail};
use std::fmt::Write as _;
use std::path::Path;

/// 2026-11-21T08:00:00Z
pub const START: u64 = 1_795_248_000_000;

/// A line as a broker writes it: one event a second.
pub fn line(seq: u64, vm: &str, topic: &str) -> String {
    let ts = START + seq * 1000;
    format!(
        "{{\"seq\":{seq},\"ts\":{ts},\"id\":\"i{seq}\",\"vm\":\"{vm}\",\"topic\":\"{topic}\",\"payload\":{seq}}}\n"
    )
}

pub fn write_log(root: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(root.join("logs/bus")).unwrap();
    std::fs::write(root.join("logs/bus").join(name), text).unwrap();
}

/// 1 to 90 in three files, of the topics `build.0` … `build.9` by their last digit.
fn logs(root: &Path) {
    for (name, from) in [("bus.log.2", 1), ("bus.log.1", 31), ("bus.log", 61)] {
        let topic = |seq| format!("build.{}", seq % 10);
        write_log(
            root,
            name,
            &(from..from + 30).map(|seq| line(seq, "web", &topic(seq))).collect::<String>(),
        );
    }
}

fn numbers(root: &Path, args: &[&str]) -> Vec<u64> {
    printed(root, &[&["-q", "-o", "raw"], args].concat()).lines().map(|l| l.parse().unwrap()).collect()
}

/// Exit code and stderr of a tail that prints nothing.
pub fn refused(root: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = tail(root, args);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn topics_and_expressions() {
    let dir = tempfile::tempdir().unwrap();
    logs(dir.path());
    let shown = |args: &[&str]| numbers(dir.path(), args);
    assert_eq!(shown(&["build.3", "-n", "2"]), [73, 83]);
    assert_eq!(shown(&["build.3", "build.4", "-n", "3"]), [74, 83, 84], "the last that match, of either");
    assert_eq!(shown(&["build.*"]).len(), 10);
    assert_eq!(shown(&[">", "-n", "1000"]).len(), 90);
    assert_eq!(shown(&["--grep", "\"id\":\"i[1-3]5\""]), [15, 25, 35]);
    assert_eq!(shown(&["--grep", "\"id\":\"i77\""]), [77]);
    assert_eq!(shown(&["build.5", "--grep", "i[1-3]"]), [15, 25, 35]);
    for none in [&["build"][..], &["*"], &["vm:web"], &["--grep", "^x"], &["-n", "0"]] {
        assert_eq!(refused(dir.path(), &[none, &["-q"]].concat()), (Some(1), String::new()), "{none:?}");
    }
    // The topic is meant as it was published, not as JSON writes it.
    let dir = tempfile::tempdir().unwrap();
    write_log(dir.path(), "bus.log", &(line(1, "a", "x.\\\"y\\\\") + &line(2, "a", "x.y")));
    assert_eq!(numbers(dir.path(), &["x.\"y\\"]), [1]);
    assert!(printed(dir.path(), &["-q", "-n", "2"]).contains(" 1 a x.\"y\\ 1\n"));
}

#[test]
fn from_where_to_where() {
    let dir = tempfile::tempdir().unwrap();
    logs(dir.path());
    let shown = |args: &[&str]| numbers(dir.path(), args);
    let all = |range: std::ops::RangeInclusive<u64>| range.collect::<Vec<_>>();
    assert_eq!(shown(&["--since", "@29", "--until", "@33"]), all(29..=33), "both ends are included");
    assert_eq!(shown(&["--since", "@88"]), all(88..=90), "all of them, whatever -n is without it");
    assert_eq!(shown(&["--since", "@1"]), all(1..=90));
    assert_eq!(shown(&["--since", "@3", "-n", "2"]), all(89..=90), "with -n: the last of them");
    assert_eq!(shown(&["--since", "@89", "-n", "50"]), all(89..=90));
    assert_eq!(shown(&["--until", "@61", "-n", "3"]), all(59..=61));
    assert_eq!(shown(&["--until", "@61"]), all(52..=61));
    assert_eq!(shown(&["--since", "@20", "-c", "3"]), all(20..=22));
    assert_eq!(shown(&["--since", "@20", "-c", "2", "build.5"]), [25, 35]);
    // Times: RFC 3339 with any offset, and local ones.
    let minute = ["--since", "2026-11-21T08:01:00Z", "--until", "2026-11-21T09:01:05+01:00"];
    assert_eq!(shown(&minute), all(60..=65));
    assert_eq!(shown(&["--since", "2026-11-21 08:01:25"]), all(85..=90));
    let mut command = castra();
    command.arg("--state-root").arg(dir.path()).env("TZ", "Europe/Berlin");
    let output = command.args(["bus", "tail", "-q", "--since", "2026-11-21 09:01:29"]).output().unwrap();
    let want =
        "2026-11-21T09:01:29.000+01:00 89 web build.9 89\n2026-11-21T09:01:30.000+01:00 90 web build.0 90\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), want);
    let mut command = castra();
    command.arg("--state-root").arg(dir.path()).env("TZ", "Europe/Berlin");
    let output = command.args(["bus", "tail", "--utc", "-n", "1"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2026-11-21T08:01:30.000Z 90 web build.0 90\n");
    // So long ago: nothing, or all, unless this is run that very minute.
    assert_eq!(shown(&["--since", "200y"]).len(), 90);
    assert_eq!(refused(dir.path(), &["-q", "--since", "2200-01-01"]).0, Some(1));
    assert_eq!(refused(dir.path(), &["-q", "--until", "200y"]).0, Some(1));
}

#[test]
fn the_last_lines_are_read_from_the_end() {
    let probe = std::process::Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip("the_last_lines_are_read_from_the_end", "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let (trace, logs) = (dir.path().join("trace"), ["bus.log", "bus.log.1"]);
    for (name, from) in [("bus.log.1", 1), ("bus.log", 100_001)] {
        write_log(dir.path(), name, &(from..from + 100_000).map(|n| line(n, "web", "t")).collect::<String>());
    }
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=read,pread64,readv,preadv,mmap", "-o"]).arg(&trace);
    for name in logs {
        command.arg("-P").arg(dir.path().join("logs/bus").join(name));
    }
    command.arg(castra().get_program()).env("CASTRA_CONFIG", "/dev/null").arg("--state-root").arg(dir.path());
    let output = command.args(["bus", "tail", "-q", "-o", "raw", "-n", "10"]).output().unwrap();
    let want: String = (199_991..=200_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), want);
    let calls = std::fs::read_to_string(&trace).unwrap();
    assert!(!calls.contains("mmap("), "{calls}");
    let read =
        calls.lines().filter_map(|line| line.rsplit_once(" = ")?.1.split(' ').next()?.parse::<u64>().ok());
    let read: u64 = read.sum();
    // Of two times 9 MB.
    assert!((1..1 << 20).contains(&read), "{read} bytes read: {calls}");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    logs(dir.path());
    for (args, code, said) in [
        (&["--vm", "a/b"][..], 65, "a name is 1-128"),
        (&["--vm", "bus"], 65, "without --vm"),
        (&["a..b"], 65, "is no topic and no pattern"),
        (&["--since", "yesterday"], 65, "--since: \"yesterday\" is no time"),
        (&["--until", "@x"], 65, "is no time"),
        (&["--since", "@9", "--until", "@8"], 65, "--since is after --until"),
        (&["--since", "1m", "--until", "2m"], 65, "--since is after --until"),
        (&["--grep", "("], 65, "no regular expression"),
        (&["--vm", "a", "--shared"], 2, "cannot be used with"),
        (&["--timeout", "1s"], 2, "--follow"),
        (&["-c", "0"], 2, "0 is not in"),
        (&["-n", "-1"], 2, ""),
        (&["-o", "xml"], 2, "possible values"),
        (&["--vm", "nobody"], 1, "there is no log of nobody in"),
        (&["--vm", "nobody"], 1, "'castra status' lists the VMs"),
    ] {
        let (exit, stderr) = refused(dir.path(), args);
        assert!(exit == Some(code) && stderr.contains(said), "{args:?}: {exit:?} {stderr}");
        assert!(code == 2 || stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn what_is_no_event_is_left_out_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = ["\0\0\0\0", "{\"seq\":2,\"ts\":1,\"half", "{\"seq\":9,\"ts\":9,}", "\u{1b}[2J", "", "{}"];
    let mut text = line(1, "a", "t");
    garbage.iter().for_each(|line| writeln!(text, "{line}").unwrap());
    // Longer than any line that is read, and what is not even text.
    text.push_str(&"y".repeat(3 * 1024 * 1024));
    text.push_str(&format!("\n{}", line(2, "a", "t")));
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(b"\xff\xfe\n");
    bytes.extend_from_slice(line(3, "a", "t").as_bytes());
    bytes.extend_from_slice(b"{\"seq\":4,");
    std::fs::create_dir_all(dir.path().join("logs/bus")).unwrap();
    std::fs::write(dir.path().join("logs/bus/bus.log"), bytes).unwrap();
    for output in ["json", "text", "raw"] {
        let output = tail(dir.path(), &["-q", "-n", "3", "-o", output]);
        assert_eq!(output.stdout.split(|b| *b == b'\n').count(), 4);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with("castra: 6 lines that are no events were left out"), "{stderr}");
    }
    assert_eq!(numbers(dir.path(), &["--since", "@2"]), [2, 3]);
}

#[test]
fn a_state_root_that_is_none_or_somebody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for root in [&file, &file.join("below")] {
        for args in [&[][..], &["-f"]] {
            let (exit, stderr) = refused(root, args);
            assert!(exit == Some(65) && stderr.contains("--state-root"), "{exit:?} {stderr}");
        }
    }
    // Somebody else's is not readable for anybody but root.
    let root = dir.path().join("root");
    logs(&root);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("castra");
    std::fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        command.uid(65_534).gid(65_534);
    } else {
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    command.env_clear().arg("--state-root").arg(&root);
    let Ok(output) = command.args(["bus", "tail", "-f"]).output() else {
        let why = format!("nobody may not run a program in {}", dir.path().display());
        return skip("a_state_root_that_is_none_or_somebody_elses", &why);
    };
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("run this as the broker's user or root"), "{said}");
}
