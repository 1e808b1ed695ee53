//! deploy/guest: the units are right, shut in as far as systemd can tell, and say what the program understands.

use crate::support::skip;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `systemd-analyze security` may find, in tenths. It is root's, for the ports of virtio-serial.
const EXPOSURE: &str = "20";

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/guest").join(name)
}

fn analyze(test: &str) -> Option<Command> {
    if crate::ground::find("systemd-analyze").is_none() {
        skip(test, "there is no systemd-analyze");
        return None;
    }
    Some(Command::new("systemd-analyze"))
}

#[test]
fn the_unit_is_valid_and_shut_in() {
    let Some(mut command) = analyze("the_unit_is_valid_and_shut_in") else { return };
    let dir = tempfile::tempdir().unwrap();
    // It is not installed here.
    let text = std::fs::read_to_string(packaged("castra-agent.service")).unwrap();
    let unit = dir.path().join("castra-agent.service");
    std::fs::write(&unit, text.replace("/usr/bin/castra", env!("CARGO_BIN_EXE_castra"))).unwrap();
    let output = command.args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("castra-agent"), "{said}");

    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE]).arg(&unit);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// What both start is what can be typed, and the folders and variables are those of the program.
#[test]
fn the_units_say_what_the_agent_understands() {
    use clap::CommandFactory;
    let read = |name: &str| std::fs::read_to_string(packaged(name)).unwrap();
    let (unit, init, conf) =
        (read("castra-agent.service"), read("castra-agent.initd"), read("castra-agent.confd"));
    let cli = castra::cli::Cli::command();
    let agent = cli.find_subcommand("agent").unwrap();
    let argument = |long: &str| agent.get_arguments().find(|arg| arg.get_long() == Some(long)).expect(long);
    let default = |long: &str| argument(long).get_default_values()[0].to_str().unwrap().to_owned();
    assert!(unit.contains("\nExecStart=/usr/bin/castra agent\n"));
    // No core file has the token, and what it may take is bounded.
    for bound in ["\nLimitCORE=0\n", "\nTasksMax=512\n", "\nMemoryMax=2G\n"] {
        assert!(unit.contains(bound), "castra-agent.service has no {bound:?}");
    }
    assert!(init.contains("\ncommand=/usr/bin/castra\ncommand_args=\"agent "));
    castra::cli::Cli::command().try_get_matches_from(["castra", "agent"]).unwrap();

    assert_eq!(default("state-dir"), "/var/lib/castra-agent");
    assert!(
        unit.contains("\nStateDirectory=castra-agent\n") && init.contains(" 0700 /var/lib/castra-agent\n")
    );
    assert_eq!(default("socket"), "/run/castra/agent.sock");
    assert!(unit.contains("\nRuntimeDirectory=castra\n") && init.contains(" 0755 /run/castra\n"));
    for (long, variable) in
        [("vm", "CASTRA_VM"), ("broker", "CASTRA_BROKER"), ("token-file", "CASTRA_TOKEN_FILE")]
    {
        assert_eq!(argument(long).get_env().unwrap(), variable);
        assert!(unit.contains(variable), "castra-agent.service does not name {variable}");
        assert!(init.contains(&format!("export {variable}\n")) && conf.contains(&format!("#{variable}=")));
    }
}

/// The script, run by a shell that knows what OpenRC provides.
#[test]
fn the_init_script_makes_the_folders_and_hands_the_settings_on() {
    let script = "checkpath() { echo \"checkpath $*\"; }\n\
                  . \"$1\"; . \"$2\"; start_pre; env | grep ^CASTRA_; echo \"$command $command_args\"";
    let mut shell = Command::new("sh");
    let conf = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(conf.path(), "CASTRA_VM=web\nCASTRA_BROKER=\ncastra_agent_args='--json'\n").unwrap();
    // As OpenRC does: the settings first.
    shell.args(["-eu", "-c", script, "sh"]).arg(conf.path()).arg(packaged("castra-agent.initd"));
    shell.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("RC_SVCNAME", "castra-agent");
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        said,
        "checkpath --directory --mode 0700 /var/lib/castra-agent\n\
         checkpath --directory --mode 0755 /run/castra\n\
         CASTRA_VM=web\n\
         /usr/bin/castra agent --json\n"
    );
    let checked = Command::new("sh").arg("-n").arg(packaged("castra-agent.confd")).output().unwrap();
    assert!(checked.status.success());
}
