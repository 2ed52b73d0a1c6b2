//! What was measured, as lines, as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{contest::Figure, targets::MEMORY_BYTES, tools::Tool};

/// A workload, or one size of a curve, with all that came out.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) notes: Vec<String>,
    /// Seconds that it is meant to take on the reference machine, for a workload that has such an aim.
    pub(crate) target: Option<f64>,
}

impl Row {
    /// Median seconds of plain tools.
    pub(crate) fn floor(&self) -> Option<f64> {
        self.of("floor").and_then(Figure::median)
    }

    fn ours(&self) -> Option<f64> {
        self.of(Tool::Idpbuilder.name()).and_then(Figure::median)
    }

    /// Lines for people: medians, ratios to idpbuilder, processor time and memory; and what was aimed at.
    pub(crate) fn lines(&self) -> String {
        let mut out = format!("{:<6} {}\n", self.name, self.what);
        let ours = self.ours();
        for figure in &self.figures {
            let line = match (figure.median(), &figure.failure) {
                (Some(median), None) => measured(figure, median, ours),
                (_, failure) => {
                    format!(
                        "       {:<15} failed: {}",
                        figure.name,
                        failure.as_deref().unwrap_or("never ran")
                    )
                }
            };
            add(&mut out, &line);
        }
        if let Some(target) = self.target {
            let line = format!(
                "       {:<15} {:>9.1} ms {:>8.2} x on the reference machine{}",
                "target",
                target * 1e3,
                ours.map_or(f64::NAN, |ours| target / ours),
                missed(target, ours),
            );
            add(&mut out, &line);
        }
        for note in &self.notes {
            add(&mut out, &format!("       note: {note}"));
        }
        out
    }

    fn of(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    pub(crate) fn json(&self) -> Value {
        let figures: Vec<_> = self.figures.iter().map(figure_json).collect();
        json!({
            "workload": self.name,
            "what": self.what,
            "notes": self.notes,
            "figures": figures,
            "target_seconds": self.target,
        })
    }
}

fn missed(target: f64, ours: Option<f64>) -> &'static str {
    if ours.is_some_and(|ours| ours > target) { ", missed" } else { "" }
}

fn measured(figure: &Figure, median: f64, ours: Option<f64>) -> String {
    let low = figure.seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figure.seconds.iter().copied().fold(0.0, f64::max);
    format!(
        "       {:<15} {:>9.1} ms {:>8.2} x {:>8.1} ms cpu {} MiB   ({:.1} to {:.1} ms)",
        figure.name,
        median * 1e3,
        ours.map_or(f64::NAN, |ours| median / ours),
        figure.cpu_seconds * 1e3,
        memory(figure),
        low * 1e3,
        high * 1e3,
    )
}

/// All workloads as one Markdown table: seconds, the ratio to idpbuilder in the same run, and peak memory; what is aimed at.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut tools: Vec<&str> = Vec::new();
    for figure in rows.iter().flat_map(|row| &row.figures) {
        if !tools.contains(&figure.name) {
            tools.push(figure.name);
        }
    }
    let mut out = format!(
        "| workload | {} | target |\n|---|{}--:|\n",
        tools.join(" | "),
        "--:|".repeat(tools.len())
    );
    for row in rows {
        let ours = row.ours();
        let target = row.target.map_or_else(
            || "–".to_owned(),
            |target| {
                let ratio =
                    ours.map_or_else(String::new, |ours| format!(", {:.2} x", target / ours));
                format!("{target:.4} s{ratio}{}", missed(target, ours))
            },
        );
        let cells = tools
            .iter()
            .map(|tool| row.of(tool).map_or_else(|| "–".to_owned(), |figure| cell(figure, ours)));
        add(
            &mut out,
            &format!(
                "| {}: {} | {} | {target} |",
                row.name,
                row.what.replace('|', "\\|"),
                cells.collect::<Vec<_>>().join(" | ")
            ),
        );
    }
    let peak = |tool: &&str| {
        let figures = rows.iter().filter_map(|row| row.of(tool));
        let of_tool = |figure: &Figure| {
            figure.own_bytes.unwrap_or(figure.memory_bytes) + figure.daemon_bytes.unwrap_or(0)
        };
        let most = figures.map(of_tool).max();
        most.map_or_else(|| "–".to_owned(), |bytes| format!("{:.0} MiB", mebibytes(bytes)))
    };
    add(
        &mut out,
        &format!(
            "| mem: the largest of these, without what steps run | {} | {:.0} MiB |",
            tools.iter().map(peak).collect::<Vec<_>>().join(" | "),
            mebibytes(MEMORY_BYTES)
        ),
    );
    add(
        &mut out,
        "\nA ratio is to idpbuilder. Targets are those of the reference machine: two x86-64 cores with SHA extensions.",
    );
    out
}

fn cell(figure: &Figure, ours: Option<f64>) -> String {
    let Some(median) = figure.median() else { return "failed".to_owned() };
    let ratio = ours.map_or_else(String::new, |ours| format!(", {:.2} x", median / ours));
    format!("{median:.4} s{ratio}, {} MiB", memory(figure).trim())
}

/// Bytes by which a step's process is larger than the tool itself before that is worth words.
const ITSELF_FROM: u64 = 8 << 20;

/// Peak of the largest process, of the tool itself where a step's process was larger, and of the daemon.
fn memory(figure: &Figure) -> String {
    let itself = figure.own_bytes.filter(|own| own + ITSELF_FROM < figure.memory_bytes);
    let itself = itself.map_or_else(String::new, |own| format!(" (itself {:.1})", mebibytes(own)));
    let daemon =
        figure.daemon_bytes.map_or_else(String::new, |bytes| format!(" + {:.1}", mebibytes(bytes)));
    format!("{:>6.1}{itself}{daemon}", mebibytes(figure.memory_bytes))
}

fn figure_json(figure: &Figure) -> Value {
    json!({
        "tool": figure.name,
        "median_seconds": figure.median(),
        "seconds": figure.seconds,
        "median_cpu_seconds": figure.cpu_seconds,
        "memory_peak_bytes": figure.memory_bytes,
        "own_memory_peak_bytes": figure.own_bytes,
        "daemon_memory_peak_bytes": figure.daemon_bytes,
        "failure": figure.failure,
    })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn add(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("a string takes all text");
}
