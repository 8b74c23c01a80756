//! Text -> a tree of YAML values, and the place of every key in it. Owner of the crate `saphyr-parser`.
//!
//! `serde_yaml` says what the values are, but not where they stand. So the text is parsed a second time, for
//! the places alone: a tree of keys with their line and column. Where the two do not agree, the place of a
//! problem is that of the nearest key around it, and nothing else changes.
//!
//! The second reading comes first, because it needs memory for the text only. It finds what would make the
//! tree large or deep: aliases of aliases, and thousands of brackets.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser};
use serde_yaml::Value;

use super::problem::{Mark, Problem, clip};

/// The deepest nesting.
const DEPTH_MAX: usize = 64;
/// The most values, with each alias counted as what it stands for.
const VALUES_MAX: u64 = 1_000_000;
/// Below a key of this name keys are secrets.
const SECRET_KEYS: &str = "tokens";

/// Where the keys of a document stand.
#[derive(Debug, Default)]
pub(crate) struct Places {
    root: Place,
}

#[derive(Debug, Default)]
struct Place {
    mark: Option<Mark>,
    inside: BTreeMap<String, Place>,
}

impl Places {
    /// Returns where the key at the end of `path` stands, or the last key on the way that has a place.
    pub(crate) fn find(&self, path: &[&str]) -> Option<Mark> {
        let mut place = &self.root;
        for key in path {
            match place.inside.get(*key) {
                Some(inside) => place = inside,
                None => break,
            }
        }
        place.mark
    }

    /// Returns how a key that is no text is written in the mapping at the end of `path`, and where.
    pub(crate) fn as_written(&self, path: &[&str], key: &Value) -> Option<(&str, Option<Mark>)> {
        let mapping = path.iter().try_fold(&self.root, |place, key| place.inside.get(*key))?;
        let means_key = |word: &str| serde_yaml::from_str::<Value>(word).is_ok_and(|value| value == *key);
        let (word, place) = mapping.inside.iter().find(|(word, _)| means_key(word))?;
        Some((word, place.mark))
    }
}

/// Reads a document. Merge keys (`<<`) are resolved.
pub(crate) fn parse(text: &str) -> Result<(Value, Places), Vec<Problem>> {
    let mut survey = Survey::default();
    let failure = survey.run(text);
    if let Some(problem) = survey.refusal {
        return Err(vec![problem]);
    }
    // Without a complete survey nobody has counted what the aliases stand for.
    if let Some(problem) = failure.filter(|_| text.contains('*')) {
        return Err(vec![problem]);
    }
    let mut problems = survey.duplicates;
    let parsed =
        serde_yaml::from_str::<Value>(text).and_then(|mut value| value.apply_merge().map(|()| value));
    match parsed {
        Ok(value) if problems.is_empty() => return Ok((value, survey.places)),
        Ok(_) => {}
        Err(error) => problems.extend(explain(&error, problems.is_empty())),
    }
    Err(problems)
}

/// What `serde_yaml` has to say, without words of the file: they may be secrets.
fn explain(error: &serde_yaml::Error, with_duplicates: bool) -> Option<Problem> {
    let location = error.location();
    let mark = location.map(|location| Mark { line: location.line(), column: location.column() });
    let text = error.to_string();
    let message = if text.contains("duplicate entry") {
        if !with_duplicates {
            return None;
        }
        "duplicate key".to_owned()
    } else {
        let end = mark.map(|mark| format!(" at line {} column {}", mark.line, mark.column));
        end.and_then(|end| text.split_once(&end).map(|(before, after)| format!("{before}{after}")))
            .unwrap_or(text)
    };
    Some(Problem { mark, place: String::new(), message })
}

/// A mapping or list that has begun and not ended.
struct Open {
    /// `Some` in mappings: what was found in it.
    inside: Option<BTreeMap<String, Place>>,
    /// In a mapping, the key whose value comes next.
    key: Option<(String, Mark)>,
    mark: Mark,
    anchor: usize,
    values_before: u64,
}

#[derive(Default)]
struct Survey {
    open: Vec<Open>,
    /// Values so far, aliases counted as what they stand for.
    values: u64,
    anchors: BTreeMap<usize, u64>,
    places: Places,
    duplicates: Vec<Problem>,
    refusal: Option<Problem>,
}

