//! A bound on the cost of parsing YAML. The scanner goes over all brackets that are open for every token, so nested brackets cost the
//! square of their number; and an alias stands for as much as its anchor holds, again and again. So the text is checked
//! before it is parsed: in one pass, without understanding it, and never too leniently.
//!
//! The files that this crate reads are written by programs, which use block style: a manifest has a handful of brackets
//! (`orig_tags: []`) and no alias. The configurations, which people write, have a bound of their own in `backy_sched`.

/// The most `[` and `{` in a text, wherever they are.
const BRACKETS_MAX: usize = 200;
/// The most words that could be aliases: together they stand for twenty times the text at most.
const ALIASES_MAX: usize = 8;

/// Says why a text would cost too much to parse.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets > BRACKETS_MAX {
        return Err(format!("it has {brackets} brackets, more than {BRACKETS_MAX}"));
    }
    if aliases(text) > ALIASES_MAX {
        return Err(format!("it has more than {ALIASES_MAX} aliases"));
    }
    Ok(())
}

/// Counts the `*` that stand where a value begins: after an indicator or at the beginning of a line.
fn aliases(text: &str) -> usize {
    let (mut found, mut before) = (0, b'\n');
    for byte in text.bytes() {
        match byte {
            b'*' if matches!(before, b'\n' | b'\r' | b'-' | b':' | b'?' | b',' | b'[' | b'{') => found += 1,
            b' ' | b'\t' => continue,
            _ => {}
        }
        before = byte;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_aliases_are_counted_without_a_parser() {
        for (text, passes) in [
            ("orig_tags: []\nstats: {a: [1, 2]}\n".to_owned(), true),
            ("[".repeat(201), false),
            ("a: '[' # [\n".repeat(101), false),
            ("[ #]\n".repeat(201), false),
            ("- *a\n".repeat(8), true),
            ("- *a\n".repeat(9), false),
            ("? *a\n: *b\n".repeat(5), false),
            ("[*a, *a, *a]\n".repeat(3), false),
            ("- manual:a*b *c\n".repeat(100), true),
        ] {
            assert_eq!(check(&text).is_ok(), passes, "{text:.40}");
        }
    }
}
