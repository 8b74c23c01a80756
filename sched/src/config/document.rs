//! Text -> a tree of YAML values, and the place of every key in it. Owner of the crate `saphyr-parser`.
//!
//! `serde_yaml` says what the values are, but not where they stand. So the text is parsed a second time, for
//! the places alone: a tree of keys with their line and column. Where the two do not agree, the place of a
//! problem is that of the nearest key around it, and nothing else changes.
//!
//! The second reading comes first, because it needs memory for the text only. It finds what would make the
//! tree large or deep: aliases of aliases, and thousands of brackets.
//!
//! # The cost of a text
//!
//! A scanner of YAML goes over all open brackets for each token, so nested brackets cost the square of their number. The
//! scanner of the survey gives up at 255 open brackets, which bounds its cost; that of `serde_yaml` has no such limit. So
//! a text whose survey was given up is parsed only if it has few brackets.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser};
use serde_yaml::Value;

use super::problem::{Mark, Problem, clip};

/// The deepest nesting.
const DEPTH_MAX: usize = 64;
/// The most values, with each alias counted as what it stands for.
const VALUES_MAX: u64 = 1_000_000;
/// The most bytes of texts, with each alias counted as what it stands for.
const EXPANDED_BYTES_MAX: u64 = 64 << 20;
/// The most brackets in a text of which the survey was given up.
const BRACKETS_MAX: usize = 1000;
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
    parse_with(text, Survey::default())
}

/// Reads a document whose outermost keys are secrets: no problem names one.
pub(crate) fn parse_secrets(text: &str) -> Result<(Value, Places), Vec<Problem>> {
    parse_with(text, Survey { is_secret: true, ..Survey::default() })
}

