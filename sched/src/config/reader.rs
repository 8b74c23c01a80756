//! Values taken out of a tree of YAML, with every problem on the way. What is common to all configuration
//! files: mappings with known keys, texts, numbers, truth values.

use std::collections::BTreeMap;

use backy_store::nearest::nearest;
use serde_yaml::Value;

use super::document::Places;
use super::problem::{Problem, clip};

/// The most problems that are told of one file.
const PROBLEMS_MAX: usize = 50;

/// Collects problems while it takes values out of a tree. What is missing or wrong reads as `None`.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    places: Places,
    problems: Vec<Problem>,
    /// Problems above the bound.
    untold: usize,
}

/// The known entries of one mapping and where it stands: the keys that lead to it.
pub(crate) struct Fields<'v> {
    pub(crate) place: Vec<&'v str>,
    pub(crate) entries: BTreeMap<&'v str, &'v Value>,
}

impl<'v> Fields<'v> {
    pub(crate) fn path_to(&self, key: &'v str) -> Vec<&'v str> {
        let mut path = self.place.clone();
        path.push(key);
        path
    }

    /// Returns the value of a key; `None` when it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'v Value> {
        self.entries.get(key).copied().filter(|value| !value.is_null())
    }
}

impl Reader {
    /// Begins without problems; `places` belong to the tree that is going to be read.
    pub(crate) fn new(places: Places) -> Self {
        Self { places, ..Self::default() }
    }

    /// Returns `value` if it is there and nothing was wrong, else all problems.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Problem>> {
        if self.untold > 0 {
            self.problems.push(Problem::of_file(format!("and {} more problems", self.untold)));
        }
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(self.problems),
        }
    }

    /// Takes a mapping apart; with `known`, other keys are problems and left out.
    pub(crate) fn fields<'v>(
        &mut self,
        value: &'v Value,
        place: Vec<&'v str>,
        known: Option<&[&str]>,
    ) -> Option<Fields<'v>> {
        let Value::Mapping(mapping) = value else {
            self.problem(&place, "it must be a mapping of keys to values");
            return None;
        };
        let mut fields = Fields { place, entries: BTreeMap::new() };
        for (key, value) in mapping {
            let Value::String(key) = key else {
                let problem = self.not_a_text(&fields.place, key);
                self.add(problem);
                continue;
            };
            match known {
                Some(known) if !known.contains(&key.as_str()) => {
                    let message = format!("unknown key {:?}{}", clip(key), hint(key, known));
                    self.problem(&fields.path_to(key), &message);
                }
                _ => {
                    fields.entries.insert(key, value);
                }
            }
        }
        Some(fields)
    }

    /// A key of the mapping at `path` that is a number, a truth value or nothing.
    fn not_a_text(&self, path: &[&str], key: &Value) -> Problem {
        match self.places.as_written(path, key) {
            Some((word, mark)) => {
                let message = format!("the key must be a text: write it in quotes, \"{}\"", clip(word));
                Problem { mark, ..self.located(&[path, &[word]].concat(), &message) }
            }
            None => self.located(path, "every key in it must be a text; put numbers into quotes"),
        }
    }

    pub(crate) fn text(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        match fields.entries.get(key)? {
            Value::Null => None,
            Value::String(text) if !text.is_empty() && !text.contains('\0') => Some(text.clone()),
            _ => {
                self.problem(&fields.path_to(key), "it must be a text and not empty");
                None
            }
        }
    }

    pub(crate) fn required(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        match fields.entries.get(key) {
            None | Some(Value::Null) => self.missing(fields, key),
            Some(_) => self.text(fields, key),
        }
    }

    pub(crate) fn missing<T>(&mut self, fields: &Fields<'_>, key: &str) -> Option<T> {
        self.problem(&fields.place, &format!("the key {key} is missing"));
        None
    }

    /// Truth values come as such or as the words that older YAML and the command line have for them.
    pub(crate) fn flag(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<bool> {
        let word = match fields.entries.get(key)? {
            Value::Null => return None,
            Value::Bool(flag) => return Some(*flag),
            Value::String(word) => word.to_ascii_lowercase(),
            _ => String::new(),
        };
        match word.as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => {
                self.problem(&fields.path_to(key), "it must be true or false");
                None
            }
        }
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn number(&mut self, fields: &Fields<'_>, key: &'static str, max: i64) -> Option<i64> {
        let number = fields.entries.get(key)?.as_i64().filter(|number| (1..=max).contains(number));
        if number.is_none() {
            self.problem(&fields.path_to(key), &format!("it must be a whole number from 1 to {max}"));
        }
        number
    }

    /// Adds a problem with the value that `path` leads to.
    pub(crate) fn problem(&mut self, path: &[&str], message: &str) {
        let problem = self.located(path, message);
        self.add(problem);
    }

    /// Returns a problem with the value that `path` leads to.
    pub(crate) fn located(&self, path: &[&str], message: &str) -> Problem {
        let place = match path {
            [] => "the file".to_owned(),
            _ => path.iter().map(|key| clip(key)).collect::<Vec<_>>().join("."),
        };
        Problem { mark: self.places.find(path), place, message: message.to_owned() }
    }

    /// Adds a problem.
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.untold += 1;
        }
    }
}

/// Returns `, did you mean ...?` with the known word nearest to `word`, or nothing.
pub(crate) fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied()).map_or_else(String::new, |known| format!(", did you mean {known}?"))
}
