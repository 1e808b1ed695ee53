//! What `castra agent` was told: by flags, by its environment, by the kernel's command line and by credentials.
//!
//! Always holds: what makes no sense is refused before anything is opened, and says who said it. Owner: `mod.rs`.

use crate::app::failure::{Exit, Failure};
use crate::cli::AgentArgs;
use crate::core::agent::discover::{self, NoName, Place, Said};
use crate::core::agent::outbox::{Bounds, WhenFull};
use crate::core::agent::{Identity, Plan, Subscribe, Times};
use crate::core::config::parse_bytes;
use crate::core::follow::Begin;
use crate::core::limits::{HELLO_BYTES, HOST_BEAT, HOST_SILENCE, PATTERNS};
use crate::core::topic::Pattern;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the kernel was started with.
const CMDLINE: &str = "/proc/cmdline";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// Where QEMU's firmware has what systemd calls credentials.
const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials";
/// The credential that proves this VM's name.
const TOKEN_KEY: &str = "castra.token";
/// The least that an outbox may be bounded to, in bytes: a few events of any size.
const LEAST_BYTES: u64 = 1024 * 1024;

fn usage(why: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, "usage", why)
}

fn bad_config(code: &'static str, why: String) -> Failure {
    Failure::new(Exit::BadConfig, code, why)
}

/// Reads everything.
///
/// # Errors
/// Something makes no sense.
pub fn plan(args: &AgentArgs) -> Result<Plan, Failure> {
    let cmdline = std::fs::read_to_string(CMDLINE).ok();
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let place = place(args.broker.clone(), cmdline.clone(), credentials.as_deref())?;
    let host_name = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
    let vm = discover::vm_name(args.vm.as_deref(), cmdline.as_deref(), &host_name).map_err(|error| {
        let code = if matches!(error, NoName::Bad { .. }) { "bad-name" } else { "no-name" };
        Failure::new(Exit::Usage, code, error.to_string())
    })?;
    let token = token(args.token_file.as_deref(), credentials.as_deref())?;
    let identity = Identity { vm, token };
    // An instance and an epoch are sixteen digits each.
    if identity.hello("0123456789abcdef", "0123456789abcdef").len() + 1 > HELLO_BYTES {
        let why =
            format!("the token is too long: with this VM's name a hello has at most {HELLO_BYTES} bytes");
        return Err(bad_config("bad-token", why));
    }
    let times =
        Times { beat: args.heartbeat.unwrap_or(HOST_BEAT), silence: args.silence.unwrap_or(HOST_SILENCE) };
    if times.silence <= times.beat {
        return Err(usage("--silence must be longer than --heartbeat: a host is heard when it answers one"));
    }
    Ok(Plan { place, identity, subscribe: subscribe(args)?, times })
}

/// Where the broker is.
fn place(
    typed: Option<String>,
    cmdline: Option<String>,
    credentials: Option<&Path>,
) -> Result<Place, Failure> {
    let said = Said {
        typed,
        cmdline,
        credential: credentials
            .and_then(|folder| std::fs::read_to_string(folder.join(discover::BROKER_KEY)).ok()),
        firmware: std::fs::read_to_string(format!("{FIRMWARE}/{}/raw", discover::BROKER_KEY)).ok(),
    };
    let is_typed = said.typed.is_some();
    said.place().map_err(|error| match is_typed && error.from == "--broker" {
        true => usage(error.to_string()),
        false => bad_config("bad-broker", error.to_string()),
    })
}

/// What proves the name: of a file that nobody else may read, else the credential. (Who may read a credential is the
/// service manager's affair.)
fn token(file: Option<&Path>, credentials: Option<&Path>) -> Result<Option<String>, Failure> {
    let credential = || credentials.map(|folder| folder.join(TOKEN_KEY)).filter(|path| path.exists());
    let (path, is_file) = match file.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => (path.to_owned(), true),
        None => match credential() {
            Some(path) => (path, false),
            None => return Ok(None),
        },
    };
    let name = path.display();
    let cannot = |e: io::Error| bad_config("bad-token", format!("the token file {name} cannot be read: {e}"));
    let mode = std::fs::metadata(&path).map_err(cannot)?.permissions().mode() & 0o777;
    if is_file && mode & 0o077 != 0 {
        let why = format!("others can read the token file {name} (mode {mode:03o}); chmod 600 {name}");
        return Err(bad_config("bad-token", why));
    }
    let text = std::fs::read_to_string(&path).map_err(cannot)?;
    let token = text.trim();
    if token.is_empty() || token.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let why = format!("the token file {name} must have one word, the token of this VM");
        return Err(bad_config("bad-token", why));
    }
    Ok(Some(token.to_owned()))
}

