//! `logs`: what RUN steps printed, also those that went well.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _},
    path::Path,
    process::ExitCode,
};

use idpbuilder::{
    build::{Log, latest_logs, name_in_logs},
    oci::Platform,
    report::{Align, Table, bytes},
};

use super::{
    failure::{CliError, ENVIRONMENT, NOT_FOUND},
    setup,
};

/// What is read of a log at once, in bytes.
const CHUNK_BYTES: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(after_help = concat!(
    "A step that was cached has the log of the build that made it. `idpbuilder prune` removes logs older than a day.\n\n",
    "Examples:\n",
    "  idpbuilder logs                 (which there are)\n",
    "  idpbuilder logs web             (what the RUN steps of web printed last)\n",
    "  idpbuilder logs web --step 3    (that one alone)\n",
    "  idpbuilder logs web --step 3 --platform linux/arm64"
))]
pub(super) struct LogsArgs {
    /// Name of the image, as progress shows it in front of steps; all logs are listed without one.
    #[arg(value_name = "NAME")]
    image: Option<String>,
    /// One step, by the number that progress shows.
    #[arg(long, value_name = "NUMBER", requires = "image")]
    step: Option<usize>,
    /// For which platform the image was built; all by default. A step that platforms share ran for one of them.
    #[arg(long, value_name = "PLATFORM", requires = "image")]
    platform: Option<Platform>,
}

pub(super) fn logs(args: &LogsArgs) -> Result<ExitCode, CliError> {
    let folder = setup::home()?.join(setup::LOGS);
    let logs = latest_logs(&folder).map_err(|error| setup::unusable(&folder, &error))?;
    let Some(image) = &args.image else {
        list(&logs);
        return Ok(ExitCode::SUCCESS);
    };
    let name = name_in_logs(image);
    let of_image: Vec<&Log> = logs.iter().filter(|log| log.image() == name).collect();
    let platform = args.platform.as_ref().map(Platform::to_string);
    let is_wanted = |log: &&&Log| {
        args.step.is_none_or(|step| log.number() == step)
            && platform.as_deref().is_none_or(|platform| log.platform() == platform)
    };
    let wanted: Vec<&Log> = of_image.iter().filter(is_wanted).copied().collect();
    if wanted.is_empty() {
        let step = args.step.map(|step| format!("step {step} of ")).unwrap_or_default();
        let platform = platform.map(|platform| format!(" for {platform}")).unwrap_or_default();
        let message = format!("there is no log of {step}{image}{platform}");
        let error = CliError::new(NOT_FOUND, message);
        let help = match of_image.as_slice() {
            [] => {
                "`idpbuilder logs` lists them, by the names that progress shows in front of steps"
            }
            _ => "`idpbuilder logs` lists them; only a RUN has one, for a platform that it ran for",
        };
        return Err(error.with_help(help));
    }
    for log in &wanted {
        if wanted.len() > 1 {
            let (number, platform) = (log.number(), log.platform());
            setup::tell(&format!("step {number} for {platform}: {}", log.path.display()));
        }
        show(&log.path).map_err(|error| unreadable(&log.path, &error))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    CliError::new(ENVIRONMENT, format!("cannot read {}: {error}", path.display())).with_help(
        "only who ran a build can read its logs, which are below IDPBUILDER_HOME (~/.idpbuilder if unset)",
    )
}

fn list(logs: &[Log]) {
    let headings = [
        ("NAME", Align::Left),
        ("PLATFORM", Align::Left),
        ("STEP", Align::Right),
        ("BEGAN", Align::Left),
        ("SIZE", Align::Right),
    ];
    let mut table = Table::new(&headings);
    for log in logs {
        let began = i64::try_from(log.began.as_secs()).unwrap_or_default();
        let began = jiff::Timestamp::from_second(began).unwrap_or_default();
        let began = began.to_zoned(jiff::tz::TimeZone::system());
        let began = began.strftime("%F %T").to_string();
        let (image, platform) = (log.image().to_owned(), log.platform().to_owned());
        table.add([image, platform, log.number().to_string(), began, bytes(log.bytes)]);
    }
    setup::print(&table.to_string());
}

/// Byte for byte to a pipe or file; to a terminal without what would drive it.
fn show(path: &Path) -> io::Result<()> {
    let (mut file, is_terminal) = (File::open(path)?, io::stdout().is_terminal());
    loop {
        let mut chunk = Vec::new();
        if file.by_ref().take(CHUNK_BYTES).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        match is_terminal {
            true => setup::print(&String::from_utf8_lossy(&chunk)),
            false => setup::print_bytes(&chunk),
        }
    }
}
