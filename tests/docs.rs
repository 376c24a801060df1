//! The documents say what the code says.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use vswitch::verdict::Reason;

/// The part of `docs/operations.md` between its two marks is made from [`Reason`]. To write it anew:
/// `WEFT_WRITE_DOCS=1 cargo test --test docs`.
#[test]
fn every_drop_reason_is_explained() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("tests/docs.rs -->\n").unwrap();
    let (found, after) = rest.split_once("<!-- /reasons -->").unwrap();

    let mut expected = String::from("\n| reason | meaning |\n|---|---|\n");
    for reason in Reason::ALL {
        writeln!(expected, "| `{reason}` | {} |", reason.describe()).unwrap();
    }
    expected.push('\n');

    if std::env::var_os("WEFT_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}tests/docs.rs -->\n{expected}<!-- /reasons -->{after}"))
            .unwrap();
        return;
    }
    assert_eq!(found, expected, "run WEFT_WRITE_DOCS=1 cargo test --test docs");
}
