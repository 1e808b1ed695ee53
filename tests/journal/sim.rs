//! A directory in memory that loses what a real one may lose.
//!
//!     write, set_size ─▶ live (the page cache) ──sync Ok──▶ durable
//!     create, rename, remove ─▶ live names ──sync_dir Ok──▶ durable names
//!
//! A power cut leaves the durable bytes and any part of what is pending: each write whole, torn at 512
//! bytes, or not at all; a size may have grown over zeros; each name change or not, a rename never halfway.
//! A kill leaves what is live, the last write perhaps cut short. Always holds: what a sync failed on
//! stays readable, is never made durable by a later sync, and is gone with the power; the same seed and
//! the same calls give the same disk.

use castra::core::journal::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a power cut tears a write into.
pub const SECTOR: u64 = 512;
/// What a bad sector makes unreadable.
pub const PAGE: u64 = 4096;

/// splitmix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn fork(&mut self) -> Rng {
        Rng(self.next())
    }
}

/// The calls that change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Create,
    Rename,
    Remove,
    SyncDir,
    Write,
    Sync,
    SetSize,
}

/// How a disk may break its promises; for the tests of the test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// `sync` says `Ok` and does nothing.
    pub sync: bool,
    /// `sync_dir` says `Ok` and does nothing.
    pub sync_dir: bool,
    /// A power cut garbles the first event line it finds durable.
    pub garble: bool,
}

/// What a power cut leaves of what is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Nothing,
    /// Anything.
    Any,
}

#[derive(Clone)]
enum Op {
    Write(u64, Arc<[u8]>),
    Size(u64),
}

#[derive(Clone, Default)]
struct Inode {
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<Op>,
    unreadable: Vec<Range<u64>>,
}

#[derive(Clone)]
enum NameOp {
    Link(String, u64),
    Unlink(String, u64),
    Rename(String, String, u64),
}

type Names = BTreeMap<String, u64>;

#[derive(Clone)]
struct LastWrite {
    ino: u64,
    at: usize,
    old: Vec<u8>,
    old_size: usize,
}

#[derive(Clone)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    live: Names,
    durable: Names,
    pending: Vec<NameOp>,
    last_ino: u64,
    last_write: Option<LastWrite>,
    capacity: u64,
    faults: Vec<(Call, u64, i32)>,
    lies: Lies,
    rng: Rng,
    trace: u64,
    writes: u64,
}

/// Called after every [`Call`], failed or not.
pub type Hook = Box<dyn FnMut(&SimDisk, Call) + Send>;

struct Inner {
    state: State,
    hook: Option<Hook>,
}

