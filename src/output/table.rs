//! Tables for people: boxes with a heavy head on a terminal, as narrow as it asks for; plain columns two
//! blanks apart, never wrapped, for everything else. Pure: the width comes from the caller.

use super::text::escape;

/// A column that may wrap is not made narrower than this, nor than the longest word of its title.
const WRAPPED_WIDTH_MIN: usize = 8;

/// One column's title and manner.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    title: String,
    right: bool,
    wraps: bool,
}

impl Column {
    /// A column aligned to the left.
    pub(crate) fn left(title: impl Into<String>) -> Self {
        Self { title: title.into(), right: false, wraps: false }
    }

    /// A column aligned to the right, for numbers.
    pub(crate) fn right(title: impl Into<String>) -> Self {
        Self { title: title.into(), right: true, wraps: false }
    }

    /// A column whose cells may take several lines; ids and numbers must not.
    pub(crate) fn wrapping(title: impl Into<String>) -> Self {
        Self { title: title.into(), right: false, wraps: true }
    }
}

/// Rows of text under titles.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Begins a table.
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with one cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns.len(), "a row has one cell for each column");
        self.rows.push(cells.iter().map(|cell| escape(cell).into_owned()).collect());
    }

    /// Returns the text: boxed and at most `width` wide where that is possible, or plain for `None`.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        match width {
            Some(width) => self.boxed(width),
            None => self.plain(),
        }
    }

    fn plain(&self) -> String {
        let widths = self.natural_widths();
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.clone()).collect();
        let mut text = String::new();
        for cells in std::iter::once(&titles).chain(&self.rows) {
            let parts: Vec<String> = cells
                .iter()
                .zip(&self.columns)
                .zip(&widths)
                .map(|((cell, column), &width)| pad(cell, width, column.right))
                .collect();
            text.push_str(parts.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    fn boxed(&self, width: usize) -> String {
        let widths = self.fitted_widths(width);
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.clone()).collect();
        let mut text = rule(&widths, ["┏", "━", "┳", "┓"]);
        self.boxed_row(&mut text, &titles, &widths, ("┃", true));
        text.push_str(&rule(&widths, ["┡", "━", "╇", "┩"]));
        for cells in &self.rows {
            self.boxed_row(&mut text, cells, &widths, ("│", false));
        }
        text.push_str(&rule(&widths, ["└", "─", "┴", "┘"]));
        text
    }

    /// Writes one row, as many lines as its tallest cell needs; titles stand at the bottom of theirs.
    fn boxed_row(&self, text: &mut String, cells: &[String], widths: &[usize], (bar, bottom): (&str, bool)) {
        let wrapped: Vec<Vec<String>> =
            cells.iter().zip(widths).map(|(cell, &width)| wrap(cell, width)).collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            for ((lines, column), &width) in wrapped.iter().zip(&self.columns).zip(widths) {
                let skipped = if bottom { height - lines.len() } else { 0 };
                let part =
                    line.checked_sub(skipped).and_then(|line| lines.get(line)).map_or("", String::as_str);
                text.push_str(bar);
                text.push(' ');
                text.push_str(&pad(part, width, column.right));
                text.push(' ');
            }
            text.push_str(bar);
            text.push('\n');
        }
    }

    /// Widths at which nothing wraps.
    fn natural_widths(&self) -> Vec<usize> {
        let title = |column: &Column| text_width(&column.title);
        self.columns
            .iter()
            .enumerate()
            .map(|(place, column)| title(column).max(self.cell_width(place)))
            .collect()
    }

    fn cell_width(&self, place: usize) -> usize {
        self.rows.iter().map(|cells| text_width(&cells[place])).max().unwrap_or(0)
    }

    /// Takes width from the widest column that can give some, until the table fits or none can.
    fn fitted_widths(&self, width: usize) -> Vec<usize> {
        let mut widths = self.natural_widths();
        let least: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| {
                let word = column.title.split(' ').map(text_width).max().unwrap_or(0);
                let cells = self.cell_width(place);
                word.max(if column.wraps { cells.min(WRAPPED_WIDTH_MIN) } else { cells })
            })
            .collect();
        let available = width.saturating_sub(3 * widths.len() + 1);
        let mut excess = widths.iter().sum::<usize>().saturating_sub(available);
        while excess > 0 {
            let giving = (0..widths.len()).filter(|&place| widths[place] > least[place]);
            let Some(widest) = giving.max_by_key(|&place| widths[place]) else { break };
            widths[widest] -= 1;
            excess -= 1;
        }
        widths
    }
}

