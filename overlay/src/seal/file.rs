//! The file with the keys: one line for each, comments stay.
//!
//! ```text
//! # The keys of the network prod. The same on all nodes.
//! use    5f1c…64 digits…  # 2026-11-21
//! accept 90ab…64 digits…  # the former one, until all nodes use the new
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::key::{ClusterKey, KEYS_MAX, KeyId, KeyRing};
use crate::error::Error;
use crate::state_file;

/// Longer files are refused.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Only the owner may read or write the file.
pub const MODE: u32 = 0o600;

/// What stands at the top of a new file.
const HEADING: &str = "\
# The keys of this network: secret, and the same on all its nodes (`weft key list --secret`).
# Messages are sealed with the key after `use`; those after `accept` open what others sealed.
# Better than by hand, change this file with `weft key`. weftd notices within two seconds.
";

/// The content of a key file, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    lines: Vec<Line>,
}

/// A key in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    /// The key.
    pub key: ClusterKey,
    /// Whether messages are sealed with it.
    pub used: bool,
    /// What stands behind `#` on its line.
    pub comment: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// A comment, or an empty line, as it is but for spaces at its end.
    Text(String),
    Key(KeyLine),
}

/// What is wrong with a key file, or with what is to be done to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is no such file.
    #[error(
        "{}: there is no key file. Make the first node's with `weft key generate`, and take it to the others: \
         `weft key list --secret | ssh NODE weft key add`. Or write `insecure = true` under [overlay], if \
         everybody who can reach this node's gossip port may join, lie and listen",
        path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },

    /// It cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },

    /// Others than its owner may read or write it.
    #[error(
        "{}: others may read or write it (mode {mode:04o}): `chmod 600 {}`, and make a new key if somebody \
         could have read this one",
        path.display(), path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },

    /// It belongs to another user.
    #[error("{}: belongs to the user {owner}: `chown {expected} {}`", path.display(), path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        expected: u32,
    },

    /// A line of it is wrong.
    #[error("{}:{line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong, and what to write.
        why: String,
    },

    /// All of it is wrong.
    #[error("{}: {why}", path.display())]
    Whole {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },

    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] Error),
}

impl KeyFile {
    /// A new file with one key, which is in use.
    pub fn new(key: ClusterKey, comment: &str) -> Self {
        let text = HEADING.lines().map(|line| Line::Text(line.to_owned()));
        let key = Line::Key(KeyLine { key, used: true, comment: comment.to_owned() });
        Self { lines: text.chain([key]).collect() }
    }

