//! Output of a RUN: passed on as events, kept whole in a log file, its end kept for a failure.

use std::{collections::VecDeque, fs::File, io::Write as _, path::PathBuf};

use super::{logs, process::Task};
use crate::event::{Event, Stream};

/// Lines kept for a failure message.
const TAIL_LINES_MAX: usize = 20;
/// Longest line that is kept or passed on as one, in bytes; longer ones are cut into several.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Takes the raw output of one process.
pub(super) struct Output<'a, 't> {
    task: &'a Task<'t>,
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
    tail: VecDeque<String>,
    log: Option<(PathBuf, File)>,
}

impl<'a, 't> Output<'a, 't> {
    pub(super) fn new(task: &'a Task<'t>) -> Self {
        let log = task.workshop.logs.as_ref().and_then(|folder| {
            // A log that cannot be written is no reason to fail a build.
            logs::create(folder, (task.image, &task.built_for), task.step).ok()
        });
        Self { task, partial: [Vec::new(), Vec::new()], tail: VecDeque::new(), log }
    }

    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some((_, file)) = &mut self.log {
            // A full disk must not stop the process; the tail is still there.
            drop(file.write_all(bytes));
        }
        let index = usize::from(stream == Stream::Stderr);
        for byte in bytes {
            if *byte == b'\n' || self.partial[index].len() >= LINE_BYTES_MAX {
                self.end_line(stream, index);
            }
            if *byte != b'\n' {
                self.partial[index].push(*byte);
            }
        }
    }

    /// Passes on lines that have no end.
    pub(super) fn finish(&mut self) {
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            if !self.partial[index].is_empty() {
                self.end_line(stream, index);
            }
        }
    }

    /// Last lines, oldest first.
    pub(super) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }

    /// File with the whole output.
    pub(super) fn log(&self) -> Option<PathBuf> {
        self.log.as_ref().map(|(path, _)| path.clone())
    }

    fn end_line(&mut self, stream: Stream, index: usize) {
        let line = std::mem::take(&mut self.partial[index]);
        let text = String::from_utf8_lossy(&line).into_owned();
        if self.tail.len() == TAIL_LINES_MAX {
            self.tail.pop_front();
        }
        self.tail.push_back(text.clone());
        (self.task.workshop.emit)(Event::StepOutput {
            image: self.task.image.to_owned(),
            platform: self.task.platform.clone(),
            step: self.task.step,
            stream,
            text,
        });
    }
}
