//! Replays the committed fuzz corpora: `tests/fuzz/corpus/<target>/`.

#[path = "fuzz/src/weft_targets.rs"]
#[allow(unreachable_pub, reason = "in the fuzz package the same file is a public module")]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn policies() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/policies");
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus is committed") {
        let path = entry.expect("the corpus is readable").path();
        eprintln!("{}", path.display());
        targets::policies(&fs::read(path).expect("the input is readable"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}
