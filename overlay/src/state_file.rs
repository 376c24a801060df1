//! Files that are whole or absent, whenever the power fails.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Replaces the file at `path`: written beside it, synced, renamed over it, and the directory synced.
///
/// # Errors
/// When a step fails. The file is then the old one, or (if only the last step failed) the new one.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_with_mode(path, content, 0o666)
}

/// The same, with other permissions than the usual ones. They hold before anything is in the file.
///
/// # Errors
/// As of [`write()`].
pub fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    replace(path, content, mode).map_err(|cause| Error::WriteState { path: path.to_owned(), cause })
}

fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let beside = beside(path);
    // What an interrupted write has left there may have other permissions.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn failure_names_the_file() {
        let error = write(Path::new("/proc/nowhere/state"), b"x").unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/state"), "{error}");
    }
}
