//! The text in which LVM describes a group: sections in braces, and names with values.
//!
//! ```text
//! vg {
//!     seqno = 4                           # a comment
//!     status = ["RESIZEABLE", "READ"]
//!     physical_volumes { pv0 { ... } }
//! }
//! ```

/// Deepest nesting; LVM needs four.
const DEPTH_MAX: u32 = 16;

/// Most values of a text.
const VALUES_MAX: u32 = 200_000;

/// A value, which borrows from the text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Section(Section<'a>),
    List(Vec<Value<'a>>),
    /// What is between quotes, with its escapes.
    Text(&'a str),
    Number(u64),
    /// A number that is negative, broken or too large.
    Odd,
}

/// What is between braces, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Section<'a>(Vec<(&'a str, Value<'a>)>);

impl<'a> Section<'a> {
    fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.0.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Returns the section of this name.
    pub(crate) fn section(&self, name: &str) -> Option<&Self> {
        if let Value::Section(section) = self.get(name)? { Some(section) } else { None }
    }

    /// Returns the text of this name.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        if let Value::Text(text) = self.get(name)? { Some(text) } else { None }
    }

    /// Returns the number of this name.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        if let Value::Number(number) = self.get(name)? { Some(*number) } else { None }
    }

    /// Returns the list of this name; a single value is a list of one.
    pub(crate) fn list(&self, name: &str) -> &[Value<'a>] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            Some(value) => std::slice::from_ref(value),
            None => &[],
        }
    }

    /// Returns the sections in this one.
    pub(crate) fn sections(&self) -> impl Iterator<Item = (&'a str, &Self)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((*name, section)),
            _ => None,
        })
    }
}

/// Reads a text. `None` if it is broken, nested too deep or has too many values.
pub(crate) fn parse(text: &str) -> Option<Section<'_>> {
    let text = text.trim_end_matches('\0');
    let mut parser = Parser { rest: text, values_left: VALUES_MAX };
    let section = parser.section(0)?;
    parser.rest.is_empty().then_some(section)
}

struct Parser<'a> {
    rest: &'a str,
    values_left: u32,
}

impl<'a> Parser<'a> {
    /// Reads names with values up to a closing brace or the end.
    fn section(&mut self, depth: u32) -> Option<Section<'a>> {
        let mut entries = Vec::new();
        loop {
            self.skip_space();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Some(Section(entries));
            }
            let name = self.word("={}[],\"#")?;
            self.skip_space();
            let value = if self.take("=") { self.value(depth)? } else { self.braces(depth)? };
            entries.push((name, value));
        }
    }

    fn braces(&mut self, depth: u32) -> Option<Value<'a>> {
        self.count(depth)?;
        self.take("{").then_some(())?;
        let section = self.section(depth + 1)?;
        self.take("}").then_some(Value::Section(section))
    }

    fn value(&mut self, depth: u32) -> Option<Value<'a>> {
        self.count(depth)?;
        self.skip_space();
        if self.take("\"") {
            return self.quoted();
        }
        if self.take("[") {
            return self.list(depth + 1);
        }
        let word = self.word("={}[],\"#")?;
        Some(word.parse().map_or(Value::Odd, Value::Number))
    }

    /// Reads up to the quote that is not escaped.
    fn quoted(&mut self) -> Option<Value<'a>> {
        let mut is_escaped = false;
        let end = self.rest.bytes().position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        })?;
        let text = self.rest.get(..end)?;
        self.rest = self.rest.get(end + 1..)?;
        Some(Value::Text(text))
    }

    fn list(&mut self, depth: u32) -> Option<Value<'a>> {
        let mut values = Vec::new();
        loop {
            self.skip_space();
            if self.take("]") {
                return Some(Value::List(values));
            }
            if !values.is_empty() {
                self.take(",").then_some(())?;
            }
            values.push(self.value(depth)?);
        }
    }

    /// Reads up to space or one of `ends`; at least one character.
    fn word(&mut self, ends: &str) -> Option<&'a str> {
        let is_end = |found: char| found.is_ascii_whitespace() || ends.contains(found);
        let (word, rest) = self.rest.split_at(self.rest.find(is_end).unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, what: &str) -> bool {
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn count(&mut self, depth: u32) -> Option<()> {
        self.values_left = self.values_left.checked_sub(1)?;
        (depth < DEPTH_MAX).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lists_and_comments_are_read() {
        let text =
            "# all\nvg {\nid=\"a-\\\"b\" # id\nseqno = 4\nlist = [\"x\", 5,[]]\nin { } }\nversion = -1\n\0";
        let root = parse(text).unwrap();
        let vg = root.section("vg").unwrap();
        assert_eq!((vg.text("id"), vg.number("seqno")), (Some("a-\\\"b"), Some(4)));
        assert_eq!(vg.list("list"), [Value::Text("x"), Value::Number(5), Value::List(vec![])]);
        assert_eq!(vg.list("seqno"), [Value::Number(4)]);
        assert_eq!((vg.list("none"), vg.number("id")), (&[][..], None));
        assert_eq!(root.sections().map(|(name, _)| name).collect::<Vec<_>>(), ["vg"]);
        assert_eq!(root.get("version"), Some(&Value::Odd));
        assert_eq!(parse("").unwrap().sections().count(), 0);
    }

    #[test]
    fn broken_texts_are_refused() {
        let broken = [
            "a",
            "a =",
            "a {",
            "a { b = 1",
            "}",
            "a = \"x",
            "a = \"x\\\"",
            "= 1",
            "a = [1",
            "a = [1 2]",
            "a = [,]",
        ];
        for text in broken.into_iter().chain(["a = 1 }", "\u{e4}", "a = {", "a b { }"]) {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn depth_and_number_of_values_have_a_bound() {
        let nested = |depth: usize| format!("{}{}", "a { ".repeat(depth), "} ".repeat(depth));
        assert!(parse(&nested(DEPTH_MAX as usize)).is_some());
        assert_eq!(parse(&nested(DEPTH_MAX as usize + 1)), None);
        assert_eq!(parse(&nested(100_000)), None);
        assert_eq!(parse(&format!("a = {}", "[".repeat(1_000_000))), None);
        assert_eq!(parse(&"a=1 ".repeat(VALUES_MAX as usize + 1)), None);
    }
}
