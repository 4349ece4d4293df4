//! All figures of a run: medians, spread, ratios; as a table, as JSON and as Markdown.

use serde_json::{Value, json};

use super::machine::Machine;
use super::scenario::{Better, Figure};
use crate::table;

/// What the tables show.
const LEGEND: &str = "Medians ± half of the range. A ratio (×) is to no mesh, or to the peer that it names: the \
     median of the rounds' own ratios, and where that lies with a certainty of 95 % (or, with fewer than six \
     rounds, their range).\n";

/// Setups that are compared with each other. The first is the network without a mesh; the second,
/// if there is one, is ours; the others are peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) title: &'static str,
    pub(crate) setups: Vec<String>,
}

impl Comparison {
    /// What the setup at this place brings to compare: ours to no mesh, or ours to a peer.
    fn pair(&self, at: usize) -> Option<(&str, &str)> {
        let other = match at {
            0 => return None,
            1 => 0,
            peer => peer,
        };
        Some((&self.setups[1], &self.setups[other]))
    }
}

/// All figures, in the order in which they first came.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// How it was measured, in a sentence.
    pub(crate) how: String,
    pub(crate) comparisons: Vec<Comparison>,
    rows: Vec<Row>,
}

/// How a figure in one setup compares to that in another: round by round, since what disturbs the
/// machine for longer disturbs both.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    /// Of each round that has measured both, sorted.
    of_rounds: Vec<f64>,
}

impl Ratio {
    fn new(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let pairs = pairs.filter(|(_, to)| *to != 0.0);
        let mut of_rounds: Vec<_> = pairs.map(|(of, to)| of / to).collect();
        of_rounds.sort_by(f64::total_cmp);
        (!of_rounds.is_empty()).then_some(Self { of_rounds })
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.of_rounds).unwrap_or(f64::NAN)
    }

    /// Where the median of ever more rounds would come to lie, with a certainty of 95 % or more, from
    /// six rounds on; and the range of fewer rounds. Whatever the rounds' distribution, the median of
    /// all is as likely above a round as below it, so how many are on one side is binomial.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        const ONE_SIDE: f64 = 0.025;
        let rounds = self.of_rounds.len();
        let mut exactly = 0.5_f64.powi(i32::try_from(rounds).ok()?);
        // How many rounds are left out on each side, and how likely one side has one more at most.
        let (mut outside, mut at_most) = (0, exactly);
        loop {
            exactly *= (rounds - outside) as f64 / (outside + 1) as f64;
            at_most += exactly;
            if at_most > ONE_SIDE {
                break;
            }
            outside += 1;
        }
        (rounds > 1).then(|| {
            (
                self.of_rounds[outside],
                self.of_rounds[rounds - 1 - outside],
            )
        })
    }

    fn show(&self) -> String {
        let median = self.median();
        match self.interval() {
            Some((from, to)) => format!("× {median:.2} ({from:.2}–{to:.2})"),
            None => format!("× {median:.2}"),
        }
    }
}

/// One figure in all setups.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    unit: &'static str,
    pub(crate) better: Better,
    /// By setup, in the order of their first appearance.
    values: Vec<(String, Vec<f64>)>,
}

