//! A directory of manifests with real files, as people and kubelets change them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use conf::cluster::ClusterState;
use conf::source::{Update, Watcher};

/// Long enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

struct Watched {
    watcher: Watcher,
    updates: Receiver<Update>,
    state: ClusterState,
}

impl Watched {
    fn start(root: &Path) -> Self {
        let (sender, updates) = mpsc::channel();
        let deliver = move |update| {
            // The test may have ended.
            let _ = sender.send(update);
        };
        let (watcher, first) = Watcher::start(root, deliver).expect("a thread can be made");
        let mut state = ClusterState::default();
        state.apply(first.changes);
        Self { watcher, updates, state }
    }

    /// Names and ports of the Services.
    fn services(&self) -> BTreeMap<String, u16> {
        let views = self.state.services();
        views.map(|view| (view.service.id.name.to_string(), view.service.ports[0].port)).collect()
    }

    /// Takes up changes until the Services are these.
    #[track_caller]
    fn expect(&mut self, services: &[(&str, u16)]) {
        let expected: BTreeMap<String, u16> =
            services.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        self.wait(|watched| watched.services() == expected, &format!("{expected:?}"));
    }

    #[track_caller]
    fn wait(&mut self, is_there: impl Fn(&Self) -> bool, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.updates.recv_timeout(left) {
                Ok(update) => drop(self.state.apply(update.changes)),
                Err(_) => panic!("there is {:?}, not {what}", self.services()),
            }
        }
    }

    fn refused(&self) -> Vec<String> {
        let listing = self.watcher.directory().lock().listing(&self.state);
        listing.refused.iter().map(ToString::to_string).collect()
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

#[test]
fn files_are_written_moved_broken_and_removed() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path();
    fs::write(root.join("a.yaml"), service("a", 1)).expect("a file");
    let mut watched = Watched::start(root);
    assert_eq!(watched.services().len(), 1, "what is there at the start is there at once");

    fs::write(root.join("b.yaml"), service("b", 1)).expect("a file");
    watched.expect(&[("a", 1), ("b", 1)]);

    fs::write(root.join(".b.tmp"), service("b", 2) + &service("c", 1)).expect("a file");
    fs::rename(root.join(".b.tmp"), root.join("b.yaml")).expect("moved into place");
    watched.expect(&[("a", 1), ("b", 2), ("c", 1)]);

    fs::write(root.join("b.yaml"), service("b", 3) + "kind: [\n---\n" + &service("c", 0))
        .expect("a file");
    watched.expect(&[("a", 1), ("b", 3), ("c", 1)]);
    assert_eq!(
        watched.refused(),
        [
            "b.yaml:6: is no YAML: unclosed bracket '['",
            "b.yaml:11: spec.ports[0].port: 0 is no port: 1 to 65535"
        ]
    );

    fs::create_dir(root.join("more")).expect("a directory");
    fs::write(
        root.join("more/d.json"),
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "d"},
        "spec": {"ports": [{"port": 4}]}}"#,
    )
    .expect("a file");
    watched.expect(&[("a", 1), ("b", 3), ("c", 1), ("d", 4)]);

    fs::remove_file(root.join("a.yaml")).expect("removed");
    fs::remove_dir_all(root.join("more")).expect("removed");
    watched.expect(&[("b", 3), ("c", 1)]);
}

#[test]
fn configuration_is_swapped_as_kubelets_do() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path();
    for version in [1, 2] {
        let data = root.join(format!("..version{version}"));
        fs::create_dir(&data).expect("a directory");
        fs::write(data.join("a.yaml"), service("a", version)).expect("a file");
    }
    symlink("..version1", root.join("..data")).expect("a link");
    symlink("..data/a.yaml", root.join("a.yaml")).expect("a link");
    let mut watched = Watched::start(root);
    watched.expect(&[("a", 1)]);
    symlink("..version2", root.join("..data_tmp")).expect("a link");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("swapped");
    fs::remove_dir_all(root.join("..version1")).expect("removed");
    watched.expect(&[("a", 2)]);
}

#[test]
fn the_directory_itself_comes_goes_and_is_exchanged() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path().join("manifests");
    let mut watched = Watched::start(&root);
    assert!(
        watched
            .watcher
            .directory()
            .lock()
            .problem()
            .is_some_and(|text| text.contains("No such file"))
    );

    fs::create_dir(&root).expect("a directory");
    fs::write(root.join("a.yaml"), service("a", 1)).expect("a file");
    watched.expect(&[("a", 1)]);
    assert_eq!(watched.watcher.directory().lock().problem(), None);

    // Gone as a whole, as a file system that is not mounted: that is no order to remove everything.
    fs::rename(&root, folder.path().join("away")).expect("moved away");
    watched.wait(|watched| watched.watcher.directory().lock().problem().is_some(), "a problem");
    assert_eq!(watched.services().len(), 1);

    let new = folder.path().join("new");
    fs::create_dir(&new).expect("a directory");
    fs::write(new.join("b.yaml"), service("b", 1)).expect("a file");
    fs::rename(&new, &root).expect("moved into place");
    watched.expect(&[("b", 1)]);
    fs::write(root.join("b.yaml"), service("b", 2)).expect("a file");
    watched.expect(&[("b", 2)]);
}
