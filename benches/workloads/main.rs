//! The workloads of idpbuilder beside the floors and the rivals that are installed, and how time and memory grow with
//! sizes: `cargo bench`; `cargo bench -- --help` says how.
//!
//! Prints, for every workload, the median of each tool in milliseconds and as a ratio to idpbuilder in
//! the same run, its peak memory, and what the workload is meant to take. A benchmark: it fails when a tool fails, never because one is slow.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table")]

mod bases;
mod cases;
mod contest;
mod docker;
mod ground;
mod growth;
mod language;
mod measure;
mod options;
mod plot;
mod registry;
mod runtimes;
mod steps;
mod table;
mod targets;
mod tools;
mod transfers;

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bases::Bases;
use cases::{Outcome, Place, Settings};
use contest::{Contest, Figure};
use ground::Ground;
use options::{Options, Request, Rivals};
use table::Row;
use tools::Tool;

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let request = options::parse(std::env::args().skip(1));
    let result = request.and_then(|request| match request {
        Request::Print(text) => {
            println!("{text}");
            Ok(0)
        }
        Request::Measure(options) => {
            ground::enter();
            ground::tidy_up();
            let done = bench(&options);
            ground::tidy_up();
            done
        }
    });
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all that is wanted; the number of failures.
fn bench(options: &Options) -> Result<usize, String> {
    let target = target()?;
    let parent = target.join("bench");
    fs::create_dir_all(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    if let Some(program) = &options.program {
        let found = program.canonicalize();
        tools::measure_program(found.map_err(|error| format!("{}: {error}", program.display()))?);
    }
    let mut tools = match options.rivals {
        Rivals::Measured => tools::installed(),
        Rivals::LeftOut => vec![Tool::Idpbuilder],
    };
    tools.retain(|tool| !options.without.iter().any(|name| name == tool.name()));
    let bases = Bases::new(&parent, &target)?;
    let (rounds, large_mib, files) = (options.rounds(), options.large_mib, options.files);
    let settings = Settings { tools, bases, rounds, large_mib, files };
    let failures = measure_workloads(&parent, options, &settings)?;
    Ok(failures + measure_curves(&parent, options, &settings)?)
}

fn measure_workloads(
    parent: &Path,
    options: &Options,
    settings: &Settings,
) -> Result<usize, String> {
    let mut rows = Vec::new();
    for workload in cases::ALL.iter().filter(|workload| options.wants(workload.name)) {
        let at = (parent, workload.name, 0);
        let row = measure(at, settings, 0..=settings.rounds, workload.fill);
        let mut row = row.with(workload.name, workload.what);
        row.target = workload.target.seconds(settings, row.floor());
        println!("{}", row.lines().trim_end());
        rows.push(row);
    }
    if rows.is_empty() {
        return Ok(0);
    }
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let document = serde_json::json!({
        "cores": cores,
        "rounds": settings.rounds,
        "large_mib": settings.large_mib,
        "files": settings.files,
        "workloads": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    write(&parent.join("workloads.json"), &format!("{document:#}\n"))?;
    write(&parent.join("workloads.md"), &table::markdown(&rows))?;
    Ok(failures(&rows))
}

fn measure_curves(parent: &Path, options: &Options, settings: &Settings) -> Result<usize, String> {
    let (mut documents, mut failed) = (Vec::new(), 0);
    for curve in growth::ALL.iter().filter(|curve| options.wants(curve.name)) {
        let mut rows = Vec::new();
        println!("{:<6} {}", curve.name, curve.what);
        for size in options.sizes(curve) {
            let name = format!("{}-{size}", curve.name);
            let fill =
                |place: &Place<'_>, contest: &mut Contest| (curve.fill)(place, contest, *size);
            let row = measure(
                (parent, &name, curve.inodes(*size)),
                settings,
                options.rounds_of(curve),
                fill,
            );
            let row = row.with(&name, &format!("{size} {}", curve.unit));
            println!("{}", row.lines().trim_end());
            rows.push((*size, row));
        }
        draw(parent, curve, &rows)?;
        let points =
            rows.iter().map(|(size, row)| serde_json::json!({ "size": size, "point": row.json() }));
        documents.push(serde_json::json!({
            "curve": curve.name,
            "what": curve.what,
            "unit": curve.unit,
            "points": points.collect::<Vec<_>>(),
        }));
        failed += rows
            .iter()
            .flat_map(|(_, row)| &row.figures)
            .filter(|figure| figure.failure.is_some())
            .count();
    }
    if !documents.is_empty() {
        write(&parent.join("growth.json"), &format!("{:#}\n", serde_json::Value::from(documents)))?;
    }
    Ok(failed)
}

/// One line a tool.
fn draw(parent: &Path, curve: &growth::Curve, rows: &[(usize, Row)]) -> Result<(), String> {
    let mut lines: Vec<plot::Line> = Vec::new();
    for (size, row) in rows {
        for figure in &row.figures {
            let Some(seconds) = figure.median() else { continue };
            let bytes = figure.memory_bytes + figure.daemon_bytes.unwrap_or(0);
            let point = (*size as f64, seconds, bytes as f64);
            match lines.iter_mut().find(|line| line.name == figure.name) {
                Some(line) => line.points.push(point),
                None => {
                    lines.push(plot::Line { name: figure.name.to_owned(), points: vec![point] });
                }
            }
        }
    }
    let picture = plot::svg(&format!("{}: {}", curve.name, curve.what), curve.unit, &lines);
    write(&parent.join(format!("growth-{}.svg", curve.name)), &picture)
}

/// Runs one contest on a ground of its own, which is gone afterwards. What cannot be set up is a failure of this
/// workload, not of the others.
fn measure(
    (parent, name, files): (&Path, &str, u64),
    settings: &Settings,
    rounds: RangeInclusive<usize>,
    fill: impl Fn(&Place<'_>, &mut Contest) -> Outcome,
) -> Measured {
    let measured = || -> Result<Measured, String> {
        let ground = Ground::new(parent, name, files).map_err(|error| error.to_string())?;
        let place = Place::new(settings, &ground)?;
        let mut contest = Contest::default();
        if !ground.is_fresh() {
            contest.note("not on a file system of its own".to_owned());
        }
        fill(&place, &mut contest)?;
        let (figures, notes) = contest.run(rounds);
        Ok(Measured { figures, notes })
    };
    measured().unwrap_or_else(|reason| Measured {
        figures: vec![Figure::failed(Tool::Idpbuilder.name(), reason)],
        notes: Vec::new(),
    })
}

/// What came out of one contest.
struct Measured {
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Measured {
    fn with(self, name: &str, what: &str) -> Row {
        Row {
            name: name.to_owned(),
            what: what.to_owned(),
            figures: self.figures,
            notes: self.notes,
            target: None,
        }
    }
}

fn failures(rows: &[Row]) -> usize {
    rows.iter().flat_map(|row| &row.figures).filter(|figure| figure.failure.is_some()).count()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// The folder `target`, in which the benchmark was built.
fn target() -> Result<PathBuf, String> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_idpbuilder"));
    let folders = program.ancestors().filter(|folder| folder.join("CACHEDIR.TAG").exists());
    // The folder of the processor that it is built for has a tag too.
    let folder = folders.last().ok_or("the program is not below a target folder")?;
    Ok(folder.to_owned())
}