fn subscribe(args: &AgentArgs) -> Result<Option<Subscribe>, Failure> {
    let Some(command) = args.exec.clone() else { return Ok(None) };
    let bad = |why: String| Failure::new(Exit::BadData, "bad-pattern", why);
    let pattern = |text: &String| {
        Pattern::parse(text).map_err(|e| bad(format!("{text:?} is no topic and no pattern: {e}")))
    };
    let patterns = args.subscribe.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
    if patterns.len() > PATTERNS {
        return Err(bad(format!("--subscribe may be given {PATTERNS} times at the most")));
    }
    let begin = if args.from == "earliest" { Begin::Earliest } else { Begin::Latest };
    Ok(Some(Subscribe { patterns, begin, command }))
}

/// What the outbox may keep.
///
/// # Errors
/// A size that is none, or too small.
pub fn bounds(args: &AgentArgs) -> Result<Bounds, Failure> {
    let mut bounds = Bounds::default();
    if let Some(text) = &args.outbox_bytes {
        let size = parse_bytes(text).filter(|size| *size >= LEAST_BYTES);
        bounds.bytes =
            size.ok_or_else(|| usage(format!("--outbox-bytes {text:?}: a size of 1MiB or more")))?;
    }
    bounds.age = args.outbox_age.unwrap_or(bounds.age);
    if args.outbox_full == "drop-oldest" {
        bounds.when_full = WhenFull::DropOldest;
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    #[test]
    fn tokens() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let save = |text: &str, mode| {
            write(&file, text).unwrap();
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        };
        let read = |credentials| token(Some(&file), credentials).map_err(|failure| failure.message);
        assert!(read(None).unwrap_err().contains("cannot be read"));
        save("secret\n", 0o600);
        assert_eq!(read(None).unwrap().as_deref(), Some("secret"));
        save("secret\n", 0o640);
        assert!(read(None).unwrap_err().contains("others can read the token file"));
        for bad in ["", "\n", "two words", "a\u{7}b"] {
            save(bad, 0o600);
            assert!(read(None).unwrap_err().contains("must have one word"), "{bad:?}");
        }
        // A credential, where there is no file.
        assert_eq!(token(None, Some(dir.path())).map_err(|f| f.message), Ok(None));
        write(dir.path().join(TOKEN_KEY), "other").unwrap();
        assert_eq!(token(None, Some(dir.path())).map_err(|f| f.message), Ok(Some("other".into())));
        save("secret", 0o600);
        assert_eq!(read(Some(dir.path())).unwrap().as_deref(), Some("secret"));
    }

    #[test]
    fn a_place_that_is_none_says_who_said_it() {
        let dir = tempfile::tempdir().unwrap();
        let of = |typed: Option<&str>, cmdline: &str| {
            place(typed.map(str::to_owned), Some(cmdline.to_owned()), Some(dir.path()))
                .map_err(|f| (f.exit, f.message))
        };
        assert_eq!(of(None, "quiet"), Ok(Place::Auto));
        write(dir.path().join("castra.broker"), "tcp:10.0.0.1:7070\n").unwrap();
        assert_eq!(of(None, "quiet"), Ok("tcp:10.0.0.1:7070".parse().unwrap()));
        assert_eq!(of(Some("7070"), "").unwrap_err().0, Exit::Usage);
        let (exit, why) = of(None, "castra.broker=7070").unwrap_err();
        assert!(
            exit == Exit::BadConfig && why.contains("kernel command line \"7070\": a broker is at auto, "),
            "{why}"
        );
    }
}
