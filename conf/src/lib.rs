//! What people declare: the node file `weft.toml`, checked with `file:line` errors.
//!
//! A file goes through four steps, each in a file of its own:
//!
//! 1. [`load`] reads it; `document` parses it into values that know their line.
//! 2. `document` walks the values along [`schema`], the one table of all fields: unknown names, wrong
//!    types, values out of bounds. A field with an error is taken out, and the walk goes on.
//! 3. What is left becomes a [`NodeConfig`]; `relations` looks for contradictions between its fields.
//! 4. All errors come out together, in the order of their lines, as [`Errors`].
//!
//! The same table makes `docs/configuration.md` and `conf/examples/full.toml` ([mod@reference]), so the
//! documentation cannot differ from what is accepted.

pub mod cluster;
mod dns;
mod document;
mod error;
mod node;
pub mod reference;
mod relations;
pub mod schema;
pub mod source;
mod suggest;

use std::path::Path;

pub use dns::{DnsConfig, DomainName, PodRecords, StaticRecord, Stub, Upstream};
pub use error::{Errors, Problem};
pub use node::{
    ApiServer, Balancing, HostConfig, IpamConfig, LogConfig, LogLevel, MetricsConfig,
    MetricsListen, NodeConfig, NodeName, ObjectSource, ObjectsConfig, PathsConfig, PodCidrs,
    PolicyConfig, PortRange, Seed, ServicesConfig, UnderlayConfig,
};

/// Where the daemon looks for its file when it is told nothing else.
pub const DEFAULT_PATH: &str = "/etc/weft/weft.toml";

/// Most bytes of a node file. A file with every field set and commented is below 20 kB; what is larger
/// is some other file.
pub const FILE_LEN_MAX: u64 = 1 << 20;

/// Reads and checks a node file.
///
/// # Errors
/// Everything that is wrong with the file, at once.
pub fn load(path: &Path) -> Result<NodeConfig, Errors> {
    let text = read(path).map_err(|problem| Errors::new(path, vec![problem]))?;
    parse(path, &text)
}

/// Checks the text of a node file. `path` is only used in messages.
///
/// # Errors
/// Everything that is wrong with the text, at once.
pub fn parse(path: &Path, text: &str) -> Result<NodeConfig, Errors> {
    document::parse(text).map_err(|problems| Errors::new(path, problems))
}

fn read(path: &Path) -> Result<String, Problem> {
    use std::io::{ErrorKind, Read as _};

    let unreadable = |error: std::io::Error| {
        let fix = if error.kind() == ErrorKind::NotFound {
            format!("create it; {}", schema::TWO_LINES)
        } else if error.kind() == ErrorKind::PermissionDenied {
            "run as root, or let this user read it".into()
        } else {
            "give the path of a readable file with --config".into()
        };
        Problem::of_file("cannot be read", error.to_string(), fix)
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // The limit also holds for devices and pipes, whose length is not known beforehand.
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_LEN_MAX {
        return Err(Problem::of_file(
            "is too long",
            format!("a node file has at most {FILE_LEN_MAX} bytes"),
            "check that this is the right file",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        Problem::at(
            line,
            "is not UTF-8",
            "TOML is UTF-8 text, and this line has other bytes",
            "save the file as UTF-8",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weft.toml");
        std::fs::write(&path, bytes).unwrap();
        let text = load(&path).unwrap_err().to_string();
        text.replace(folder.path().to_str().unwrap(), "")
    }

    #[test]
    fn a_missing_file_is_answered_with_the_two_lines_that_suffice() {
        let text = load(Path::new("/nonexistent/weft.toml")).unwrap_err().to_string();
        assert!(text.starts_with("/nonexistent/weft.toml: cannot be read, No such file"), "{text}");
        assert!(text.contains("network = \"prod\""), "{text}");
    }

    #[test]
    fn a_directory_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let text = load(folder.path()).unwrap_err().to_string();
        assert!(text.contains("cannot be read, Is a directory"), "{text}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_found_by_line() {
        let text = error_of(b"network = \"prod\"\nseeds = []\n# caf\xe9\n");
        assert!(text.starts_with("/weft.toml:3: is not UTF-8"), "{text}");
    }

    #[test]
    fn an_endless_file_is_refused() {
        let text = error_of(&vec![b'#'; usize::try_from(FILE_LEN_MAX).unwrap() + 1]);
        assert!(text.starts_with("/weft.toml: is too long"), "{text}");
        let text = load(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(text.contains("is too long"), "{text}");
    }

    #[test]
    fn two_lines_are_enough() {
        let text = "network = \"prod\"\nseeds = [\"192.168.10.11\"]\n";
        let config = parse(Path::new("weft.toml"), text).unwrap();
        assert_eq!(config.network, "prod");
        assert_eq!(config.seed_endpoints().collect::<Vec<_>>(), [("192.168.10.11", 7946)]);
    }
}
