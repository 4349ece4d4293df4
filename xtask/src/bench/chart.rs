//! The ratios as bars, in SVG.

use std::fmt::Write;

use super::report::{Comparison, Ratio, Report, Row};
use super::scenario::Better;

const WIDTH: f64 = 860.0;
/// Where bars begin; what they stand for is written left of it.
const LEFT: f64 = 270.0;
/// Kept free behind the longest bar, for its number.
const RIGHT: f64 = 60.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
const HEADING: f64 = 58.0;
/// Longer bars are cut; their numbers tell.
const MOST: f64 = 2.5;

/// For setups in their order: ours first.
const COLOURS: [&str; 5] = ["#1f6feb", "#d97706", "#7c3aed", "#0f766e", "#be185d"];

/// A bar for every figure and setup that can be compared to the network without a mesh; and for
/// what only proxies cost, one for every peer that ours can be compared to.
pub(crate) fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 10.0;
    for comparison in &report.comparisons {
        draw(&mut body, &mut y, report, comparison);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" \
         viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#24292f\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// One figure: its bars by the number of the setup's colour.
struct Group<'a> {
    row: &'a Row,
    bars: Vec<(usize, Ratio)>,
}

fn draw(body: &mut String, y: &mut f64, report: &Report, comparison: &Comparison) {
    let Some((baseline, others)) = comparison.setups.split_first() else {
        return;
    };
    let Some((ours, peers)) = others.split_first() else {
        return;
    };
    let against_none = groups(report, comparison, |row| {
        let ratios = others.iter().map(|setup| row.ratio(setup, baseline));
        ratios.collect()
    });
    let title = format!("{}: ratio to no mesh", comparison.title);
    section(body, y, &title, &against_none, others, 0);
    let against_peers = groups(report, comparison, |row| {
        let ratios = peers.iter().map(|peer| row.ratio(ours, peer));
        ratios.collect()
    });
    let title = format!("{}: ratio of {ours} to a peer", comparison.title);
    section(body, y, &title, &against_peers, peers, 1);
}

fn groups<'a>(
    report: &'a Report,
    comparison: &'a Comparison,
    ratios: impl Fn(&Row) -> Vec<Option<Ratio>>,
) -> Vec<Group<'a>> {
    let group = |row: &'a Row| {
        let bars = ratios(row).into_iter().enumerate();
        let bars: Vec<_> = bars.filter_map(|(at, ratio)| Some((at, ratio?))).collect();
        (!bars.is_empty()).then_some(Group { row, bars })
    };
    report.rows(comparison).filter_map(group).collect()
}

/// `first` is the number of the first setup's colour: a setup has the same in all sections.
fn section(
    body: &mut String,
    y: &mut f64,
    title: &str,
    groups: &[Group<'_>],
    names: &[String],
    first: usize,
) {
    if groups.is_empty() {
        return;
    }
    let ratios = groups.iter().flat_map(|group| &group.bars);
    let longest = ratios
        .map(|(_, ratio)| ratio.median())
        .fold(1.1, f64::max)
        .min(MOST);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    text(
        body,
        10.0,
        *y + 18.0,
        "font-size=\"15\" font-weight=\"bold\"",
        title,
    );
    let mut x = LEFT;
    for (at, name) in names.iter().enumerate() {
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{}\" width=\"11\" height=\"11\" fill=\"{}\"/>",
            *y + 28.0,
            colour(first + at)
        );
        text(body, x + 16.0, *y + 38.0, "", name);
        x += 30.0 + 8.0 * name.chars().count() as f64;
    }
    let top = *y + HEADING - 8.0;
    *y += HEADING;
    for group in groups {
        let middle = *y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
        let sign = match group.row.better {
            Better::Higher => "▸",
            Better::Lower => "◂",
        };
        text(body, 10.0, middle, "", group.row.what.trim());
        text(body, LEFT - 14.0, middle, "", sign);
        for (at, ratio) in &group.bars {
            let length = |ratio: f64| ratio.clamp(0.0, longest) * scale;
            let bar = length(ratio.median());
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{bar:.1}\" height=\"{}\" fill=\"{}\"/>",
                *y,
                BAR - 2.0,
                colour(first + at)
            );
            let mut end = bar;
            if let Some((from, to)) = ratio.interval() {
                end = end.max(length(to));
                let _ = writeln!(
                    body,
                    "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#24292f\"/>",
                    LEFT + length(from),
                    LEFT + end,
                    y = *y + (BAR - 2.0) / 2.0,
                );
            }
            let number = format!("× {:.2}", ratio.median());
            text(
                body,
                LEFT + end + 5.0,
                *y + BAR - 3.0,
                "font-size=\"10\"",
                &number,
            );
            *y += BAR;
        }
        *y += GAP;
    }
    let one = LEFT + scale;
    let _ = writeln!(
        body,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{top}\" y2=\"{}\" stroke=\"#57606a\" \
         stroke-dasharray=\"4 3\"/>",
        *y
    );
    let legend = "▸ more is better, ◂ less is better; the dashed line is × 1; thin lines are where a ratio lies \
                  with a certainty of 95 %";
    text(
        body,
        10.0,
        *y + 12.0,
        "font-size=\"10\" fill=\"#57606a\"",
        legend,
    );
    *y += 30.0;
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn text(body: &mut String, x: f64, y: f64, style: &str, words: &str) {
    let words = escape(words);
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>"
    );
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn every_figure_has_a_bar_for_every_ratio() {
        let svg = svg(&sample());
        // Speed: ours and the peer's to none, ours to the peer; cost: ours to the peer.
        let numbers = svg.matches(">× ").count();
        assert_eq!(numbers, 4, "{svg}");
        assert!(
            svg.contains(">speed<") && svg.contains(">cost &lt; &amp; &gt;<"),
            "{svg}"
        );
        assert!(svg.contains("× 0.50") && svg.contains("× 0.25") && svg.contains("× 2.00"));
        assert!(svg.contains(">other<") && svg.contains(">Sluice<"));
    }

    #[test]
    fn a_bar_is_as_long_as_its_ratio() {
        let svg = svg(&sample());
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| {
                line.contains("height=\"11\"") && line.contains(&format!("x=\"{LEFT}\" "))
            })
            .filter_map(|line| {
                line.split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .filter(|width| *width != 11.0)
            .collect();
        assert_eq!(widths.len(), 4);
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01, "{widths:?}");
    }
}
