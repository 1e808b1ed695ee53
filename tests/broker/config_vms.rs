//! `castra config check`: what it prints, what it says of each mistake and where, and what it does with tokens.

use crate::support::{Broker, castra, skip};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn write(path: &Path, text: &str, mode: u32) -> PathBuf {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_owned()
}

/// Exit code, stdout and the lines of stderr.
fn run(command: &mut Command) -> (Option<i32>, String, Vec<String>) {
    let output = command.output().unwrap();
    let lines = String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), lines)
}

fn check(dir: &Path, text: &str) -> (Option<i32>, String, Vec<String>) {
    let file = write(&dir.join("c.toml"), text, 0o600);
    run(castra()
        .current_dir(dir)
        .args(["config", "check", "--state-root", "root"])
        .arg(file.file_name().unwrap()))
}

#[test]
fn what_is_right_is_printed_with_its_vms_and_without_their_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let token = write(&dir.path().join("db.token"), "0123456789abcdef-of-db\n", 0o600);
    let text = format!(
        "[broker]\ntrust = \"proven\"\nvsock = 7070\n[[vms]]\nname = \"web\"\ncid = 42\npublish = []\n\
         token = \"0123456789abcdef-of-web\"\n[[vms]]\nname = \"db\"\ntoken_file = {token:?}\nsubscribe = [\"a.>\"]\n"
    );
    let (code, out, err) = check(dir.path(), &text);
    assert_eq!((code, err), (Some(0), Vec::new()));
    let web = "[[vms]]\nname = \"web\"\ncid = 42\npublish = []\n# token: it is set, and not shown.\n";
    let db = format!("[[vms]]\nname = \"db\"\ntoken_file = {token:?}\nsubscribe = [\"a.>\"]\n");
    assert!(out.contains(web) && out.contains(&db) && !out.contains("0123456789abcdef"), "{out}");
    assert!(out.contains("# Here: from c.toml.\ntrust = \"proven\"\n"), "{out}");

    // So it is by whatever way the file is named, and so does the broker print it.
    let file = dir.path().join("c.toml");
    let same = [
        castra().args(["config", "check", "--config"]).arg(&file),
        castra().args(["config", "check"]).env("CASTRA_CONFIG", &file),
        castra().args(["broker", "--print-config", "--config"]).arg(&file),
    ]
    .map(|command| run(command.current_dir(dir.path()).args(["--state-root", "root"])));
    for (code, out, err) in same {
        assert_eq!((code, err.len()), (Some(0), 0), "{err:?}");
        assert!(out.contains(web) && out.contains(&db), "{out}");
    }
    let (code, out, _) = run(castra().args(["config", "check", "--json"]).arg(&file));
    let object: Value = serde_json::from_str(&out).unwrap();
    let want = serde_json::json!({"schema": 1, "ok": true, "file": file, "errors": [], "warnings": []});
    assert_eq!((code, object), (Some(0), want));
    assert_eq!(run(castra().args(["config", "check"])).0, Some(0), "nothing is read, nothing is wrong");
}

