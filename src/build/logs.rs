//! The folder with the whole output of each RUN, a file each: `NAME@PLATFORM-STEP-MILLISECONDS.log`; and which of them stay.
//!
//! Knows names and sizes of files, and nothing of what is in them.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::oci::Platform;

/// Ending of the name of a log.
const ENDING: &str = ".log";

/// Which logs stay; of those that do not, the oldest go first. One that is being written is among the latest, or is
/// written on without a name.
#[derive(Clone, Copy, Debug)]
pub struct LogRules {
    /// Logs of one step.
    pub of_step_max: usize,
    /// Bytes of all together.
    pub bytes_max: u64,
    /// Time since the step began.
    pub age_max: Duration,
}

impl Default for LogRules {
    /// What every run leaves of earlier ones: ten of a step, 1 GiB, 30 days.
    fn default() -> Self {
        let age_max = Duration::from_secs(30 * 24 * 60 * 60);
        Self { of_step_max: 10, bytes_max: 1 << 30, age_max }
    }
}

/// Number and bytes of some logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCount {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl LogCount {
    fn add(&mut self, log: &Log) {
        self.files += 1;
        self.bytes += log.bytes;
    }
}

/// The whole output of one RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    step: LoggedStep,
    /// When it began, since the Unix epoch.
    pub began: Duration,
    /// Its length.
    pub bytes: u64,
}

impl Log {
    /// The image, as [`name_in_logs`] writes it.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.step.image
    }

    /// The platform that the image was built for, as it is typed.
    #[must_use]
    pub fn platform(&self) -> &str {
        &self.step.platform
    }

    /// Number of the step.
    #[must_use]
    pub fn number(&self) -> usize {
        self.step.number
    }
}

/// What has logs of its own; in the order in which they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct LoggedStep {
    image: String,
    platform: String,
    number: usize,
}

impl LoggedStep {
    fn of(name: &str) -> Option<Self> {
        let (place, number) = name.rsplit_once('-')?;
        let number = number.parse().ok()?;
        // Earlier versions did not say for what they built.
        let (image, platform) = match place.split_once(BEFORE_PLATFORM) {
            Some((image, platform)) => (image, platform.replace(SLASH, "/")),
            None => (place, Platform::host().to_string()),
        };
        Some(Self { image: image.to_owned(), platform, number })
    }
}

/// What parts the names of image and platform; neither has it.
const BEFORE_PLATFORM: char = '@';
/// What stands for the slashes of a platform.
const SLASH: char = '_';

/// Letters of an image's name in the name of a log; a file's has room for 255 with all else.
const NAME_CHARS_MAX: usize = 128;

/// An image's name, as progress shows it, in the names of its logs.
#[must_use]
pub fn name_in_logs(image: &str) -> String {
    let letters = image.chars().take(NAME_CHARS_MAX);
    letters.map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// The latest log of each step, by image, platform and number; none, when there is no folder.
///
/// # Errors
///
/// When it cannot be read.
pub fn latest_logs(folder: &Path) -> io::Result<Vec<Log>> {
    let mut latest = logs(folder)?;
    latest.sort_by(|one, other| one.step.cmp(&other.step).then(other.began.cmp(&one.began)));
    latest.dedup_by(|next, first| next.step == first.step);
    Ok(latest)
}

/// A new file that no other run writes to.
pub(super) fn create(
    folder: &Path,
    (image, platform): (&str, &Platform),
    step: usize,
) -> io::Result<(PathBuf, File)> {
    let platform = platform.to_string().replace('/', &SLASH.to_string());
    let step = format!("{}{BEFORE_PLATFORM}{platform}-{step}", name_in_logs(image));
    let mut number = now().as_millis();
    loop {
        let path = folder.join(format!("{step}-{number}{ENDING}"));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => return Ok((path, made?)),
        }
    }
}

/// Counts the logs in a folder; none, when there is no folder.
///
/// # Errors
///
/// When it cannot be read.
pub fn count_logs(folder: &Path) -> io::Result<LogCount> {
    let mut count = LogCount::default();
    logs(folder)?.iter().for_each(|log| count.add(log));
    Ok(count)
}

