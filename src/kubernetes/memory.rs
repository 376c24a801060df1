//! What this node remembers of the cluster on its disk, so that it starts without the API server: the objects that
//! were in force, in a [`Snapshot`].
//!
//! The file is written anew when objects have changed, and not too often: by a thread of its own, since a disk may
//! hang. It is replaced in one step, so a node that is killed at any moment finds a whole one or none.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conf::source::kubernetes::SharedObjects;
use conf::source::kubernetes::snapshot::{LEN_MAX, Snapshot};
use overlay::state_file;

/// Name of the file in the state directory.
pub const FILE: &str = "kubernetes-objects.json";

/// Who may read it: nobody but root. Pods' labels and policies are nobody's business.
const MODE: u32 = 0o600;

/// The shortest time from one file to the next.
const PAUSE_MIN: Duration = Duration::from_secs(30);

/// Most bytes that are written in the long run, in a second: in a large cluster something changes all the time.
const BYTES_PER_S: u64 = 64 << 10;

/// How old the file may become in a cluster in which nothing changes.
const RENEWAL: Duration = Duration::from_secs(3600);

/// Most bytes of the file's first line.
const FIRST_LINE_LEN_MAX: u64 = 4096;

/// Reads what is remembered; `None` when nothing is.
///
/// # Errors
/// Why what is there cannot be used, in words.
pub fn load(state: &Path, network: &str, now_unix_s: u64) -> Result<Option<Snapshot>, String> {
    let file = match File::open(state.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    let len_max = LEN_MAX as u64 + FIRST_LINE_LEN_MAX;
    let mut limited = file.take(len_max + 1);
    limited.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > len_max {
        return Err(format!("it has more than {} MB", len_max >> 20));
    }
    let snapshot = Snapshot::decode(&bytes)?;
    snapshot.check(network, now_unix_s)?;
    Ok(Some(snapshot))
}

/// When the file is due. Pure.
#[derive(Debug, Default)]
struct Pace {
    /// Something has changed since the objects were looked at.
    changed: bool,
    looked_at: Option<Instant>,
    pause: Duration,
}

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        let Some(at) = self.looked_at else { return true };
        let passed = now.saturating_duration_since(at);
        passed >= RENEWAL.max(self.pause) || (self.changed && passed >= self.pause)
    }

    /// The objects are looked at.
    fn begin(&mut self, now: Instant) {
        self.changed = false;
        self.looked_at = Some(now);
        self.pause = PAUSE_MIN;
    }

    /// So many bytes were written.
    fn end(&mut self, len: usize) {
        let seconds = (len as u64).div_ceil(BYTES_PER_S);
        self.pause = PAUSE_MIN.max(Duration::from_secs(seconds));
    }

    /// They could not be written.
    fn fail(&mut self) {
        self.changed = true;
    }
}

/// Keeps the file.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    network: String,
    pace: Pace,
    writing: Option<JoinHandle<Result<usize, String>>>,
}

impl Memory {
    /// Keeps the file of a node in this network.
    pub fn new(state: &Path, network: &str) -> Self {
        let (path, network) = (state.join(FILE), network.to_owned());
        Self { path, network, pace: Pace::default(), writing: None }
    }

    /// Takes up that objects have changed.
    pub fn note_change(&mut self) {
        self.pace.changed = true;
    }

    /// Takes up whether the last file could be written, and begins the next one if it is due. Called about once a
    /// second while `objects` are all that the server has. Returns what became of a file: nothing for none.
    pub fn keep(
        &mut self,
        objects: &SharedObjects,
        now: Instant,
        now_unix_s: u64,
    ) -> Option<Result<(), String>> {
        let mut outcome = None;
        if let Some(writing) = self.writing.take_if(|writing| writing.is_finished()) {
            outcome = Some(self.take_up(writing));
        }
        if self.writing.is_some() || !self.pace.is_due(now) {
            return outcome;
        }
        self.pace.begin(now);
        let (objects, path, network) = (objects.clone(), self.path.clone(), self.network.clone());
        let write = move || {
            let objects = objects.in_force();
            let bytes = Snapshot { network, taken_unix_s: now_unix_s, objects }.encode()?;
            state_file::write_with_mode(&path, &bytes, MODE).map_err(|error| error.to_string())?;
            Ok(bytes.len())
        };
        match std::thread::Builder::new().name("objects".to_owned()).spawn(write) {
            Ok(writing) => self.writing = Some(writing),
            Err(error) => {
                self.pace.fail();
                outcome = Some(Err(format!("no thread can be started: {error}")));
            }
        }
        outcome
    }

    fn take_up(&mut self, writing: JoinHandle<Result<usize, String>>) -> Result<(), String> {
        let written = writing.join().unwrap_or_else(|_| Err("who writes it panicked".to_owned()));
        match written {
            Ok(len) => {
                self.pace.end(len);
                Ok(())
            }
            Err(error) => {
                self.pace.fail();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use conf::cluster::parse::parse;

    use super::*;

    #[test]
    fn a_change_is_written_soon_and_many_of_them_not_often() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert!(pace.is_due(start), "the first at once");
        pace.begin(start);
        pace.end(1000);
        assert!(!pace.is_due(start + PAUSE_MIN), "nothing has changed");
        pace.changed = true;
        assert!(!pace.is_due(start + PAUSE_MIN - Duration::from_secs(1)));
        assert!(pace.is_due(start + PAUSE_MIN));
        // A large one is followed by a long pause.
        pace.begin(start);
        pace.end(30 << 20);
        pace.changed = true;
        assert!(!pace.is_due(start + Duration::from_secs(479)));
        assert!(pace.is_due(start + Duration::from_secs(480)));
    }

    #[test]
    fn what_does_not_change_stays_fresh_and_what_fails_is_tried_again() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.begin(start);
        pace.end(1000);
        assert!(pace.is_due(start + RENEWAL));
        pace.begin(start);
        pace.fail();
        assert!(!pace.is_due(start + Duration::from_secs(1)) && pace.is_due(start + PAUSE_MIN));
    }

    #[test]
    fn a_file_is_read_back_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = 1_800_000_000;
        assert_eq!(load(dir.path(), "prod", now), Ok(None));
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        let objects = parse(text).accepted.into_iter().map(|found| found.object).collect();
        let snapshot = Snapshot { network: "prod".into(), taken_unix_s: now, objects };
        let path = dir.path().join(FILE);
        state_file::write_with_mode(&path, &snapshot.encode().unwrap(), MODE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(dir.path(), "prod", now), Ok(Some(snapshot)));
        assert!(load(dir.path(), "test", now).is_err());
        fs::write(&path, b"{").unwrap();
        assert!(load(dir.path(), "prod", now).is_err());
    }
}
