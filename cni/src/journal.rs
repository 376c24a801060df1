//! DELs that the daemon could not carry out because it did not run: noted by the plugin, done by the daemon.
//!
//! A runtime that is told that DEL failed tries again, or does not; either way the container is gone. So the
//! plugin notes what is to be removed in a directory beside the daemon's socket, and the runtime is told that it
//! is done, because from then on it will be: the daemon looks there when it starts, before it answers anybody, and
//! before each request.
//!
//! 1. the plugin writes `.ID@IFNAME.PID.new` and syncs it
//! 2. it renames it to `ID@IFNAME` and syncs the directory: the DEL is accepted
//! 3. the daemon removes port, device and addresses, and writes that down
//! 4. it removes the note
//!
//! Whatever is killed between two steps: before 2 the runtime was told nothing, after it the note is there, and
//! removing twice is removing. The directory may be lost in a reboot, like the socket's: so are all pods, and the
//! daemon releases what an earlier boot held.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the directory beside the socket.
const DIRECTORY: &str = "deletions";

/// Most notes that are kept. The daemon holds no more attachments than this (`ipam::ALLOCATIONS_MAX`).
const NOTES_MAX: usize = 16_384;

/// Longest name of a note, in bytes. File systems take 255; the plugin's own name for it is longer.
const NAME_LEN_MAX: usize = 200;

/// Longest note that is read, in bytes.
const NOTE_LEN_MAX: u64 = 4096;

/// An interface of a container that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// The container's id.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
}

/// The directory of notes.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

/// Why a DEL could not be noted, or notes not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A system call failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// There are too many already.
    #[error("{} has {NOTES_MAX} notes already: start weftd, which carries them out", .0.display())]
    Full(PathBuf),
    /// A file's name cannot be made of the container's id.
    #[error(
        "the container id and interface name are longer than {NAME_LEN_MAX} bytes together, and cannot be noted"
    )]
    TooLong,
    /// A note says something else than its name.
    #[error("{} is no note of a deletion ({why}): remove the file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Journal {
    /// The notes for the daemon that listens on `socket`.
    pub fn beside(socket: &Path) -> Self {
        Self { directory: socket.with_file_name(DIRECTORY) }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes a deletion. When this returns, it is on disk.
    ///
    /// # Errors
    /// When it could not be written; then nothing was noted.
    pub fn note(&self, deletion: &Deletion) -> Result<(), JournalError> {
        let name = name_of(deletion);
        if name.len() > NAME_LEN_MAX {
            return Err(JournalError::TooLong);
        }
        let directory = &self.directory;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(during("make", directory))?;
        let path = directory.join(&name);
        if !path.exists() && self.paths()?.len() >= NOTES_MAX {
            return Err(JournalError::Full(directory.clone()));
        }
        let new = directory.join(format!(".{name}.{}.new", std::process::id()));
        let text =
            serde_json::to_vec(deletion).map_err(|error| during("write", &new)(error.into()))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(during("create", &new))?;
        file.write_all(&text).map_err(during("write", &new))?;
        file.sync_all().map_err(during("sync", &new))?;
        fs::rename(&new, &path).map_err(during("rename to", &path))?;
        self.sync()
    }

    /// What is noted, in the order of the names. What cannot be read is told, and left where it is.
    ///
    /// # Errors
    /// When the directory cannot be read. That there is none is no error.
    pub fn read(&self) -> Result<(Vec<Deletion>, Vec<JournalError>), JournalError> {
        let (mut deletions, mut faults) = (Vec::new(), Vec::new());
        for path in self.paths()? {
            match read_note(&path) {
                Ok(deletion) => deletions.push(deletion),
                Err(fault) => faults.push(fault),
            }
        }
        Ok((deletions, faults))
    }

    /// Removes a note that was carried out. That it is gone already is no error.
    ///
    /// # Errors
    /// When it is still there.
    pub fn done(&self, deletion: &Deletion) -> Result<(), JournalError> {
        let path = self.directory.join(name_of(deletion));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(during("remove", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The notes' files, without those that are being written.
    fn paths(&self) -> Result<Vec<PathBuf>, JournalError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(during("read", &self.directory))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(during("read", &self.directory))?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }

    fn sync(&self) -> Result<(), JournalError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(during("sync", &self.directory))
    }
}

/// Neither part has an `@` that could be taken for this one: an id has none at all.
fn name_of(deletion: &Deletion) -> String {
    format!("{}@{}", deletion.container_id, deletion.ifname)
}

fn read_note(path: &Path) -> Result<Deletion, JournalError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(during("open", path))?;
    file.take(NOTE_LEN_MAX).read_to_end(&mut text).map_err(during("read", path))?;
    let damaged = |why: String| JournalError::Damaged { path: path.to_owned(), why };
    let deletion: Deletion =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let name = name_of(&deletion);
    if path.file_name().is_some_and(|file| file == name.as_str()) {
        Ok(deletion)
    } else {
        Err(damaged(format!("it is about {name:.100}")))
    }
}

fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |cause| JournalError::Io { action, path, cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn deletion(id: &str) -> Deletion {
        Deletion { container_id: id.into(), ifname: "eth0".into() }
    }

    fn journal(directory: &tempfile::TempDir) -> Journal {
        Journal::beside(&directory.path().join("run/weftd.sock"))
    }

    #[test]
    fn what_is_noted_is_read_until_it_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        assert_eq!(journal.read().unwrap().0, []);
        journal.done(&deletion("never")).unwrap();
        for id in ["b", "a", "b"] {
            journal.note(&deletion(id)).unwrap();
        }
        let (noted, faults) = journal.read().unwrap();
        assert_eq!((noted, faults.len()), (vec![deletion("a"), deletion("b")], 0));
        let mode = fs::metadata(journal.directory()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        journal.done(&deletion("a")).unwrap();
        assert_eq!(journal.read().unwrap().0, [deletion("b")]);
    }

    #[test]
    fn a_plugin_that_is_killed_in_between_leaves_nothing_that_counts() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        journal.note(&deletion("a")).unwrap();
        let whole = fs::read(journal.directory().join("a@eth0")).unwrap();
        for len in 0..=whole.len() {
            // Killed while writing, or before it could rename.
            fs::write(journal.directory().join(".b@eth0.77.new"), &whole[..len]).unwrap();
            assert_eq!(journal.read().unwrap().0, [deletion("a")]);
            // Another one does it.
            journal.note(&deletion("b")).unwrap();
            assert_eq!(journal.read().unwrap().0, [deletion("a"), deletion("b")]);
            journal.done(&deletion("b")).unwrap();
        }
    }

    #[test]
    fn a_note_that_says_something_else_is_told_and_deletes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        journal.note(&deletion("a")).unwrap();
        let whole = fs::read(journal.directory().join("a@eth0")).unwrap();
        fs::write(journal.directory().join("c@eth0"), &whole).unwrap();
        fs::write(journal.directory().join("d@eth0"), "{").unwrap();
        let (noted, faults) = journal.read().unwrap();
        assert_eq!(noted, [deletion("a")]);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].to_string().contains("it is about a@eth0"), "{}", faults[0]);
    }

    #[test]
    fn limits() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        let long = journal.note(&deletion(&"x".repeat(NAME_LEN_MAX)));
        assert!(matches!(long, Err(JournalError::TooLong)));
        journal.note(&deletion("a")).unwrap();
        for n in 1..NOTES_MAX {
            File::create(journal.directory().join(format!("n{n}@eth0"))).unwrap();
        }
        assert!(matches!(journal.note(&deletion("b")), Err(JournalError::Full(_))));
        journal.note(&deletion("a")).unwrap();
    }
}
