//! The file in which the state is kept: JSON for people, a checksum for machines, written whole.
//!
//! A change is on disk before it is acknowledged, and the file is at every moment either the old one or
//! the new one:
//!
//! 1. the new text goes to `FILE.new`, mode 0600
//! 2. that file is fsynced
//! 3. it is renamed over `FILE`
//! 4. the directory is fsynced
//!
//! The last line is `#crc32 xxxxxxxx`, the CRC-32 of every byte before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file that is read, in bytes. An allocation takes about 600; the limit keeps a wrong path
/// (a device, a disk image) from filling the memory.
const FILE_LEN_MAX: u64 = 64 << 20;

const CHECKSUM_PREFIX: &str = "#crc32 ";

/// What can go wrong with the file. Each variant names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A system call failed. Nothing was acknowledged.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Another process has the file open.
    #[error(
        "{} is in use by another process: a second weftd with the same state directory? \
         Stop it, or give this one a directory of its own",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is torn, was changed by hand, or the disk has failed.
    #[error(
        "{} is damaged ({why}). It says which addresses the pods of this node hold; starting without \
         it could give an address twice. Restore it from a backup; or, when no pod of this node runs \
         any more (for example after a reboot), move it away with `mv {} {}.damaged` and start again",
        path.display(), path.display(), path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// One file, held by one process.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    new_path: PathBuf,
    directory: PathBuf,
    /// Holds the lock as long as the store lives; the kernel lets go of it when the process dies.
    _lock: File,
    #[cfg(test)]
    pub(crate) crash: Option<Crash>,
}

impl Store {
    /// Takes hold of `path`, which need not exist; its directory is created when missing.
    ///
    /// # Errors
    /// When another process holds it, or the directory cannot be used.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&directory).map_err(during("create", &directory))?;
        let lock_path = with_suffix(path, ".lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(during("open", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::Locked { path: lock_path });
            }
            Err(errno) => return Err(during("lock", &lock_path)(errno.into())),
        }
        Ok(Self {
            path: path.to_owned(),
            new_path: with_suffix(path, ".new"),
            directory,
            _lock: lock,
            #[cfg(test)]
            crash: None,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state; `None` when there is no file yet.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the file is not exactly what [`Store::write`] left.
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(during("open", &self.path)(error)),
        };
        let mut bytes = Vec::new();
        let mut limited = file.take(FILE_LEN_MAX + 1);
        limited.read_to_end(&mut bytes).map_err(during("read", &self.path))?;
        decode(&bytes).map(Some).map_err(|why| StoreError::Damaged { path: self.path.clone(), why })
    }

    /// Writes the state. When this returns, it is on disk.
    ///
    /// # Errors
    /// When a step fails. The file is then the old one, or (if only the last step failed) the new one.
    pub fn write<T: Serialize>(&mut self, state: &T) -> Result<(), StoreError> {
        let bytes = encode(state).map_err(during("encode", &self.path))?;
        self.remove_leftover()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.new_path)
            .map_err(during("create", &self.new_path))?;
        self.step(Step::Create, &mut file, &bytes)?;
        file.write_all(&bytes).map_err(during("write", &self.new_path))?;
        self.step(Step::Write, &mut file, &bytes)?;
        file.sync_all().map_err(during("sync", &self.new_path))?;
        self.step(Step::Sync, &mut file, &bytes)?;
        fs::rename(&self.new_path, &self.path).map_err(during("rename to", &self.path))?;
        self.step(Step::Rename, &mut file, &bytes)?;
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(during("sync", &self.directory))
    }

    /// Removes what an interrupted write left behind.
    fn remove_leftover(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.new_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(during("remove", &self.new_path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A place where a test can pull the plug.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn step(&self, _done: Step, _file: &mut File, _bytes: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&mut self, done: Step, file: &mut File, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(crash) = self.crash.take_if(|crash| crash.after == done) else { return Ok(()) };
        if matches!(done, Step::Create | Step::Write) {
            // Not synced yet: any part of it may have reached the disk.
            let kept = bytes.len() * usize::from(crash.kept_percent.min(100)) / 100;
            file.set_len(0).unwrap();
            rustix::fs::seek(&*file, rustix::fs::SeekFrom::Start(0)).unwrap();
            file.write_all(&bytes[..kept]).unwrap();
        }
        Err(during("crash during the write of", &self.path)(io::Error::other("power cut")))
    }
}

/// The steps of a write, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `FILE.new` exists.
    Create,
    /// Its text is written.
    Write,
    /// It is synced.
    Sync,
    /// It has taken the file's place.
    Rename,
}

/// A power cut that a test asks for.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crash {
    pub(crate) after: Step,
    /// How much of an unsynced file reached the disk.
    pub(crate) kept_percent: u8,
}

