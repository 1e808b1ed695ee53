//! castra.toml: where it is looked for, what goes before what, what is wrong with it, and what it does.

use crate::support::{Broker, Guest, broker_log, castra};
use castra::core::config::Settings;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `castra ARGS` that looks for a castra.toml like a user's would.
fn bare(home: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.env_remove("CASTRA_CONFIG").env_remove("XDG_CONFIG_HOME").env("HOME", home).args(args);
    command
}

fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

fn settings(output: Output) -> (Settings, String) {
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut settings = Settings::default();
    let mistakes = settings.read(&text).mistakes;
    assert!(mistakes.is_empty(), "{mistakes:?} in\n{text}");
    (settings, text)
}

fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("castra: ") && said.lines().count() == 1 && output.stdout.is_empty(), "{said}");
    said
}

#[test]
fn flags_go_before_the_environment_that_before_the_file_that_before_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir.path().join("c.toml"),
        "state_root = \"/from/file\"\n[broker]\ntcp = [\"127.0.0.1:1\", \"[::1]:2\"]\n[log]\nlevel = \"debug\"\n\
         [limits]\nretain_age = \"3days\"\nretain_bytes = \"3 GiB\"\nidle_time = \"3s\"\nvms = 33\n",
    );
    let print = |configure: &dyn Fn(&mut Command)| {
        let mut command = bare(dir.path(), &["broker", "--print-config"]);
        configure(command.arg("--config").arg(&file));
        settings(command.output().unwrap())
    };
    let (from_file, text) = print(&|_| ());
    let mut want = Settings::default();
    assert!(want.read(&std::fs::read_to_string(&file).unwrap()).mistakes.is_empty());
    assert_eq!(from_file, want);
    assert_eq!(text.matches(&format!("# Here: from {}.", file.display())).count(), 7, "{text}");

    let variables = |command: &mut Command| {
        command
            .env("CASTRA_RETAIN_AGE", "2days")
            .env("CASTRA_RETAIN_BYTES", "2GiB")
            .env("CASTRA_LOG_LEVEL", "warn");
        command.env("CASTRA_STATE_ROOT", "/from/env").env("CASTRA_TCP", "127.0.0.1:3");
    };
    let (from_env, _) = print(&variables);
    want.state_root = Some("/from/env".into());
    want.tcp = vec!["127.0.0.1:3".parse().unwrap()];
    want.log_level = castra::core::config::LogLevel::Warn;
    (want.limits.retain_age, want.limits.retain_bytes) = (std::time::Duration::from_secs(2 * 86400), 2 << 30);
    assert_eq!(from_env, want);

    let (from_flags, text) = print(&|command| {
        variables(command);
        command.args([
            "--retain-age",
            "1day",
            "--retain-bytes",
            "1048577",
            "--log-level",
            "trace",
            "--no-tcp",
        ]);
        command.args(["--state-root", "/from/flag", "--unix", "/from/flag.sock"]);
    });
    want.state_root = Some("/from/flag".into());
    (want.tcp, want.unix) = (Vec::new(), vec!["/from/flag.sock".into()]);
    want.log_level = castra::core::config::LogLevel::Trace;
    (want.limits.retain_age, want.limits.retain_bytes) = (std::time::Duration::from_secs(86400), 1_048_577);
    assert_eq!(from_flags, want);
    assert!(text.contains("# Here: given by a flag or the environment.\nretain_bytes = 1048577\n"), "{text}");
}

#[test]
fn a_file_of_ones_own_is_found_where_files_of_ones_own_are() {
    let dir = tempfile::tempdir().unwrap();
    let vms = |command: &mut Command| settings(command.output().unwrap()).0.limits.vms;
    let print = ["broker", "--print-config"];
    write(&dir.path().join(".config/castra/castra.toml"), "limits.vms = 1");
    assert_eq!(vms(&mut bare(dir.path(), &print)), 1);
    write(&dir.path().join("xdg/castra/castra.toml"), "limits.vms = 2");
    assert_eq!(vms(bare(dir.path(), &print).env("XDG_CONFIG_HOME", dir.path().join("xdg"))), 2);
    let named = write(&dir.path().join("named.toml"), "limits.vms = 3");
    assert_eq!(vms(bare(dir.path(), &print).env("CASTRA_CONFIG", &named)), 3);
    let flag = write(&dir.path().join("flag.toml"), "limits.vms = 4");
    assert_eq!(vms(bare(dir.path(), &print).env("CASTRA_CONFIG", &named).arg("--config").arg(&flag)), 4);
    // None of one's own, and the machine's may be there or not.
    assert!(bare(&dir.path().join("nobody"), &print).output().unwrap().status.success());
}

#[test]
fn what_is_printed_prints_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let print = |config: &str| {
        let args =
            ["--config", config, "broker", "--print-config", "--state-root", "/x", "--retain-age", "90min"];
        settings(bare(dir.path(), &args).output().unwrap())
    };
    let (first, text) = print("/dev/null");
    let file = write(&dir.path().join("c.toml"), &text);
    assert_eq!(print(file.to_str().unwrap()).0, first);
}

#[test]
fn deploy_castra_toml_is_the_defaults_and_their_comments() {
    let want = Settings::default().print(true, |_| None);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/castra.toml");
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("castra.toml");
    if std::fs::read_to_string(&path).unwrap_or_default() != want {
        std::fs::write(&new, want).unwrap();
        panic!("deploy/castra.toml is not what the code says: cp {} {}", new.display(), path.display());
    }
}

