//! A running VM: QEMU with a console that the test types into.
//!
//! Always holds: QEMU is ended by its pid when the handle is dropped, and the guest ends itself after 15 minutes;
//! every wait has a limit, and a failure shows what the console said.

use crate::ground::Ground;
use crate::support::eventually;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A boot takes 3 s on a quiet machine; beside builds and other tests it may be many times that.
const BOOT: Duration = Duration::from_secs(90);
/// For one command inside.
const COMMAND: Duration = Duration::from_secs(60);
/// The socket in its folder over which QEMU is told what to do.
const QMP: &str = "qmp.sock";

/// What differs from VM to VM.
pub struct Settings {
    pub memory_mib: u32,
    /// Behind the kernel's own words on its command line.
    pub append: String,
    /// Devices, as QEMU is told of them.
    pub devices: Vec<String>,
    /// Files beside those that every guest has.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { memory_mib: 128, append: String::new(), devices: Vec::new(), files: Vec::new() }
    }
}

/// One guest.
pub struct Machine {
    qemu: Child,
    keys: ChildStdin,
    console: Receiver<String>,
    said: String,
    dir: PathBuf,
}

impl Machine {
    /// Boots it and waits for its shell; `dir` is its own.
    pub fn boot(ground: &Ground, dir: &Path, settings: &Settings) -> Self {
        let mut machine = Self::start(ground, dir, settings, &[]);
        machine.read_until("its shell", BOOT, |line| line.ends_with("@ready").then_some(()));
        machine
    }

    /// Goes on with what [`Machine::save`] wrote, in another process; `settings` are those that it had.
    pub fn restore(ground: &Ground, dir: &Path, settings: &Settings, state: &Path) -> Self {
        let mut machine =
            Self::start(ground, dir, settings, &["-incoming", &format!("exec:cat {}", state.display())]);
        let mut qmp = Qmp::connect(dir);
        eventually("the saved state", || {
            (qmp.execute("query-status", json!({}))["status"] != "inmigrate").then_some(())
        });
        qmp.execute("cont", json!({}));
        machine.ok("true");
        machine
    }

    /// Stops it and writes all of it to a file, memory and devices.
    pub fn save(&mut self, state: &Path) {
        let mut qmp = Qmp::connect(&self.dir);
        qmp.execute("stop", json!({}));
        qmp.execute("migrate", json!({ "uri": format!("exec:cat > {}", state.display()) }));
        eventually("its state to be written", || {
            let is = qmp.execute("query-migrate", json!({}));
            assert_ne!(is["status"], "failed", "{is}");
            (is["status"] == "completed").then_some(())
        });
    }

