//! Hybrid vsock: a socket of the broker beside that of each VM, as they come and go.

use crate::doors_world::{Place, Say, beside, dial, gone, inode, publishes, session};
use crate::support::{eventually, records, skip};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

#[test]
fn vms_come_and_go_under_a_glob() {
    let place = Place::new();
    let mut vmms = vec![place.boot("vm0")];
    let world = place.broker(&place.glob());
    assert!(
        world.listeners.contains(&format!("hybrid:{}", place.vm("*").display())),
        "{:?}",
        world.listeners
    );
    let name = |n: usize| format!("vm{n}");
    let mut guests = vec![session(&place.vm("vm0"), "vm0")];
    for n in 1..200 {
        vmms.push(place.boot(&name(n)));
        guests.push(session(&place.vm(&name(n)), &name(n)));
    }
    let address = format!("hybrid:{}", place.vm("vm199").display());
    let record = eventually("its record", || {
        records(&world.root, "handshake-events").into_iter().find(|record| record["remote_addr"] == address)
    });
    assert_eq!((&record["identity"], &record["vm"]), (&"socket".into(), &"vm199".into()));
    let inodes: Vec<u64> = (0..200).map(|n| inode(&beside(&place.vm(&name(n))))).collect();
    for n in (0..200).step_by(2) {
        std::fs::remove_file(place.vm(&name(n))).unwrap();
    }
    for n in (0..200).step_by(2) {
        gone(&beside(&place.vm(&name(n))));
    }
    // What has a session keeps it; what is still there was not touched.
    guests.iter_mut().for_each(publishes);
    for n in (1..200).step_by(2) {
        assert_eq!(inode(&beside(&place.vm(&name(n)))), inodes[n]);
    }
    vmms.push(place.boot("vm0"));
    session(&place.vm("vm0"), "vm0");
    assert_eq!(std::fs::metadata(beside(&place.vm("vm0"))).unwrap().permissions().mode() & 0o777, 0o600);
    world.stop();
    let left: Vec<_> =
        std::fs::read_dir(place.path("vms")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("_7070")), "{left:?}");
    assert_eq!(left.len(), 101, "the VMs' own stay");
}

#[test]
fn a_socket_is_its_vm_and_nobody_else() {
    let place = Place::new();
    let _vmms = [place.boot("web"), place.boot("db")];
    let _world = place.broker(&place.glob());
    assert_eq!(dial(&place.vm("web"), "db").1, "error: identity-mismatch");
    assert_eq!(dial(&place.vm("web"), "host").1, "error: reserved-identity");
    publishes(&mut session(&place.vm("web"), "web"));
}

#[test]
fn what_somebody_removed_is_made_again() {
    let place = Place::new();
    let _vmm = place.boot("web");
    let _world = place.broker(&place.glob());
    let mut guest = session(&place.vm("web"), "web");
    let own = beside(&place.vm("web"));
    std::fs::remove_file(&own).unwrap();
    publishes(&mut session(&place.vm("web"), "web"));
    publishes(&mut guest);
    // A file that is no socket is not replaced, and said once.
    std::fs::remove_file(&own).unwrap();
    while std::fs::OpenOptions::new().write(true).create_new(true).open(&own).is_err() {
        std::fs::remove_file(&own).unwrap();
    }
    place.hears("that is no socket");
    assert_eq!(std::fs::metadata(&own).unwrap().len(), 0);
    std::fs::remove_file(&own).unwrap();
    session(&place.vm("web"), "web");
    assert_eq!(place.said("that is no socket").len(), 1);
}

#[test]
fn an_entrys_socket_is_there_before_its_vm() {
    let place = Place::new();
    let path = place.path("later/web.sock");
    let world = place.broker(&Say::default().socket("web", &path));
    place.hears("its folder is not there yet");
    std::fs::create_dir(place.path("later")).unwrap();
    publishes(&mut session(&path, "web"));
    let vmm = UnixListener::bind(&path).unwrap();
    let mut guest = session(&path, "web");
    drop(vmm);
    std::fs::remove_file(&path).unwrap();
    session(&path, "web");
    // Folders go and come as well.
    std::fs::remove_dir_all(place.path("later")).unwrap();
    place.hears("is there no longer");
    std::fs::create_dir(place.path("later")).unwrap();
    session(&path, "web");
    publishes(&mut guest);
    world.stop();
    gone(&beside(&path));
}