fn encode<T: Serialize>(state: &T) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(state)?;
    bytes.push(b'\n');
    let checksum = crc32(&bytes);
    writeln!(bytes, "{CHECKSUM_PREFIX}{checksum:08x}")?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if u64::try_from(bytes.len()).is_ok_and(|len| len > FILE_LEN_MAX) {
        return Err(format!("larger than {FILE_LEN_MAX} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    let (body, checksum) = text
        .strip_suffix('\n')
        .and_then(|text| text.rfind('\n').map(|at| text.split_at(at + 1)))
        .and_then(|(body, line)| Some((body, line.strip_prefix(CHECKSUM_PREFIX)?)))
        .ok_or_else(|| {
            format!("the checksum line is missing after {} bytes: cut off?", bytes.len())
        })?;
    let found = crc32(body.as_bytes());
    if checksum != format!("{found:08x}") {
        return Err(format!("the checksum is {found:08x}, but its last line says {checksum}"));
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// CRC-32 as in IEEE 802.3 §3.2.9 (reflected, polynomial 0x04C11DB7).
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
    }
    !crc
}

fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { action, path, cause }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    type State = BTreeMap<String, u32>;

    fn state(value: u32) -> State {
        (0..20).map(|key| (format!("key-{key}"), value)).collect()
    }

    #[test]
    fn checksum_is_the_well_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn round_trip_with_private_mode_and_no_leftover() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/state.json");
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.read::<State>().unwrap(), None);
        store.write(&state(1)).unwrap();
        store.write(&state(2)).unwrap();
        assert_eq!(store.read::<State>().unwrap(), Some(state(2)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path.with_file_name("state.json.new").exists());
    }

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let first = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })));
        drop(first);
        Store::open(&path).unwrap();
    }

    #[test]
    fn every_cut_of_the_file_is_refused_and_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let mut store = Store::open(&path).unwrap();
        store.write(&state(7)).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let error = store.read::<State>().unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "cut at {len}: {error}");
            assert!(error.to_string().contains("mv "), "{error}");
        }
    }

    #[test]
    fn a_file_of_zeros_is_refused() {
        // What some file systems leave after a power cut.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let store = Store::open(&path).unwrap();
        fs::write(&path, vec![0; 4096]).unwrap();
        assert!(matches!(store.read::<State>(), Err(StoreError::Damaged { .. })));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = encode(&state(3)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode::<State>(&bytes).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<State>(&bytes).is_err());
        }

        #[test]
        fn a_power_cut_leaves_the_old_or_the_new(
            after in prop::sample::select(vec![Step::Create, Step::Write, Step::Sync, Step::Rename]),
            kept_percent in 0_u8..=100,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.json");
            let mut store = Store::open(&path).unwrap();
            store.write(&state(1)).unwrap();
            store.crash = Some(Crash { after, kept_percent });
            prop_assert!(store.write(&state(2)).is_err());
            drop(store);
            let mut store = Store::open(&path).unwrap();
            let expected = if after == Step::Rename { state(2) } else { state(1) };
            prop_assert_eq!(store.read::<State>().unwrap(), Some(expected));
            store.write(&state(3)).unwrap();
            prop_assert_eq!(store.read::<State>().unwrap(), Some(state(3)));
        }
    }
}
