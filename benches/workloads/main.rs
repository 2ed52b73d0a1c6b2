//! The workloads of idpbuilder beside the floors and the rivals that are installed: `cargo bench`.
//!
//! Prints, for every workload, the median of each tool in milliseconds and as a ratio to idpbuilder in
//! the same run, and its peak memory; writes all figures to `target/bench/workloads.json`. A benchmark:
//! it fails when a tool fails, never because one is slow.
//!
//!     cargo bench                                 everything, W5 with 256 MiB
//!     cargo bench -- W2 W6 --rounds 15            some, more often
//!     cargo bench -- --full                       W5 with 1 GiB
//!     cargo bench -- --only-ours                  without rivals

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table")]

mod cases;
mod contest;
mod ground;
mod language;
mod measure;
mod registry;
mod runtimes;
mod tools;

use std::{fs, path::PathBuf, process::ExitCode};

use cases::{Settings, Workload};
use contest::{Contest, Figure};
use ground::Ground;
use tools::Tool;

/// Rounds that count, unless said otherwise.
const ROUNDS: usize = 5;

struct Arguments {
    names: Vec<String>,
    rounds: usize,
    large_mib: usize,
    files: usize,
    rivals: bool,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    ground::enter();
    let result = parse(std::env::args().skip(1)).and_then(|arguments| bench(&arguments));
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        names: Vec::new(),
        rounds: ROUNDS,
        large_mib: 256,
        files: 20_000,
        rivals: true,
    };
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("{word} takes a number"))
        };
        match word.as_str() {
            "--bench" => {}
            "--full" => arguments.large_mib = 1024,
            "--only-ours" => arguments.rivals = false,
            "--rounds" => arguments.rounds = number()?,
            "--files" => arguments.files = number()?,
            _ if word.starts_with('-') => return Err(format!("{word}: no such flag")),
            _ => arguments.names.push(word),
        }
    }
    let known = |name: &String| cases::ALL.iter().any(|workload| workload.name == name);
    match arguments.names.iter().find(|name| !known(name)) {
        Some(name) => Err(format!("{name}: no such workload")),
        None => Ok(arguments),
    }
}

fn bench(arguments: &Arguments) -> Result<usize, String> {
    let parent = folder()?;
    let tools = if arguments.rivals { tools::installed() } else { vec![Tool::Idpbuilder] };
    let settings = Settings {
        tools,
        base: cases::make_base(&parent)?,
        rounds: arguments.rounds,
        large_mib: arguments.large_mib,
        files: arguments.files,
    };
    let wanted = |workload: &&Workload| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| name == workload.name)
    };
    let (mut rows, mut failures) = (Vec::new(), 0);
    for workload in cases::ALL.iter().filter(wanted) {
        let (figures, notes) = measure_one(&parent, &settings, workload)?;
        print_row(workload, &figures, &notes);
        failures += figures.iter().filter(|figure| figure.failure.is_some()).count();
        rows.push(serde_json::json!({
            "workload": workload.name,
            "what": workload.what,
            "notes": notes,
            "figures": figures.iter().map(json).collect::<Vec<_>>(),
        }));
    }
    let out = parent.join("workloads.json");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let document = serde_json::json!({
        "cores": cores,
        "rounds": settings.rounds,
        "large_mib": settings.large_mib,
        "files": settings.files,
        "workloads": rows,
    });
    let text = serde_json::to_string_pretty(&document).map_err(|error| error.to_string())?;
    fs::write(&out, text).map_err(|error| format!("{}: {error}", out.display()))?;
    println!("\nfigures: {}", out.display());
    Ok(failures)
}

fn measure_one(
    parent: &std::path::Path,
    settings: &Settings,
    workload: &Workload,
) -> Result<(Vec<Figure>, Vec<String>), String> {
    let ground = Ground::new(parent, workload.name).map_err(|error| error.to_string())?;
    let mut contest = Contest::default();
    if !ground.is_fresh() {
        contest.note("not on a file system of its own".to_owned());
    }
    (workload.fill)(settings, &ground, &mut contest)
        .map_err(|reason| format!("{}: {reason}", workload.name))?;
    Ok(contest.run(settings.rounds))
}

/// `target/bench`, where the benchmark was built.
fn folder() -> Result<PathBuf, String> {
    let target = PathBuf::from(env!("CARGO_BIN_EXE_idpbuilder"));
    let target = target.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let folder = target.ok_or("the program is not below a target folder")?.join("bench");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn print_row(workload: &Workload, figures: &[Figure], notes: &[String]) {
    println!("{:<6} {}", workload.name, workload.what);
    let ours = figures.iter().find(|figure| figure.name == Tool::Idpbuilder.name());
    let ours = ours.and_then(Figure::median);
    for figure in figures {
        let Some(median) = figure.median() else {
            println!(
                "       {:<11} failed: {}",
                figure.name,
                figure.failure.as_deref().unwrap_or("")
            );
            continue;
        };
        let ratio = ours.map_or(f64::NAN, |ours| median / ours);
        let low = figure.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let high = figure.seconds.iter().copied().fold(0.0, f64::max);
        println!(
            "       {:<11} {:>9.1} ms {:>8.2} x {:>8.1} ms cpu {:>6.1} MiB   ({:.1} to {:.1} ms)",
            figure.name,
            median * 1e3,
            ratio,
            figure.cpu_seconds * 1e3,
            figure.memory_bytes as f64 / f64::from(1 << 20),
            low * 1e3,
            high * 1e3,
        );
    }
    for note in notes {
        println!("       note: {note}");
    }
}

fn json(figure: &Figure) -> serde_json::Value {
    serde_json::json!({
        "tool": figure.name,
        "median_seconds": figure.median(),
        "seconds": figure.seconds,
        "median_cpu_seconds": figure.cpu_seconds,
        "memory_peak_bytes": figure.memory_bytes,
        "failure": figure.failure,
    })
}
