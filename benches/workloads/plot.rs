//! A growth curve as SVG: time and peak memory over size, both axes logarithmic.
//!
//! Knows numbers and names; draws nothing else.

use std::fmt::Write as _;

/// Size, seconds and bytes.
pub(crate) type Point = (f64, f64, f64);

/// One line.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

const PANEL_WIDTH: f64 = 380.0;
const PANEL_HEIGHT: f64 = 300.0;
const MARGIN: f64 = 60.0;

/// Told apart by people who see few colours too (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#999999", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];

/// A picture of some lines.
pub(crate) fn svg(title: &str, unit: &str, lines: &[Line]) -> String {
    let width = 2.0 * (PANEL_WIDTH + MARGIN) + MARGIN;
    let height = PANEL_HEIGHT + 3.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    let time = |point: &Point| (point.0, point.1);
    let memory = |point: &Point| (point.0, point.2 / f64::from(1 << 20));
    panel(&mut out, (MARGIN, "seconds", unit), lines, time);
    panel(&mut out, (2.0 * MARGIN + PANEL_WIDTH, "MiB, peak", unit), lines, memory);
    for (index, line) in lines.iter().enumerate() {
        let x = MARGIN + 140.0 * index as f64;
        let y = PANEL_HEIGHT + 2.5 * MARGIN;
        add(
            &mut out,
            format_args!(
                "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"{y}\">{}</text>\n",
                y - 10.0,
                colour(index),
                x + 18.0,
                escape(&line.name)
            ),
        );
    }
    out.push_str("</svg>\n");
    out
}

/// Where a panel starts, and what its axes are.
type Frame<'a> = (f64, &'a str, &'a str);

fn panel(
    out: &mut String,
    (left, y_name, x_name): Frame<'_>,
    lines: &[Line],
    of: impl Fn(&Point) -> (f64, f64),
) {
    let values: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|line| line.points.iter().map(&of).filter(|(x, y)| *x > 0.0 && *y > 0.0).collect())
        .collect();
    let all: Vec<(f64, f64)> = values.iter().flatten().copied().collect();
    let (x_range, y_range) =
        (decades(all.iter().map(|(x, _)| *x)), decades(all.iter().map(|(_, y)| *y)));
    let top = MARGIN;
    let x_of = |value: f64| left + PANEL_WIDTH * place(value, x_range);
    let y_of = |value: f64| top + PANEL_HEIGHT * (1.0 - place(value, y_range));
    let bottom = top + PANEL_HEIGHT;
    for power in x_range.0..=x_range.1 {
        let (x, label) = (x_of(10_f64.powi(power)), number(power));
        add(
            out,
            format_args!(
                "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n",
                bottom + 18.0
            ),
        );
    }
    for power in y_range.0..=y_range.1 {
        let (y, label) = (y_of(10_f64.powi(power)), number(power));
        add(
            out,
            format_args!(
                "<path d=\"M{left} {y:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>\n",
                left + PANEL_WIDTH,
                left - 6.0,
                y + 4.0
            ),
        );
    }
    add(
        out,
        format_args!(
            "<text x=\"{left}\" y=\"{}\">{y_name}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{x_name}</text>\n",
            top - 10.0,
            left + PANEL_WIDTH,
            bottom + 36.0
        ),
    );
    for (index, points) in values.iter().enumerate() {
        let at: Vec<_> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        add(
            out,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                at.join(" "),
                colour(index)
            ),
        );
        for (x, y) in points {
            add(
                out,
                format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>\n",
                    x_of(*x),
                    y_of(*y),
                    colour(index)
                ),
            );
        }
    }
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all text");
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// The powers of ten around some numbers; two at least.
fn decades(numbers: impl Iterator<Item = f64>) -> (i32, i32) {
    let logs: Vec<f64> = numbers.map(f64::log10).collect();
    let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return (0, 1);
    }
    let (low, high) = (low.floor() as i32, high.ceil() as i32);
    (low, high.max(low + 1))
}

/// Where a value lies between two powers of ten: 0 to 1.
fn place(value: f64, (low, high): (i32, i32)) -> f64 {
    (value.log10() - f64::from(low)) / f64::from(high - low)
}

fn number(power: i32) -> String {
    if power < 0 {
        format!("{:.*}", power.unsigned_abs() as usize, 10_f64.powi(power))
    } else {
        format!("{:.0}", 10_f64.powi(power))
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
