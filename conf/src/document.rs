//! From text to [`NodeConfig`], gathering every problem on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use crate::error::Problem;
use crate::node::NodeConfig;
use crate::relations;
use crate::schema::{Check, Default, Field, Kind, SECTIONS, Section, TWO_LINES};
use crate::suggest::nearest;

/// Most problems that are told. A file with more is the wrong file.
const PROBLEMS_MAX: usize = 100;

/// Checks a text and builds the configuration.
pub(crate) fn parse(text: &str) -> Result<NodeConfig, Vec<Problem>> {
    let lines = Lines::of(text);
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What the parser guessed after a syntax error would only lead to misleading problems.
        return Err(errors.iter().take(PROBLEMS_MAX).map(|error| syntax(&lines, error)).collect());
    }
    let mut findings = Findings::new(lines);
    walk(document.get_mut(), &mut findings);
    let config = match NodeConfig::deserialize(toml::Deserializer::from(document)) {
        Ok(config) => config,
        Err(error) => {
            findings.problems.push(syntax(&findings.lines, &error));
            return Err(findings.into_problems());
        }
    };
    relations::check(&config, &mut findings);
    if findings.problems.is_empty() { Ok(config) } else { Err(findings.into_problems()) }
}

/// What the walk has found so far, and where.
#[derive(Debug)]
pub(crate) struct Findings {
    lines: Lines,
    problems: Vec<Problem>,
    /// Line of each field, and of each list's entry as `field[ix]`, that the file has.
    places: BTreeMap<String, usize>,
    /// Fields with a problem. Their values are not in the configuration.
    wrong: BTreeSet<String>,
}

impl Findings {
    fn new(lines: Lines) -> Self {
        Self { lines, problems: Vec::new(), places: BTreeMap::new(), wrong: BTreeSet::new() }
    }

    /// Whether the file sets this field.
    pub(crate) fn is_set(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Reports that fields contradict each other, on the line of the first one that the file sets. Does
    /// nothing when one of them already has a problem: what it would say is a consequence of that.
    pub(crate) fn contradiction(
        &mut self,
        paths: &[&str],
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let field = |path: &&str| path.split('[').next().unwrap_or(path).to_owned();
        let fields: Vec<String> = paths.iter().map(field).collect();
        if fields.iter().any(|field| self.wrong.contains(field)) {
            return;
        }
        let line = paths.iter().find_map(|path| self.places.get(*path)).copied();
        self.problems.push(Problem { line, what: what.into(), why: why.into(), fix: fix.into() });
        self.wrong.extend(fields);
    }

    fn wrong(&mut self, span: Range<usize>, what: String, why: String, fix: String) {
        let line = self.lines.line_of(span.start);
        self.problems.push(Problem::at(line, what, why, fix));
    }

    fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort();
        let more = self.problems.len().saturating_sub(PROBLEMS_MAX);
        if more > 0 {
            self.problems.truncate(PROBLEMS_MAX);
            let why = "only the first are shown";
            let what = format!("has {more} more problems");
            self.problems.push(Problem::of_file(what, why, "check that this is the right file"));
        }
        self.problems
    }
}

fn walk(document: &mut DeTable<'_>, findings: &mut Findings) {
    for section in SECTIONS {
        if section.name.is_empty() {
            check_fields(section, document, findings);
            continue;
        }
        let Some(value) = document.get_mut(section.name) else { continue };
        let span = value.span();
        if let DeValue::Table(table) = value.get_mut() {
            check_fields(section, table, findings);
        } else {
            let name = section.name;
            findings.wrong(
                span,
                format!("{name} is {}", article(value.get_ref())),
                "it is a section".into(),
                format!("write [{name}] on a line of its own, and its fields below"),
            );
            document.remove(name);
        }
    }
}

