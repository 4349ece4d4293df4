//! Tables for the terminal: columns as wide as they need, the last one wrapped.

use std::process::{Command, Stdio};

/// When there is no terminal to ask.
const DEFAULT_WIDTH: usize = 110;
const NARROWEST: usize = 24;

/// Lays out rows under a header. Cells of the column `wrapped` are broken between words so that
/// the whole fits into `width`; the others keep their width.
pub(crate) fn render(
    header: &[impl AsRef<str>],
    rows: &[impl AsRef<[String]>],
    wrapped: &[usize],
    width: usize,
) -> String {
    let header: Vec<_> = header.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let mut widths: Vec<_> = header.iter().map(|cell| length(cell)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row.as_ref()) {
            *width = (*width).max(length(cell));
        }
    }
    shrink(&mut widths, wrapped, width);
    let rows: Vec<_> = rows
        .iter()
        .map(|row| cells(&widths, row.as_ref()))
        .collect();
    // Rows of several lines are told apart by a rule between them.
    let ruled = rows.iter().any(|row| row.lines().count() > 1);
    let mut text = line(&widths, ["┌", "┬", "┐"]);
    text += &cells(&widths, &header);
    for (at, row) in rows.iter().enumerate() {
        if at == 0 || ruled {
            text += &line(&widths, ["├", "┼", "┤"]);
        }
        text += row;
    }
    text + &line(&widths, ["└", "┴", "┘"])
}

/// How many columns the terminal has. The standard input is a pipe here, the terminal is asked
/// by its name.
pub(crate) fn terminal_width() -> usize {
    Command::new("stty")
        .args(["-F", "/dev/tty", "size"])
        .stderr(Stdio::null())
        .output()
        .ok()
        .and_then(|output| {
            let text = String::from_utf8(output.stdout).ok()?;
            text.split_whitespace().nth(1)?.parse().ok()
        })
        .filter(|width| *width > 0)
        .unwrap_or(DEFAULT_WIDTH)
}

/// Takes from the widest of the wrapped columns until the table fits.
fn shrink(widths: &mut [usize], wrapped: &[usize], width: usize) {
    loop {
        // A border and two blanks for each column, and the last border.
        let total: usize = widths.iter().sum::<usize>() + 3 * widths.len() + 1;
        let widest = wrapped.iter().copied().max_by_key(|column| widths[*column]);
        match widest {
            Some(column) if total > width && widths[column] > NARROWEST => widths[column] -= 1,
            _ => return,
        }
    }
}

fn line(widths: &[usize], [left, middle, right]: [&str; 3]) -> String {
    let parts: Vec<_> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
    format!("{left}{}{right}\n", parts.join(middle))
}

fn cells(widths: &[usize], row: &[String]) -> String {
    let columns: Vec<_> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| wrap(cell, *width))
        .collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let mut text = String::new();
    for at in 0..height {
        for (column, width) in columns.iter().zip(widths) {
            let part = column.get(at).map_or("", String::as_str);
            text += &format!("│ {part}{} ", " ".repeat(width - length(part)));
        }
        text += "│\n";
    }
    text
}

/// Breaks a text into lines, between words where it can.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && length(&line) + 1 + length(word) > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            for letter in word.chars() {
                if length(&line) == width {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(letter);
            }
        }
        lines.push(line);
    }
    lines
}

/// Every character we print is one column wide.
fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_into_its_width() {
        let rows = [[
            "short".to_owned(),
            "a text of many words that is too long".to_owned(),
        ]];
        let table = render(&["claim", "evidence"], &rows, &[1], 40);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.iter().all(|line| length(line) == 40), "{table}");
        assert_eq!(lines[3], "│ short │ a text of many words that is │");
        assert_eq!(lines[4], "│       │ too long                     │");
    }

    #[test]
    fn a_word_that_is_too_long_is_cut() {
        assert_eq!(wrap("spiffe://a/b", 8), ["spiffe:/", "/a/b"]);
        assert_eq!(wrap("two\nlines", 8), ["two", "lines"]);
    }
}
