//! What is installed beside the program: man pages, completions, and the package that has them all.

use crate::support::{castra, skip};
use std::path::{Path, PathBuf};
use std::process::Command;

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Renders a page; what groff has against it.
fn render(page: &Path) -> (String, String) {
    let mut command = Command::new("man");
    command.args(["--warnings=all", "--local-file"]).arg(page).env("MANWIDTH", "80").env("LC_ALL", "C.UTF-8");
    let output = command.env("MANROFFOPT", "-ww").env("MAN_KEEP_FORMATTING", "").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn pages(dir: &Path) -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages
}

#[test]
fn there_is_a_page_for_each_command_with_its_examples() {
    use clap::CommandFactory;
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("deep/man1");
    let output = castra().arg("man").arg(&man).output().unwrap();
    assert!(output.status.success());
    let written: Vec<PathBuf> =
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
    let mut sorted = written.clone();
    sorted.sort();
    assert_eq!(sorted, pages(&man));
    fn walk(name: String, command: &clap::Command, each: &mut dyn FnMut(&str, &clap::Command)) {
        each(&name, command);
        command.get_subcommands().for_each(|sub| walk(format!("{name}-{}", sub.get_name()), sub, each));
    }
    let mut count = 0;
    walk("castra".to_owned(), &castra::cli::Cli::command(), &mut |name, command| {
        count += 1;
        let page = std::fs::read_to_string(man.join(format!("{name}.1"))).expect(name).replace("\\-", "-");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
        for example in examples.by_ref().take_while(|line| line.starts_with("  ")) {
            let plain = page.replace("\\*(Aq", "'").replace("\\(aq", "'").replace("\\\\", "\\");
            assert!(plain.contains(example.trim_start()), "{name}: {example}");
        }
        for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("--{flag}")), "{name}: --{flag}");
        }
    });
    assert_eq!(count, written.len());
    let root = std::fs::read_to_string(man.join("castra.1")).unwrap().replace("\\-", "-");
    let section = |from: &str, until: &str, text: &str| {
        let lines = text.lines().skip_while(|line| *line != from).skip(1);
        lines.take_while(|line| !line.starts_with(until)).map(str::to_owned).collect::<Vec<_>>()
    };
    let doc = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ARCHITECTURE.md")).unwrap();
    let plain = |text: &str| text.replace(',', "");
    let in_doc: Vec<(i32, String)> = section("## Exit codes", "## ", &doc)
        .iter()
        .filter_map(|row| {
            let mut cells = row.split('|').map(str::trim).skip(1);
            Some((cells.next()?.parse().ok()?, plain(cells.next()?)))
        })
        .collect();
    let in_man: Vec<(i32, String)> = section(".SH \"EXIT STATUS\"", ".SH", &root)
        .split(|line| line == ".TP")
        .skip(1)
        .map(|entry| {
            let code = entry[0].trim_start_matches("\\fB").trim_end_matches("\\fR");
            (code.parse().unwrap(), plain(&entry[1]))
        })
        .collect();
    assert_eq!(in_man, in_doc);
    assert!(in_doc.len() > 10);
    for word in [
        "CASTRA_STATE_ROOT",
        "CASTRA_LOG_LEVEL",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        "/etc/castra/castra.toml",
        "castra.sock",
        "logs/broker.log",
        "status",
    ] {
        assert!(root.contains(word), "castra.1 has no {word}");
    }
    // A folder that cannot be made.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let refused = castra().arg("man").arg(dir.path().join("file/x")).output().unwrap();
    assert_eq!(refused.status.code(), Some(73));
}