fn check_fields(section: &Section, table: &mut DeTable<'_>, findings: &mut Findings) {
    let mut wrong = Vec::new();
    for (key, value) in table.iter() {
        let name: &str = key.get_ref();
        let Some(field) = section.field(name) else {
            let at_top = section.name.is_empty();
            if !at_top || name.is_empty() || Section::find(name).is_none() {
                unknown(section, name, key.span(), findings);
                wrong.push(name.to_owned());
            }
            continue;
        };
        let path = section.path(name);
        findings.places.insert(path.clone(), findings.lines.line_of(key.span().start));
        let before = findings.problems.len();
        check_value(&path, field, value, findings);
        if findings.problems.len() > before {
            findings.wrong.insert(path);
            wrong.push(name.to_owned());
        }
    }
    for name in wrong {
        table.remove(name.as_str());
    }
    for field in section.fields {
        if let Default::Required(example) = field.default
            && !table.contains_key(field.name)
        {
            let path = section.path(field.name);
            if findings.wrong.insert(path.clone()) {
                let fix = format!("add {path} = {example}; {TWO_LINES}");
                let problem =
                    Problem::of_file(format!("{path} is missing"), "it has no default", fix);
                findings.problems.push(problem);
            }
            // A stand-in, so that the rest of the file can still be checked.
            if let Ok(value) = DeValue::parse(example) {
                table.insert(Spanned::new(0..0, field.name.into()), value);
            }
        }
    }
}

fn unknown(section: &Section, name: &str, span: Range<usize>, findings: &mut Findings) {
    let shown = if section.name.is_empty() {
        shorten(name)
    } else {
        format!("{}.{}", section.name, shorten(name))
    };
    let home = SECTIONS.iter().find(|other| other.field(name).is_some());
    let here = section.fields.iter().map(|field| field.name);
    let sections = SECTIONS.iter().map(|section| section.name).filter(|_| section.name.is_empty());
    let fix = if let Some(guess) = nearest(name, here.chain(sections)) {
        format!("did you mean {guess}?")
    } else if let Some(home) = home {
        let place = if home.name.is_empty() {
            "to the top, before the first section".into()
        } else {
            format!("below [{}]", home.name)
        };
        format!("move it {place}")
    } else {
        let known: Vec<&str> = section.fields.iter().map(|field| field.name).collect();
        format!("remove it; known here: {}", known.join(", "))
    };
    let why = if section.name.is_empty() {
        "there is no such field or section".into()
    } else {
        format!("[{}] has no such field", section.name)
    };
    findings.wrong(span, format!("{shown} is unknown"), why, fix);
}

fn check_value(path: &str, field: &Field, value: &Spanned<DeValue<'_>>, findings: &mut Findings) {
    let span = value.span();
    match (&field.kind, value.get_ref()) {
        (Kind::Text { form, check }, DeValue::String(text)) => {
            check_text(path, text, form, *check, span, findings);
        }
        (Kind::Whole { min, max, unit }, DeValue::Integer(number)) => {
            check_whole(path, number, (*min, *max, unit), span, findings);
        }
        (Kind::Switch, DeValue::Boolean(_)) => {}
        (Kind::Choice(words), DeValue::String(text)) => {
            check_choice(path, text, words, span, findings);
        }
        (Kind::List { form, check, count_min, count_max }, DeValue::Array(items)) => {
            check_list(path, items, form, *check, findings);
            if !(*count_min..=*count_max).contains(&items.len()) {
                findings.wrong(
                    span,
                    format!("{path} has {} entries", items.len()),
                    format!("it takes {count_min} to {count_max}"),
                    "add or remove some".into(),
                );
            }
        }
        (kind, other) => wrong_type(path, kind, other, span, findings),
    }
}

fn check_text(
    path: &str,
    text: &str,
    form: &str,
    check: Check,
    span: Range<usize>,
    findings: &mut Findings,
) {
    if let Err(why) = check(text) {
        findings.wrong(span, format!("{path} = {}", quote(text)), why, format!("write {form}"));
    }
}