/// The directory; clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl SimDisk {
    /// Empty, with room for `capacity` bytes.
    pub fn new(rng: Rng, lies: Lies) -> Self {
        SimDisk::from(State {
            inodes: BTreeMap::new(),
            live: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            last_ino: 0,
            last_write: None,
            capacity: u64::MAX,
            faults: Vec::new(),
            lies,
            rng,
            trace: 0,
            writes: 0,
        })
    }

    fn from(mut state: State) -> Self {
        let State { live, durable, pending, .. } = &state;
        let renamed = |ino: u64| {
            pending.iter().any(
                |op| matches!(op, NameOp::Link(_, i) | NameOp::Unlink(_, i) | NameOp::Rename(_, _, i) if *i == ino),
            )
        };
        let used = |ino: u64| live.values().chain(durable.values()).any(|i| *i == ino) || renamed(ino);
        let gone: Vec<u64> = state.inodes.keys().copied().filter(|ino| !used(*ino)).collect();
        for ino in gone {
            state.inodes.remove(&ino);
        }
        SimDisk(Arc::new(Mutex::new(Inner { state, hook: None })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what is called after every call.
    pub fn hook(&self, hook: Hook) {
        self.lock().hook = Some(hook);
    }

    /// Takes it away.
    pub fn unhook(&self) {
        self.lock().hook = None;
    }

    /// The `nth` (from 0) `call` from now on fails with this errno.
    pub fn fail(&self, call: Call, nth: u64, errno: i32) {
        self.lock().state.faults.push((call, nth, errno));
    }

    /// No more planned failures; how many had not come.
    pub fn heal(&self) -> usize {
        std::mem::take(&mut self.lock().state.faults).len()
    }

    /// Leaves room for so many more bytes; `None`: for any number.
    pub fn room(&self, bytes: Option<u64>) {
        let state = &mut self.lock().state;
        state.capacity = bytes.map_or(u64::MAX, |bytes| state.used() + bytes);
    }

    /// A number that differs when anything about the calls so far does.
    pub fn trace(&self) -> u64 {
        self.lock().state.trace
    }

    /// How many writes there were.
    pub fn writes(&self) -> u64 {
        self.lock().state.writes
    }

    /// The names and bytes as a program sees them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.lock();
        let bytes = |ino: &u64| inner.state.inodes[ino].live.to_vec();
        inner.state.live.iter().map(|(name, ino)| (name.clone(), bytes(ino))).collect()
    }

    /// Replaces a file's bytes, durable at once: damage.
    pub fn overwrite(&self, name: &str, bytes: Vec<u8>) {
        let state = &mut self.lock().state;
        let bytes = Arc::new(bytes);
        if let Some(inode) = state.live.get(name).and_then(|ino| state.inodes.get_mut(ino)) {
            *inode = Inode { live: bytes.clone(), durable: bytes, ..Inode::default() };
        }
    }

    /// Reads that touch these bytes fail from now on.
    pub fn unreadable(&self, name: &str, range: Range<u64>) {
        let state = &mut self.lock().state;
        if let Some(inode) = state.live.get(name).and_then(|ino| state.inodes.get_mut(ino)) {
            inode.unreadable.push(range);
        }
    }

    fn crashed(&self) -> State {
        let mut state = self.lock().state.clone();
        state.capacity = u64::MAX;
        state.faults.clear();
        state
    }

    /// The disk after the process was killed: all that is live, the last write perhaps cut short.
    pub fn killed(&self, rng: &mut Rng) -> SimDisk {
        let mut state = self.crashed();
        if let Some(last) = state.last_write.take()
            && rng.one_in(2)
            && let Some(inode) = state.inodes.get_mut(&last.ino)
            && let Some(Op::Write(at, bytes)) = inode.pending.pop()
        {
            let keep = rng.below(bytes.len() as u64) as usize;
            let live = Arc::make_mut(&mut inode.live);
            live[last.at..last.at + last.old.len()].copy_from_slice(&last.old);
            live.truncate(last.old_size);
            if keep > 0 {
                let op = Op::Write(at, bytes[..keep].into());
                apply(live, &op);
                inode.pending.push(op);
            }
        }
        SimDisk::from(state)
    }

    /// The disk after the power came back.
    pub fn cut(&self, rng: &mut Rng, cut: Cut) -> SimDisk {
        let mut state = self.crashed();
        state.last_write = None;
        state.rng = rng.fork();
        // Of all that may happen, everything and nothing are the most telling.
        let chance = match (cut, rng.below(6)) {
            (Cut::Nothing, _) | (_, 0) => 0,
            (_, 1) => 4,
            (_, 2) => 1,
            (_, 3) => 3,
            _ => 2,
        };
        let torn = rng.one_in(2);
        for inode in state.inodes.values_mut() {
            let mut bytes = inode.durable.clone();
            for op in std::mem::take(&mut inode.pending) {
                lose(&mut bytes, &op, torn, &mut |_| rng.below(4) < chance);
            }
            (inode.live, inode.durable) = (bytes.clone(), bytes);
        }
        let pending = std::mem::take(&mut state.pending);
        let ordered = rng.one_in(2);
        let kept = if chance == 4 { pending.len() as u64 } else { rng.below(pending.len() as u64 + 1) };
        for (i, op) in pending.iter().enumerate() {
            let happened = if ordered { (i as u64) < kept } else { rng.below(4) < chance };
            if happened && chance > 0 {
                rename(&mut state.durable, op);
            }
        }
        state.live = state.durable.clone();
        if state.lies.garble {
            let long = |ino: &&u64| state.inodes[ino].live.len() > 4200;
            let garbled = state.live.values().find(long).copied();
            if let Some(inode) = garbled.and_then(|ino| state.inodes.get_mut(&ino)) {
                let bytes = Arc::make_mut(&mut inode.live);
                bytes[4190] ^= 1;
                inode.durable = inode.live.clone();
            }
        }
        SimDisk::from(state)
    }

    fn call<T>(
        &self,
        call: Call,
        f: impl FnOnce(&mut State, Option<io::Error>) -> io::Result<T>,
    ) -> io::Result<T> {
        let (result, hook) = {
            let mut inner = self.lock();
            let fault = inner.state.fault(call);
            if call != Call::Write {
                inner.state.last_write = None;
            }
            let result = f(&mut inner.state, fault);
            inner.state.mix(call as u64 * 2 + u64::from(result.is_ok()));
            (result, inner.hook.take())
        };
        // Without the lock: the hook may look at this disk. It is not called for its own calls.
        if let Some(mut hook) = hook {
            hook(self, call);
            self.lock().hook = Some(hook);
        }
        result
    }

    fn file(&self, ino: u64) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), ino })
    }
}

