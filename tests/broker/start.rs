//! Starts that are refused: each with its exit code, and words that say why and what to do.

use crate::support::{Broker, castra, skip};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

fn refused(root: &Path, args: &[&str]) -> (Option<i32>, String) {
    let (code, said) = Broker::try_start(root, castra(), args).err().expect("a broker that does not start");
    assert!(said.lines().all(|line| line.starts_with("castra: ")) && !said.contains("panicked"), "{said}");
    (code, said)
}

#[test]
fn a_second_broker_is_refused_and_told_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let (code, said) = refused(dir.path(), &[]);
    assert_eq!(code, Some(73));
    assert!(said.contains(&format!("pid {}", broker.pid())) && said.contains("--state-root"), "{said}");
    assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], 1);
    assert_eq!(broker.status()["broker"]["pid"], broker.pid());
    let sent = broker.run(&["bus", "publish", "t"]);
    assert_eq!(sent.status.code(), Some(0), "its socket is still its own");
}

#[test]
fn a_state_root_of_another_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("dev").ask(r#"{"type":"publish"}"#);
    assert_eq!(broker.stop().0, Some(0));
    let path = dir.path().join("format");
    let good = std::fs::read_to_string(&path).unwrap();
    for (text, word) in [
        (good.replace("\"format\":1", "\"format\":2"), "format 2"),
        (good.replace("\"format\":1", "\"format\":99999999999"), "newer"),
        (good.replace("\"format\":1", "\"format\":0"), "damaged"),
        (String::new(), "damaged"),
        ("{}".to_owned(), "damaged"),
        (r#"{"format":1,"journal":"not an id"}"#.to_owned(), "damaged"),
        (good[..good.len() / 2].to_owned(), "damaged"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let (code, said) = refused(dir.path(), &[]);
        assert_eq!(code, Some(65), "{text}: {said}");
        assert!(said.contains(word), "{text}: {said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    // Without its `format` a journal is not taken for a new one.
    std::fs::remove_file(&path).unwrap();
    let (code, said) = refused(dir.path(), &[]);
    assert!(code == Some(65) && said.contains("missing"), "{said}");
    std::fs::write(&path, good).unwrap();
    Broker::start(dir.path());
}

#[test]
fn a_format_that_is_not_utf8_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("format"), b"\xff\xfe\0").unwrap();
    let (code, said) = refused(dir.path(), &[]);
    assert!(code == Some(65) && said.contains("damaged"), "{code:?} {said}");
}

#[test]
fn somebody_elses_state_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(1), None).is_err() {
        return skip("somebody_elses_state_root_is_refused", "not root: nothing to give away");
    }
    let (code, said) = refused(dir.path(), &[]);
    assert_eq!(code, Some(77));
    assert!(said.contains("uid 1") && said.contains("uid 0"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made in it");
}

#[test]
fn a_folder_that_may_not_be_entered_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("castra");
    std::fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = std::process::Command::new(&program);
    command.uid(65_534).gid(65_534);
    if std::process::Command::new(&program).arg("--version").uid(65_534).gid(65_534).output().is_err() {
        return skip("a_folder_that_may_not_be_entered_is_refused", "not root: nobody else can be run");
    }
    let (code, said) = Broker::try_start(&locked.join("root"), command, &[]).err().unwrap();
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("locked/root") && said.contains("Permission denied"), "{said}");
}

#[test]
fn a_file_in_the_way_of_a_folder_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for way in ["", "journal", "logs", "logs/bus", "handshakes"] {
        let root = dir.path().join(format!("root-{}", way.replace('/', "-")));
        let file = if way.is_empty() { root.clone() } else { root.join(way) };
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "precious").unwrap();
        let (code, said) = refused(&root, &[]);
        assert_eq!(code, Some(73), "{way}: {said}");
        assert!(said.contains(file.to_str().unwrap()), "{way}: {said}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }
}

