//! The node file, `weft.toml`, and manifests.

use std::path::Path;

use conf::cluster::ClusterState;
use conf::cluster::parse::parse;
use conf::source::Directory;

/// The text of a node file. What is wrong with it must be said, with a place in the file.
pub fn node_file(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Err(errors) = conf::parse(Path::new("weft.toml"), text) {
        assert!(!errors.problems().is_empty());
        assert!(errors.to_string().contains("weft.toml"), "{errors}");
    }
}

/// The text of a file of manifests. Whatever is refused has a reason at a line of the file, and what is
/// accepted can be taken up and removed again without a trace.
pub fn manifests(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let found = parse(text);
    let lines = text.lines().count().max(1);
    for refused in &found.refused {
        assert!(!refused.problems.is_empty(), "{refused:?}");
        for problem in &refused.problems {
            assert!((1..=lines).contains(&problem.line), "{problem:?} of {lines} lines");
            assert!(!problem.reason.is_empty(), "{problem:?}");
        }
    }
    let mut directory = Directory::new();
    let mut state = ClusterState::default();
    let objects = found.accepted.len();
    state.apply(directory.set_file("a.yaml", found));
    let listing = directory.listing(&state);
    assert!(listing.accepted.len() <= objects);
    for view in state.services() {
        assert!(view.refused.is_none() || view.cluster_ips.is_empty(), "{view:?}");
        for port in &view.endpoints.ports {
            assert_eq!(view.endpoints.of_port(port).count(), port.targets.len(), "{view:?}");
        }
    }
    state.apply(directory.remove_file("a.yaml"));
    assert_eq!(state.services().count() + state.pods().count() + state.namespaces().count(), 0);
    assert_eq!(state.used(), ClusterState::default().used());
}