impl Report {
    pub(crate) fn new(machine: Machine, how: String, comparisons: Vec<Comparison>) -> Self {
        Self {
            machine,
            how,
            comparisons,
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, setup: &str, figure: Figure) {
        let row = self.rows.iter().position(|row| row.what == figure.what);
        let row = row.unwrap_or_else(|| {
            self.rows.push(Row {
                what: figure.what,
                unit: figure.unit,
                better: figure.better,
                values: Vec::new(),
            });
            self.rows.len() - 1
        });
        let values = &mut self.rows[row].values;
        match values.iter_mut().find(|(name, _)| name == setup) {
            Some((_, values)) => values.push(figure.value),
            None => values.push((setup.to_owned(), vec![figure.value])),
        }
    }

    /// The rows that say anything about one of these setups but the first.
    pub(crate) fn rows<'a>(&'a self, of: &'a Comparison) -> impl Iterator<Item = &'a Row> {
        let alone = of.setups.len() == 1;
        let told = move |row: &&Row| {
            let mut setups = of.setups.iter().skip(usize::from(!alone));
            setups.any(|setup| row.median(setup).is_some())
        };
        self.rows.iter().filter(told)
    }

    /// A table for each comparison, for a terminal.
    pub(crate) fn tables(&self) -> String {
        let width = table::terminal_width();
        let table = |one: &Comparison| {
            let table = table::render(&header(one), &self.cells(one), &[], width);
            format!("{}\n{table}", one.title)
        };
        let tables: Vec<_> = self.comparisons.iter().map(table).collect();
        tables.join("\n") + LEGEND
    }

    pub(crate) fn markdown(&self, chart: &str) -> String {
        let mut text = format!(
            "# What the mesh costs\n\n{}\n\n{}\n\n![Ratios]({chart})\n",
            self.how,
            self.machine.markdown()
        );
        for one in &self.comparisons {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            let header = header(one);
            text += &format!("\n## {}\n\n", one.title);
            text += &line(&header);
            text += &line(&vec!["---".to_owned(); header.len()]);
            for row in self.cells(one) {
                text += &line(&row);
            }
        }
        text + "\n" + LEGEND
    }

    pub(crate) fn json(&self) -> Value {
        let figures = self.rows.iter().map(Row::json);
        let comparisons = self.comparisons.iter().map(|one| {
            let ratios = self.rows(one).map(|row| {
                let pairs = (0..one.setups.len()).filter_map(|at| one.pair(at));
                let ratios = pairs.filter_map(|(ours, other)| {
                    let ratio = row.ratio(ours, other)?;
                    let (median, interval) = (ratio.median(), ratio.interval());
                    Some(json!({ "of": ours, "to": other, "ratio": median, "interval": interval }))
                });
                json!({ "figure": row.what.trim(), "ratios": ratios.collect::<Vec<_>>() })
            });
            json!({
                "title": one.title,
                "setups": one.setups,
                "ratios": ratios.collect::<Vec<_>>(),
            })
        });
        json!({
            "machine": self.machine.json(),
            "how": self.how,
            "comparisons": comparisons.collect::<Vec<_>>(),
            "figures": figures.collect::<Vec<_>>(),
        })
    }

    fn cells(&self, of: &Comparison) -> Vec<Vec<String>> {
        let cells = |row: &Row| {
            let mut cells = vec![row.what.to_owned(), row.unit.to_owned()];
            for (at, setup) in of.setups.iter().enumerate() {
                cells.push(row.show(setup));
                if let Some((ours, other)) = of.pair(at) {
                    cells.push(show(row.ratio(ours, other)));
                }
            }
            cells
        };
        self.rows(of).map(cells).collect()
    }
}

fn header(of: &Comparison) -> Vec<String> {
    let mut cells = vec!["figure".to_owned(), "unit".to_owned()];
    for (at, setup) in of.setups.iter().enumerate() {
        cells.push(setup.clone());
        match at {
            0 => {}
            1 => cells.push("to none".to_owned()),
            _ => cells.push(format!("to {setup}")),
        }
    }
    cells
}

impl Row {
    fn of(&self, setup: &str) -> &[f64] {
        let found = self.values.iter().find(|(name, _)| name == setup);
        found.map_or(&[], |(_, values)| values)
    }

    pub(crate) fn median(&self, setup: &str) -> Option<f64> {
        median(self.of(setup))
    }

    pub(crate) fn ratio(&self, of: &str, to: &str) -> Option<Ratio> {
        let (of, to) = (self.of(of).iter(), self.of(to).iter());
        Ratio::new(of.copied().zip(to.copied()))
    }

    fn show(&self, setup: &str) -> String {
        let Some(median) = self.median(setup) else {
            return "–".to_owned();
        };
        let value = match median {
            median if median.abs() >= 1000.0 => format!("{median:.0}"),
            median if median.abs() >= 10.0 => format!("{median:.1}"),
            median => format!("{median:.2}"),
        };
        match spread(self.of(setup)) {
            Some(share) => format!("{value} ± {:.0} %", share * 100.0),
            None => value,
        }
    }