fn check_whole(
    path: &str,
    number: &DeInteger<'_>,
    (min, max, unit): (u64, u64, &str),
    span: Range<usize>,
    findings: &mut Findings,
) {
    let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
    if value.is_some_and(|value| (i128::from(min)..=i128::from(max)).contains(&value)) {
        return;
    }
    let blank = if unit.is_empty() { "" } else { " " };
    let nearest = if value.is_some_and(|value| value < i128::from(min)) { min } else { max };
    findings.wrong(
        span,
        format!("{path} = {} is out of bounds", shorten(&number.to_string())),
        format!("it takes {min} to {max}{blank}{unit}"),
        format!("the nearest possible is {nearest}"),
    );
}

fn check_choice(
    path: &str,
    text: &str,
    words: &'static [&'static str],
    span: Range<usize>,
    findings: &mut Findings,
) {
    if words.contains(&text) {
        return;
    }
    let fix = match nearest(text, words.iter().copied()) {
        Some(guess) => format!("did you mean \"{guess}\"?"),
        None => "choose one of them".into(),
    };
    let why = format!("it takes {}", words.join(", "));
    findings.wrong(span, format!("{path} = {}", quote(text)), why, fix);
}

fn check_list(path: &str, items: &DeArray<'_>, form: &str, check: Check, findings: &mut Findings) {
    for (ix, item) in items.iter().enumerate() {
        let entry = format!("{path}[{ix}]");
        if let DeValue::String(text) = item.get_ref() {
            check_text(&entry, text, form, check, item.span(), findings);
        } else {
            let what = format!("{entry} is {}", article(item.get_ref()));
            let fix = format!("write {form}, in quotes");
            findings.wrong(item.span(), what, "the entries are strings".into(), fix);
        }
        let line = findings.lines.line_of(item.span().start);
        findings.places.insert(entry, line);
    }
}

fn wrong_type(
    path: &str,
    kind: &Kind,
    value: &DeValue<'_>,
    span: Range<usize>,
    findings: &mut Findings,
) {
    let (takes, fix) = match (kind, value) {
        (Kind::Text { .. }, DeValue::Integer(number)) => {
            ("a string", format!("put it in quotes: \"{}\"", shorten(number.as_str())))
        }
        (Kind::Text { form, .. }, _) => ("a string", format!("write {form}, in quotes")),
        (Kind::Whole { .. }, DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            ("a whole number", format!("remove the quotes: {text}"))
        }
        (Kind::Whole { min, max, .. }, _) => ("a whole number", format!("write {min} to {max}")),
        (Kind::Switch, _) => ("true or false", "write true or false, without quotes".into()),
        (Kind::Choice(words), _) => ("a string", format!("write one of {}", words.join(", "))),
        (Kind::List { .. }, DeValue::String(text)) => {
            ("a list", format!("put it in brackets: [{}]", quote(text)))
        }
        (Kind::List { form, .. }, _) => ("a list", format!("write {form}, in quotes and brackets")),
    };
    findings.wrong(span, format!("{path} is {}", article(value)), format!("it takes {takes}"), fix);
}

fn article(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
    .into()
}

fn syntax(lines: &Lines, error: &toml::de::Error) -> Problem {
    let line = lines.line_of(error.span().map_or(usize::MAX, |span| span.start));
    let what = "this is not TOML";
    Problem::at(line, what, shorten(error.message()), "see https://toml.io/en/v1.0.0 for its rules")
}

/// Longest piece of the file that a message repeats, in characters.
const QUOTE_LEN_MAX: usize = 80;

fn quote(text: &str) -> String {
    shorten(&format!("{text:?}"))
}

/// The text without control characters, and with the middle left out when it is long.
fn shorten(text: &str) -> String {
    let clean: Vec<char> =
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if clean.len() <= QUOTE_LEN_MAX {
        return clean.into_iter().collect();
    }
    let head = clean[..QUOTE_LEN_MAX / 2].iter();
    let tail = clean[clean.len() - QUOTE_LEN_MAX / 4..].iter();
    head.chain(['…'].iter()).chain(tail).collect()
}

