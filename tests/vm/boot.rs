//! The ground itself: a guest boots, and its console tells exit codes and output apart.

use crate::ground;
use crate::machine::{Machine, Settings};
use crate::support::skip;

#[test]
fn a_guest_boots_and_does_as_it_is_told() {
    let ground = match ground::lay() {
        Ok(ground) => ground,
        Err(why) => return skip("a_guest_boots_and_does_as_it_is_told", &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Machine::boot(&ground, dir.path(), &Settings::default());
    assert_eq!(guest.run("echo one; echo two >&2; exit 3"), (3, "one\ntwo\n".to_owned()));
    assert_eq!(guest.run("printf half"), (0, "half\n".to_owned()));
    assert_eq!(guest.run("true"), (0, String::new()));
    assert!(guest.ok("castra --version").starts_with("castra "));
    assert_ne!(guest.run("if").0, 0);
    assert_eq!(guest.ok("head -c 100000 /dev/zero | tr '\\0' x | wc -c").trim(), "100000");
}
