//! Folds events into what people and machines read: live lines, plain lines, JSON lines, tables.
//!
//! Writes to what it is given; it never chooses between terminal and pipe, and never opens either.

mod live;
mod plain;
mod plan_table;
mod table;
mod text;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

pub use live::live;
pub use plan_table::plan_table;
pub use table::{Align, Table};
pub use text::{bytes, fit, one_line, safe, screened, seconds, since};

use crate::{
    event::Emit,
    exec::{ImageReport, ImageState, Report},
};

/// Where lines go.
pub type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

/// One line an event, the image's name in front, nothing redrawn, nothing clipped.
#[must_use]
pub fn plain(sink: Sink) -> Emit {
    Arc::new(move |event| {
        for line in plain::lines(&event) {
            write_line(&sink, &screened(&line));
        }
    })
}

/// One JSON object a line; the schema is `schema/events.json`.
#[must_use]
pub fn json(sink: Sink) -> Emit {
    Arc::new(move |event| {
        let line = serde_json::to_string(&event).expect("events hold only JSON values");
        write_line(&sink, &line);
    })
}

fn write_line(sink: &Sink, line: &str) {
    let mut out = sink.lock().expect("no writer panics");
    // A reader that went away is no reason to stop building.
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

/// The table at the end of a run: one line an image and place.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut table = Table::new(&[
        ("image", Align::Left),
        ("digest", Align::Left),
        ("size", Align::Right),
        ("built", Align::Left),
        ("pushed to", Align::Left),
        ("time", Align::Right),
    ]);
    for image in &report.images {
        add_image(&mut table, image);
    }
    table.to_string()
}

fn add_image(table: &mut Table, image: &ImageReport) {
    let (digest, size, built) = match &image.state {
        ImageState::Stored { digest, size, cached, steps, .. } => {
            let built = match steps - cached {
                0 => "cached".to_owned(),
                new => format!("{new} of {steps}"),
            };
            let digest = image.pushed.first().map_or(digest, |(_, digest)| digest);
            (format!("sha256:{}…", digest.short()), bytes(*size), built)
        }
        ImageState::Failed => (String::new(), String::new(), "failed".to_owned()),
        ImageState::Cancelled => (String::new(), String::new(), "cancelled".to_owned()),
        ImageState::Skipped => (String::new(), String::new(), "not built".to_owned()),
    };
    let mut places = image.pushed.iter().map(|(to, _)| to.clone());
    let first = places.next().unwrap_or_else(|| "–".to_owned());
    table.add([image.name.clone(), digest, size, built, first, seconds(image.seconds)]);
    for place in places {
        table.add([
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            place,
            String::new(),
        ]);
    }
}
