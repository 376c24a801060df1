//! The node file, `weft.toml`.

use std::path::Path;

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