#[test]
fn every_mistake_is_said_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let token = write(&dir.path().join("open.token"), "0123456789abcdef", 0o644);
    let text = format!(
        "[broker]\ntcp = [\"127.0.0.1:0\", \"0.0.0.0:0\"]\nhybrid = [\"/run/vms/vsock\"]\n\
         [limits]\nretain_aeg = \"7d\"\n\
         [[vms]]\nname = \"web\"\ncid = 2\nsocket = \"/run/s\"\n\
         [[vms]]\nname = \"web\"\nserial = \"/run/s\"\ntoken = \"secret-0123456789\"\n\
         [[vms]]\nname = \"db\"\ntoken = \"secret-0123456789\"\nsubscribe = [\"a.*b\"]\n\
         [[vms]]\nname = \"last\"\ntoken_file = {token:?}\n"
    );
    let want = [
        ("c.toml:2:23: ", "broker.tcp: 0.0.0.0:0 is not of the loopback: under trust = \"open\""),
        (
            "c.toml:3:11: ",
            "broker.hybrid: \"/run/vms/vsock\" is no path of sockets, like \"/run/vms/*.vsock\": it does not have exactly",
        ),
        ("c.toml:5:1: ", "there is no setting \"retain_aeg\" in [limits]; did you mean retain_age?"),
        ("c.toml:8:7: ", "vms.cid: 2 is nobody's"),
        ("c.toml:11:8: ", "vms.name: the VM web is there twice; the first is in line 7"),
        ("c.toml:12:10: ", "vms.serial: /run/s is there twice; the first is in line 9"),
        ("c.toml:17:14: ", "vms.subscribe: \"a.*b\" is no topic and no pattern"),
        ("c.toml:20:14: ", "open.token: others can read or write it (mode 0644)"),
    ];
    let (code, out, err) = check(dir.path(), &text);
    assert_eq!(code, Some(78));
    assert!(out.contains("[broker]"), "what is right is printed all the same: {out}");
    let err: Vec<&String> = err.iter().filter(|line| !line.contains(" warning: ")).collect();
    assert_eq!(err.len(), want.len(), "{err:#?}");
    for (line, (place, words)) in err.iter().zip(want) {
        assert!(line.starts_with(place) && line.contains(words), "{line}");
    }
    assert!(!format!("{out}{err:?}").contains("secret-"), "a token is shown");

    let file = dir.path().join("c.toml");
    let (code, out, err) = run(castra().args(["config", "check", "--json"]).arg(&file));
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, err.len(), &object["ok"]), (Some(78), 0, &false.into()));
    let errors = object["errors"].as_array().unwrap();
    assert_eq!(errors.len(), want.len());
    assert_eq!((&errors[3]["line"], &errors[3]["column"]), (&8.into(), &7.into()), "{object}");

    // Other commands refuse, with all that can be known without tokens; so does the broker, before it makes anything.
    let (code, out, err) = run(castra().args(["status", "--config"]).arg(&file));
    assert_eq!((code, out.len(), err.len()), (Some(78), 0, 6), "{err:?}");
    assert!(err.iter().all(|line| line.starts_with("castra: ")), "{err:?}");
    let (_, _, err) = run(castra().args(["status", "--json", "--config"]).arg(&file));
    let object: Value = serde_json::from_str(&err[0]).unwrap();
    assert_eq!((&object["code"], object["mistakes"].as_array().unwrap().len()), (&"bad-config".into(), 6));
    assert_eq!(object["mistakes"][0]["line"], 3);
    let root = dir.path().join("root");
    let (code, said) =
        Broker::try_start(&root, castra(), &["--config", file.to_str().unwrap()]).err().expect("refused");
    assert!(code == Some(78) && said.lines().count() == 6 && !root.exists(), "{said}");
}

#[test]
fn a_broker_refuses_what_only_it_looks_at() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let token = write(&dir.path().join("token"), "0123456789abcdef", 0o640);
    let vm = format!("[[vms]]\nname = \"a\"\ntoken_file = {token:?}\n");
    let same = "[[vms]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\n[[vms]]\nname = \"b\"\ntoken = \"0123456789abcdef\"\n";
    for (text, code, words) in [
        (&*vm, "bad-config", "c.toml:3:14: vms.token_file: "),
        (same, "bad-config", "c.toml:6:9: vms.token: it is the token of a as well, which begins in line 1"),
        (
            "broker.tcp = [\"0.0.0.0:0\"]",
            "not-loopback",
            "c.toml:1:15: broker.tcp: 0.0.0.0:0 is not of the loopback",
        ),
    ] {
        let file = write(&dir.path().join("c.toml"), text, 0o600);
        // Others do their work.
        assert_eq!(run(castra().args(["status", "--config"]).arg(&file)).0, Some(1));
        let mut command = castra();
        command
            .args(["--config"])
            .arg(&file)
            .args(["broker", "--log-format", "json", "--state-root"])
            .arg(&root);
        let (exit, _, err) = run(&mut command);
        let object: Value = serde_json::from_str(&err[0]).expect(&err[0]);
        assert_eq!((exit, &object["code"]), (Some(78), &code.into()));
        assert!(object["reason"].as_str().unwrap().contains(words) && !root.exists(), "{object}");
        assert!(!err[0].contains("0123456789abcdef"), "{err:?}");
    }
}