    fn start(ground: &Ground, dir: &Path, settings: &Settings, more: &[&str]) -> Self {
        let initramfs = dir.join("initramfs");
        std::fs::write(&initramfs, ground.initramfs(&settings.files)).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        let memory = settings.memory_mib;
        // A memory that another process can map: vhost-user wants it.
        command.args(["-M", "microvm,acpi=on,memory-backend=mem0", "-m", &memory.to_string(), "-smp", "1"]);
        command.args(["-object", &format!("memory-backend-memfd,id=mem0,size={memory}M,share=on")]);
        command.args(["-accel", "tcg,thread=single", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-serial", "stdio", "-no-reboot", "-kernel"]).arg(&ground.kernel);
        command.arg("-initrd").arg(&initramfs);
        // Without the words about the TSC the guest often hangs in its boot on a busy machine.
        let append = format!(
            "console=ttyS0 quiet reboot=t panic=-1 nokaslr no_timer_check lpj=1000000 i8042.noprobe \
             tsc=reliable tsc_early_khz={} {}",
            ground.tsc_khz, settings.append
        );
        command.args(["-append", &append]).args(&settings.devices).args(more);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", dir.join(QMP).display()));
        let errors = File::create(dir.join("qemu.stderr")).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut qemu = command.spawn().unwrap();
        let (keys, stdout) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
        let (lines, console) = channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                if lines.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Machine { qemu, keys, console, said: String::new(), dir: dir.to_owned() }
    }

    /// Runs a line of shell inside; its exit code and what it printed.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        assert!(!line.contains('\n'), "one line: {line}");
        self.said += &format!("# {line}\n");
        writeln!(self.keys, "{line}").unwrap();
        let (code, mut output) =
            self.read_until(line, COMMAND, |line| line.strip_prefix("@end ")?.parse::<i32>().ok());
        // The end begins on a line of its own.
        if output.ends_with("\n\n") || output == "\n" {
            output.pop();
        }
        (code, output)
    }

    /// The same; it must succeed.
    pub fn ok(&mut self, line: &str) -> String {
        let (code, output) = self.run(line);
        assert_eq!(code, 0, "{line}: {output}\n{}", self.transcript());
        output
    }

    /// Runs it again and again until `found` says so of its output.
    pub fn eventually<T>(&mut self, line: &str, mut found: impl FnMut(&str) -> Option<T>) -> T {
        let until = Instant::now() + COMMAND;
        loop {
            let (_, output) = self.run(line);
            if let Some(value) = found(&output) {
                return value;
            }
            assert!(Instant::now() < until, "waited {COMMAND:?} for {line}\n{}", self.transcript());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As when the power goes.
    pub fn kill(mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }

    fn read_until<T>(&mut self, what: &str, limit: Duration, end: impl Fn(&str) -> Option<T>) -> (T, String) {
        let (until, mut output) = (Instant::now() + limit, String::new());
        loop {
            let Ok(line) = self.console.recv_timeout(until.saturating_duration_since(Instant::now())) else {
                panic!("waited for {what}, at most {limit:?}\n{}", self.transcript());
            };
            self.said += &format!("{line}\n");
            if let Some(value) = end(&line) {
                return (value, output);
            }
            output += &format!("{line}\n");
        }
    }

    /// What was typed and said, its end, and what the processes around it complained of.
    fn transcript(&self) -> String {
        let lines: Vec<&str> = self.said.lines().collect();
        let mut text = format!("--- console\n{}\n", lines[lines.len().saturating_sub(200)..].join("\n"));
        for name in ["qemu.stderr", "carrier.stderr"] {
            let errors = std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            text += &format!("--- {name}\n{errors}\n");
        }
        text + &self.cpu()
    }

    /// Where its processor is, three times: one that waits is at one place, and halted.
    fn cpu(&self) -> String {
        let Some(mut qmp) = Qmp::try_connect(&self.dir) else {
            return "--- QEMU does not answer\n".to_owned();
        };
        let mut text = "--- cpu\n".to_owned();
        for _ in 0..3 {
            let registers = json!({ "command-line": "info registers" });
            let said = qmp.ask("human-monitor-command", registers).unwrap_or_default();
            let place = said.as_str().unwrap_or_default().lines().find(|line| line.contains("IP="));
            text += &format!("{}\n", place.unwrap_or("no answer"));
            std::thread::sleep(Duration::from_millis(100));
        }
        text
    }
}

/// What QEMU is told while it runs.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(dir: &Path) -> Self {
        eventually("QEMU's own socket", || Self::try_connect(dir))
    }

    fn try_connect(dir: &Path) -> Option<Self> {
        let stream = UnixStream::connect(dir.join(QMP)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.ask("qmp_capabilities", json!({})).map(|_| qmp)
    }

    /// Its answer.
    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.ask(command, arguments).unwrap_or_else(|| panic!("QEMU does not answer {command}"))
    }

    /// The same, if there is one; the greeting and events are passed over.
    fn ask(&mut self, command: &str, arguments: Value) -> Option<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{line}").ok()?;
        loop {
            let mut line = String::new();
            let n = self.0.read_line(&mut line).ok()?;
            let mut said: Value = (n > 0).then(|| serde_json::from_str(&line).unwrap())?;
            assert!(said.get("error").is_none(), "{command}: {said}");
            if said.get("return").is_some() {
                return Some(said["return"].take());
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
