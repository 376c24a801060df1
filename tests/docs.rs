//! The documents say what the code says.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use vswitch::verdict::Reason;
use weft::admin::capability::CapabilityName;
use weft::events::Code;

/// Parts of `docs/operations.md`, between marks, are made from the code. To write them anew:
/// `WEFT_WRITE_DOCS=1 cargo test --test docs`.
#[test]
fn every_drop_reason_capability_and_event_is_explained() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let found = fs::read_to_string(&path).unwrap();

    let mut reasons = String::from("\n| reason | meaning |\n|---|---|\n");
    for reason in Reason::ALL {
        writeln!(reasons, "| `{reason}` | {} |", reason.describe()).unwrap();
    }
    let mut capabilities = String::from("\n| name | on when |\n|---|---|\n");
    for name in CapabilityName::ALL {
        writeln!(capabilities, "| `{name}` | {} |", name.describe()).unwrap();
    }
    let expected = replace(&found, "reasons", &reasons);
    let expected = replace(&expected, "capabilities", &capabilities);
    let mut events = String::from("\n| code | level | meaning | what to do |\n|---|---|---|---|\n");
    for code in Code::ALL {
        let (level, meaning, remedy) = (code.level().name(), code.meaning(), code.remedy());
        writeln!(events, "| `{code}` | {level} | {meaning} | {remedy} |").unwrap();
    }
    let expected = replace(&expected, "events", &events);

    if std::env::var_os("WEFT_WRITE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    assert_eq!(found, expected, "run WEFT_WRITE_DOCS=1 cargo test --test docs");
}

/// The text with `part` between the marks of this name.
fn replace(text: &str, name: &str, part: &str) -> String {
    let begin = format!("<!-- {name}: generated, see tests/docs.rs -->\n");
    let end = format!("<!-- /{name} -->");
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}{part}\n{end}{after}")
}