fn rule(widths: &[usize], [left, line, cross, right]: [&str; 4]) -> String {
    let parts: Vec<String> = widths.iter().map(|width| line.repeat(width + 2)).collect();
    format!("{left}{}{right}\n", parts.join(cross))
}

fn pad(text: &str, width: usize, right: bool) -> String {
    let blanks = " ".repeat(width.saturating_sub(text_width(text)));
    if right { format!("{blanks}{text}") } else { format!("{text}{blanks}") }
}

/// Cuts `text` into lines of at most `width`: after a blank or comma where one is near, else anywhere.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if text_width(text) <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    for piece in text.split_inclusive([' ', ',']) {
        if !line.is_empty() && text_width(&line) + text_width(piece.trim_end()) > width {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        for character in piece.chars() {
            let grown = text_width(&line) + text_width(character.encode_utf8(&mut [0; 4]));
            if grown > width && !line.is_empty() && character != ' ' {
                lines.push(std::mem::take(&mut line));
            }
            line.push(character);
        }
    }
    if !line.trim_end().is_empty() || lines.is_empty() {
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn text_width(text: &str) -> usize {
    console::measure_text_width(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(vec![
            Column::left("Date (Europe/Berlin)"),
            Column::left("ID"),
            Column::right("Size"),
            Column::wrapping("Tags"),
        ]);
        table.row(["2015-11-04 20:09:32".into(), "46mWHm".into(), "10.0 GiB".into(), "weekly,daily".into()]);
        table.row(["2015-11-05 06:15:09".into(), "ECHtbb".into(), "149.3 MiB".into(), "daily".into()]);
        table
    }

    #[test]
    fn a_terminal_gets_boxes() {
        let expected = "\
┏━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━┓
┃ Date (Europe/Berlin) ┃ ID     ┃      Size ┃ Tags         ┃
┡━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━┩
│ 2015-11-04 20:09:32  │ 46mWHm │  10.0 GiB │ weekly,daily │
│ 2015-11-05 06:15:09  │ ECHtbb │ 149.3 MiB │ daily        │
└──────────────────────┴────────┴───────────┴──────────────┘
";
        assert_eq!(sample().render(Some(100)), expected);
    }

    #[test]
    fn a_narrow_terminal_wraps_titles_and_tags_but_no_ids() {
        let expected = "\
┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━┓
┃ Date                ┃        ┃           ┃          ┃
┃ (Europe/Berlin)     ┃ ID     ┃      Size ┃ Tags     ┃
┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━┩
│ 2015-11-04 20:09:32 │ 46mWHm │  10.0 GiB │ weekly,  │
│                     │        │           │ daily    │
│ 2015-11-05 06:15:09 │ ECHtbb │ 149.3 MiB │ daily    │
└─────────────────────┴────────┴───────────┴──────────┘
";
        assert_eq!(sample().render(Some(20)), sample().render(Some(1)));
        assert_eq!(sample().render(Some(1)), expected);
    }

    #[test]
    fn a_pipe_gets_plain_columns() {
        let expected = "\
Date (Europe/Berlin)  ID           Size  Tags
2015-11-04 20:09:32   46mWHm   10.0 GiB  weekly,daily
2015-11-05 06:15:09   ECHtbb  149.3 MiB  daily
";
        assert_eq!(sample().render(None), expected);
    }

    #[test]
    fn cells_cannot_steer_the_terminal() {
        let mut table = Table::new(vec![Column::left("Server")]);
        table.row(["a\x1b[2J\nb".into()]);
        assert_eq!(table.render(None), "Server\na\\u{1b}[2J\\nb\n");
    }

    #[test]
    fn long_words_are_cut_and_wide_characters_count_twice() {
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("a b c", 3), ["a b", "c"]);
        assert_eq!(wrap("日本語", 4), ["日本", "語"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(pad("日", 4, true), "  日");
    }
}
