//! Looking at a directory: which files are new, other or gone since the last look.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cluster::parse::FILE_LEN_MAX;

/// Most files of a directory.
const FILES_MAX: usize = 10_000;

/// Deepest directory below the first.
const DEPTH_MAX: usize = 16;

/// A file that was written so shortly before it was looked at may be written again in the same tick of the
/// file system's clock, and then looks the same.
const UNSURE: Duration = Duration::from_secs(2);

/// Looks at a directory again and again.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    /// The file may have changed without showing it: it is read again.
    unsure: bool,
}

/// What a file looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A file is new or other, and holds this.
    Text {
        /// Its name, from the directory on.
        file: String,
        /// What it holds.
        text: String,
    },
    /// A file is there, and cannot be read.
    Unreadable {
        /// Its name, from the directory on.
        file: String,
        /// Why.
        reason: String,
    },
    /// A file is gone.
    Gone {
        /// Its name, from the directory on.
        file: String,
    },
}

impl Scanner {
    /// Nothing is known of the directory yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: BTreeMap::new() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at all files: `.yaml`, `.yml` and `.json`, in the directory and those below it. Names that begin
    /// with a dot are left out, and links to directories are not followed below the first.
    ///
    /// # Errors
    /// When the directory itself cannot be read. Nothing is then found to be gone.
    pub fn scan(&mut self) -> Result<Vec<Found>, String> {
        let unreadable = |error: io::Error| {
            format!("the directory {} cannot be read: {error}", self.root.display())
        };
        let mut paths = BTreeMap::new();
        let mut problems = Vec::new();
        list(&self.root, "", 0, &mut paths, &mut problems).map_err(unreadable)?;
        if paths.len() > FILES_MAX {
            return Err(format!(
                "the directory {} has more than {FILES_MAX} files: put several objects in one",
                self.root.display()
            ));
        }
        let mut found = Vec::new();
        for (file, path) in &paths {
            self.look_at(file, path, &mut found);
        }
        for (directory, reason) in problems {
            // What is in it is not known, which is not the same as gone.
            let below = format!("{directory}/");
            for file in self.known.keys().filter(|file| file.starts_with(&below)) {
                paths.insert(file.clone(), PathBuf::new());
            }
            found.push(Found::Unreadable { file: directory, reason });
        }
        let gone: Vec<String> =
            self.known.keys().filter(|file| !paths.contains_key(*file)).cloned().collect();
        for file in gone {
            self.known.remove(&file);
            found.push(Found::Gone { file });
        }
        Ok(found)
    }

    fn look_at(&mut self, file: &str, path: &Path, found: &mut Vec<Found>) {
        let outcome = fs::metadata(path).and_then(|metadata| {
            let stamp = Stamp::of(&metadata);
            let same =
                self.known.get(file).is_some_and(|known| known.stamp == stamp && !known.unsure);
            if same { Ok(None) } else { read(path).map(|text| Some((stamp, text))) }
        });
        match outcome {
            Ok(None) => {}
            Ok(Some((stamp, text))) => {
                let age = u64::try_from(stamp.modified.0.max(stamp.changed.0)).unwrap_or(0);
                let age = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(age));
                let unsure = age.is_ok_and(|age| age < UNSURE);
                self.known.insert(file.to_owned(), Known { stamp, unsure });
                found.push(Found::Text { file: file.to_owned(), text });
            }
            // It went away, or a link in it, since it was listed: the next look will tell.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(path) => {
                self.known.remove(file);
                found.push(Found::Gone { file: file.to_owned() });
            }
            Err(error) => {
                // It is tried again with every look.
                self.known.remove(file);
                found.push(Found::Unreadable { file: file.to_owned(), reason: error.to_string() });
            }
        }
    }
}

/// Looks at one file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn look_at(path: &Path) -> Result<Found, String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    match read(path) {
        Ok(text) => Ok(Found::Text { file: name.unwrap_or_default(), text }),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// Lists the files of a directory by their names from the first one on.
