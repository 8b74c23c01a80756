//! "Did you mean": the known word that is nearest to a misspelt one. Pure.

/// Longest word that is compared; nobody misspells longer ones by a letter.
const LENGTH_MAX: usize = 64;

/// Returns the candidate with the fewest letters to change, insert, drop or swap with the next; `None` when
/// even that is more than a third of the word.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let letters: Vec<char> =
        word.chars().map(|letter| letter.to_ascii_lowercase()).take(LENGTH_MAX + 1).collect();
    if letters.len() > LENGTH_MAX {
        return None;
    }
    let changes_max = (letters.len() / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LENGTH_MAX)
        .map(|candidate| (distance(&letters, &candidate.chars().collect::<Vec<char>>()), candidate))
        .filter(|(changes, candidate)| *changes <= changes_max && *changes < candidate.chars().count())
        .min_by_key(|(changes, _)| *changes)
        .map(|(_, candidate)| candidate)
}

/// Row by row over the table of changes from every beginning of `left` to every beginning of `right`.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before_last = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, letter) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let changed = last[column] + usize::from(letter != other);
            let mut best = changed.min(last[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *letter == right[column - 1] && left[row - 1] == *other {
                best = best.min(before_last[column - 1] + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_keys_find_their_word() {
        let keys = ["source", "schedule", "verify", "compression-level", "path", "keep", "cow"];
        for (word, expected) in [
            ("sorce", Some("source")),
            ("shcedule", Some("schedule")),
            ("schedules", Some("schedule")),
            ("Verify", Some("verify")),
            ("compression_level", Some("compression-level")),
            ("kep", Some("keep")),
            ("co", Some("cow")),
            ("banana", None),
            ("x", None),
            ("", None),
            (&"schedule".repeat(10), None),
        ] {
            assert_eq!(nearest(word, keys), expected, "{word:?}");
        }
    }
}