    /// Reads the file at `path`, which only its owner may read.
    ///
    /// # Errors
    ///
    /// When there is none, it cannot be read, others may read it, or its content is wrong.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let failed = |cause: io::Error| {
            let path = path.to_owned();
            if cause.kind() == io::ErrorKind::NotFound {
                FileError::Missing { path }
            } else {
                FileError::Read { path, cause }
            }
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::Mode { path: path.to_owned(), mode });
        }
        let (owner, expected) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != expected && owner != 0 {
            return Err(FileError::Owner { path: path.to_owned(), owner, expected });
        }
        let mut text = String::new();
        let read = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text);
        if read.map_err(failed)? as u64 > FILE_LEN_MAX {
            let why = format!("longer than {FILE_LEN_MAX} bytes: this is no key file");
            return Err(FileError::Whole { path: path.to_owned(), why });
        }
        Self::parse(path, &text)
    }

    /// Writes the file: beside its place, synced and renamed. Only its owner may read it.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        // A link, as configuration management makes them, stays one.
        let place = fs::canonicalize(path).unwrap_or_else(|_new| path.to_owned());
        Ok(state_file::write_with_mode(&place, self.text().as_bytes(), MODE)?)
    }

    /// Reads the content of a file; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// When a line is wrong, there are too many keys or one twice, or not exactly one is in use.
    pub fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let file = Self::parse_lines(path, text)?;
        let used: Vec<_> = file.numbered().filter(|(_, line)| line.used).map(|(n, _)| n).collect();
        match used[..] {
            [_] => Ok(file),
            [] => {
                let why = match file.keys().next() {
                    None => "no key in it: make one with `weft key generate`",
                    Some(_) => {
                        "no key is in use: write `use` instead of `accept` before one of them"
                    }
                };
                Err(FileError::Whole { path: path.to_owned(), why: why.to_owned() })
            }
            [first, second, ..] => Err(FileError::Line {
                path: path.to_owned(),
                line: second,
                why: format!(
                    "a second key in use, after line {first}: write `accept` before one of them"
                ),
            }),
        }
    }

    /// Reads lines of a key file, of which none need be in use: what `weft key add` is given.
    ///
    /// # Errors
    ///
    /// When a line is wrong, or there are too many keys or one twice.
    pub fn parse_lines(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut file = Self { lines: Vec::new() };
        for (ix, line) in text.lines().enumerate() {
            let wrong = |why: String| FileError::Line { path: path.to_owned(), line: ix + 1, why };
            let (entry, comment) = line.split_once('#').unwrap_or((line, ""));
            let mut words = entry.split_whitespace();
            let line = match (words.next(), words.next(), words.next()) {
                (None, _, _) => Line::Text(line.trim_end().to_owned()),
                (Some(word @ ("use" | "accept")), Some(key), None) => {
                    let key: ClusterKey = key.parse().map_err(|error| wrong(format!("{error}")))?;
                    let twice = file.numbered().find(|(_, line)| line.key == key).map(|(n, _)| n);
                    if let Some(earlier) = twice {
                        return Err(wrong(format!(
                            "the same key as in line {earlier}: remove one"
                        )));
                    }
                    let comment = comment.trim().to_owned();
                    Line::Key(KeyLine { key, used: word == "use", comment })
                }
                _ => {
                    let form =
                        "expected `use KEY` or `accept KEY`, KEY being 64 hexadecimal digits";
                    return Err(wrong(form.to_owned()));
                }
            };
            file.lines.push(line);
            if file.keys().count() > KEYS_MAX {
                return Err(wrong(format!(
                    "more than {KEYS_MAX} keys: remove those that no node uses any more"
                )));
            }
        }
        Ok(file)
    }

    /// The file's content.
    pub fn text(&self) -> String {
        let lines = self.lines.iter().map(|line| match line {
            Line::Text(text) => format!("{text}\n"),
            Line::Key(line) => format!("{}\n", line.text()),
        });
        lines.collect()
    }

    /// The keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &KeyLine> {
        self.numbered().map(|(_, key)| key)
    }

    /// The ring that the file describes; `None` if no key is in use.
    pub fn ring(&self) -> Option<KeyRing> {
        let used = self.keys().find(|line| line.used)?;
        let mut ring = KeyRing::new(used.key.clone());
        for line in self.keys() {
            // There are no more keys than a ring takes.
            ring.accept(line.key.clone());
        }
        Some(ring)
    }

    /// Adds a key behind the others, accepted and not in use; `false` if it is there already.
    ///
    /// # Errors
    ///
    /// When there are [`KEYS_MAX`] keys.
    pub fn add(&mut self, key: ClusterKey, comment: &str) -> Result<bool, TooManyKeys> {
        if self.keys().any(|line| line.key == key) {
            return Ok(false);
        }
        if self.keys().count() >= KEYS_MAX {
            return Err(TooManyKeys);
        }
        let last = self.lines.iter().rposition(|line| matches!(line, Line::Key(_)));
        let line = Line::Key(KeyLine { key, used: false, comment: comment.to_owned() });
        self.lines.insert(last.map_or(self.lines.len(), |ix| ix + 1), line);
        Ok(true)
    }

    /// Puts the key called `id` in use, instead of the one that is; `false` if there is none.
    pub fn put_in_use(&mut self, id: KeyId) -> bool {
        let known = self.keys().any(|line| line.key.id() == id);
        if known {
            for line in self.key_lines_mut() {
                line.used = line.key.id() == id;
            }
        }
        known
    }

    /// Removes the key called `id`; `false` if there is none, or it is in use.
    pub fn remove(&mut self, id: KeyId) -> bool {
        let is_it =
            |line: &Line| matches!(line, Line::Key(line) if line.key.id() == id && !line.used);
        let before = self.lines.len();
        self.lines.retain(|line| !is_it(line));
        self.lines.len() < before
    }

    /// The keys with the numbers of their lines.
    fn numbered(&self) -> impl Iterator<Item = (usize, &KeyLine)> {
        self.lines.iter().enumerate().filter_map(|(ix, line)| match line {
            Line::Key(line) => Some((ix + 1, line)),
            Line::Text(_) => None,
        })
    }

    fn key_lines_mut(&mut self) -> impl Iterator<Item = &mut KeyLine> {
        self.lines.iter_mut().filter_map(|line| match line {
            Line::Key(line) => Some(line),
            Line::Text(_) => None,
        })
    }
}

