//! `castra man`: the man pages, made of what the commands say of themselves.
//!
//! Always holds: there is a page for each command, with the examples of its `--help`; castra(1) has the exit codes,
//! every environment variable, and the files. Owner: [`super::run`].

use super::{Exit, Failure};
use crate::cli::{Cli, EXIT_CODES, ManArgs};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::io::{self, Write};

/// The files that are not below a state root, and those that are.
const FILES: [(&str, &str); 16] = [
    ("~/.config/castra/castra.toml", "The settings ($XDG_CONFIG_HOME/castra/castra.toml where that is set)."),
    ("/etc/castra/castra.toml", "The settings, where there is none of one's own."),
    (
        "~/.local/state/castra",
        "The state root ($XDG_STATE_HOME/castra where that is set); what follows is below it.",
    ),
    ("format", "Which castra can read it, and the journal's id."),
    ("broker.lock", "Locked while a broker runs; it has its pid."),
    ("castra.sock", "The host's own way in."),
    ("status", "What castra status reads."),
    ("journal/*.seg", "The journal: every event, once, in order."),
    ("logs/bus/VM.log", "What this VM published, and what was sent to its mailbox; one JSON object a line."),
    ("logs/bus/bus.log", "What everybody published; what the host did is also in host.log."),
    ("logs/broker.log", "The broker's own log."),
    ("logs/checkpoint", "How far the logs are known to be on the disk."),
    ("handshakes/handshake-events.jsonl", "A record of each handshake."),
    (
        "handshakes/bus-events.jsonl",
        "A record of what sessions met: heartbeats, back-pressure, sockets that take nothing, and their ends.",
    ),
    ("/var/lib/castra-agent/outbox.db", "In a guest: what the agent keeps for the broker (--state-dir)."),
    ("/run/castra/agent.sock", "In a guest: where local programs publish (--socket)."),
];

/// What is read from the environment beside the variables of flags.
const VARIABLES: [(&str, &str); 4] = [
    (
        "XDG_STATE_HOME, XDG_CONFIG_HOME, HOME",
        "Where state root and settings are, unless something says otherwise.",
    ),
    ("NO_COLOR, TERM", "No colour where NO_COLOR is set, or TERM is dumb."),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
        "The service manager that the broker reports to; see sd_notify(3).",
    ),
    ("LISTEN_FDS, LISTEN_PID", "Sockets that the broker is handed; see sd_listen_fds(3)."),
];

pub fn run(args: &ManArgs) -> Result<Exit, Failure> {
    let dir = &args.dir;
    let failed = |e: io::Error| {
        Failure::new(
            Exit::CannotCreate,
            "cannot-create",
            format!("{}: {e}; choose another folder", dir.display()),
        )
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut out = io::stdout().lock();
    for command in walk(&root) {
        let path = dir.join(format!("{}.1", name(command)));
        page(command, &root).and_then(|text| std::fs::write(&path, text)).map_err(failed)?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(Exit::Ok)
}

/// A command and all below it.
fn walk(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(walk);
    std::iter::once(command).chain(below).collect()
}

/// `castra-bus-publish`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command, root: &Command) -> io::Result<Vec<u8>> {
    let source = concat!("castra ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name(command).to_uppercase()).source(source).manual("castra");
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let help = Help::of(&help);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let is_root = name(command) == name(root);
    if !is_root {
        page.extend(verbatim_or_text(&help.rest));
    }
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut more = Roff::new();
    if is_root {
        exit_codes(&mut more);
        variables(&mut more, root);
        more.control("SH", ["FILES"]);
        FILES.iter().for_each(|(path, what)| entry(&mut more, path, what));
    }
    more.to_writer(&mut page)?;
    if !help.examples.is_empty() {
        page.extend_from_slice(b".SH EXAMPLES\n");
        page.extend(verbatim_or_text(&help.examples));
    }
    let mut end = Roff::new();
    end.control("SH", ["SEE ALSO"]);
    let others = walk(root).into_iter().map(name).filter(|other| *other != name(command));
    let others: Vec<String> = others.map(|other| format!("{other}(1)")).collect();
    end.text([roman(others.join(", "))]);
    end.to_writer(&mut page)?;
    Ok(page)
}

/// What stands below the options in `--help`: examples, and the rest.
struct Help<'a> {
    examples: Vec<&'a str>,
    rest: Vec<&'a str>,
}

impl<'a> Help<'a> {
    fn of(text: &'a str) -> Self {
        let (mut examples, mut rest, mut within) = (Vec::new(), Vec::new(), false);
        for line in text.lines() {
            if line == "Examples:" {
                within = true;
            } else if within && line.starts_with("  ") {
                examples.push(line);
            } else {
                within = false;
                rest.push(line);
            }
        }
        Help { examples, rest }
    }
}

/// Lines that are set in stay as they are, in lines of their own; the others are text.
fn verbatim_or_text(lines: &[&str]) -> Vec<u8> {
    let mut page = Vec::new();
    let mut verbatim = false;
    let text = |line: &str, page: &mut Vec<u8>| {
        let mut roff = Roff::new();
        roff.text([roman(line)]);
        // Into memory: cannot fail.
        let _ = roff.to_writer(page);
    };
    for line in lines {
        let is_verbatim = line.starts_with("  ");
        if is_verbatim != verbatim {
            page.extend_from_slice(if is_verbatim { b".PP\n.nf\n" } else { b".fi\n.PP\n" });
            verbatim = is_verbatim;
        }
        match line.trim_end() {
            "" => page.extend_from_slice(b".PP\n"),
            line => text(line, &mut page),
        }
    }
    if verbatim {
        page.extend_from_slice(b".fi\n");
    }
    page
}

fn entry(roff: &mut Roff, name: &str, what: &str) {
    roff.control("TP", []);
    roff.text([bold(name)]);
    roff.text([roman(what)]);
}

fn exit_codes(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    EXIT_CODES.iter().for_each(|(code, meaning)| entry(roff, &code.to_string(), meaning));
}

/// Every variable that stands for a flag, and the others.
fn variables(roff: &mut Roff, root: &Command) {
    roff.control("SH", ["ENVIRONMENT"]);
    roff.text([roman("A flag goes before its variable, that before castra.toml.")]);
    let mut known = Vec::new();
    for command in walk(root) {
        for argument in command.get_arguments() {
            let (Some(variable), Some(flag)) = (argument.get_env(), argument.get_long()) else { continue };
            if known.contains(&variable) {
                continue;
            }
            known.push(variable);
            roff.control("TP", []);
            roff.text([bold(variable.to_string_lossy())]);
            let owner = command.get_bin_name().unwrap_or_else(|| command.get_name());
            roff.text([roman("As "), bold(format!("--{flag}")), roman(" of "), italic(owner), roman(".")]);
        }
    }
    VARIABLES.iter().for_each(|(name, what)| entry(roff, name, what));
}