impl State {
    fn fault(&mut self, call: Call) -> Option<io::Error> {
        let mut hit = None;
        self.faults.retain_mut(|(kind, nth, errno)| {
            if *kind != call || hit.is_some() {
                return true;
            }
            if *nth == 0 {
                hit = Some(io::Error::from_raw_os_error(*errno));
                return false;
            }
            *nth -= 1;
            true
        });
        hit
    }

    fn used(&self) -> u64 {
        self.live.values().map(|ino| self.inodes[ino].live.len() as u64).sum()
    }

    fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    fn name_op(&mut self, op: NameOp) {
        rename(&mut self.live, &op);
        self.pending.push(op);
    }

    fn pend(&mut self, ino: u64, op: Op) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            apply(Arc::make_mut(&mut inode.live), &op);
            inode.pending.push(op);
        }
    }
}

fn apply(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(at, data) => {
            let (at, end) = (*at as usize, *at as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(data);
        }
        Op::Size(size) => bytes.resize(*size as usize, 0),
    }
}

/// What of `op` gets into `bytes` when it may be lost; `kept` is asked for the whole or for every sector.
fn lose(bytes: &mut Arc<Vec<u8>>, op: &Op, torn: bool, kept: &mut dyn FnMut(u64) -> bool) {
    match op {
        Op::Write(at, data) if torn => {
            let bytes = Arc::make_mut(bytes);
            let end = at + data.len() as u64;
            if kept(0) && (bytes.len() as u64) < end {
                bytes.resize(end as usize, 0);
            }
            let mut from = *at;
            while from < end {
                let to = ((from / SECTOR + 1) * SECTOR).min(end);
                if kept(from) {
                    apply(bytes, &Op::Write(from, data[(from - at) as usize..(to - at) as usize].into()));
                }
                from = to;
            }
        }
        _ if kept(0) => apply(Arc::make_mut(bytes), op),
        _ => {}
    }
}