    fn json(&self) -> Value {
        let setups = self.values.iter().map(|(setup, values)| {
            let value = json!({
                "median": median(values),
                "half_range_of_median": spread(values),
                "values": values,
            });
            (setup.clone(), value)
        });
        json!({
            "figure": self.what.trim(),
            "unit": self.unit,
            "better": match self.better { Better::Higher => "higher", Better::Lower => "lower" },
            "setups": setups.collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn show(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| ratio.show())
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

/// Half of the range, as a share of the median; `None` of a single value.
fn spread(values: &[f64]) -> Option<f64> {
    let median = median(values)?;
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    (values.len() > 1 && median != 0.0).then(|| (most - least) / 2.0 / median.abs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three rounds of three setups.
    pub(crate) fn sample() -> Report {
        let setups = ["no mesh", "Sluice", "other"].map(str::to_owned).to_vec();
        let title = "between nodes";
        let comparison = Comparison { title, setups };
        let mut report = Report::new(Machine::default(), "Once.".to_owned(), vec![comparison]);
        let mut add = |setup, what, better, values: [f64; 3]| {
            for value in values {
                let unit = "x";
                report.add(
                    setup,
                    Figure {
                        what,
                        unit,
                        better,
                        value,
                    },
                );
            }
        };
        let (more, less) = (Better::Higher, Better::Lower);
        add("no mesh", "speed", more, [200.0, 190.0, 210.0]);
        add("Sluice", "speed", more, [100.0, 900.0, 90.0]);
        add("other", "speed", more, [50.0, 50.0, 50.0]);
        add("Sluice", "  cost < & >", less, [3.0, 3.0, 3.0]);
        add("other", "  cost < & >", less, [6.0, 6.0, 6.0]);
        report
    }

    #[test]
    fn a_median_is_not_moved_by_one_bad_round() {
        assert_eq!(median(&[1.0, 100.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 3.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_spread_is_half_of_the_range() {
        assert_eq!(spread(&[90.0, 100.0, 110.0]), Some(0.1));
        assert_eq!(spread(&[7.0]), None);
        assert_eq!(spread(&[]), None);
    }

    /// The ranks are those of the sign test's tables.
    #[test]
    fn more_rounds_narrow_the_interval_of_a_ratio() {
        let interval = |rounds: u32| {
            let pairs = (1..=rounds).map(|value| (f64::from(value), 1.0));
            Ratio::new(pairs).unwrap().interval()
        };
        assert_eq!(interval(1), None);
        assert_eq!(interval(5), Some((1.0, 5.0)));
        assert_eq!(interval(6), Some((1.0, 6.0)));
        assert_eq!(interval(8), Some((1.0, 8.0)));
        assert_eq!(interval(9), Some((2.0, 8.0)));
        assert_eq!(interval(25), Some((8.0, 18.0)));
    }

    #[test]
    fn what_disturbs_a_whole_round_does_not_change_its_ratio() {
        let rounds = [(20.0, 10.0), (2.0, 1.0), (22.0, 11.0)];
        let ratio = Ratio::new(rounds.into_iter()).unwrap();
        assert_eq!(ratio.show(), "× 2.00 (2.00–2.00)");
        assert_eq!(Ratio::new([(1.0, 0.0)].into_iter()), None);
    }

    #[test]
    fn ratios_are_to_no_mesh_and_to_each_peer() {
        let report = sample();
        let cells = report.cells(&report.comparisons[0]);
        assert_eq!(
            header(&report.comparisons[0])[2..],
            ["no mesh", "Sluice", "to none", "other", "to other"]
        );
        assert_eq!(
            cells[0][2..],
            [
                "200.0 ± 5 %",
                "100.0 ± 405 %",
                "× 0.50 (0.43–4.74)",
                "50.0 ± 0 %",
                "× 2.00 (1.80–18.00)"
            ]
        );
        assert_eq!(
            cells[1][2..],
            ["–", "3.00 ± 0 %", "–", "6.00 ± 0 %", "× 0.50 (0.50–0.50)"]
        );
    }

    #[test]
    fn the_json_holds_every_value_and_ratio() {
        let text = sample().json().to_string();
        let json: Value = serde_json::from_str(&text).unwrap();
        let speed = &json["figures"][0];
        assert_eq!(speed["figure"], "speed");
        assert_eq!(speed["better"], "higher");
        assert_eq!(speed["setups"]["Sluice"]["median"], 100.0);
        assert_eq!(speed["setups"]["Sluice"]["values"][1], 900.0);
        let ratios = &json["comparisons"][0]["ratios"];
        assert_eq!(
            ratios[0]["ratios"],
            json!([{ "of": "Sluice", "to": "no mesh", "ratio": 0.5, "interval": [90.0 / 210.0, 900.0 / 190.0] },
                   { "of": "Sluice", "to": "other", "ratio": 2.0, "interval": [1.8, 18.0] }])
        );
        assert_eq!(
            ratios[1]["ratios"],
            json!([{ "of": "Sluice", "to": "other", "ratio": 0.5, "interval": [0.5, 0.5] }])
        );
    }

    #[test]
    fn the_markdown_has_a_row_for_every_figure() {
        let text = sample().markdown("report.svg");
        assert!(text.contains("![Ratios](report.svg)"), "{text}");
        assert!(text.contains("| speed | x | 200.0 ± 5 % |"), "{text}");
        assert!(text.contains("cost"), "{text}");
    }
}