#[test]
fn token_files_are_looked_at_before_they_are_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let text = format!("broker.trust = \"proven\"\n[[vms]]\nname = \"a\"\ntoken_file = {path:?}\n");
    let say = || check(dir.path(), &text);
    let refused = |words: &str| {
        let (code, _, err) = say();
        assert_eq!(code, Some(78), "{words}");
        assert!(
            err.len() == 1 && err[0].starts_with("c.toml:4:14: ") && err[0].contains(words),
            "{words}: {err:?}"
        );
    };
    let good = "0123456789abcdef";
    refused("No such file");
    for (mode, is_good) in
        [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false), (0o602, false)]
    {
        write(&path, good, mode);
        if is_good {
            assert_eq!(say().0, Some(0), "{mode:o}");
        } else {
            refused(&format!("(mode {mode:04o}): `chmod 600` it"));
        }
        std::fs::remove_file(&path).unwrap();
    }
    for (text, words) in [
        ("", "1 to 256 printable"),
        ("\n", "1 to 256 printable"),
        ("a b", "without spaces"),
        ("a\nb\n", "more than one line"),
        ("ä", "ASCII"),
        (&"x".repeat(257), "1 to 256"),
        (&"x".repeat(4097), "larger than 4096 bytes"),
    ] {
        write(&path, text, 0o600);
        refused(words);
    }
    for text in ["0123456789abcdef\n", "0123456789abcdef\r\n", "0123456789abcdef"] {
        write(&path, text, 0o600);
        assert_eq!(say(), (Some(0), say().1, Vec::new()), "{text:?}");
    }
    write(&path, "short", 0o600);
    let (code, _, err) = say();
    assert_eq!(code, Some(0));
    assert!(err[0].starts_with("c.toml:4:14: warning: vms.token_file: it is shorter than 16"), "{err:?}");

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused("no regular file");
    std::fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    refused("no regular file");
    std::fs::remove_file(&path).unwrap();

    write(&path, good, 0o600);
    if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
        return skip(
            "token_files_are_looked_at_before_they_are_believed",
            "not root: no file of somebody else's",
        );
    }
    refused("it belongs to user 65534");
    // It may be the broker's, which its state root tells.
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(65_534), None).unwrap();
    assert_eq!(say().0, Some(0));
}

