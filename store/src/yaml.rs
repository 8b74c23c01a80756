//! The one writer of YAML, for everything that others read: manifests, configurations, `status --yaml`.
//!
//! The two versions of YAML that are in use disagree on what a plain word means: `no`, `2024-01-01`, `12:30`,
//! `1_000` and `=` are texts for one and something else for the other. What this writes means the same to both.
//! A text that any of them could take for something else is quoted; a number has the form that both know.

use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// Returns `value` as a YAML document in block style, with a final line end.
pub fn to_string(value: &impl Serialize) -> Result<String, serde_yaml::Error> {
    let value = serde_yaml::to_value(value)?;
    let mut text = String::new();
    match &value {
        Value::Mapping(mapping) if !mapping.is_empty() => write_mapping(&mut text, mapping, 0),
        Value::Sequence(items) if !items.is_empty() => write_sequence(&mut text, items, 0),
        other => {
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
    Ok(text)
}

fn write_mapping(text: &mut String, mapping: &Mapping, depth: usize) {
    for (number, (key, value)) in mapping.iter().enumerate() {
        // The first entry of a mapping in a list stands behind the dash.
        if number > 0 || !text.ends_with("- ") {
            indent(text, depth);
        }
        text.push_str(&scalar(key));
        text.push(':');
        match value {
            Value::Mapping(inner) if !inner.is_empty() => {
                text.push('\n');
                write_mapping(text, inner, depth + 1);
            }
            Value::Sequence(items) if !items.is_empty() => {
                text.push('\n');
                write_sequence(text, items, depth);
            }
            other => {
                text.push(' ');
                text.push_str(&scalar(other));
                text.push('\n');
            }
        }
    }
}

fn write_sequence(text: &mut String, items: &[Value], depth: usize) {
    for item in items {
        if !text.ends_with("- ") {
            indent(text, depth);
        }
        text.push_str("- ");
        match item {
            Value::Mapping(inner) if !inner.is_empty() => write_mapping(text, inner, depth + 1),
            Value::Sequence(inner) if !inner.is_empty() => write_sequence(text, inner, depth + 1),
            other => {
                text.push_str(&scalar(other));
                text.push('\n');
            }
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Returns a value without parts, or an empty list or mapping, in one line.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) if number.is_f64() => float(number.as_f64().unwrap_or(f64::NAN)),
        Value::Number(number) => number.to_string(),
        Value::String(word) => quoted(word),
        Value::Sequence(_) => "[]".to_owned(),
        Value::Mapping(_) => "{}".to_owned(),
        Value::Tagged(tagged) => scalar(&tagged.value),
    }
}

/// YAML 1.1 knows a float by its dot, and an exponent by its sign.
fn float(number: f64) -> String {
    if number.is_nan() {
        return ".nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let text = format!("{number:?}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, ""));
    let dot = if digits.contains('.') { "" } else { ".0" };
    match exponent {
        "" => format!("{digits}{dot}"),
        small if small.starts_with('-') => format!("{digits}{dot}e{small}"),
        large => format!("{digits}{dot}e+{large}"),
    }
}

/// Returns a text as it stands where it means itself to every reader, else in quotes.
fn quoted(word: &str) -> String {
    if word.chars().any(needs_escape) {
        return escaped(word);
    }
    if is_plain(word) { word.to_owned() } else { format!("'{}'", word.replace('\'', "''")) }
}

/// Whether a text without quotes is that text for every reader. In doubt it is not. Pure.
fn is_plain(word: &str) -> bool {
    const OTHER_VALUES: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let Some(first) = word.chars().next() else { return false };
    let inside = |letter: char| letter.is_alphanumeric() || " _-./:+@%=~();".contains(letter);
    (first.is_alphanumeric() || first == '/' || first == '_')
        && word.chars().all(inside)
        && !word.ends_with([' ', ':'])
        && !word.contains(": ")
        && !OTHER_VALUES.iter().any(|other| word.eq_ignore_ascii_case(other))
        && !could_be_number(word)
}

/// Whether some reader could see a number, a time of day or a date: no letters but those that numbers have.
fn could_be_number(word: &str) -> bool {
    const LETTERS: &str = "_.:+- eEtTzZoObB";
    let is_hex = word.starts_with("0x") || word.starts_with("0X");
    word.starts_with(|letter: char| letter.is_ascii_digit() || letter == '_')
        && (is_hex || word.chars().all(|letter| letter.is_ascii_digit() || LETTERS.contains(letter)))
}

/// Whether a character may only stand in a text as an escape: it is not printable, breaks lines, or is dropped.
fn needs_escape(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(word: &str) -> String {
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            _ if needs_escape(letter) => text.push_str(&match u32::from(letter) {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
            _ => text.push(letter),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use serde_json::{Value as Json, json};

    use super::*;

    /// Texts that some reader of YAML takes for something else, or that break its lines.
    const ODD: &[&str] = &[
        "",
        " ",
        "no",
        "No",
        "NO",
        "yes",
        "on",
        "off",
        "Off",
        "y",
        "n",
        "Y",
        "true",
        "null",
        "Null",
        "~",
        "=",
        "<<",
        "2024-01-01",
        "2024-01-01 12:30:00",
        "2024-01-01T12:30:00Z",
        "2024-1-1",
        "12:30",
        "1:2:3",
        "190:20:30.15",
        "1_000",
        "0b101",
        "0o17",
        "017",
        "0x1F",
        "0xd",
        "0",
        "-1",
        "+1",
        "1e5",
        "1.5e+3",
        "1e+5",
        "1.",
        ".5",
        ".inf",
        "-.inf",
        ".NaN",
        "_1",
        "12e45",
        "1d",
        "5m",
        "a: b",
        "a:",
        "a #b",
        "#a",
        "- a",
        "-",
        "?",
        "? a",
        "!a",
        "&a",
        "*a",
        "@a",
        "`a",
        "%a",
        "|",
        ">",
        "'",
        "it's",
        "\"",
        "a\"b",
        "[a]",
        "{a}",
        "a,b",
        "a\nb",
        "\n",
        "a\tb",
        " a",
        "a ",
        "\u{85}",
        "\u{2028}",
        "\u{feff}a",
        "a\u{0}b",
        "\u{1f600}",
        "t\u{e4}glich",
        "\u{7f}",
        "---",
        "...",
        "--- a",
        "null ",
        "manual:x",
        "manual: x",
        "http://x:80/y",
        "46mWHmKy2XP3TQwrjbnd9F",
        "2222222222222222222222",
        "\u{202e}a",
        "C:\\x",
    ];

    fn odd() -> Json {
        let keyed: serde_json::Map<String, Json> =
            ODD.iter().map(|&word| (word.to_owned(), json!([word, {word: word}]))).collect();
        json!({
            "words": ODD, "keyed": keyed, "floats": [0.25, 1e20, 1e-7, -2.0, 5e-324],
            "numbers": [0, -1, u64::MAX], "truths": [true, false, null], "empty": [[], {}],
            "nested": [[[1], [2, [3]]], {"a": {"b": [{"c": "no", "d": {}}, []]}}],
        })
    }

    #[test]
    fn our_own_reader_reads_what_was_written() {
        let text = to_string(&odd()).unwrap();
        assert_eq!(serde_yaml::from_str::<Json>(&text).unwrap(), odd(), "{text}");
        assert_eq!(to_string(&json!([])).unwrap(), "[]\n");
        assert_eq!(to_string(&json!("no")).unwrap(), "'no'\n");
    }

    #[test]
    fn readers_of_yaml_1_1_read_the_same() {
        let text = to_string(&odd()).unwrap();
        let script = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)";
        let mut python = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with the package python3-yaml");
        std::io::Write::write_all(&mut python.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let read = python.wait_with_output().unwrap();
        assert_eq!(serde_json::from_slice::<Json>(&read.stdout).unwrap(), odd(), "{text}");
    }

    #[test]
    fn usual_words_need_no_quotes() {
        for word in
            ["daily", "manual:before upgrade", "/srv/a b.img", "1d", "30d", "46mWHmKy2XP3TQwrjbnd9F", "web01"]
        {
            assert_eq!(quoted(word), word);
        }
        for (word, expected) in
            [("no", "'no'"), ("it's", "'it''s'"), ("a\nb", "\"a\\nb\""), ("12:30", "'12:30'"), ("=", "'='")]
        {
            assert_eq!(quoted(word), expected);
        }
    }
}
