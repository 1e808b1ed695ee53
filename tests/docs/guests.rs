//! docs/GUESTS.md: every castra.toml on the page is one that a broker takes.

use crate::markdown::{blocks, read};
use crate::support::castra;

#[test]
fn every_castra_toml_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let page = read("docs/GUESTS.md");
    let tomls: Vec<_> = blocks(&page).into_iter().filter(|block| block.tag == "toml").collect();
    assert!(tomls.len() >= 5, "{} blocks", tomls.len());
    for block in tomls {
        let file = dir.path().join("castra.toml");
        std::fs::write(&file, &block.text).unwrap();
        let output = castra().args(["config", "check"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It may say that this machine has no such folder.
        assert!(output.status.success(), "line {}: {said}", block.line);
        let in_force = String::from_utf8_lossy(&output.stdout).into_owned();
        for asked in block.text.lines().filter(|line| !line.is_empty()) {
            assert!(
                in_force.lines().any(|line| line == asked),
                "line {}: {asked} is not in force",
                block.line
            );
        }
    }
}
