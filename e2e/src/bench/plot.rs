//! Line charts as SVG.

use std::fmt::Write as _;

use crate::bench::results::Summary;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Left, top, right, bottom of the area between the axes.
const AREA: [f64; 4] = [80.0, 50.0, 610.0, 400.0];
/// Told apart by people who see few colours, too (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999",
];

/// A line: its name, and a value for each place on the x axis where there is one.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<Option<Summary>>,
}

/// A chart over named places, ranges as bars. Lines join the first `joined` places.
#[must_use]
pub fn chart(title: &str, unit: &str, places: &[&str], joined: usize, lines: &[Line]) -> String {
    let [left, top, right, bottom] = AREA;
    let values = lines.iter().flat_map(|line| line.points.iter().flatten());
    let highest = values.map(|summary| summary.most).fold(0.0, f64::max);
    let step = round_step(highest / 6.0);
    let steps = (highest / step).ceil().max(1.0);
    let x =
        |place: usize| left + (right - left) * (number(place) + 0.5) / number(places.len().max(1));
    let y = |value: f64| bottom - (bottom - top) * value.max(0.0) / (step * steps);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let _ = writeln!(svg, "{}", text(left, 28.0, "start", 16, title));
    let mut value = 0.0;
    while value <= step * steps * 1.001 {
        let at = y(value);
        let _ = writeln!(svg, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>");
        let _ = writeln!(
            svg,
            "{}",
            text(left - 8.0, at + 4.0, "end", 13, &label(value))
        );
        value += step;
    }
    for (place, name) in places.iter().enumerate() {
        let _ = writeln!(svg, "{}", text(x(place), bottom + 20.0, "middle", 13, name));
    }
    let middle = f64::midpoint(left, right);
    let _ = writeln!(
        svg,
        "{}",
        text(middle, bottom + 42.0, "middle", 13, "frame size, bytes")
    );
    let _ = writeln!(svg, "{}", text(left - 60.0, top - 10.0, "start", 13, unit));
    for (n, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points = line.points.iter().enumerate();
        let points: Vec<(f64, Summary)> = points
            .filter_map(|(place, point)| Some((x(place), (*point)?)))
            .collect();
        let path: Vec<String> = points
            .iter()
            .filter(|(at, _)| *at < x(joined))
            .map(|(at, value)| format!("{at:.1},{:.1}", y(value.median)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (at, value) in &points {
            let (low, high) = (y(value.least), y(value.most));
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {low:.1}V{high:.1}\" stroke=\"{colour}\"/><circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
                y(value.median)
            );
        }
        let at = top + 10.0 + 22.0 * number(n);
        let _ = writeln!(
            svg,
            "<path d=\"M{} {at}h24\" stroke=\"{colour}\" stroke-width=\"3\"/>",
            right + 20.0
        );
        let _ = writeln!(
            svg,
            "{}",
            text(right + 52.0, at + 4.0, "start", 13, &line.name)
        );
    }
    svg + "</svg>\n"
}

fn text(x: f64, y: f64, anchor: &str, size: u32, content: &str) -> String {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"#222\">{content}</text>"
    )
}

#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn number(count: usize) -> f64 {
    count as f64
}

/// 1, 2 or 5 times a power of ten, at least this.
fn round_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= least)
        .unwrap_or(least)
}

fn label(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", trim(v / 1e6)),
        v if v >= 1e4 => format!("{} k", trim(v / 1e3)),
        v => trim(v),
    }
}

/// One digit behind the point, if it is not 0.
fn trim(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let steps = [0.0, 0.3, 1.0, 1.1, 150.0, 830_000.0].map(round_step);
        assert_eq!(steps, [1.0, 0.5, 1.0, 2.0, 200.0, 1_000_000.0]);
    }

    #[test]
    fn every_value_is_within_the_area_and_names_are_escaped() {
        let point = |v: f64| {
            Some(Summary {
                median: v,
                least: v / 2.0,
                most: v * 1.2,
            })
        };
        let line = Line {
            name: "a<b".to_owned(),
            points: vec![point(10.0), None, point(99.0)],
        };
        let svg = chart("title", "ns", &["64", "512", "1514"], 3, &[line]);
        assert!(svg.contains("a&lt;b") && svg.ends_with("</svg>\n"));
        let ys = svg
            .split("cy=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok());
        assert!(ys.into_iter().all(|y| (AREA[1]..=AREA[3]).contains(&y)));
    }
}