#[test]
fn every_page_renders_without_a_warning() {
    if !has("man") || !has("groff") {
        return skip("every_page_renders_without_a_warning", "there is no man with groff");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(castra().arg("man").arg(dir.path()).output().unwrap().status.success());
    for page in pages(dir.path()) {
        let (text, warnings) = render(&page);
        assert_eq!(warnings, "", "{}", page.display());
        assert!(text.contains("NAME") && text.contains("SEE ALSO"), "{text}");
    }
    // It would say so.
    let bad = dir.path().join("bad.1");
    std::fs::write(&bad, ".TH BAD 1\n.SH NAME\n\\[nosuchglyph]\n").unwrap();
    assert_ne!(render(&bad).1, "");
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = castra().args(["completions", shell]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains("publish") && text.contains("state-root"),
            "{shell}"
        );
        let script = dir.path().join(shell);
        std::fs::write(&script, text).unwrap();
        // No shell of the three takes part where it is not installed; bash is wherever castra's tests are.
        if ["bash", "zsh", "fish"].contains(&shell) && (shell == "bash" || has(shell)) {
            let checked = Command::new(shell).arg("-n").arg(&script).output().unwrap();
            assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    // What bash would offer.
    let complete = format!(
        "source {}; COMP_WORDS=(castra broker --log-level ''); COMP_CWORD=3; _castra castra '' --log-level; echo ${{COMPREPLY[@]}}",
        dir.path().join("bash").display()
    );
    let output = Command::new("bash").args(["-c", &complete]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "error warn info debug trace");
    assert_eq!(castra().args(["completions", "csh"]).output().unwrap().status.code(), Some(2));
    // A reader that has enough is no fault.
    let head = format!(
        "{} completions bash | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_castra")
    );
    let output = Command::new("bash").args(["-c", &head]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_package_installs_what_is_needed() {
    const NAME: &str = "the_package_installs_what_is_needed";
    for program in ["dpkg", "dpkg-deb", "cargo-deb"] {
        if !has(program) {
            return skip(NAME, &format!("there is no {program}"));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // …/debug/castra, as it was built for the tests.
    let built = Path::new(env!("CARGO_BIN_EXE_castra")).parent().unwrap();
    let mut build = Command::new(crate_root.join("deploy/deb"));
    build.args(["--profile", "dev", "--no-build", "--output"]).arg(dir.path());
    let output = build.env("CARGO_TARGET_DIR", built.parent().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let deb = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert_eq!(deb.extension().and_then(|e| e.to_str()), Some("deb"), "{}", deb.display());

    let root = dir.path().join("root");
    for admin in ["info", "updates", "triggers"] {
        std::fs::create_dir_all(root.join("var/lib/dpkg").join(admin)).unwrap();
    }
    std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display())).args([
            "--force-depends",
            "--force-not-root",
            "--log=/dev/null",
        ]);
        command.args(args).output().unwrap()
    };
    let installed = dpkg(&["--install", deb.to_str().unwrap()]);
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let status = dpkg(&["--status", "castra"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("Status: install ok installed"));
    assert!(dpkg(&["--verify", "castra"]).stdout.is_empty());

    for (path, same_as) in [
        ("usr/bin/castra", None),
        ("etc/castra/castra.toml", Some("deploy/castra.toml")),
        ("usr/lib/systemd/system/castra.service", Some("deploy/systemd/castra.service")),
        ("usr/lib/systemd/system/castra.socket", Some("deploy/systemd/castra.socket")),
        ("usr/share/bash-completion/completions/castra", None),
        ("usr/share/zsh/vendor-completions/_castra", None),
        ("usr/share/fish/vendor_completions.d/castra.fish", None),
        ("usr/share/doc/castra/copyright", None),
        ("usr/share/doc/castra/README.md", Some("README.md")),
        ("usr/share/doc/castra/docs/BUS.md", Some("docs/BUS.md")),
    ] {
        let bytes = std::fs::read(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(!bytes.is_empty());
        if let Some(source) = same_as {
            assert_eq!(bytes, std::fs::read(crate_root.join(source)).unwrap(), "{path}");
        }
    }
    let man = pages(&root.join("usr/share/man/man1"));
    assert!(
        man.len() >= 8 && man.iter().any(|p| p.to_str().unwrap().ends_with("castra-bus-publish.1.gz")),
        "{man:?}"
    );
    assert!(!has("man") || man.iter().all(|page| render(page).1.is_empty()));
    let version = Command::new(root.join("usr/bin/castra")).arg("--version").output().unwrap();
    assert_eq!(version.stdout, concat!("castra ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    let mut print = Command::new(root.join("usr/bin/castra"));
    print.args(["broker", "--print-config", "--config"]).arg(root.join("etc/castra/castra.toml"));
    assert!(print.output().unwrap().status.success());

    // Settings that somebody changed are kept when it is removed, and gone when it is purged.
    std::fs::write(root.join("etc/castra/castra.toml"), "limits.vms = 5\n").unwrap();
    assert!(dpkg(&["--remove", "castra"]).status.success());
    assert!(root.join("etc/castra/castra.toml").exists() && !root.join("usr/bin/castra").exists());
    assert!(dpkg(&["--purge", "castra"]).status.success());
    assert!(!root.join("etc/castra/castra.toml").exists());
}