#[test]
fn what_deserves_a_word_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    for (text, want) in [
        (
            "broker.trust = \"known\"\n[[vms]]\nname = \"a\"\ncid = 7",
            "c.toml:4:7: warning: vms.cid: a cannot come in by vsock: say vsock = 7070",
        ),
        (
            "broker.trust = \"known\"",
            "c.toml:1:16: warning: broker.trust: under \"known\" no guest is let in",
        ),
        (
            "broker.trust = \"proven\"",
            "c.toml:1:16: warning: broker.trust: under \"proven\" no guest is let in",
        ),
        (
            "broker.trust = \"proven\"\n[[vms]]\nname = \"a\"",
            "c.toml:3:8: warning: vms.name: a is never let in under trust = \"proven\"",
        ),
        (
            "broker.hybrid = [\"/nowhere/*/v.sock\"]",
            "c.toml:1:18: warning: broker.hybrid: there is no folder /nowhere;",
        ),
        (
            "broker.hybrid = [\"/tmp/*.vsock\"]",
            "c.toml:1:18: warning: broker.hybrid: everybody may write to /tmp, and so be a VM of any name",
        ),
        (
            "broker.trust = \"known\"\n[[vms]]\nname = \"a\"\nsocket = \"/nowhere/a\"",
            "c.toml:4:10: warning: vms.socket: there is no folder /nowhere;",
        ),
        (
            "broker.trust = \"known\"\n[[vms]]\nname = \"a\"\ntoken = \"short\"",
            "c.toml:4:9: warning: vms.token: it is shorter than 16",
        ),
        (
            "broker.trust = \"known\"\nbroker.tcp = [\"[::ffff:127.0.0.1]:1\", \"0.0.0.0:1\"]\n[[vms]]\nname = \"a\"",
            "c.toml:2:39: warning: broker.tcp: 0.0.0.0:1 is not of the loopback: names are not proven there, nothing is \
             encrypted, and tokens are refused",
        ),
        (
            "[[vms]]\nname = \"a\"\n[[vms]]\nname = \"b\"\nserial = \"/run/b\"\n[[vms]]\nname = \"c\"\nserial = \"/run/c\"",
            "c.toml:4:8: warning: vms.name: under trust = \"open\" anybody may take the names of VMs that have a proof, \
             as b has",
        ),
        (
            "broker.trust = \"proven\"\nbroker.tcp = [\"0.0.0.0:1\"]\n[[vms]]\nname = \"a\"\nserial = \"/run/a\"",
            "c.toml:2:15: warning: broker.tcp: nobody comes in by 0.0.0.0:1",
        ),
    ] {
        let (code, _, err) = check(dir.path(), text);
        assert_eq!(code, Some(0), "{text}: {err:?}");
        assert!(err.len() == 1 && err[0].starts_with(want), "{text}: {err:?}");
    }
    for quiet in [
        "broker.trust = \"known\"\nbroker.hybrid = [\"/usr/*.x\"]",
        "broker.hybrid = [\"/usr/v-*/x\"]",
        "broker.tcp = [\"[::ffff:127.0.0.1]:1\"]\n[[vms]]\nname = \"a\"",
    ] {
        assert_eq!(check(dir.path(), quiet).2, Vec::<String>::new(), "{quiet}");
    }
}

/// Who may read a token has it, and who may write a castra.toml says who comes in.
#[test]
fn who_may_read_and_write_a_castra_toml_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let bare = "broker.trust = \"known\"\n[[vms]]\nname = \"a\"\n";
    let with_token = [bare, "token = \"0123456789abcdef\""].concat();
    let read = |who: &str| (4, 9, format!("warning: vms.token: {who} can read this file"));
    let written = |who: &str| (1, 1, format!("warning: {who} can write this file"));
    let (group, anybody) = ("its group", "anybody on this machine");
    for (mode, of_token, of_any) in [
        (0o600, vec![], vec![]),
        (0o640, vec![read(group)], vec![]),
        (0o604, vec![read(anybody)], vec![]),
        (0o644, vec![read(anybody)], vec![]),
        (0o620, vec![], vec![written(group)]),
        (0o602, vec![], vec![written(anybody)]),
        (0o666, vec![read(anybody)], vec![written(anybody)]),
    ] {
        for (text, of_token) in [(bare, vec![]), (&*with_token, of_token)] {
            write(&file, text, mode);
            let (code, _, err) = run(castra().args(["config", "check"]).arg(&file));
            let want: Vec<_> = of_any.iter().cloned().chain(of_token).collect();
            assert_eq!((code, err.len()), (Some(0), want.len()), "{mode:o}: {err:?}");
            for (line, (at, column, words)) in err.iter().zip(want) {
                assert!(line.contains(&format!("c.toml:{at}:{column}: {words} (mode {mode:04o})")), "{line}");
            }
        }
    }
    assert_eq!(run(castra().args(["config", "check", "/dev/null"])).2, Vec::<String>::new());
}

