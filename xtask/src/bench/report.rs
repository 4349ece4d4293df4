//! Medians and ratios.

use super::measure::Figure;
use crate::table;

/// All figures, in the order in which they first came.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: &'static str,
    unit: &'static str,
    plain: Vec<f64>,
    meshed: Vec<f64>,
}

impl Report {
    pub(crate) fn add(&mut self, with_mesh: bool, figure: Figure) {
        let at = self.rows.iter().position(|row| row.what == figure.what);
        let at = at.unwrap_or_else(|| {
            let (plain, meshed) = (Vec::new(), Vec::new());
            self.rows.push(Row {
                what: figure.what,
                unit: figure.unit,
                plain,
                meshed,
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        if with_mesh {
            &mut row.meshed
        } else {
            &mut row.plain
        }
        .push(figure.value);
    }

    pub(crate) fn table(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let (plain, meshed) = (median(&row.plain), median(&row.meshed));
                let ratio = plain.zip(meshed).map(|(plain, meshed)| meshed / plain);
                [
                    row.what.to_owned(),
                    row.unit.to_owned(),
                    show(plain),
                    show(meshed),
                    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("× {ratio:.2}")),
                ]
            })
            .collect();
        table::render(
            ["median", "unit", "no mesh", "mesh", "ratio"],
            &rows,
            &[],
            table::terminal_width(),
        )
    }
}

fn show(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 1000.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_bad_round() {
        assert_eq!(median(&[1.0, 100.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 3.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