#[test]
fn a_file_that_is_wrong_ends_every_command_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir.path().join("c.toml"), "[limits]\n  retain_aeg = \"7d\"\n");
    let commands: [&[&str]; 4] = [&["broker"], &["status"], &["bus", "tail"], &["bus", "publish", "t"]];
    for args in commands {
        let said = refused(castra().arg("--config").arg(&file).args(args), 78);
        let place = format!("{}:2:3: ", file.display());
        assert!(said.contains(&place) && said.contains("did you mean retain_age?"), "{said}");
    }
    assert!(!dir.path().join(".local").exists());
    // What needs no settings does without.
    assert!(
        castra().arg("--config").arg(&file).args(["completions", "bash"]).output().unwrap().status.success()
    );
    let large = write(&dir.path().join("large.toml"), &"#\n".repeat(4_200_000));
    std::fs::write(dir.path().join("latin1.toml"), b"# \xe4").unwrap();
    for (path, word) in [
        (dir.path().join("none.toml"), "No such file"),
        (dir.path().to_owned(), "directory"),
        (dir.path().join("latin1.toml"), "UTF-8"),
        (large, "larger than"),
    ] {
        let said = refused(castra().arg("--config").arg(&path).arg("status"), 78);
        assert!(
            said.contains(word) && said.contains("--config") && said.contains(path.to_str().unwrap()),
            "{said}"
        );
    }
    let json = castra().arg("--config").arg(&file).args(["status", "--json"]).output().unwrap();
    let failure: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!((&failure["code"], &failure["exit"]), (&"bad-config".into(), &78.into()));
}

#[test]
fn a_file_that_may_not_be_read_is_said() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("castra");
    std::fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    let file = write(&dir.path().join(".config/castra/castra.toml"), "");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stranger = |home: &Path| {
        let mut command = Command::new(&program);
        command.env_remove("XDG_CONFIG_HOME").env_remove("CASTRA_CONFIG").env("HOME", home);
        command.uid(65_534).gid(65_534).arg("status");
        command
    };
    if stranger(dir.path()).output().is_err() {
        return crate::support::skip(
            "a_file_that_may_not_be_read_is_said",
            "nobody else can be run without root",
        );
    }
    let said = refused(&mut stranger(dir.path()), 78);
    assert!(said.contains("Permission denied") && said.contains(file.to_str().unwrap()), "{said}");
    // A home that cannot be entered has none that is known of.
    let shut = dir.path().join("shut");
    std::fs::create_dir(&shut).unwrap();
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_ne!(stranger(&shut).output().unwrap().status.code(), Some(78));
}

#[test]
fn values_out_of_bounds_are_usage_errors_of_flags() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for (flag, value, words) in [
        ("--segment-bytes", "64 KiB", "1 MiB to 4 GiB"),
        ("--segment-bytes", "5GiB", "1 MiB to 4 GiB"),
        ("--segment-bytes", "64 MB", "64 MiB"),
        ("--retain-bytes", "0", "1 MiB"),
        ("--retain-age", "0s", "1s to 10years"),
        ("--retain-age", "11years", "1s to 10years"),
        ("--idle-time", "60", "its unit"),
    ] {
        let said = refused(castra().arg("broker").arg("--state-root").arg(&root).args([flag, value]), 2);
        assert!(said.contains(flag) && said.contains(words) && said.contains("CASTRA_"), "{said}");
    }
    for flag in ["--log-level", "--log-format"] {
        let output = castra().args(["broker", flag, "loud"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("possible values"));
    }
    assert!(!root.exists());
}

#[test]
fn the_settings_of_a_file_are_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let guests = dir.path().join("guests.sock");
    let text = format!(
        "state_root = {root:?}\n[broker]\nunix = [{guests:?}]\n[log]\nlevel = \"warn\"\n\
         [limits]\nhello_time = \"150ms\"\nsessions_per_vm = 1\nsegment_bytes = \"2 MiB\"\n"
    );
    let file = write(&dir.path().join("c.toml"), &text);
    let mut command = castra();
    command.env("CASTRA_CONFIG", &file);
    // The state root that the file says; the flag of every test's broker is the same.
    let broker = Broker::start_with(&root, command, &[]);
    let mut silent = Guest::connect(&broker.addr);
    assert_eq!(silent.line(), "error: hello-timeout");
    let _first = broker.guest("dev");
    assert_eq!(broker.greet("hello vm:dev capabilities=bus-v1\n").1, "error: too-many-sessions-of-this-vm");
    assert!(guests.exists());
    let spare = root.join("journal/spare.0");
    crate::support::eventually("a spare", || Some(spare.metadata().ok()?.len() == 2 << 20).filter(|is| *is));
    assert_eq!(broker_log(&root), Vec::<String>::new(), "nothing that is less than a warning");

    // The commands find it by the same file, and another one by a flag.
    let status = |args: &[&str]| castra().env("CASTRA_CONFIG", &file).args(args).output().unwrap();
    assert_eq!(status(&["status"]).status.code(), Some(0));
    assert!(status(&["bus", "publish", "t"]).status.success());
    let other = dir.path().join("other");
    assert_eq!(status(&["status", "--state-root", other.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn snapshots_of_what_has_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for topic in ["vm:*", "vm:web", "$dlq.>"] {
        let text = format!("[[topics]]\ntopic = \"{topic}\"\ncompaction = true\n");
        let file = write(&dir.path().join("c.toml"), &format!("{text}snapshot_every = \"1s\"\n"));
        let check = |file: &Path| castra().args(["config", "check", "--config"]).arg(file).output().unwrap();
        let refused = check(&file);
        let said =
            String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        assert!(refused.status.code() == Some(78) && said.contains("have no snapshots"), "{topic}: {said}");
        let fine = check(&write(&file, &text));
        assert_eq!(fine.status.code(), Some(0), "{topic}: {fine:?}");
    }
}
