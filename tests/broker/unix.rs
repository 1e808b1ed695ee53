//! The unix sockets: the host's own, and further ones for guests.

use crate::support::{Broker, LocalGuest, castra, eventually};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const HOST: &str = "hello vm:host capabilities=bus-v1,host-bus\n";

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_host_and_guests_share_the_hosts_socket() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let path = dir.path().join("castra.sock");
    assert_eq!((mode(&path), mode(dir.path())), (0o600, 0o700));
    let (mut host, answer) = LocalGuest::greet(&path, HOST);
    assert!(answer.starts_with("ok session="), "{answer}");
    let ack = host.ask(r#"{"type":"publish","topic":"t","id":"x"}"#);
    assert_eq!(ack, json!({"type":"ack","ack":"publish","status":"ok","topic":"t","seq":1,"id":"x"}));
    // A host's ack comes when the line is there.
    assert_eq!(broker.log("host")[0]["vm"], "host");

    let (mut guest, answer) = LocalGuest::greet(&path, "hello vm:web capabilities=bus-v1\n");
    assert!(answer.starts_with("ok session="), "{answer}");
    assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], 2);
    eventually("the guest's log", || Some(()).filter(|()| broker.log("web").len() == 1));
    for hello in
        ["hello vm:Host capabilities=bus-v1\n", "hello vm:web capabilities=bus-v1,host-bus\n", "hello bus\n"]
    {
        assert_eq!(LocalGuest::greet(&path, hello).1, "error: reserved-identity", "{hello}");
    }
    let vms = eventually("the guest in status", || {
        Some(broker.status()["vms"].clone()).filter(|vms| vms[0]["name"] == "web")
    });
    assert_eq!(vms.as_array().unwrap().len(), 1, "the host is no VM: {vms}");
}

#[test]
fn further_sockets_are_for_guests_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guests.sock");
    let broker = Broker::start_args(&dir.path().join("root"), &["--unix", path.to_str().unwrap()]);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(LocalGuest::greet(&path, HOST).1, "error: reserved-identity");
    let (mut guest, answer) = LocalGuest::greet(&path, "hello vm:web capabilities=bus-v1\n");
    assert!(answer.starts_with("ok session="), "{answer}");
    assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], 1);
    let listeners = broker.status()["broker"]["listeners"].clone();
    assert!(
        listeners.as_array().unwrap().contains(&json!(format!("unix:{}", path.display()))),
        "{listeners}"
    );
}

#[test]
fn listeners_have_whole_paths_wherever_the_broker_was_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = castra();
    command.current_dir(dir.path());
    let broker = Broker::start_with(Path::new("sd"), command, &["--unix", "guests.sock"]);
    let status = castra().arg("--state-root").arg(dir.path().join("sd")).args(["status", "--json"]).output();
    let status: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap();
    for socket in ["sd/castra.sock", "guests.sock"] {
        let name = json!(format!("unix:{}", dir.path().join(socket).display()));
        let listeners = status["broker"]["listeners"].as_array().unwrap();
        assert!(listeners.contains(&name), "{name}: {listeners:?}");
    }
    assert_eq!(broker.stop().0, Some(0));
    assert!(!dir.path().join("guests.sock").exists());
}

#[test]
fn a_socket_replaces_what_was_left_behind_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guests.sock");
    let unix = ["--unix", path.to_str().unwrap()];

    std::fs::write(&path, "precious").unwrap();
    let (code, said) = Broker::try_start(&dir.path().join("a"), castra(), &unix).err().unwrap();
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("guests.sock"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    // Another broker's, in use: it keeps it.
    let other = Broker::start_args(&dir.path().join("b"), &unix);
    let (code, said) = Broker::try_start(&dir.path().join("a"), castra(), &unix).err().unwrap();
    assert_eq!(code, Some(73), "{said}");
    let (mut guest, _) = LocalGuest::greet(&path, "hello vm:web capabilities=bus-v1\n");
    assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], 1);
    eventually("it in the status of its broker", || {
        (other.status()["vms"][0]["name"] == "web").then_some(())
    });

    // The same left behind by a broker that is gone.
    other.kill();
    assert!(path.exists());
    let _broker = Broker::start_args(&dir.path().join("a"), &unix);
    assert!(LocalGuest::greet(&path, "hello vm:web capabilities=bus-v1\n").1.starts_with("ok session="));
}

#[test]
fn only_a_socket_that_takes_connections_is_somebody_elses() {
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket};
    use std::os::fd::AsRawFd;
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let unix = ["--unix", path.to_str().unwrap()];
        let (code, said) = Broker::try_start(&dir.path().join("root"), castra(), &unix).err().unwrap();
        assert!(code == Some(73) && said.contains(path.to_str().unwrap()), "{code:?} {said}");
        said
    };
    // What is wrong is said as it is.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let said = refused(&dir.path().join("file/x.sock"));
    assert!(said.contains("Not a directory"), "{said}");
    // Whose queue is full is there all the same.
    let path = dir.path().join("full.sock");
    let full = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listen(&full, Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    eventually("a full queue", || {
        let flags = SockFlag::SOCK_NONBLOCK;
        let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let answer = connect(asking.as_raw_fd(), &UnixAddr::new(&path).unwrap());
        waiting.push(asking);
        (answer == Err(Errno::EAGAIN)).then_some(())
    });
    let said = refused(&path);
    assert!(said.contains("somebody else listens there"), "{said}");
}

#[test]
fn a_path_too_long_for_a_socket_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("x".repeat(110));
    let (code, said) = Broker::try_start(&root, castra(), &[]).err().unwrap();
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("shorter"), "{said}");
}