fn parse_with(text: &str, mut survey: Survey) -> Result<(Value, Places), Vec<Problem>> {
    let failure = survey.run(text);
    if let Some(problem) = survey.refusal {
        return Err(vec![problem]);
    }
    // Without a complete survey nobody has counted what the aliases stand for, nor how deep the brackets are.
    let brackets = || text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if let Some(problem) = failure.filter(|_| text.contains('*') || brackets() > BRACKETS_MAX) {
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

fn too_deep() -> String {
    format!("it is nested more than {DEPTH_MAX} deep")
}

/// A mapping or list that has begun and not ended.
struct Open {
    /// `Some` in mappings: what was found in it.
    inside: Option<BTreeMap<String, Place>>,
    /// In a mapping, the key whose value comes next.
    key: Option<(String, Mark)>,
    mark: Mark,
    anchor: usize,
    weight_before: Weight,
}

/// What something amounts to, aliases counted as what they stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    values: u64,
    bytes: u64,
}

impl Weight {
    fn plus(self, other: Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn since(self, before: Self) -> Self {
        Self { values: self.values - before.values, bytes: self.bytes - before.bytes }
    }
}

#[derive(Default)]
struct Survey {
    open: Vec<Open>,
    /// What there was so far.
    weight: Weight,
    anchors: BTreeMap<usize, Weight>,
    /// Whether the outermost keys are secrets.
    is_secret: bool,
    places: Places,
    duplicates: Vec<Problem>,
    refusal: Option<Problem>,
}

impl Survey {
    /// Goes over the text. Returns why it could not go on.
    fn run(&mut self, text: &str) -> Option<Problem> {
        let mut has_ended = false;
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let mark = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
                    let message = match error.info() {
                        "recursion limit exceeded" => too_deep(),
                        other => other.to_owned(),
                    };
                    return Some(Problem { mark: Some(mark), place: String::new(), message });
                }
            };
            let mark = Mark { line: span.start.line(), column: span.start.col() + 1 };
            match event {
                Event::Scalar(word, _, anchor, _) => {
                    let weight = Weight { values: 1, bytes: word.len() as u64 };
                    self.count(weight, mark);
                    self.anchors.insert(anchor, weight);
                    self.put(Some(&word), mark, BTreeMap::new());
                }
                Event::Alias(anchor) => {
                    let weight = self.anchors.get(&anchor).copied();
                    self.count(weight.unwrap_or(Weight { values: 1, bytes: 0 }), mark);
                    self.put(None, mark, BTreeMap::new());
                }
                Event::MappingStart(anchor, _) => self.begin(Some(BTreeMap::new()), anchor, mark),
                Event::SequenceStart(anchor, _) => self.begin(None, anchor, mark),
                Event::MappingEnd | Event::SequenceEnd => self.end(),
                Event::DocumentEnd => has_ended = true,
                // `serde_yaml` would read it, too, before it says so.
                Event::DocumentStart(..) if has_ended => {
                    self.refuse(mark, "it has more than one document".to_owned());
                }
                _ => {}
            }
            if self.refusal.is_some() {
                return None;
            }
        }
        None
    }

    fn count(&mut self, weight: Weight, mark: Mark) {
        self.weight = self.weight.plus(weight);
        if self.weight.values > VALUES_MAX {
            self.refuse(mark, format!("it has more than {VALUES_MAX} values"));
        } else if self.weight.bytes > EXPANDED_BYTES_MAX {
            self.refuse(mark, format!("its aliases stand for more than {} MiB", EXPANDED_BYTES_MAX >> 20));
        }
    }

    fn refuse(&mut self, mark: Mark, message: String) {
        self.refusal = Some(Problem { mark: Some(mark), place: String::new(), message });
    }

    fn begin(&mut self, inside: Option<BTreeMap<String, Place>>, anchor: usize, mark: Mark) {
        let weight_before = self.weight;
        self.count(Weight { values: 1, bytes: 0 }, mark);
        self.open.push(Open { inside, key: None, mark, anchor, weight_before });
        if self.open.len() > DEPTH_MAX {
            self.refuse(mark, too_deep());
        }
    }

    fn end(&mut self) {
        let Some(ended) = self.open.pop() else { return };
        self.anchors.insert(ended.anchor, self.weight.since(ended.weight_before));
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
        path.push(clip(key));
        // What is below a token is named without it.
        let secret = if self.is_secret { Some(0) } else { path.iter().position(|key| key == SECRET_KEYS) };
        if let Some(place) = secret {
            path.truncate(if self.is_secret { 0 } else { place + 1 });
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
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000));
        assert_eq!(parse(&long).unwrap_err()[0].message, "its aliases stand for more than 64 MiB");
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse("a: &a [*a]").is_err());
    }

    /// Without a bound each of these takes minutes.
    #[test]
    fn brackets_cost_no_more_than_their_number() {
        let deep = "it is nested more than 64 deep";
        for text in ["[", "{", "{a: ", "[\n", "[ #]\n", "['a', ", "a: [", "[{? "] {
            let text = text.repeat(600_000 / text.len());
            let problems = parse(&text).unwrap_err();
            assert!(problems.len() == 1, "{problems:?}");
            assert!(problems[0].message == deep || !text.starts_with('['), "{problems:?}");
        }
        // As deep as the scanner goes, then wide.
        let wide = format!("{}{}", "[".repeat(250), "a,".repeat(50_000));
        assert!(parse(&wide).is_err());
        // Where the survey ends early.
        for text in ["a: 1\n---\n", "a: 1\n...\n", "a: b: c\n", "a: 1\n---\n%x\n---\n", "\t- \n"] {
            assert!(parse(&format!("{text}{}", "[".repeat(600_000))).is_err(), "{text}");
        }
    }

    #[test]
    fn what_programs_write_as_json_is_read() {
        let job =
            |number: usize| format!("\"j{number}\": {{\"source\": {{\"type\": \"file\"}}, \"tags\": [[]]}}");
        let jobs: Vec<String> = (0..4000).map(job).collect();
        let (value, _) = parse(&format!("{{\"jobs\": {{{}}}}}\n", jobs.join(", "))).unwrap();
        assert_eq!(value["jobs"].as_mapping().unwrap().len(), 4000);
        let mut hooks = String::from("hook: |\n");
        hooks.push_str(&"  [ -d x ] && { case $y in '[') ;; esac; }\n".repeat(3000));
        assert!(parse(&hooks).is_ok());
    }
}
