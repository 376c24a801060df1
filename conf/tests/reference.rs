//! The committed documents are what the table of fields says.

use std::path::{Path, PathBuf};

/// With `WEFT_WRITE_DOCS` set, the files are written instead of compared.
#[track_caller]
fn assert_file_is(path: &str, expected: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("WEFT_WRITE_DOCS").is_some() {
        std::fs::write(&path, expected).expect("the file can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not what conf/src/schema.rs says: run\n\
         WEFT_WRITE_DOCS=1 cargo test -p conf --test reference\nand commit the result",
        path.display()
    );
}

#[test]
fn the_configuration_page_is_what_is_checked() {
    assert_file_is("../docs/configuration.md", &conf::reference::markdown());
}

#[test]
fn the_full_example_has_every_default() {
    assert_file_is("examples/full.toml", &conf::reference::full_example());
}