#[test]
fn a_vmm_of_another_uid_may_connect() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a_vmm_of_another_uid_may_connect", "only root gives files away");
    }
    let place = Place::new();
    let _vmm = place.boot("web");
    std::os::unix::fs::chown(place.vm("web"), Some(4711), None).unwrap();
    let _world = place.broker(&place.glob());
    let owner = |uid: u32| {
        eventually("the owner", || {
            std::fs::metadata(beside(&place.vm("web")))
                .ok()
                .filter(|is| is.uid() == uid && is.mode() & 0o777 == 0o600)
        })
    };
    owner(4711);
    std::os::unix::fs::chown(place.vm("web"), Some(4712), None).unwrap();
    owner(4712);
    session(&place.vm("web"), "web");
}

#[test]
fn a_restart_takes_over_what_was_left() {
    let place = Place::new();
    let _vmm = place.boot("web");
    let left = |name: &str| drop(UnixListener::bind(beside(&place.vm(name))).unwrap());
    left("web");
    left("dead");
    let _other = (place.boot("used"), UnixListener::bind(beside(&place.vm("used"))).unwrap());
    let kept = UnixListener::bind(beside(&place.vm("alive"))).unwrap();
    let _world = place.broker(&place.glob());
    session(&place.vm("web"), "web");
    gone(&beside(&place.vm("dead")));
    place.hears("somebody else listens there");
    assert!(beside(&place.vm("alive")).exists(), "somebody listens there");
    drop(kept);
}

#[test]
fn a_new_policy_takes_effect_at_once() {
    let place = Place::new();
    let _vmms = [place.boot("web"), place.boot("db"), place.boot("new")];
    let both = Say::default().socket("web", &place.vm("web")).socket("db", &place.vm("db"));
    let world = place.broker(&both);
    let (mut web, mut db) = (session(&place.vm("web"), "web"), session(&place.vm("db"), "db"));
    let untouched = inode(&beside(&place.vm("db")));
    world.reload(&Say::default().socket("db", &place.vm("db")).socket("new", &place.vm("new")));
    session(&place.vm("new"), "new");
    gone(&beside(&place.vm("web")));
    assert_eq!(inode(&beside(&place.vm("db"))), untouched);
    publishes(&mut db);
    // What proved it is taken back.
    assert_eq!(web.receive()["reason"], "identity-revoked");
    // The same socket is another VM's: who is there is asked anew.
    world.reload(&Say::default().socket("web", &place.vm("db")));
    assert_eq!(db.receive()["reason"], "identity-revoked");
    eventually("the other name", || (place.said("hybrid: open vm=web").len() == 2).then_some(()));
    session(&place.vm("db"), "web");
    assert_eq!(dial(&place.vm("db"), "db").1, "error: identity-mismatch");
}

#[test]
fn what_is_not_served_is_said_once() {
    let place = Place::new();
    std::fs::write(place.vm("plain"), "").unwrap();
    let _vmms = [place.boot("web"), place.boot("a b"), place.boot("host"), place.boot("BUS")];
    std::fs::create_dir(place.path("west")).unwrap();
    let second = UnixListener::bind(place.path("west/web.vsock"));
    let deep = place.path("deep").join("d".repeat(80 - place.path("deep").as_os_str().len()));
    std::fs::create_dir_all(&deep).unwrap();
    let _long = UnixListener::bind(deep.join("a-long-name.vsock")).unwrap();
    let say = place.glob().glob(place.path("west/*.vsock")).glob(deep.join("*.vsock"));
    // The same again, by another way.
    let say = say.glob(place.path("vms/./*.vsock")).glob("/no/star").glob(place.path("never/*/v.sock"));
    let _world = place.broker(&say);
    session(&place.vm("web"), "web");
    let began = Instant::now();
    let said = [
        ("plain.vsock: it is no socket", 1),
        ("is no name of a VM", 3),
        ("west/web.vsock: VM web has a socket already", 1),
        ("would have a path of", 1),
        ("never/*/v.sock: its folder is not there yet", 1),
        ("a b.vsock_7070", 0),
    ];
    for (what, times) in said {
        eventually(what, || (place.said(what).len() >= times).then_some(()));
    }
    // Looks go on, and say nothing more.
    eventually("a few looks", || (began.elapsed() > Duration::from_millis(2500)).then_some(()));
    for (what, times) in said {
        assert_eq!(place.said(what).len(), times, "{what}: {:?}", place.said(""));
    }
    let left: Vec<_> =
        std::fs::read_dir(place.path("vms")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "{left:?}");
    // The second comes in when the first goes.
    std::fs::remove_file(place.vm("web")).unwrap();
    session(&place.path("west/web.vsock"), "web");
    drop(second);
}

