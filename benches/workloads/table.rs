//! What was measured, as lines, as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{contest::Figure, tools::Tool};

/// A workload, or one size of a curve, with all that came out.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// Lines for people: medians, ratios to idpbuilder, processor time and memory.
    pub(crate) fn lines(&self) -> String {
        let mut out = format!("{:<6} {}\n", self.name, self.what);
        let ours = self.of(Tool::Idpbuilder.name()).and_then(Figure::median);
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
        json!({ "workload": self.name, "what": self.what, "notes": self.notes, "figures": figures })
    }
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

/// All workloads as one Markdown table: seconds, the ratio to idpbuilder in the same round, and peak memory.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut tools: Vec<&str> = Vec::new();
    for figure in rows.iter().flat_map(|row| &row.figures) {
        if !tools.contains(&figure.name) {
            tools.push(figure.name);
        }
    }
    let mut out =
        format!("| workload | {} |\n|---|{}\n", tools.join(" | "), "--:|".repeat(tools.len()));
    for row in rows {
        let ours = row.of(Tool::Idpbuilder.name()).and_then(Figure::median);
        let cells = tools
            .iter()
            .map(|tool| row.of(tool).map_or_else(|| "–".to_owned(), |figure| cell(figure, ours)));
        add(
            &mut out,
            &format!("| {}: {} | {} |", row.name, row.what, cells.collect::<Vec<_>>().join(" | ")),
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
            "| mem: the largest of these, without what steps run | {} |",
            tools.iter().map(peak).collect::<Vec<_>>().join(" | ")
        ),
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
