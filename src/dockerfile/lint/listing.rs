//! Findings as text: rule, page, message and the lines around the place. Knows no terminal.

use std::fmt::Write as _;

use super::Warning;

/// Lines shown around a place of one line; of several lines, half as many.
const LINES_AROUND: usize = 4;

/// What the build checks found in a Dockerfile, in BuildKit's form, by first line; empty when they found nothing.
/// `name` is what the file is called, `text` what it says.
#[must_use]
pub fn listing(warnings: &[Warning], name: &str, text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut sorted: Vec<&Warning> = warnings.iter().collect();
    // Stable: findings of one line stay in the order in which they were made.
    sorted.sort_by_key(|warning| warning.location.lines.0);
    let mut listed = String::new();
    for warning in sorted {
        let (rule, url, message) = (warning.rule, warning.url(), &warning.message);
        let written = write!(listed, "\nWARNING: {rule} - {url}\n{message}\n");
        written.expect("a string takes everything");
        list_lines(&mut listed, warning.location.lines, name, &lines);
    }
    listed
}

fn list_lines(listed: &mut String, (first, last): (usize, usize), name: &str, lines: &[&str]) {
    if first == 0 || first > lines.len() {
        return;
    }
    let rule = "-".repeat(20);
    let last = last.clamp(first, lines.len());
    let (start, end) = window((first, last), lines.len());
    let mut block = format!("{name}:{first}\n{rule}\n");
    for number in start..=end {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let line = lines[number - 1];
        block.push_str(&format!(" {number:>3} | {mark} {line}\n"));
    }
    listed.push_str(&format!("{block}{rule}\n"));
}

/// First and last line to show, from 1; source: `solver/errdefs/source.go` of BuildKit. Near the edge of
/// the file, what is missing on one side is only partly made up for on the other.
fn window((first, last): (usize, usize), count: usize) -> (usize, usize) {
    let around = if first == last { LINES_AROUND } else { LINES_AROUND / 2 };
    let (mut start, mut end, mut taken) = (first, last, 0);
    while taken < around {
        if start > 1 {
            start -= 1;
            taken += 1;
        }
        if end != count {
            end += 1;
            taken += 1;
        }
        taken += 1;
    }
    (start, end)
}

#[cfg(test)]
mod tests {
    use super::window;

    #[test]
    fn a_window_holds_the_place_and_stays_in_the_file() {
        let table = [
            ((1, 1), 4, (1, 3)),
            ((3, 3), 4, (1, 4)),
            ((4, 4), 8, (2, 6)),
            ((4, 6), 10, (3, 7)),
            ((1, 1), 1, (1, 1)),
        ];
        for (place, count, wanted) in table {
            assert_eq!(window(place, count), wanted, "{place:?} of {count}");
        }
    }
}