#[test]
fn links_are_worked_through() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("jail/web/root")).unwrap();
    let real = place.path("jail/web/root/v.sock");
    let _vmm = UnixListener::bind(&real).unwrap();
    symlink(place.path("jail"), place.path("j")).unwrap();
    symlink("../jail/web/root/v.sock", place.vm("web")).unwrap();
    let world = place.broker(&place.glob());
    // A VMM binds no link: it knows its socket by the name that the link leads to.
    let mut guest = session(&real, "web");
    assert!(!beside(&place.vm("web")).exists());
    world.reload(&Say::default().glob(place.path("j/*/root/v.sock")));
    // A folder that is a link, made after the start, to a folder with VMs in it.
    std::fs::create_dir_all(place.path("jail/db/root")).unwrap();
    let db = place.path("jail/db/root/v.sock");
    let _db = UnixListener::bind(&db).unwrap();
    session(&db, "db");
    // It is found by another way now, which says the same of it.
    publishes(&mut guest);
    // The link leads elsewhere.
    std::fs::create_dir_all(place.path("k/new/root")).unwrap();
    let new = place.path("k/new/root/v.sock");
    let _new = UnixListener::bind(&new).unwrap();
    std::fs::remove_file(place.path("j")).unwrap();
    symlink(place.path("k"), place.path("j")).unwrap();
    session(&new, "new");
    gone(&beside(&db));
}

#[test]
fn a_glob_or_an_entry_that_says_the_same_keeps_sessions() {
    let place = Place::new();
    let _vmms = [place.boot("web"), place.boot("db"), place.boot("new")];
    let world = place.broker(&place.glob());
    let mut web = session(&place.vm("web"), "web");
    let mut db = session(&place.vm("db"), "db");
    let untouched = inode(&beside(&place.vm("web")));
    symlink(place.path("vms"), place.path("v")).unwrap();
    world.reload(&Say::default().socket("web", &place.path("v/web.vsock")));
    assert_eq!(db.receive()["reason"], "identity-revoked");
    publishes(&mut web);
    world.reload(&place.glob());
    session(&place.vm("new"), "new");
    publishes(&mut web);
    assert_eq!(inode(&beside(&place.vm("web"))), untouched);
    // And is no other's after all that.
    world.reload(&Say::default());
    assert_eq!(web.receive()["reason"], "identity-revoked");
}

#[test]
fn a_socket_that_is_another_vms_now_ends_sessions() {
    let place = Place::new();
    let _vmms = [place.boot("ghost"), place.boot("stays")];
    let world = place.broker(&place.glob());
    let (mut ghost, mut stays) = (session(&place.vm("ghost"), "ghost"), session(&place.vm("stays"), "stays"));
    world.reload(&place.glob().socket("other", &place.vm("ghost")));
    assert_eq!(ghost.receive()["reason"], "identity-revoked");
    place.hears("hybrid: open vm=other");
    session(&place.vm("ghost"), "other");
    publishes(&mut stays);
    place.hears("it is the socket of VM other now");
    assert!(place.said("is there no longer").is_empty());
}