/// Where the lines of a text begin.
#[derive(Debug)]
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect())
    }

    /// The line, from 1, of a byte. What is behind the end belongs to the last line.
    fn line_of(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: &str = "network = \"prod\"\nseeds = []\n";

    fn told(rest: &str) -> Vec<String> {
        told_all(&format!("{START}{rest}"))
    }

    fn told_all(text: &str) -> Vec<String> {
        let problems = parse(text).expect_err("the text has problems");
        crate::Errors::new(std::path::Path::new("w"), problems)
            .to_string()
            .lines()
            .map(Into::into)
            .collect()
    }

    #[test]
    fn all_problems_are_told_at_once_and_in_order() {
        let text = "network = \"Prod\"\n\
                    sedes = [\"a\"]\n\
                    [overlay]\n\
                    vni = 16777216\n\
                    vxlan_port = \"4789\"\n\
                    [lease]\n\
                    ranges = [\"10.244.0.0/16\",\n  \"10.1.2.3/16\", 7]\n\
                    [log]\n\
                    level = \"inf\"\n\
                    [hots]\n";
        let expected = [
            "w: seeds is missing, it has no default, add seeds = [\"192.168.10.11\"]; two lines are enough: \
             network = \"prod\" and seeds = [\"192.168.10.11\"]",
            "w:1: network = \"Prod\", a network's name is 1 to 63 lower-case letters, digits and -, write 1 \
             to 63 lower-case letters, digits and -",
            "w:2: sedes is unknown, there is no such field or section, did you mean seeds?",
            "w:4: overlay.vni = 16777216 is out of bounds, it takes 0 to 16777215, the nearest possible is \
             16777215",
            "w:5: overlay.vxlan_port is a string, it takes a whole number, remove the quotes: 4789",
            "w:8: lease.ranges[1] = \"10.1.2.3/16\", its first address is 10.1.0.0/16, write ranges like \
             10.244.0.0/16 or fd00:10:244::/56",
            "w:8: lease.ranges[2] is a whole number, the entries are strings, write ranges like \
             10.244.0.0/16 or fd00:10:244::/56, in quotes",
            "w:10: log.level = \"inf\", it takes error, warn, info, debug, trace, did you mean \"info\"?",
            "w:11: hots is unknown, there is no such field or section, did you mean host?",
        ];
        assert_eq!(told_all(text), expected);
    }

    #[test]
    fn every_kind_of_value_refuses_every_other() {
        let fields = ["log.level", "overlay.vni", "host.masquerade", "lease.ranges", "paths.run"];
        for field in fields {
            for value in ["1", "1.5", "true", "\"x\"", "[1]", "{ a = 1 }", "1979-05-27", "nan"] {
                let fits =
                    matches!((field, value), ("host.masquerade", "true") | ("overlay.vni", "1"));
                let result = parse(&format!("{START}{field} = {value}\n"));
                assert_eq!(result.is_ok(), fits, "{field} = {value}: {result:?}");
                if let Err(problems) = result {
                    assert!(problems.iter().all(|problem| problem.line == Some(3)), "{problems:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_read_in_every_notation_and_never_wrap() {
        for (text, vni) in [("0x10", 16), ("0b11", 3), ("0o17", 15), ("1_000", 1000), ("+5", 5)] {
            let config = parse(&format!("{START}overlay.vni = {text}\n")).unwrap();
            assert_eq!(config.overlay.vni, vni, "{text}");
        }
        for text in ["-1", "99999999999999999999999999", "0xffffffffffffffffffffffffffffffffffff"] {
            let told = told(&format!("overlay.vni = {text}\n"));
            assert!(told[0].contains("out of bounds"), "{told:?}");
        }
    }

    #[test]
    fn fields_in_the_wrong_place_are_sent_home() {
        assert!(told("vni = 1\n")[0].ends_with("move it below [overlay]"));
        assert!(
            told("[overlay]\nseeds = []\n")[0]
                .ends_with("move it to the top, before the first section")
        );
        assert!(
            told("[overlay]\nnothing_like_it = 1\n")[0]
                .contains("remove it; known here: vxlan_port,")
        );
        assert!(told("overlay = 5\n")[0].contains("write [overlay] on a line of its own"));
        assert!(told("[[overlay]]\nvni = 1\n")[0].contains("overlay is a list"));
        assert!(told("[overlay.vni]\nx = 1\n")[0].contains("overlay.vni is a section"));
        assert!(told("\"\" = 5\n")[0].contains("is unknown"));
    }

    #[test]
    fn syntax_errors_are_told_by_line() {
        let told = told("a = tru\n[overlay]\nvni = 1 2\n");
        assert!(told[0].starts_with("w:3: this is not TOML"), "{told:?}");
        assert!(told.iter().any(|line| line.starts_with("w:5: this is not TOML")), "{told:?}");
        for text in ["a = [", "a = \"", "a = 1\na = 2\n", "\u{0}", "= 1", "[a]\n[a]\n"] {
            assert!(told_all(text)[0].contains("this is not TOML"), "{text}");
        }
    }

    #[test]
    fn a_foreign_file_does_not_flood_the_terminal() {
        let text: String = (0..5000).map(|ix| format!("field_{ix} = 1\n")).collect();
        let told = told(&text);
        assert_eq!(told.len(), PROBLEMS_MAX + 1);
        assert!(told[0].contains("has 4900 more problems"), "{}", told[0]);
        let told = told_all(&format!("{START}{} = \"\\u001b[2J{}\"\n", "name", "x".repeat(5000)));
        assert!(told[0].len() < 400 && !told[0].contains('\u{1b}'), "{told:?}");
    }

    #[test]
    fn what_follows_from_a_wrong_value_is_not_told_again() {
        let told = told("[lease]\nranges = [\"10.244.0.0\"]\nprefix_len_v6 = 64\n");
        assert_eq!(told.len(), 1, "{told:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            let _either = parse(&text);
        }

        /// Takes the full example apart and puts other things into the holes.
        #[test]
        fn no_mutation_of_a_good_file_makes_it_panic(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..30, "[\\[\\]{}=\"'.,#a-z0-9 \n-]{0,8}"), 1..8),
        ) {
            let mut text: Vec<char> = crate::reference::full_example().chars().collect();
            for (at, len, put) in cuts {
                let start = at.index(text.len());
                let end = (start + len).min(text.len());
                text.splice(start..end, put.chars());
            }
            let text: String = text.into_iter().collect();
            let lines = text.lines().count().max(1);
            if let Err(problems) = parse(&text) {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert!(problem.line.is_none_or(|line| (1..=lines + 1).contains(&line)), "{:?}", problem);
                }
            }
        }

        #[test]
        fn random_values_in_known_fields_never_panic(
            section in any::<prop::sample::Index>(),
            field in any::<prop::sample::Index>(),
            value in prop_oneof![
                any::<i64>().prop_map(|n| n.to_string()),
                any::<f64>().prop_map(|n| format!("{n:?}")),
                "[0-9a-f:./\\[\\]]{0,20}".prop_map(|s| format!("'{s}'")),
                "[0-9a-f:./]{0,20}".prop_map(|s| format!("['{s}', '10.0.0.0/8']")),
                "\\PC{0,30}",
            ],
        ) {
            let section = section.get(SECTIONS);
            let name = section.path(field.get(section.fields).name);
            let _either = parse(&format!("{name} = {value}\n{START}"));
            let _either = parse(&format!("{name} = {value}\n"));
        }
    }
}
