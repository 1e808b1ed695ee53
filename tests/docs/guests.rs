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
        let in_force: toml::Value = toml::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let asked: toml::Value = toml::from_str(&block.text).unwrap();
        assert!(holds(&in_force, &asked), "line {}: {asked} is not in {in_force}", block.line);
    }
}

/// Whether all of `asked` is in force.
fn holds(in_force: &toml::Value, asked: &toml::Value) -> bool {
    match (in_force, asked) {
        (toml::Value::Table(in_force), toml::Value::Table(asked)) => {
            asked.iter().all(|(key, value)| in_force.get(key).is_some_and(|is| holds(is, value)))
        }
        (toml::Value::Array(in_force), toml::Value::Array(asked)) => {
            in_force.len() == asked.len() && in_force.iter().zip(asked).all(|(is, value)| holds(is, value))
        }
        _ => in_force == asked,
    }
}
