//! Tables for people: aligned columns, no lines, no colours.

use std::fmt;

/// Rows of text under a heading.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns whose numbers are read by comparing them: aligned on the right.
    right: Vec<usize>,
}

impl Table {
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()], right: Vec::new() }
    }

    /// A table whose number of columns is known only now.
    pub(super) fn wide(heading: Vec<String>) -> Self {
        Self { rows: vec![heading], right: Vec::new() }
    }

    pub(super) fn right(mut self, columns: impl IntoIterator<Item = usize>) -> Self {
        self.right.extend(columns);
        self
    }

    /// A further line of the last row: one cell, below that of this column.
    pub(super) fn below(&mut self, column: usize, cell: String) {
        let mut row = vec![String::new(); column];
        row.push(sanitize(&cell));
        self.rows.push(row);
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| sanitize(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let pad = " ".repeat(widths[column] - cell.chars().count());
                if self.right.contains(&column) {
                    line.push_str(&pad);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Names come from other nodes and from pods: nothing in them may steer the terminal.
pub(super) fn sanitize(cell: &str) -> String {
    let cell = if cell.is_empty() { "-" } else { cell };
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_are_gone() {
        let mut table = Table::new(["NAME", "COUNT"]).right([1]);
        table.row(["n1".to_owned(), "7".to_owned()]);
        table.row(["longer\u{1b}[31m".to_owned(), "12345678".to_owned()]);
        table.row([String::new(), "0".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME            COUNT\n\
             n1                  7\n\
             longer\u{fffd}[31m  12345678\n\
             -                   0\n"
        );
    }
}
