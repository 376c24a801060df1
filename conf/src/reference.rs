//! The documents that are made from the table of fields, so that they cannot differ from it.

use std::fmt::Write as _;

use crate::node::NodeConfig;
use crate::schema::{Default, Field, Kind, SECTIONS, Section, TWO_LINES};

/// `docs/configuration.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# The node file\n\n\
         <!-- Made from conf/src/schema.rs. To change it, change that table, then run\n     \
         WEFT_WRITE_DOCS=1 cargo test -p conf --test reference -->\n\n\
         `weftd --config FILE` reads one TOML file, by default `/etc/weft/weft.toml`. Two lines are enough \
         on a real host:\n\n\
         ```toml\n\
         network = \"prod\"\n\
         seeds = [\"192.168.10.11\"]\n\
         ```\n\n\
         Everything else has a default that is right for most. `weftd --check --config FILE` reads the \
         file, tells everything that is wrong with it as `file:line: what, why, fix`, all at once, and \
         starts nothing. A field that does not exist is an error, and so is a value out of its bounds. The \
         file is read at start: restart the daemon after a change (pods keep their traffic).\n\n\
         Samples are in `conf/examples/`; `full.toml` there has every field with its default.\n",
    );
    let defaults = defaults();
    for section in SECTIONS {
        let title = match section.name {
            "" => "At the top".into(),
            name => format!("`[{name}]`"),
        };
        let _infallible = write!(out, "\n## {title}\n\n{}\n", section.doc);
        for field in section.fields {
            let Field { name, kind, doc, .. } = field;
            let default = match default_of(&defaults, section, field) {
                Shown::Value(value) => format!("`{value}`"),
                Shown::Words(words) => words.into(),
                Shown::Required(example) => format!("none: required, for example `{example}`"),
            };
            let takes = takes(kind);
            let _infallible = write!(
                out,
                "\n### `{}`\n\n{doc}\n\n- Takes: {takes}\n- Default: {default}\n",
                section.path(name)
            );
        }
    }
    out
}

/// `conf/examples/full.toml`: every field with its default. What has none, or is found out at start,
/// stands as a comment or as an example.
pub fn full_example() -> String {
    let mut out = format!(
        "# Every field of weft.toml with its default. A real file has only what differs;\n# {TWO_LINES}.\n\
         # What each means: docs/configuration.md.\n"
    );
    let defaults = defaults();
    for section in SECTIONS {
        if section.name.is_empty() {
            out.push('\n');
        } else {
            let _infallible = write!(out, "\n[{}]\n", section.name);
        }
        for field in section.fields {
            let name = field.name;
            let _infallible = match default_of(&defaults, section, field) {
                Shown::Value(value) => {
                    // Without an IPv6 range its prefix length is refused, because it would mean nothing.
                    let hash = if name == "prefix_len_v6" { "# " } else { "" };
                    writeln!(out, "{hash}{name} = {value}")
                }
                Shown::Words(words) => writeln!(out, "# {name}: {words}"),
                Shown::Required(example) => writeln!(out, "{name} = {example}"),
            };
        }
    }
    out
}

enum Shown {
    Value(toml::Value),
    Words(&'static str),
    Required(&'static str),
}

/// The defaults as they are in the program.
fn defaults() -> toml::Table {
    toml::Table::try_from(NodeConfig::new("", Vec::new()))
        .expect("a configuration without a value that TOML lacks")
}

fn default_of(defaults: &toml::Table, section: &Section, field: &Field) -> Shown {
    match field.default {
        Default::Required(example) => Shown::Required(example),
        Default::Found(words) => Shown::Words(words),
        Default::Fixed => {
            let table = defaults.get(section.name).and_then(toml::Value::as_table);
            let value = table.and_then(|table| table.get(field.name));
            Shown::Value(value.expect("a field of the table is a field of NodeConfig").clone())
        }
    }
}

fn takes(kind: &Kind) -> String {
    match kind {
        Kind::Text { form, .. } => format!("a string: {form}"),
        Kind::Whole { min, max, unit } => format!("a whole number from {min} to {max} {unit}"),
        Kind::Switch => "`true` or `false`".into(),
        Kind::Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
        Kind::List { form, count_min, count_max, .. } => {
            format!("a list of {count_min} to {count_max} strings: {form}")
        }
    }
    .trim_end()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table and the types have the same fields, and the table accepts every default.
    #[test]
    fn the_table_and_the_types_agree() {
        let defaults = defaults();
        for (name, value) in &defaults {
            let Some(section) = Section::find(name) else {
                assert!(Section::find("").unwrap().field(name).is_some(), "{name}");
                continue;
            };
            for field in value.as_table().unwrap().keys() {
                assert!(section.field(field).is_some(), "{name}.{field} is not in the table");
            }
        }
        for section in SECTIONS {
            for field in section.fields {
                if let Shown::Value(value) = default_of(&defaults, section, field) {
                    let text = format!(
                        "network = \"a\"\nseeds = []\n{} = {value}",
                        section.path(field.name)
                    );
                    if field.name != "prefix_len_v6" {
                        assert!(crate::document::parse(&text).is_ok(), "{text}");
                    }
                }
            }
        }
    }

    /// Every bound in the table is accepted by the types, and one further is refused.
    #[test]
    fn the_bounds_are_the_types_bounds() {
        let ranges = "lease.ranges = [\"11.0.0.0/8\", \"fd00::/8\"]\n";
        for section in SECTIONS {
            for field in section.fields {
                let Kind::Whole { min, max, .. } = field.kind else { continue };
                let path = section.path(field.name);
                // An IPv6 range needs a larger MTU than the smallest.
                let ranges = if path == "underlay.mtu" { "" } else { ranges };
                let parse = |value: u64| {
                    crate::document::parse(&format!(
                        "network = \"a\"\nseeds = []\n{ranges}{path} = {value}\n"
                    ))
                };
                for value in [min, max] {
                    assert!(parse(value).is_ok(), "{path} = {value}: {:?}", parse(value));
                }
                assert!(parse(max + 1).is_err(), "{path} = {}", max + 1);
                assert!(min == 0 || parse(min - 1).is_err(), "{path} below {min}");
            }
        }
    }
}
