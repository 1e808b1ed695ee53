//! What a VM is made of: a kernel out of a Debian package, and the first file system with the guest's program.
//!
//! Always holds: the kernel is unpacked once, under a lock, and appears whole; nothing is installed or downloaded here
//! (`./test` puts the package where it is looked for).

use crate::cpio::Archive;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// In the order in which they are loaded; a kernel may have some of them built in.
const MODULES: [&str; 12] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "qemu_fw_cfg",
];

/// What QEMU is given.
pub struct Ground {
    pub kernel: PathBuf,
    /// The modules that were not built in, in order.
    modules: Vec<(&'static str, Vec<u8>)>,
    busybox: PathBuf,
    /// `castra agent`, one static file.
    pub program: PathBuf,
    /// How fast the counter runs that the guest is told to trust.
    pub tsc_khz: u64,
}

/// The first of these programs on the PATH, or where `./test` installs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin"));
    folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The folder all builds are in.
fn target() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_castra")).ancestors().nth(2).unwrap().to_owned()
}

/// Finds or makes everything; why a VM cannot run here otherwise.
pub fn lay() -> Result<Ground, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guest's kernel is one for amd64".to_owned());
    }
    for program in ["qemu-system-x86_64", "dpkg-deb"] {
        find(program).ok_or_else(|| format!("there is no {program}"))?;
    }
    let busybox = find("busybox").ok_or("there is no busybox")?;
    if wants_libraries(&fs::read(&busybox).unwrap()) {
        return Err("busybox is not static: install busybox-static".to_owned());
    }
    let tsc_khz = tsc_khz().ok_or("/proc/cpuinfo does not say how fast this machine's clock runs")?;
    let unpacked = unpacked(&target().join("vm"), &busybox)?;
    let module = |name: &&'static str| Some((*name, fs::read(unpacked.join(format!("{name}.ko"))).ok()?));
    Ok(Ground {
        kernel: unpacked.join("vmlinux"),
        modules: MODULES.iter().filter_map(module).collect(),
        busybox,
        program: guest_program(),
        tsc_khz,
    })
}

impl Ground {
    /// The first file system, with further files in it.
    pub fn initramfs(&self, more: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut archive = Archive::default();
        for path in ["proc", "run", "sys", "tmp", "var/lib"] {
            archive.dir(path);
        }
        archive.device("dev/console", 5, 1);
        archive.device("dev/null", 1, 3);
        archive.program("init", include_bytes!("init.sh"));
        archive.program("bin/busybox", &fs::read(&self.busybox).unwrap());
        archive.program("bin/castra", &fs::read(&self.program).unwrap());
        let order: String = self.modules.iter().map(|(name, _)| format!("{name}\n")).collect();
        archive.program("modules/order", order.as_bytes());
        for (name, bytes) in &self.modules {
            archive.program(&format!("modules/{name}.ko"), bytes);
        }
        more.iter().for_each(|(path, bytes)| archive.program(path, bytes));
        archive.finish()
    }
}

/// A program of this machine for the guest, as `bin/<name>`, and the libraries it wants.
pub fn with_libraries(program: &Path, name: &str, scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    for program in ["strip", "ldd"] {
        find(program).ok_or_else(|| format!("there is no {program}"))?;
    }
    let small = scratch.join(name);
    output(Command::new("strip").arg("-o").arg(&small).arg(program));
    let mut files = vec![(format!("bin/{name}"), fs::read(&small).unwrap())];
    // Lines like "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", and the interpreter's, which has only a path.
    let said = String::from_utf8(output(Command::new("ldd").arg(program)).stdout).unwrap();
    for path in said.split_whitespace().filter(|word| word.starts_with('/')) {
        files.push((path.trim_start_matches('/').to_owned(), fs::read(path).unwrap()));
    }
    Ok(files)
}

/// Builds it, or finds that it is built: a test of yesterday's program tests nothing.
fn guest_program() -> PathBuf {
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/guest/build"));
    let said = output(build.env("CARGO_TARGET_DIR", target()));
    let said = String::from_utf8(said.stdout).unwrap();
    PathBuf::from(said.split(' ').next().unwrap())
}

/// Whether this ELF file names an interpreter.
fn wants_libraries(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| (0..bytes).fold(0, |n, i| n | usize::from(elf[at + i]) << (8 * i));
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|i| number(table + i * size, 4) == 3)
}

fn tsc_khz() -> Option<u64> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    Some((mhz * 1000.0) as u64)
}

/// The folder with `vmlinux` and the modules of the newest package in `folder`.
fn unpacked(folder: &Path, busybox: &Path) -> Result<PathBuf, String> {
    let of_kernel = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("linux-image-") && name.contains("-cloud-amd64_") && name.ends_with(".deb")
    };
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let package = entries.filter(of_kernel).max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let package = package.ok_or_else(|| {
        format!("there is no linux-image-*-cloud-amd64_*.deb in {}; ./test puts one there", folder.display())
    })?;
    // Nextest runs every test in a process of its own.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let ready = package.with_extension("unpacked");
    if !ready.is_dir() {
        let partial = package.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir(&partial).unwrap();
        unpack(&package, &partial, busybox);
        fs::rename(&partial, &ready).unwrap();
    }
    Ok(ready)
}

fn unpack(package: &Path, into: &Path, busybox: &Path) {
    let all = tempfile::tempdir_in(into.parent().unwrap()).unwrap();
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(all.path()));
    let mut paths = Vec::new();
    walk(all.path(), &mut paths);
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("vmlinuz-") {
            fs::write(into.join("vmlinux"), vmlinux(&fs::read(&path).unwrap(), into, busybox)).unwrap();
        } else if let Some((module, packed)) = name.split_once(".ko")
            && MODULES.contains(&module)
        {
            let bytes = match packed {
                "" => fs::read(&path).unwrap(),
                ".xz" => decompress(Command::new(busybox).args(["xz", "-dc"]).arg(&path)),
                ".zst" => decompress(Command::new("zstd").arg("-dc").arg(&path)),
                other => panic!("{module}.ko{other}: packed in a way that is not known here"),
            };
            fs::write(into.join(format!("{module}.ko")), bytes).unwrap();
        }
    }
    assert!(into.join("vmlinux").exists(), "{} has no kernel", package.display());
}

/// The uncompressed kernel inside a bzImage: QEMU enters it directly, and the guest's own unpacking is saved.
fn vmlinux(image: &[u8], scratch: &Path, busybox: &Path) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let setup = (usize::from(image[0x1f1]) + 1) * 512;
    let from = setup + word(0x248);
    let payload = &image[from..from + word(0x24c)];
    let packed = scratch.join("payload");
    fs::write(&packed, payload).unwrap();
    let mut command = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Command::new("zstd"),
        [0x02, 0x21, 0x4c, 0x18, ..] => Command::new("lz4"),
        [0xfd, b'7', b'z', ..] => {
            let mut command = Command::new(busybox);
            command.arg("xz");
            command
        }
        [0x1f, 0x8b, ..] => Command::new("gzip"),
        other => panic!("a kernel packed in a way that is not known here: {:02x?}", &other[..4]),
    };
    let kernel = decompress(command.arg("-dc").stdin(File::open(&packed).unwrap()));
    fs::remove_file(packed).unwrap();
    kernel
}

/// Behind the packed bytes stands their length, at which some programs stumble when all is done.
fn decompress(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.stdout.starts_with(b"\x7fELF"),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}
