//! `castra man`, as it is typed.

use clap::Args;
use std::path::PathBuf;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra man ~/.local/share/man/man1
  castra man . && man -l ./castra.1

Prints the path of each page that was written."#;

/// `castra man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Where to write the pages; made when it is not there
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}
