//! Text from outside made harmless: names, paths and messages may hold characters that steer a terminal
//! or forge a line of the log.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns `text` with control characters, line separators and direction marks written as escapes.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ if steers(character) => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Returns `text` as it stands when it is one plain word, else in single quotes with escapes.
pub(crate) fn quote(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/+-@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let inner = escape(&text.replace('\\', "\\\\").replace('\'', "\\'")).into_owned();
    Cow::Owned(format!("'{inner}'"))
}

/// Returns `singular` or `plural` with the number in front.
pub(crate) fn count(number: impl TryInto<u64>, singular: &str, plural: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {}", if number == 1 { singular } else { plural })
}

/// Whether a character steers a terminal or changes the direction or order of the text around it.
pub(crate) fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{feff}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_passes() {
        assert_eq!(escape("täglich 1"), "täglich 1");
        assert_eq!(escape("a\nb\x1b[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
        assert_eq!(escape("\u{9b}2J\u{7f}"), "\\u{9b}2J\\u{7f}");
    }

    #[test]
    fn values_stay_one_word() {
        assert_eq!(quote("/srv/backy/web01"), "/srv/backy/web01");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("it's a\nb"), "'it\\'s a\\nb'");
        assert_eq!(quote("a\\"), "'a\\\\'");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(1, "revision", "revisions"), "1 revision");
        assert_eq!(count(0, "revision", "revisions"), "0 revisions");
    }
}