impl KeyLine {
    /// The line as it stands in a file.
    pub fn text(&self) -> String {
        let word = if self.used { "use   " } else { "accept" };
        let comment =
            if self.comment.is_empty() { String::new() } else { format!("  # {}", self.comment) };
        format!("{word} {}{comment}", self.key.reveal())
    }
}

/// The file has as many keys as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {KEYS_MAX} keys already: remove those that no node uses any more")]
pub struct TooManyKeys;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(byte: u8) -> ClusterKey {
        let mut bytes = [byte; 32];
        bytes[0] = !byte;
        ClusterKey::from_bytes(bytes)
    }

    fn error(text: &str) -> String {
        KeyFile::parse(Path::new("/etc/weft/keys"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_file_keeps_its_comments_through_every_change() {
        let (a, b) = (key(1), key(2));
        let text = format!("# ours\n\nuse    {}  # first\n# between\n", a.reveal());
        let foreign = text.replace('\n', "\r\r\n") + "\r";
        let mut file = KeyFile::parse(Path::new("x"), &foreign).unwrap();
        assert_eq!(file.text().trim_end(), text.trim_end(), "ends of lines are ours");
        file = KeyFile::parse(Path::new("x"), &text).unwrap();
        assert_eq!(file.text(), text);
        assert_eq!(file.add(b.clone(), "second"), Ok(true));
        assert_eq!(file.add(b.clone(), "again"), Ok(false));
        assert!(!file.remove(a.id()), "in use");
        assert!(file.put_in_use(b.id()));
        let expected = format!(
            "# ours\n\naccept {}  # first\nuse    {}  # second\n# between\n",
            a.reveal(),
            b.reveal()
        );
        assert_eq!(file.text(), expected);
        assert_eq!(file.ring().unwrap().ids(), [b.id(), a.id()]);
        assert!(file.remove(a.id()) && !file.remove(a.id()) && !file.put_in_use(a.id()));
        assert_eq!(KeyFile::parse(Path::new("x"), &file.text()).unwrap(), file);
        for byte in 3..10 {
            file.add(key(byte), "").unwrap();
        }
        assert_eq!(file.add(key(10), ""), Err(TooManyKeys));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let (a, b) = (key(1).reveal(), key(2).reveal());
        assert!(error("").contains("/etc/weft/keys: no key in it"));
        assert!(error(&format!("accept {a}\n")).contains("no key is in use"));
        let twice = error(&format!("use {a}\n#\nuse {b}\n"));
        assert!(
            twice.starts_with("/etc/weft/keys:3: a second key in use, after line 1"),
            "{twice}"
        );
        assert!(error(&format!("use {a}\naccept {a}")).contains(":2: the same key as in line 1"));
        for wrong in ["use", "key 12", "use 12 34", "12"] {
            assert!(error(wrong).starts_with("/etc/weft/keys:1: "), "{wrong}");
        }
        assert!(error(&format!("use {}", &a[1..])).contains("64 hexadecimal digits"));
        let many: String = (1..10).map(|byte| format!("accept {}\n", key(byte).reveal())).collect();
        assert!(error(&many).contains(":9: more than 8 keys"));
    }

    #[test]
    fn only_its_owner_may_read_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let missing = KeyFile::load(&path).unwrap_err().to_string();
        assert!(missing.contains("weft key generate") && missing.contains("insecure"), "{missing}");
        let file = KeyFile::new(key(1), "first");
        file.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(KeyFile::load(&path).unwrap(), file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mode = KeyFile::load(&path).unwrap_err().to_string();
        assert!(mode.contains("mode 0640") && mode.contains("chmod 600"), "{mode}");
        // Saving mends it.
        file.save(&path).unwrap();
        assert_eq!(KeyFile::load(&path).unwrap(), file);
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("real"), dir.path().join("keys"));
        KeyFile::new(key(1), "").save(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut file = KeyFile::load(&link).unwrap();
        file.add(key(2), "").unwrap();
        file.save(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(KeyFile::load(&target).unwrap(), file);
    }
}
