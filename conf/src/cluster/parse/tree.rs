//! YAML and JSON as values that know their line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

/// Deepest nesting of a document. The deepest field that is honoured is at 8.
const DEPTH_MAX: usize = 64;

/// Most values that aliases (`*name`) may stand for in one document. Nobody writes manifests with more, and a
/// few lines of aliases of aliases stand for billions.
const ALIASED_MAX: usize = 10_000;

/// A value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Counted from 1. An aliased value is where the alias stands.
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What YAML has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Whole(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Node,
}

impl Value {
    /// What it is, with an article.
    pub(crate) fn article(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Whole(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// A document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// One document of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Document<'t> {
    /// Line of the file that it begins on, counted from 1.
    line: usize,
    text: &'t str,
}

/// Divides a file into its documents.
///
/// A line that begins with `---` ends a document wherever it stands, even in the middle of quoted text
/// (YAML 1.2.2 §9.1.2, `c-forbidden`). So a document with an error does not take the others with it.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (0, 1, 0);
    for (ix, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push(Document { line: begin_line, text: &text[begin..offset] });
            (begin, begin_line) = (offset, ix + 1);
        }
        offset += line.len();
    }
    documents.push(Document { line: begin_line, text: &text[begin..] });
    documents.into_iter().filter(|document| !document.is_blank())
}

impl Document<'_> {
    /// Nothing but comments and directives.
    fn is_blank(&self) -> bool {
        let text = self.text.strip_prefix("---").unwrap_or(self.text);
        let mut lines = text.lines().map(str::trim);
        lines.all(|line| line.is_empty() || line.starts_with(['#', '%']))
    }

    /// Reads it. `None` when it holds nothing.
    pub(crate) fn read(&self) -> Result<Option<Node>, SyntaxError> {
        let before = self.line - 1;
        // Every value takes a byte at least, but for those that aliases stand for.
        let len = self.text.len();
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_depth: DEPTH_MAX,
                max_nodes: len.saturating_add(ALIASED_MAX),
                max_events: len.saturating_mul(2).saturating_add(ALIASED_MAX),
                max_total_scalar_bytes: len.saturating_mul(2).saturating_add(ALIASED_MAX),
            },
            duplicate_keys: DuplicateKeyPolicy::Error,
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED_MAX },
            strict_booleans: true,
            with_snippet: false,
        };
        let read = serde_saphyr::from_str_with_options::<Option<Node>>(self.text, options);
        match read {
            Ok(None) => Ok(None),
            Ok(Some(mut node)) => {
                node.move_down(before);
                Ok(Some(node))
            }
            Err(error) => {
                let at = error.location().and_then(|at| usize::try_from(at.line()).ok());
                let reason = error.to_string();
                // The line is told apart from the reason, and counts from the file's beginning.
                let reason = reason.split(" at line ").next().unwrap_or(&reason).trim().to_owned();
                // What is not closed is missed at the end, which may be past the last line.
                let last = self.text.lines().count();
                Err(SyntaxError { line: before + at.unwrap_or(1).clamp(1, last), reason })
            }
        }
    }
}

impl Node {
    fn move_down(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.move_down(lines)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.line += lines;
                    entry.value.move_down(lines);
                }
            }
            Value::Null | Value::Bool(_) | Value::Whole(_) | Value::Float(_) | Value::Text(_) => {}
        }
    }

    /// The value of a map's field.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => {
                entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
            }
            Value::Null
            | Value::Bool(_)
            | Value::Whole(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_) => None,
        }
    }

    /// The value, when it is text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: usize::try_from(referenced.line()).unwrap_or(usize::MAX), value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of YAML")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    // Numbers that no field can hold stay numbers that no field can hold.
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        let bound = if value < 0 { i64::MIN } else { i64::MAX };
        Ok(Value::Whole(i64::try_from(value).unwrap_or(bound)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Whole(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<String>, Node>()? {
            let line = usize::try_from(key.referenced.line()).unwrap_or(usize::MAX);
            entries.push(Entry { key: key.value, line, value });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<Option<Node>, (usize, String)>> {
        documents(text).map(|document| document.read().map_err(|e| (e.line, e.reason))).collect()
    }

    #[test]
    fn values_know_their_line_in_the_file() {
        let text = "# first\n---\na: 1\n---\n# second\nb:\n  - x\n  - c: yes\n    \"d\": \"1\"\n--- {e: null}\n";
        let read: Vec<Node> = read(text).into_iter().map(|node| node.unwrap().unwrap()).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].field("a").unwrap().line, 3);
        let Value::List(list) = &read[1].field("b").unwrap().value else { panic!("{read:?}") };
        assert_eq!((list[0].line, list[1].line), (7, 8));
        let yes = list[1].field("c").unwrap();
        assert_eq!((yes.line, yes.as_text()), (8, Some("yes")));
        assert_eq!(list[1].field("d").unwrap().as_text(), Some("1"));
        assert_eq!(read[2].field("e").unwrap(), &Node { line: 10, value: Value::Null });
    }

    #[test]
    fn json_is_read_too() {
        let text = "{\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{\"a\": [1, 2.5, true, null, \"x\"]}\n\t]\n}\n";
        let node = read(text).remove(0).unwrap().unwrap();
        let Value::List(items) = &node.field("items").unwrap().value else { panic!("{node:?}") };
        let Value::List(values) = &items[0].field("a").unwrap().value else { panic!("{node:?}") };
        assert!(values.iter().all(|value| value.line == 4));
        let values: Vec<_> = values.iter().map(|value| value.value.clone()).collect();
        let text = Value::Text("x".into());
        assert_eq!(
            values,
            [Value::Whole(1), Value::Float(2.5), Value::Bool(true), Value::Null, text]
        );
    }

    #[test]
    fn a_broken_document_leaves_the_others_whole() {
        let read = read("a: 1\n---\nb: [\n---\nc: \"x\n---\nd: 2\n");
        let whole: Vec<bool> = read.iter().map(Result::is_ok).collect();
        assert_eq!(whole, [true, false, false, true]);
        assert_eq!(read[1].as_ref().unwrap_err().0, 3);
        assert_eq!(read[2].as_ref().unwrap_err().0, 5);
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (before, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            let aliases = vec![format!("*{before}"); 9].join(",");
            laughs.push_str(&format!("{name}: &{name} [{aliases}]\n"));
        }
        let deep = "[".repeat(100_000);
        let deep_maps = "{a: ".repeat(100_000);
        for bomb in [laughs, deep, deep_maps] {
            assert!(read(&bomb)[0].is_err(), "{bomb:.40}");
        }
        assert!(read("a: &a {b: 1}\nc: *a\nd:\n  <<: *a\n")[0].is_ok());
    }

    #[test]
    fn what_is_twice_is_an_error() {
        let (line, reason) = read("a: 1\nb: 2\na: 3\n").remove(0).unwrap_err();
        assert_eq!(line, 3);
        assert!(reason.starts_with("duplicate mapping key: a"), "{reason}");
    }

    #[test]
    fn nothing_is_no_document() {
        assert!(read("").is_empty());
        assert!(read("# a\n---\n# b\n---\n\n").is_empty());
        assert_eq!(read("null\n"), [Ok(None)]);
    }
}