#[test]
fn a_path_of_a_vm_is_plain_and_leads_to_a_socket_or_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    for (line, column, words) in [
        ("broker.hybrid = [\"/run/vms/../*.vsock\"]", 18, "'.' or '..' in it"),
        ("broker.hybrid = [\"/run/./*.vsock\"]", 18, "'.' or '..' in it"),
        ("vms = [{name = \"a\", socket = \"/run/../a\"}]", 30, "vms.socket: \"/run/../a\" has . or .. in it"),
        ("vms = [{name = \"a\", serial = \"/run/./a\"}]", 30, "vms.serial: \"/run/./a\" has . or .. in it"),
        ("vms = [{name = \"a\", token_file = \"/run/credentials/../a\"}]", 34, "has . or .. in it"),
        ("vms = [{name = \"a\", socket = \"/run/a\", serial = \"/run//a\"}]", 49, "there twice"),
    ] {
        let (code, _, err) = check(dir.path(), line);
        assert_eq!(code, Some(78), "{line}: {err:?}");
        let is = |said: &String| said.starts_with(&format!("c.toml:1:{column}: ")) && said.contains(words);
        assert!(err.iter().any(is), "{line}: {err:?}");
    }

    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for key in ["socket", "serial"] {
        for (at, is_said) in
            [(path("file"), true), (dir.path().into(), true), (path("socket"), false), (path("later"), false)]
        {
            let text = format!("broker.trust = \"proven\"\n[[vms]]\nname = \"a\"\n{key} = {at:?}");
            let (code, _, err) = check(dir.path(), &text);
            assert_eq!((code, err.len()), (Some(0), usize::from(is_said)), "{err:?}");
            let want =
                format!("c.toml:4:10: warning: vms.{key}: {} is there, and it is no socket", at.display());
            assert!(err.iter().all(|line| line.starts_with(&want)), "{err:?}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_said_in_both_ways() {
    let (code, out, err) = run(castra().args(["config", "check", "/nonexistent/c.toml"]));
    assert_eq!((code, out.len(), err.len()), (Some(78), 0, 1));
    assert!(err[0].contains("/nonexistent/c.toml: No such file"), "{err:?}");
    let (code, out, err) = run(castra().args(["config", "check", "--json", "/nonexistent/c.toml"]));
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, err.len(), &object["ok"]), (Some(78), 0, &false.into()));
    assert_eq!(object["errors"][0]["line"], Value::Null, "{object}");
}

#[test]
fn flags_go_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir.path().join("c.toml"), "[broker]\ntrust = \"known\"\nvsock = 7000\n", 0o600);
    let print = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = castra();
        command
            .args(["broker", "--print-config", "--config"])
            .arg(&file)
            .args(args)
            .envs(env.iter().copied());
        let (code, out, err) = run(&mut command);
        let value = |key: &str| out.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        (code, value("trust = ").unwrap_or_default(), value("vsock = ").unwrap_or_default(), err)
    };
    let said = |trust: &str, port: &str| (Some(0), format!("\"{trust}\""), port.to_owned(), Vec::new());
    assert_eq!(print(&[], &[]), said("known", "7000"));
    assert_eq!(print(&["--trust", "proven", "--vsock"], &[]), said("proven", "7070"));
    assert_eq!(
        print(&["--vsock", "9"], &[("CASTRA_TRUST", "open"), ("CASTRA_VSOCK", "8")]),
        said("open", "9")
    );
    assert_eq!(print(&[], &[("CASTRA_VSOCK", "8")]), said("known", "8"));
    for port in ["0", "4294967295", "x", "-1"] {
        let (code, _, _, err) = print(&[], &[("CASTRA_VSOCK", port)]);
        assert!(code == Some(2) && err[0].contains("--vsock (or CASTRA_VSOCK): "), "{err:?}");
    }
}
