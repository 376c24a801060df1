//! Watching a directory: a thread that tells of changes as they happen.
//!
//! The kernel's notices (inotify) say *when* to look, never what has changed: what is there is found by
//! looking ([`Scanner`]), after things have been quiet for a moment, and every few seconds in any case. So a
//! notice that is lost, or a file system without notices, costs time and nothing else.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::manifests::Directory;
use super::scan::{Found, Scanner};
use crate::cluster::Change;
use crate::cluster::parse::parse;

/// Nothing must have happened for this long before the directory is looked at: who writes a file in pieces
/// shall finish.
const QUIET: Duration = Duration::from_millis(100);

/// And in any case after this long, when things do not become quiet.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// How often the directory is looked at without a notice.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What has changed in a directory.
#[derive(Debug)]
pub struct Update {
    /// Objects that are new, other or gone. May be empty: then only what is wrong is different.
    pub changes: Vec<Change>,
    /// How many files were read for it.
    pub files: usize,
}

/// A directory that is watched until this is dropped.
#[derive(Debug)]
pub struct Watcher {
    directory: SharedDirectory,
    stop: Sender<Notice>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Notice {
    Look,
    Stop,
}

impl Watcher {
    /// Reads a directory, and calls `deliver` with what changes from then on, on a thread of its own. What is
    /// there at first is returned. A directory that does not exist is a problem of [`Directory`], and is
    /// watched as soon as it does.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(
        root: impl Into<PathBuf>,
        deliver: impl FnMut(Update) + Send + 'static,
    ) -> std::io::Result<(Self, Update)> {
        let directory = SharedDirectory::default();
        let (stop, notices) = mpsc::channel();
        let mut looker = Looker {
            scanner: Scanner::new(root),
            directory: directory.clone(),
            watch: None,
            notice: stop.clone(),
        };
        // Before the first look: what changes after it is noticed.
        looker.keep_watch();
        let first = looker.look().unwrap_or(Update { changes: Vec::new(), files: 0 });
        let thread = thread::Builder::new()
            .name("weft-manifests".into())
            .spawn(move || looker.run(&notices, deliver))?;
        Ok((Self { directory, stop, thread: Some(thread) }, first))
    }

    /// The files, and what is wrong with them.
    pub fn directory(&self) -> SharedDirectory {
        self.directory.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Without a receiver the thread has ended already.
        let _ = self.stop.send(Notice::Stop);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic there has been reported by itself.
            let _ = thread.join();
        }
    }
}

/// A directory's files, which are looked at and changed in turns.
#[derive(Debug, Clone, Default)]
pub struct SharedDirectory(Arc<Mutex<Directory>>);

impl SharedDirectory {
    /// Waits for one's turn.
    ///
    /// A panic of whoever had it leaves files that are taken up again when they change.
    pub fn lock(&self) -> MutexGuard<'_, Directory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Looker {
    scanner: Scanner,
    directory: SharedDirectory,
    /// Device and inode of what is watched, and who watches it.
    watch: Option<((u64, u64), RecommendedWatcher)>,
    notice: Sender<Notice>,
}

impl Looker {
    fn run(mut self, notices: &Receiver<Notice>, mut deliver: impl FnMut(Update)) {
        loop {
            match notices.recv_timeout(LOOK_EVERY) {
                Ok(Notice::Look) => {
                    if !wait_for_quiet(notices) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.keep_watch();
            if let Some(update) = self.look() {
                deliver(update);
            }
        }
    }

    /// Watches the directory that is at the path now, which may be another one than before.
    fn keep_watch(&mut self) {
        let root = self.scanner.root();
        let Some(identity) = identity(root) else {
            self.watch = None;
            return;
        };
        if self.watch.as_ref().is_some_and(|(watched, _)| *watched == identity) {
            return;
        }
        let notice = self.notice.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            // Looking is an access, too. An error means that notices were lost.
            if event.is_ok_and(|event| is_mere_access(event.kind)) {
                return;
            }
            // The thread has ended: nobody wants to know.
            let _ = notice.send(Notice::Look);
        };
        let watcher = notify::recommended_watcher(tell).and_then(|mut watcher| {
            watcher.watch(root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        // Without notices, looking every few seconds has to do.
        self.watch = watcher.ok().map(|watcher| (identity, watcher));
    }

    /// Looks at the directory. `None` when nothing is different.
    fn look(&mut self) -> Option<Update> {
        let found = self.scanner.scan();
        let mut update = Update { changes: Vec::new(), files: 0 };
        let found = match found {
            Ok(found) => found,
            Err(problem) => {
                let mut directory = self.directory.lock();
                let is_new = directory.problem() != Some(problem.as_str());
                directory.set_problem(Some(problem));
                return is_new.then_some(update);
            }
        };
        let had_problem = self.directory.lock().problem().is_some();
        let differs = had_problem || !found.is_empty();
        if had_problem {
            self.directory.lock().set_problem(None);
        }
        for found in found {
            match found {
                Found::Text { file, text } => {
                    // Nobody waits for this lock while a large file is parsed.
                    let manifests = parse(&text);
                    update.changes.extend(self.directory.lock().set_file(&file, manifests));
                    update.files += 1;
                }
                Found::Unreadable { file, reason } => {
                    self.directory.lock().set_unreadable(&file, reason);
                }
                Found::Gone { file } => {
                    update.changes.extend(self.directory.lock().remove_file(&file));
                }
            }
        }
        differs.then_some(update)
    }
}

/// Whether somebody has only read.
fn is_mere_access(kind: EventKind) -> bool {
    kind.is_access() && kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
}

fn identity(root: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(root).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until nothing happens for a moment. False when it is time to stop.
fn wait_for_quiet(notices: &Receiver<Notice>) -> bool {
    let deadline = Instant::now() + QUIET_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match notices.recv_timeout(QUIET.min(left)) {
            Ok(Notice::Look) if left.is_zero() => return true,
            Ok(Notice::Look) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
