//! Reads a document: its fenced blocks, and its tables by heading. And the source, for what it must name.

use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// What stands behind the opening fence.
    pub tag: String,
    /// The line of the opening fence, from 1.
    pub line: usize,
    /// The lines between the fences.
    pub text: String,
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    for (i, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(tag)) => open = Some(Block { tag: tag.into(), line: i + 1, text: String::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    blocks
}

/// The bytes of a `hex` block.
pub fn hex(block: &Block) -> Vec<u8> {
    let byte =
        |word: &str| u8::from_str_radix(word, 16).unwrap_or_else(|_| panic!("line {}: {word:?}", block.line));
    block.text.split_whitespace().map(byte).collect()
}

/// The rows of all tables below the heading `title`, without their head, up to the next heading.
pub fn table(text: &str, title: &str) -> Vec<Vec<String>> {
    let heading = |line: &str| line.trim_start_matches('#').trim() == title && line.starts_with('#');
    let mut lines = text.lines().skip_while(|line| !heading(line));
    assert!(lines.next().is_some(), "there is no heading {title:?}");
    let rows: Vec<&str> =
        lines.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|')).collect();
    let cells = |row: &&str| -> Vec<String> {
        row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rule = |i: usize| rows.get(i).is_some_and(|row| row.starts_with("|---"));
    let rows: Vec<Vec<String>> =
        (0..rows.len()).filter(|&i| !rule(i) && !rule(i + 1)).map(|i| cells(&rows[i])).collect();
    assert!(!rows.is_empty(), "there is no table below {title:?}");
    rows
}

/// `` `word` `` without its ticks.
pub fn ticked(cell: &str) -> &str {
    let inner = cell.strip_prefix('`').and_then(|rest| rest.split_once('`'));
    inner.unwrap_or_else(|| panic!("{cell:?} has no `word`")).0
}

/// The lines of a source file that are neither comment nor test, with their numbers.
pub fn code(path: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines = text.lines().map(str::to_owned).enumerate().map(|(i, line)| (i + 1, line));
    lines
        .take_while(|(_, line)| line != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect()
}

/// The string literals of a source file that look like a code or a reason: `two-words`.
pub fn kebab_literals(path: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (number, line) in code(&root().join(path)) {
        // Every second piece between quotes is inside; escapes do not occur in what is looked for.
        for literal in line.split('"').skip(1).step_by(2) {
            let word =
                |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            if literal.contains('-') && literal.split('-').all(word) {
                found.push((literal.to_owned(), format!("{path}:{number}")));
            }
        }
    }
    found
}