#[test]
fn an_address_that_cannot_be_had_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let first = Broker::start(&dir.path().join("a"));
    let (code, said) = refused(&dir.path().join("b"), &["--tcp", &first.addr]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains(&first.addr) && said.contains("--tcp"), "{said}");
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7070"] {
        let (code, said) = refused(&dir.path().join("c"), &["--tcp", open]);
        assert_eq!(code, Some(78), "{open}: {said}");
        assert!(said.contains("loopback"), "{said}");
    }
    let args = ["--tcp", "0.0.0.0:0", "--log-format", "json"];
    let (_, said) = Broker::try_start(&dir.path().join("c"), castra(), &args).err().unwrap();
    assert!(said.contains(r#""code":"not-loopback""#), "{said}");
}

#[test]
fn a_door_that_may_not_be_opened_is_no_matter_of_the_loopback() {
    use std::os::unix::fs::chown;
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, mode, owner| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), None).map(|()| path)
    };
    let Ok(own) = made("own", 0o700, 65_534) else {
        let name = "a_door_that_may_not_be_opened_is_no_matter_of_the_loopback";
        return skip(name, "not root: nobody else can be run");
    };
    let readable = made("readable", 0o755, 0).unwrap();
    let shut = made("shut", 0o700, 0).unwrap();
    let open = made("open", 0o777, 0).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("castra");
    std::fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    // Somebody else's socket in a folder of everybody's: whether it is served cannot be told.
    let theirs = open.join("x.sock");
    let _served = std::os::unix::net::UnixListener::bind(&theirs).unwrap();
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).unwrap();
    let before = std::os::unix::fs::MetadataExt::ino(&theirs.metadata().unwrap());

    let mut doors = vec![
        ("--unix", readable.join("x.sock")),
        ("--unix", shut.join("x.sock")),
        ("--unix", theirs.clone()),
    ];
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().is_ok_and(|first| first > 1) {
        doors.push(("--tcp", "127.0.0.1:1".into()));
    }
    for (flag, place) in doors {
        let mut command = std::process::Command::new(&program);
        command.env("CASTRA_CONFIG", "/dev/null").uid(65_534).gid(65_534);
        let place = place.to_str().unwrap();
        let args = [flag, place, "--log-format", "json"];
        let (code, said) = Broker::try_start(&own.join("root"), command, &args).err().unwrap();
        let failure: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((code, &failure["code"]), (Some(77), &"permission-denied".into()), "{said}");
        let why = failure["reason"].as_str().unwrap();
        assert!(why.contains(place) && why.contains("Permission denied") && why.contains(flag), "{why}");
    }
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&theirs.metadata().unwrap()), before);
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_said_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let fits = 103 - dir.path().join("").as_os_str().len() - "/castra.sock".len();
    let root = dir.path().join("x".repeat(fits + 1));
    let (code, said) = refused(&root, &[]);
    assert_eq!(code, Some(73), "{said}");
    assert!(
        said.contains("at most 103 bytes, and this one has 104") && said.contains("castra.sock"),
        "{said}"
    );
    let guests = dir.path().join("y".repeat(200));
    let (code, said) = refused(&dir.path().join("root"), &["--unix", guests.to_str().unwrap()]);
    assert!(
        code == Some(73) && said.contains("at most 103 bytes") && said.contains("yyy"),
        "{code:?} {said}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // The longest that fits works.
    let root = dir.path().join("x".repeat(fits));
    let broker = Broker::start(&root);
    assert!(broker.run(&["bus", "publish", "t"]).status.success());
}

#[test]
fn arguments_that_make_no_sense_are_a_usage_error() {
    for args in [
        &["broker", "--tcp", "nonsense"][..],
        &["broker", "--segment-bytes", "1"],
        &["broker", "--idle-time", "soon"],
        &["broker", "--no-tcp", "--tcp", "127.0.0.1:7071"],
        &["broker", "--tcp", "127.0.0.1:7071", "--print-config", "--no-tcp"],
        &["bus", "tail", "--vm", "a", "--shared"],
        &["bus", "publish", "a", "1", "--payload", "2"],
        &["bus"],
        &["nonsense"],
    ] {
        let output = castra().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    // A flag goes before a variable.
    let mut command = castra();
    command.env("CASTRA_TCP", "127.0.0.1:7071").args(["broker", "--no-tcp", "--print-config"]);
    let output = command.output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\ntcp = []\n"));
}