impl Survey {
    /// Goes over the first document. Returns why it could not go on.
    fn run(&mut self, text: &str) -> Option<Problem> {
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let mark = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
                    let message = error.info().to_owned();
                    return Some(Problem { mark: Some(mark), place: String::new(), message });
                }
            };
            let mark = Mark { line: span.start.line(), column: span.start.col() + 1 };
            match event {
                Event::Scalar(word, _, anchor, _) => {
                    self.count(1, mark);
                    self.anchors.insert(anchor, 1);
                    self.put(Some(&word), mark, BTreeMap::new());
                }
                Event::Alias(anchor) => {
                    self.count(self.anchors.get(&anchor).copied().unwrap_or(1), mark);
                    self.put(None, mark, BTreeMap::new());
                }
                Event::MappingStart(anchor, _) => self.begin(Some(BTreeMap::new()), anchor, mark),
                Event::SequenceStart(anchor, _) => self.begin(None, anchor, mark),
                Event::MappingEnd | Event::SequenceEnd => self.end(),
                Event::DocumentEnd => return None,
                _ => {}
            }
            if self.refusal.is_some() {
                return None;
            }
        }
        None
    }

    fn count(&mut self, values: u64, mark: Mark) {
        self.values = self.values.saturating_add(values);
        if self.values > VALUES_MAX {
            self.refuse(mark, format!("it has more than {VALUES_MAX} values"));
        }
    }

    fn refuse(&mut self, mark: Mark, message: String) {
        self.refusal = Some(Problem { mark: Some(mark), place: String::new(), message });
    }

    fn begin(&mut self, inside: Option<BTreeMap<String, Place>>, anchor: usize, mark: Mark) {
        let values_before = self.values;
        self.count(1, mark);
        self.open.push(Open { inside, key: None, mark, anchor, values_before });
        if self.open.len() > DEPTH_MAX {
            self.refuse(mark, format!("it is nested more than {DEPTH_MAX} deep"));
        }
    }

    fn end(&mut self) {
        let Some(ended) = self.open.pop() else { return };
        self.anchors.insert(ended.anchor, self.values - ended.values_before);
        self.put(None, ended.mark, ended.inside.unwrap_or_default());
    }

    /// Puts a value that is complete where it belongs. `word` is its text if it is a scalar.
    fn put(&mut self, word: Option<&str>, mark: Mark, inside: BTreeMap<String, Place>) {
        let Some(around) = self.open.last_mut() else {
            self.places.root = Place { mark: Some(mark), inside };
            return;
        };
        let Some(siblings) = &mut around.inside else { return };
        let Some((key, key_mark)) = around.key.take() else {
            around.key = Some((word.unwrap_or_default().to_owned(), mark));
            return;
        };
        let first = siblings.get(&key).and_then(|place| place.mark);
        siblings.insert(key.clone(), Place { mark: Some(key_mark), inside });
        if let Some(first) = first {
            self.add_duplicate(&key, key_mark, first);
        }
    }

    fn add_duplicate(&mut self, key: &str, mark: Mark, first: Mark) {
        let above = &self.open[..self.open.len() - 1];
        let mut path: Vec<String> =
            above.iter().filter_map(|open| open.key.as_ref()).map(|(key, _)| clip(key)).collect();
        if path.last().is_none_or(|last| last != SECRET_KEYS) {
            path.push(clip(key));
        }
        let message = format!("duplicate key, it is in line {} already", first.line);
        self.duplicates.push(Problem { mark: Some(mark), place: path.join("."), message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(line: usize, column: usize) -> Option<Mark> {
        Some(Mark { line, column })
    }

    #[test]
    fn every_key_has_its_place() {
        let text =
            "# first\na: 1\nb:\n    c: {d: [x, {y: 1}], e: ''}\n    'f g': |\n        a: 7\n    h: z\nc: 2\n";
        let (_, places) = parse(text).unwrap();
        for (path, expected) in [
            (&[][..], mark(2, 1)),
            (&["a"], mark(2, 1)),
            (&["b", "c"], mark(4, 5)),
            (&["b", "c", "e"], mark(4, 25)),
            (&["b", "f g"], mark(5, 5)),
            (&["b", "h"], mark(7, 5)),
            (&["c"], mark(8, 1)),
            // What is not there has the place of what would hold it.
            (&["b", "c", "x", "y"], mark(4, 5)),
        ] {
            assert_eq!(places.find(path), expected, "{path:?}");
        }
    }

    #[test]
    fn duplicates_are_told_all_at_once_and_secrets_are_not_told() {
        let text = "a: 1\nb: {x: 1, x: 2}\na: 2\ntokens:\n  s3cret: x\n  s3cret: y\n";
        let problems: Vec<String> = parse(text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "line 2, b.x: duplicate key, it is in line 2 already",
                "line 3, a: duplicate key, it is in line 1 already",
                "line 6, tokens: duplicate key, it is in line 5 already",
            ]
        );
    }

    #[test]
    fn anchors_and_merges_are_resolved_and_bounded() {
        let (value, _) = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n").unwrap();
        assert_eq!((value["b"]["x"].as_i64(), value["b"]["y"].as_i64()), (Some(1), Some(3)));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", format!("*a{}, ", n - 1).repeat(9)));
        }
        assert_eq!(parse(&bomb).unwrap_err()[0].message, "it has more than 1000000 values");
        let deep = format!("{}x{}", "[".repeat(70), "]".repeat(70));
        assert_eq!(parse(&deep).unwrap_err()[0].message, "it is nested more than 64 deep");
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse("a: &a [*a]").is_err());
    }
}
