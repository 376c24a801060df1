//! Replays the committed fuzz corpora: `tests/fuzz/corpus/<target>/`.

#[path = "../../tests/fuzz/src/overlay_targets.rs"]
#[allow(unreachable_pub, reason = "in the fuzz package the same file is a public module")]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn vxlan() {
    replay("vxlan", targets::vxlan);
}

#[test]
fn gossip() {
    replay("gossip", targets::gossip);
}

#[test]
fn seal() {
    replay("seal", targets::seal);
}

#[test]
fn key_file() {
    replay("key_file", targets::key_file);
}

#[test]
fn state() {
    replay("state", targets::state);
}

#[test]
fn node_id() {
    replay("node_id", targets::node_id);
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus is committed") {
        let path = entry.expect("the corpus is readable").path();
        eprintln!("{}", path.display());
        run(&fs::read(path).expect("the input is readable"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}
