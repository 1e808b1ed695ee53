//! `castra config check`: what is in force, and what is wrong.
//!
//! Always holds: it does not touch a broker, and shows no token; what a broker would not start with ends it with exit
//! code 78. Owner: [`super::operator`].

use super::config::{self, Config, objects};
use super::{Exit, Failure};
use crate::cli::CheckArgs;
use crate::core::config::Mistake;
use nix::unistd::geteuid;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `given` and `state_root` are those of the options of every command.
pub fn run(args: &CheckArgs, given: Option<PathBuf>, state_root: Option<PathBuf>) -> Result<Exit, Failure> {
    let given = args.file.clone().or(given);
    let mut config = match config::look(given.as_deref()) {
        Ok(config) => config,
        Err(failure) if args.json => {
            let mistake = Mistake { place: None, message: failure.message };
            print_json(given.as_deref(), &[mistake], &[])?;
            return Ok(failure.exit);
        }
        Err(failure) => return Err(failure),
    };
    let root = config.state_root(state_root);
    // Who looks may be root; the broker is likely whoever the state root belongs to.
    let broker = root.path().metadata().map_or(geteuid().as_raw(), |is| is.uid());
    config.examine(&[geteuid().as_raw(), broker]);
    if args.json {
        print_json(config.file.as_deref(), &config.mistakes, &config.warnings)?;
    } else {
        io::stdout().lock().write_all(config.print(&root)?.as_bytes())?;
        say(&config)?;
    }
    Ok(if config.mistakes.is_empty() { Exit::Ok } else { Exit::BadConfig })
}

/// `FILE:LINE:COLUMN: what`, as compilers have it.
fn say(config: &Config) -> io::Result<()> {
    let mut err = io::stderr().lock();
    for warning in &config.warnings {
        writeln!(
            err,
            "{}",
            config.line(&Mistake { place: warning.place, message: format!("warning: {}", warning.message) })
        )?;
    }
    config.mistakes.iter().try_for_each(|mistake| writeln!(err, "{}", config.line(mistake)))
}

fn print_json(file: Option<&Path>, mistakes: &[Mistake], warnings: &[Mistake]) -> io::Result<()> {
    let object = serde_json::json!({
        "schema": 1,
        "ok": mistakes.is_empty(),
        "file": file.map(|file| file.to_string_lossy()),
        "errors": objects(mistakes),
        "warnings": objects(warnings),
    });
    writeln!(io::stdout().lock(), "{object}")
}