#[test]
fn a_link_goes_behind_the_socket_itself() {
    let place = Place::new();
    let web = place.vm("web");
    let _vmm = place.boot("web");
    let link = place.path("evil.vsock");
    symlink(&web, &link).unwrap();
    let evil = Say::default().socket("evil", &link);
    let world = place.broker(&evil);
    let mut guest = session(&web, "evil");
    world.reload(&evil.socket("web", &web));
    assert_eq!(guest.receive()["reason"], "identity-revoked");
    place.hears("hybrid: open vm=web");
    place.hears("evil.vsock: this is the socket of VM web");
    session(&web, "web");
}

#[test]
fn a_link_of_another_uid_leads_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a_link_of_another_uid_leads_nowhere", "only root gives files away");
    }
    let place = Place::new();
    for folder in ["j/evil/root", "j/web/root/run", "own", "etcx"] {
        std::fs::create_dir_all(place.path(folder)).unwrap();
    }
    let link = |to: &str, at: &str| {
        symlink(to, place.path(at)).unwrap();
        std::os::unix::fs::lchown(place.path(at), Some(4711), None).unwrap();
    };
    let web = place.path("j/web/root/run/v.sock");
    let _vmm = UnixListener::bind(&web).unwrap();
    link("../../web/root/run", "j/evil/root/run");
    link("../j/web/root/run/v.sock", "own/evil.vsock");
    link(place.path("etcx/anything").to_str().unwrap(), "own/evil2.vsock");
    link(place.path("etcx").to_str().unwrap(), "own/etc");
    let say = Say::default().glob(place.path("j/*/root/run/v.sock")).glob(place.path("own/etc/*.vsock"));
    let say = say.socket("evil1", &place.path("own/evil.vsock"));
    let say = say.socket("evil2", &place.path("own/evil2.vsock"));
    let _world = place.broker(&say.socket("evil3", &place.path("own/etc/passwd")));
    publishes(&mut session(&web, "web"));
    for vm in ["evil", "evil1", "evil2"] {
        assert_eq!(dial(&web, vm).1, "error: identity-mismatch");
    }
    let said =
        ["evil/root/run/v.sock", "own/evil.vsock", "own/evil2.vsock", "own/etc/passwd", "own/etc/*.vsock"];
    let said = said.map(|path| format!("{path}: a link of uid 4711"));
    said.iter().for_each(|what| drop(place.hears(what)));
    assert_eq!(std::fs::read_dir(place.path("etcx")).unwrap().count(), 0);
    // It has its own instead.
    std::fs::remove_file(place.path("j/evil/root/run")).unwrap();
    std::fs::create_dir(place.path("j/evil/root/run")).unwrap();
    let evil = place.path("j/evil/root/run/v.sock");
    let _evil = UnixListener::bind(&evil).unwrap();
    session(&evil, "evil");
    said.iter().for_each(|what| assert_eq!(place.said(what).len(), 1, "{what}"));
}

#[test]
fn sockets_of_others_are_left_alone() {
    if !nix::unistd::geteuid().is_root() {
        return skip("sockets_of_others_are_left_alone", "only root gives files away");
    }
    let place = Place::new();
    let _vmms = [place.boot("web"), place.boot("db"), place.boot("tmp")];
    let give = |path: &std::path::Path| std::os::unix::fs::chown(path, Some(4711), None).unwrap();
    let left = |name: &str| {
        drop(UnixListener::bind(beside(&place.vm(name))).unwrap());
        give(&beside(&place.vm(name)));
        inode(&beside(&place.vm(name)))
    };
    let (web, gone) = (left("web"), left("gone"));
    left("db");
    give(&place.vm("db"));
    let new = place.path("vms/tmp.vsock_7070.new");
    std::fs::write(&new, "not ours").unwrap();
    let world = place.broker(&place.glob());
    session(&place.vm("db"), "db");
    place.hears("web.vsock: the broker's socket beside it cannot be made: there is a socket of uid 4711");
    place.hears("tmp.vsock: the broker's socket beside it cannot be made");
    place.hears("gone.vsock_7070");
    world.stop();
    assert_eq!((inode(&beside(&place.vm("web"))), inode(&beside(&place.vm("gone")))), (web, gone));
    assert_eq!(std::fs::read(&new).unwrap(), b"not ours");
}
