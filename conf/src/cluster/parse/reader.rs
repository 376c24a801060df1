//! Reading fields of a manifest: what is there, what it has to be, and where it is wrong.

use std::cell::RefCell;
use std::sync::Arc;

use super::tree::{Entry, Node, Value};
use super::{FieldProblem, Origin};
use crate::suggest::nearest;

/// Most problems of one object that are told.
const PROBLEMS_MAX: usize = 20;

/// What reading an object has found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) origin: Origin,
    problems: RefCell<Vec<FieldProblem>>,
    notes: RefCell<Vec<FieldProblem>>,
    places: RefCell<Vec<(String, usize)>>,
}

/// What a [`Report`] ends as.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Why the object is refused.
    pub(crate) problems: Vec<FieldProblem>,
    /// What of it is not honoured.
    pub(crate) notes: Vec<FieldProblem>,
    /// Lines of the fields that may be refused later.
    pub(crate) places: Vec<(String, usize)>,
}

impl Report {
    pub(crate) fn new(origin: Origin) -> Self {
        Self {
            origin,
            problems: RefCell::default(),
            notes: RefCell::default(),
            places: RefCell::default(),
        }
    }

    pub(crate) fn root<'n>(&'n self, node: &'n Node) -> Item<'n> {
        Item { node, path: String::new(), report: self }
    }

    pub(crate) fn refuse(&self, line: usize, field: impl Into<String>, reason: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < PROBLEMS_MAX {
            problems.push(FieldProblem { line, field: field.into(), reason: reason.into() });
        }
    }

    pub(crate) fn finish(self) -> Findings {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        let mut notes = self.notes.into_inner();
        notes.sort();
        Findings { problems, notes, places: self.places.into_inner() }
    }
}

/// A value with its path from the object's root.
#[derive(Debug, Clone)]
pub(crate) struct Item<'n> {
    node: &'n Node,
    path: String,
    report: &'n Report,
}

impl<'n> Item<'n> {
    pub(crate) fn refuse(&self, reason: impl Into<String>) {
        self.report.refuse(self.node.line, self.path.clone(), reason);
    }

    /// Says that this is accepted, but not honoured.
    pub(crate) fn note(&self, reason: impl Into<String>) {
        let (line, field) = (self.node.line, self.path.clone());
        self.report.notes.borrow_mut().push(FieldProblem { line, field, reason: reason.into() });
    }

    /// Remembers the line, for what is found out later.
    pub(crate) fn place(&self) {
        self.report.places.borrow_mut().push((self.path.clone(), self.node.line));
    }

    pub(crate) fn origin(&self) -> Origin {
        self.report.origin
    }