fn list(
    directory: &Path,
    name: &str,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
    problems: &mut Vec<(String, String)>,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some(own) = file_name.to_str() else {
            let shown = format!("{name}{}", file_name.to_string_lossy());
            problems.push((shown, "the name is not UTF-8".to_owned()));
            continue;
        };
        if own.starts_with('.') || files.len() > FILES_MAX {
            continue;
        }
        let (path, full) = (entry.path(), format!("{name}{own}"));
        if entry.file_type()?.is_dir() {
            if depth == DEPTH_MAX {
                problems.push((full, format!("directories are nested deeper than {DEPTH_MAX}")));
            } else if let Err(error) = list(&path, &format!("{full}/"), depth + 1, files, problems)
            {
                problems.push((full, error.to_string()));
            }
        } else if ["yaml", "yml", "json"].iter().any(|end| has_extension(own, end)) {
            // Links are followed: kubelets mount configuration as links to files that change places.
            files.insert(full, path);
        }
    }
    Ok(())
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// Reads a file that is text of a bearable length.
fn read(path: &Path) -> io::Result<String> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(invalid("is no file".into()));
    }
    let max = u64::try_from(FILE_LEN_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_LEN_MAX {
        return Err(invalid(format!("is longer than {FILE_LEN_MAX} bytes: divide it")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        invalid(format!("line {line} is not UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(found: &[Found]) -> Vec<String> {
        let name = |found: &Found| match found {
            Found::Text { file, text } => format!("{file}={text}"),
            Found::Unreadable { file, reason } => format!("{file}!{reason}"),
            Found::Gone { file } => format!("{file} gone"),
        };
        found.iter().map(name).collect()
    }

    /// Files that are old enough to be sure of.
    fn settle(scanner: &mut Scanner) {
        scanner.known.values_mut().for_each(|known| known.unsure = false);
    }

    #[test]
    fn files_come_change_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut scanner = Scanner::new(root);
        assert_eq!(names(&scanner.scan().unwrap()), Vec::<String>::new());
        fs::create_dir_all(root.join("sub/.git")).unwrap();
        for (file, text) in [
            ("a.yaml", "a"),
            ("b.yml", "b"),
            ("c.JSON", "c"),
            ("sub/d.yaml", "d"),
            (".hidden.yaml", "x"),
            ("sub/.git/x.yaml", "x"),
            ("readme.md", "x"),
            ("e.yaml~", "x"),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
        assert_eq!(
            names(&scanner.scan().unwrap()),
            ["a.yaml=a", "b.yml=b", "c.JSON=c", "sub/d.yaml=d"]
        );
        settle(&mut scanner);
        assert_eq!(names(&scanner.scan().unwrap()), Vec::<String>::new());
        // An editor's way: a new file, moved into place.
        fs::write(root.join(".a.tmp"), "A").unwrap();
        fs::rename(root.join(".a.tmp"), root.join("a.yaml")).unwrap();
        fs::remove_dir_all(root.join("sub")).unwrap();
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml=A", "sub/d.yaml gone"]);
    }

    #[test]
    fn a_file_written_twice_in_one_tick_is_read_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        fs::write(&path, "one").unwrap();
        let mut scanner = Scanner::new(folder.path());
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml=one"]);
        // The same length, and the clock stands still.
        let stamp = fs::metadata(&path).unwrap();
        fs::write(&path, "two").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(stamp.modified().unwrap())
            .unwrap();
        let known = scanner.known.get_mut("a.yaml").unwrap();
        known.stamp = Stamp::of(&fs::metadata(&path).unwrap());
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml=two"]);
    }

    #[test]
    fn links_are_swapped_as_kubelets_do() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("a.yaml"), text).unwrap();
        }
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        let mut scanner = Scanner::new(root);
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml=one"]);
        settle(&mut scanner);
        symlink("..2", root.join("..new")).unwrap();
        fs::rename(root.join("..new"), root.join("..data")).unwrap();
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml=two"]);
        // A link to nothing is a file that cannot be read, not one that is gone.
        fs::remove_file(root.join("..data")).unwrap();
        assert!(names(&scanner.scan().unwrap())[0].starts_with("a.yaml!No such file"));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.yaml"), b"a: 1\nb: \xff\n").unwrap();
        fs::create_dir(root.join("b.yaml")).unwrap();
        let mut scanner = Scanner::new(root);
        assert_eq!(names(&scanner.scan().unwrap()), ["a.yaml!line 2 is not UTF-8"]);
        fs::remove_dir_all(root).unwrap();
        assert!(scanner.scan().unwrap_err().contains("cannot be read: No such file"));
        fs::create_dir(root).unwrap();
    }
}
