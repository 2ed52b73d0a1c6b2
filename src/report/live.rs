//! Events as a live display: one line an image, redrawn at most ten times a second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{bytes, fit, one_line, plain::before, safe, screened};
use crate::{
    event::{Direction, Emit, Event, Outcome},
    oci::Digest,
};

/// Columns for the name of an image at most.
const NAME_COLUMNS_MAX: usize = 24;
/// Redraws of a running line, so that its time goes on.
const TICK_MS: u64 = 100;

/// A display that draws to `target`, which is `columns` wide.
#[must_use]
pub fn live(target: ProgressDrawTarget, columns: usize) -> Emit {
    let display = Mutex::new(Display {
        bars: MultiProgress::with_draw_target(target),
        lines: BTreeMap::new(),
        name_columns: 0,
        columns,
    });
    Arc::new(move |event| display.lock().expect("drawing does not panic").take(event))
}

struct Display {
    bars: MultiProgress,
    lines: BTreeMap<String, Line>,
    name_columns: usize,
    columns: usize,
}

struct Line {
    bar: ProgressBar,
    /// Number, title.
    step: String,
    /// Last line of output.
    output: String,
    /// Bytes so far and in all, a blob.
    blobs: HashMap<Digest, (u64, u64)>,
}

impl Display {
    fn take(&mut self, event: Event) {
        match event {
            Event::Planned { images, .. } => self.plan(&images),
            Event::ImageStarted { image } => self.say(&image, "▸", "starting"),
            Event::StepStarted { image, platform, step, steps, name } => {
                let (platform, name) = (before(&platform), safe(&one_line(&name)));
                let title = format!("{platform}{step}/{steps}  {name}");
                self.step(&image, title);
            }
            Event::StepOutput { image, text, .. } => self.output(&image, &text),
            Event::StepDone { image, outcome: Outcome::Failed, name, .. } => {
                self.say(&image, "✗", &safe(&one_line(&name)));
            }
            Event::Source { image, source, fetch: true, .. } => {
                self.step(&image, format!("fetching {}", safe(&source)));
            }
            Event::Transfer { image, direction, digest, done, total } => {
                self.transfer(&image, direction, digest, (done, total));
            }
            Event::Retrying { image, reason, attempt, .. } => {
                self.above(&format!("{image}: {reason}; try {attempt}"));
            }
            Event::ImageStored { image, cached, steps, .. } => {
                let how = if cached == steps { "cached" } else { "built" };
                self.end(&image, "✓", how);
            }
            Event::Pushed { image, reference, .. } => {
                self.end(&image, "✓", &format!("pushed {reference}"));
            }
            Event::ImageFailed { image, reason } => {
                self.end(&image, "✗", &safe(&one_line(&reason)));
            }
            Event::ImageCancelled { image } => self.end(&image, "·", "cancelled"),
            Event::ImageSkipped { image, .. } => self.end(&image, "·", "not built"),
            Event::Warning { image, text } => {
                let image = image.map(|image| format!("{image}: ")).unwrap_or_default();
                self.above(&format!("{image}warning: {}", safe(&text)));
            }
            Event::Note { text } => self.above(&format!("note: {}", safe(&text))),
            Event::Finished { .. } => self.close(),
            Event::StepDone { .. } | Event::TransferSkipped { .. } | Event::Source { .. } => {}
        }
    }

    fn plan(&mut self, images: &[String]) {
        let widest = images.iter().map(|image| image.chars().count()).max();
        self.name_columns = widest.unwrap_or(0).min(NAME_COLUMNS_MAX);
        for image in images {
            self.line(image);
            self.say(image, "·", "waiting");
        }
    }

    fn line(&mut self, image: &str) -> &mut Line {
        // Work without a plan names its image when it begins.
        if self.lines.is_empty() && self.name_columns == 0 {
            self.name_columns = image.chars().count().min(NAME_COLUMNS_MAX);
        }
        let (bars, columns) = (&self.bars, self.name_columns);
        self.lines.entry(image.to_owned()).or_insert_with(|| {
            let template = "  {prefix} {msg}  {elapsed}";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            let bar = bars.add(ProgressBar::no_length().with_style(style));
            bar.set_prefix(format!("{:<columns$}", fit(&safe(image), columns.max(1))));
            let (step, output, blobs) = (String::new(), String::new(), HashMap::new());
            Line { bar, step, output, blobs }
        })
    }

    fn step(&mut self, image: &str, title: String) {
        let line = self.line(image);
        line.step = title;
        line.output.clear();
        line.bar.enable_steady_tick(Duration::from_millis(TICK_MS));
        self.redraw(image);
    }

    fn output(&mut self, image: &str, text: &str) {
        self.line(image).output = safe(text);
        self.redraw(image);
    }

    fn transfer(
        &mut self,
        image: &str,
        direction: Direction,
        digest: Digest,
        progress: (u64, u64),
    ) {
        let line = self.line(image);
        line.blobs.insert(digest, progress);
        let done: u64 = line.blobs.values().map(|(done, _)| done).sum();
        let total: u64 = line.blobs.values().map(|(_, total)| total).sum();
        let verb = match direction {
            Direction::Pull => "pull",
            Direction::Push => "push",
        };
        let text = format!("{verb} {} of {}", bytes(done), bytes(total));
        self.say(image, "▸", &text);
    }

    fn redraw(&mut self, image: &str) {
        let line = self.line(image);
        let text = match line.output.is_empty() {
            true => line.step.clone(),
            false => format!("{}  │ {}", line.step, line.output),
        };
        self.say(image, "▸", &text);
    }

    fn say(&mut self, image: &str, mark: &str, text: &str) {
        // Two blanks, the name, the mark and the time share the line with the text.
        let room = self.columns.saturating_sub(self.name_columns + 14).max(10);
        let text = format!("{mark} {}", fit(text, room));
        self.line(image).bar.set_message(text);
    }

    fn end(&mut self, image: &str, mark: &str, text: &str) {
        self.say(image, mark, text);
        let line = self.line(image);
        line.blobs.clear();
        line.bar.disable_steady_tick();
    }

    fn above(&self, text: &str) {
        // A terminal that went away is no reason to stop building.
        drop(self.bars.println(screened(text)));
    }

    /// Leaves nothing of the display behind: the table says it all.
    fn close(&mut self) {
        for line in self.lines.values() {
            line.bar.finish_and_clear();
        }
        drop(self.bars.clear());
    }
}