    pub(crate) fn text(&self) -> Option<&'n str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Whole(_) | Value::Float(_) | Value::Bool(_) => {
                self.refuse(format!(
                    "is {}, not text: put it in quotes",
                    self.node.value.article()
                ));
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.refuse(format!("is {}, not text", self.node.value.article()));
                None
            }
        }
    }

    /// Text that passes a check; what does not is refused with the check's words after it.
    pub(crate) fn checked<T>(&self, check: impl Fn(&'n str) -> Result<T, String>) -> Option<T> {
        let text = self.text()?;
        match check(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.refuse(format!("{:?} {why}", shorten(text)));
                None
            }
        }
    }

    /// A name that passes a check.
    pub(crate) fn name(&self, check: fn(&str) -> Result<(), String>) -> Option<Arc<str>> {
        self.checked(|text| check(text).map(|()| Arc::from(text)))
    }

    /// A whole number within bounds. `what` completes "… is no".
    pub(crate) fn whole(&self, min: i64, max: i64, what: &str) -> Option<i64> {
        let Value::Whole(number) = self.node.value else {
            let article = self.node.value.article();
            self.refuse(format!("is {article}, not a whole number from {min} to {max}"));
            return None;
        };
        if !(min..=max).contains(&number) {
            self.refuse(format!("{number} is no {what}: {min} to {max}"));
            return None;
        }
        Some(number)
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.whole(1, 65_535, "port").and_then(|port| u16::try_from(port).ok())
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Text(_))
    }

    pub(crate) fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }

    pub(crate) fn yes(&self) -> Option<bool> {
        let Value::Bool(yes) = self.node.value else {
            self.refuse(format!("is {}, not true or false", self.node.value.article()));
            return None;
        };
        Some(yes)
    }

    /// One of these words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(format!("{:?} is none of {}", shorten(text), words.join(", ")));
        }
        found
    }

    /// The items of a list with at most `max` of them.
    pub(crate) fn list(&self, max: usize) -> Vec<Self> {
        let Value::List(items) = &self.node.value else {
            self.refuse(format!("is {}, not a list", self.node.value.article()));
            return Vec::new();
        };
        if items.len() > max {
            self.refuse(format!("has {} entries: at most {max} are possible", items.len()));
            return Vec::new();
        }
        let item = |(ix, node): (usize, &'n Node)| Self {
            node,
            path: format!("{}[{ix}]", self.path),
            report: self.report,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub(crate) fn fields(&self) -> Option<Fields<'n>> {
        let Value::Map(entries) = &self.node.value else {
            self.refuse(format!("is {}, not a map", self.node.value.article()));
            return None;
        };
        Some(Fields {
            entries,
            line: self.node.line,
            path: self.path.clone(),
            report: self.report,
            asked: Vec::new(),
        })
    }

    /// Keys and values of a map of anything.
    pub(crate) fn entries(&self) -> Vec<(&'n Entry, Self)> {
        let Some(fields) = self.fields() else { return Vec::new() };
        let item = |entry: &'n Entry| {
            let path = format!("{}[{}]", self.path, shorten(&entry.key));
            (entry, Item { node: &entry.value, path, report: self.report })
        };
        fields.entries.iter().map(item).collect()
    }
}

/// The fields of a map, which notes those that nobody asks for.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    entries: &'n [Entry],
    line: usize,
    path: String,
    report: &'n Report,
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// A field. `null` is the same as not being there.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<Item<'n>> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        if entry.value.value == Value::Null {
            return None;
        }
        Some(Item { node: &entry.value, path: self.path_of(name), report: self.report })
    }

    /// A field that must be there.
    pub(crate) fn need(&mut self, name: &'static str) -> Option<Item<'n>> {
        let found = self.get(name);
        if found.is_none() {
            self.refuse(name, "is missing");
        }
        found
    }

    /// A field that is a map. Nothing when there is none.
    pub(crate) fn map(&mut self, name: &'static str) -> Option<Self> {
        self.get(name)?.fields()
    }

    /// The items of a field that is a list.
    pub(crate) fn list(&mut self, name: &'static str, max: usize) -> Vec<Item<'n>> {
        self.get(name).map(|item| item.list(max)).unwrap_or_default()
    }

    /// Refuses a field, whether it is there or not.
    pub(crate) fn refuse(&self, name: &str, reason: impl Into<String>) {
        let entry = self.entries.iter().find(|entry| entry.key == name);
        let line = entry.map_or(self.line, |entry| entry.value.line);
        self.report.refuse(line, self.path_of(name), reason);
    }

    /// Names fields that are right, and do not concern Weft.
    pub(crate) fn pass(&mut self, names: &[&'static str]) {
        self.asked.extend(names);
    }

    /// Refuses the fields that nobody has asked for.
    pub(crate) fn finish(self) {
        if self.report.origin == Origin::Api {
            // A newer API server may know more than this version of Weft.
            return;
        }
        for entry in self.entries {
            if self.asked.contains(&entry.key.as_str()) {
                continue;
            }
            let path = self.path_of(&shorten(&entry.key));
            let reason = match nearest(&entry.key, self.asked.iter().copied()) {
                Some(guess) => format!("there is no such field: did you mean {guess}?"),
                None => "there is no such field".to_owned(),
            };
            self.report.refuse(entry.line, path, reason);
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// Text for a message.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().count() <= 64 {
        return text.to_owned();
    }
    text.chars().take(63).chain(['…']).collect()
}