/// Does `op`, unless what it depends on did not happen.
fn rename(names: &mut Names, op: &NameOp) {
    match op {
        NameOp::Link(name, ino) => drop(names.insert(name.clone(), *ino)),
        NameOp::Unlink(name, ino) => {
            if names.get(name) == Some(ino) {
                names.remove(name);
            }
        }
        NameOp::Rename(from, to, ino) => {
            if names.get(from) == Some(ino) {
                names.remove(from);
                names.insert(to.clone(), *ino);
            }
        }
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn is_eio(error: &io::Error) -> bool {
    error.raw_os_error() == Some(5)
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().state.live.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let ino = self.call(Call::Create, |state, fault| {
            fault.map_or(Ok(()), Err)?;
            if let Some(ino) = state.live.get(name).copied() {
                state.pend(ino, Op::Size(0));
                return Ok(ino);
            }
            state.last_ino += 1;
            let ino = state.last_ino;
            state.inodes.insert(ino, Inode::default());
            state.name_op(NameOp::Link(name.to_owned(), ino));
            Ok(ino)
        })?;
        Ok(self.file(ino))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let ino = self.lock().state.live.get(name).copied().ok_or_else(not_found)?;
        Ok(self.file(ino))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(Call::Rename, |state, fault| {
            // An error of the medium does not say that nothing happened.
            if let Some(error) = fault.as_ref()
                && (!is_eio(error) || state.rng.one_in(2))
            {
                return fault.map_or(Ok(()), Err);
            }
            let ino = state.live.get(from).copied().ok_or_else(not_found)?;
            state.name_op(NameOp::Rename(from.to_owned(), to.to_owned(), ino));
            fault.map_or(Ok(()), Err)
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Call::Remove, |state, fault| {
            fault.map_or(Ok(()), Err)?;
            let ino = state.live.get(name).copied().ok_or_else(not_found)?;
            state.name_op(NameOp::Unlink(name.to_owned(), ino));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.call(Call::SyncDir, |state, fault| {
            fault.map_or(Ok(()), Err)?;
            if !state.lies.sync_dir {
                for op in std::mem::take(&mut state.pending) {
                    rename(&mut state.durable, &op);
                }
            }
            Ok(())
        })
    }

    fn secret(&self) -> u128 {
        0x0123_4567_89ab_cdef << 17
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = &self.lock().state;
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

struct SimFile {
    disk: SimDisk,
    ino: u64,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().state.inodes[&self.ino].live.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.lock();
        let inode = &inner.state.inodes[&self.ino];
        let from = (offset as usize).min(inode.live.len());
        let n = buf.len().min(inode.live.len() - from);
        let end = offset + n as u64;
        if inode.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buf[..n].copy_from_slice(&inode.live[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.call(Call::Write, |state, fault| {
            let size = state.inodes[&self.ino].live.len() as u64;
            let growth = (offset + buf.len() as u64).saturating_sub(size);
            let room = state.capacity.saturating_sub(state.used());
            let linked = state.live.values().any(|ino| *ino == self.ino);
            let full = (growth > room && linked).then(|| io::Error::from_raw_os_error(28));
            let fault = fault.or(full);
            // Fewer than all: a write that did everything says so.
            let n = if fault.is_some() { state.rng.below(buf.len() as u64) as usize } else { buf.len() };
            let n = n.min((room.saturating_add(size).saturating_sub(offset)).min(usize::MAX as u64) as usize);
            state.mix(offset);
            state.mix(buf.iter().fold(0, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(*b))));
            state.writes += 1;
            state.last_write = None;
            if n > 0 {
                let at = offset as usize;
                let live = &state.inodes[&self.ino].live;
                let old = live[at.min(live.len())..(at + n).min(live.len())].to_vec();
                state.last_write = Some(LastWrite { ino: self.ino, at, old, old_size: live.len() });
                state.pend(self.ino, Op::Write(offset, buf[..n].into()));
            }
            fault.map_or(Ok(()), Err)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call(Call::Sync, |state, fault| {
            if state.lies.sync && fault.is_none() {
                return Ok(());
            }
            let (mut rng, none) = (state.rng.fork(), state.rng.one_in(2));
            let Some(inode) = state.inodes.get_mut(&self.ino) else { return Err(not_found()) };
            for op in std::mem::take(&mut inode.pending) {
                if fault.is_some() {
                    // Some of it was written; none of it will be tried again.
                    lose(&mut inode.durable, &op, true, &mut |_| !none && rng.one_in(2));
                } else {
                    apply(Arc::make_mut(&mut inode.durable), &op);
                }
            }
            fault.map_or(Ok(()), Err)
        })
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.disk.call(Call::SetSize, |state, fault| {
            fault.map_or(Ok(()), Err)?;
            state.pend(self.ino, Op::Size(size));
            Ok(())
        })
    }
}
