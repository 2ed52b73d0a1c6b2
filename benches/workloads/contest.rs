//! Contenders measured in turn: every round runs each once, so that what disturbs the machine disturbs
//! all of them.

use std::ops::RangeInclusive;

use crate::measure::{Sample, median};

type Prepare = Box<dyn FnMut(usize) -> Result<(), String>>;
type Run = Box<dyn FnMut(usize) -> Result<Sample, String>>;

/// Something that does the workload.
pub(crate) struct Contender {
    name: &'static str,
    prepare: Prepare,
    run: Run,
    samples: Vec<Sample>,
    failure: Option<String>,
}

impl Contender {
    /// `prepare` is not measured; both are told the number of the round, 0 for the warm-up.
    pub(crate) fn new(
        name: &'static str,
        prepare: impl FnMut(usize) -> Result<(), String> + 'static,
        run: impl FnMut(usize) -> Result<Sample, String> + 'static,
    ) -> Self {
        let (prepare, run) = (Box::new(prepare), Box::new(run));
        Self { name, prepare, run, samples: Vec::new(), failure: None }
    }
}

/// What came out for one contender.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) seconds: Vec<f64>,
    pub(crate) cpu_seconds: f64,
    pub(crate) memory_bytes: u64,
    /// The same of its first process alone: what steps run is no part of it.
    pub(crate) own_bytes: Option<u64>,
    /// The same of its daemon, where it has one.
    pub(crate) daemon_bytes: Option<u64>,
    pub(crate) failure: Option<String>,
}

impl Figure {
    /// Of something that could not even be set up.
    pub(crate) fn failed(name: &'static str, reason: String) -> Self {
        let failure = Some(reason);
        Self {
            name,
            seconds: Vec::new(),
            cpu_seconds: 0.0,
            memory_bytes: 0,
            own_bytes: None,
            daemon_bytes: None,
            failure,
        }
    }

    pub(crate) fn median(&self) -> Option<f64> {
        (self.failure.is_none() && !self.seconds.is_empty()).then(|| median(self.seconds.clone()))
    }
}

/// All contenders of one workload.
#[derive(Default)]
pub(crate) struct Contest {
    contenders: Vec<Contender>,
    notes: Vec<String>,
    last_notes: Vec<Box<dyn Fn() -> String>>,
}

impl Contest {
    pub(crate) fn add(&mut self, contender: Contender) {
        self.contenders.push(contender);
    }

    /// One that could not even be set up is out, and says why.
    pub(crate) fn add_ready(&mut self, ready: Result<(), String>, contender: Contender) {
        self.add(Contender { failure: ready.err(), ..contender });
    }

    /// The floor runs first in every round.
    pub(crate) fn floor(&mut self, contender: Contender) {
        self.contenders.insert(0, contender);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// A note on what is known only at the end.
    pub(crate) fn note_at_the_end(&mut self, note: impl Fn() -> String + 'static) {
        self.last_notes.push(Box::new(note));
    }

    /// Measures; a contender that fails is out, and says why. Round 0 warms up and does not count; without
    /// it, the first round counts.
    pub(crate) fn run(mut self, rounds: RangeInclusive<usize>) -> (Vec<Figure>, Vec<String>) {
        for round in rounds {
            for contender in &mut self.contenders {
                if contender.failure.is_some() {
                    continue;
                }
                match (contender.prepare)(round).and_then(|()| (contender.run)(round)) {
                    Ok(sample) if round > 0 => contender.samples.push(sample),
                    Ok(_) => {}
                    Err(reason) => contender.failure = Some(reason),
                }
            }
        }
        let figures = self.contenders.into_iter().map(|contender| Figure {
            name: contender.name,
            seconds: contender.samples.iter().map(|sample| sample.seconds).collect(),
            cpu_seconds: median(contender.samples.iter().map(|it| it.cpu_seconds).collect()),
            memory_bytes: contender.samples.iter().map(|it| it.memory_bytes).max().unwrap_or(0),
            own_bytes: contender.samples.iter().filter_map(|it| it.own_bytes).max(),
            daemon_bytes: contender.samples.iter().filter_map(|it| it.daemon_bytes).max(),
            failure: contender.failure,
        });
        let figures = figures.collect();
        self.notes.extend(self.last_notes.iter().map(|note| note()));
        (figures, self.notes)
    }
}
