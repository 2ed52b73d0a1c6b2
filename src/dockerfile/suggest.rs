//! "Did you mean": the known word nearest to a wrong one.

/// Words this far apart are not taken for each other.
const DISTANCE_MAX: usize = 3;

/// The option nearest to `word`; of several, the one with swapped letters, then the first.
#[must_use]
pub fn nearest<'a>(word: &str, options: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().take(64).count();
    let mut best = ((DISTANCE_MAX, 0), None);
    for option in options {
        // Lengths alone already tell most words apart, at any size of `word`.
        if length.abs_diff(option.chars().count()) >= DISTANCE_MAX {
            continue;
        }
        let distance = (strsim::levenshtein(word, option), strsim::osa_distance(word, option));
        if distance.0 == 0 {
            return None;
        }
        if distance < best.0 {
            best = (distance, Some(*option));
        }
    }
    best.1
}

/// `message`, with the nearest option when there is one.
pub(super) fn with_suggestion(message: String, word: &str, options: &[&str]) -> String {
    match nearest(word, options) {
        Some(option) => format!("{message} (did you mean {option}?)"),
        None => message,
    }
}