/// Removes logs that the rules do not keep, or only counts them. The latest one stays if it is young enough: what failed
/// just now named it.
///
/// # Errors
///
/// When the folder cannot be read, or a log cannot be removed.
pub fn sweep_logs(folder: &Path, rules: LogRules, mode: Sweep) -> io::Result<LogCount> {
    let mut logs = logs(folder)?;
    logs.sort_by(|one, other| (other.began, &other.path).cmp(&(one.began, &one.path)));
    let (mut kept, mut gone) = (LogCount::default(), LogCount::default());
    let mut of_steps: HashMap<&LoggedStep, usize> = HashMap::new();
    let mut is_full = false;
    for log in &logs {
        let of_step = of_steps.entry(&log.step).or_default();
        let is_old = now().saturating_sub(log.began) >= rules.age_max;
        is_full |= kept.files > 0 && kept.bytes + log.bytes > rules.bytes_max;
        if is_old || is_full || *of_step >= rules.of_step_max {
            gone.add(log);
            if mode == Sweep::Remove {
                match fs::remove_file(&log.path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        } else {
            *of_step += 1;
            kept.add(log);
        }
    }
    Ok(gone)
}

/// Whether logs are removed or only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Removes.
    Remove,
    /// Counts what would go.
    Count,
}

fn logs(folder: &Path) -> io::Result<Vec<Log>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut logs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let known = name.to_str().and_then(|name| {
            let (step, began) = name.strip_suffix(ENDING)?.rsplit_once('-')?;
            Some((LoggedStep::of(step)?, Duration::from_millis(began.parse().ok()?)))
        });
        // What is not ours stays.
        let Some((step, began)) = known else { continue };
        // Somebody else may remove it meanwhile.
        let Ok(found) = entry.metadata() else { continue };
        logs.push(Log { path: entry.path(), step, began, bytes: found.len() });
    }
    Ok(logs)
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of logs of these steps, ages in hours and sizes.
    fn left(logs: &[(&str, u64, usize)], rules: LogRules) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let path = |(step, hours, _): &(&str, u64, usize)| {
            let began = now() - Duration::from_secs(hours * 3600);
            folder.path().join(format!("{step}-{}{ENDING}", began.as_millis()))
        };
        let paths: Vec<PathBuf> = logs.iter().map(path).collect();
        for (path, (.., bytes)) in paths.iter().zip(logs) {
            fs::write(path, vec![b'x'; *bytes]).unwrap();
        }
        fs::write(folder.path().join("notes.log"), "mine").unwrap();
        let would = sweep_logs(folder.path(), rules, Sweep::Count).unwrap();
        let before = count_logs(folder.path()).unwrap();
        assert_eq!(sweep_logs(folder.path(), rules, Sweep::Remove).unwrap(), would);
        let after = count_logs(folder.path()).unwrap();
        assert_eq!(after.bytes + would.bytes, before.bytes);
        assert!(folder.path().join("notes.log").exists());
        (0..logs.len()).filter(|number| paths[*number].exists()).collect()
    }

    #[test]
    fn logs_go_by_number_size_and_age_the_oldest_first() {
        let rules =
            LogRules { of_step_max: 2, bytes_max: 100, age_max: Duration::from_secs(36_000) };
        let logs = [("a-1", 3, 1), ("a-1", 2, 1), ("a-1", 1, 1), ("a-2", 9, 1), ("b-1", 10, 1)];
        assert_eq!(left(&logs, rules), [1, 2, 3]);
        let logs = [("a-1", 1, 60), ("b-1", 2, 40), ("c-1", 3, 40), ("d-1", 4, 0)];
        assert_eq!(left(&logs, rules), [0, 1]);
        assert_eq!(left(&[("a-1", 1, 1000), ("b-1", 2, 1)], rules), [0]);
        assert_eq!(count_logs(Path::new("/nowhere")).unwrap(), LogCount::default());
    }

    #[test]
    fn the_latest_log_of_each_step_is_found_by_its_image_platform_and_number() {
        let folder = tempfile::tempdir().unwrap();
        let arm = Platform::linux("arm", Some("v7"));
        let (path, _) = create(folder.path(), ("a-b", &arm), 9).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("a-b@linux_arm_v7-9-"), "{name}");
        fs::rename(&path, folder.path().join("a-b@linux_arm_v7-9-3.log")).unwrap();
        let host = Platform::host().to_string();
        let ours = format!("a-b@{}-9-8", host.replace('/', "_"));
        for name in ["a-b-10-5", "a-b-9-7", "a-b-9-6", "a_b-1-4", "notes", "two-notes", &ours] {
            fs::write(folder.path().join(format!("{name}{ENDING}")), name).unwrap();
        }
        let found = latest_logs(folder.path()).unwrap();
        let told = |log: &Log| {
            let platform = log.platform().to_owned();
            (log.image().to_owned(), platform, log.number(), log.began.as_millis())
        };
        let found: Vec<_> = found.iter().map(told).collect();
        let row = |image: &str, platform: &str, number, began| {
            (image.to_owned(), platform.to_owned(), number, began)
        };
        let mut wanted = [
            row("a-b", &host, 9, 8),
            row("a-b", &host, 10, 5),
            row("a-b", "linux/arm/v7", 9, 3),
            row("a_b", &host, 1, 4),
        ];
        wanted.sort();
        assert_eq!(found, wanted);
        assert_eq!(name_in_logs("team/a:1"), "team_a_1");
    }
}
