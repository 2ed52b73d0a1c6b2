//! Layers that leave for the registries while later steps still run. Tags never do: they move last.
//!
//! Whatever goes wrong here is left to the push, which sends what is missing and says why it cannot.

use std::sync::{Arc, Mutex, atomic::Ordering};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    build::{OnLayer, Workshop},
    image,
    oci::{Codec, DiffId, Reference},
    plan::ImagePlan,
};

/// Layers of one image that wait to be sent; more are left to the push.
const WAITING_MAX: usize = 64;
/// Layers of one image that are compressed and sent at once.
const AT_ONCE_MAX: usize = 2;

/// The layers of one image on their way, until dropped.
pub(super) struct Early {
    layers: Mutex<Option<mpsc::Sender<DiffId>>>,
    sending: JoinHandle<()>,
    /// Closed when nothing is on its way any more.
    sent: watch::Receiver<()>,
}

/// What every layer of an image needs on its way.
#[derive(Clone)]
struct Way {
    workshop: Workshop,
    name: String,
    codec: Codec,
    /// One reference a repository.
    to: Vec<Reference>,
}

impl Early {
    /// Starts sending what [`Early::on_layer`] is told; must be called in the runtime.
    pub(super) fn start(workshop: &Workshop, plan: &ImagePlan) -> Arc<Self> {
        let mut to: Vec<Reference> = Vec::new();
        for push in &plan.pushes {
            if to.iter().all(|known| known.name() != push.name()) {
                to.push(push.clone());
            }
        }
        let way = Way {
            workshop: workshop.clone(),
            name: plan.name.clone(),
            codec: plan.compression,
            to,
        };
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (until_sent, sent) = watch::channel(());
        let sending = workshop.runtime.spawn(async move {
            send_all(way, receiver).await;
            drop(until_sent);
        });
        Arc::new(Self { layers: Mutex::new(Some(sender)), sending, sent })
    }

    /// To be called with every layer that a build makes.
    pub(super) fn on_layer(self: &Arc<Self>) -> OnLayer {
        let early = Arc::clone(self);
        Arc::new(move |layer| {
            let layers = early.layers.lock().expect("nobody panics while holding it");
            if let Some(layers) = &*layers {
                let _one_too_many_is_left_to_the_push = layers.try_send(layer);
            }
        })
    }

    /// No layer comes any more; waits until those that came are there.
    pub(super) async fn finish(self: Arc<Self>) {
        drop(self.layers.lock().expect("nobody panics while holding it").take());
        let mut sent = self.sent.clone();
        while sent.changed().await.is_ok() {}
    }
}

impl Drop for Early {
    /// Nobody needs them any more: a run leaves nothing behind that goes on.
    fn drop(&mut self) {
        self.sending.abort();
    }
}

async fn send_all(way: Way, mut layers: mpsc::Receiver<DiffId>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut running = JoinSet::new();
    while let Some(layer) = layers.recv().await {
        let (way, slots) = (way.clone(), Arc::clone(&slots));
        running.spawn(async move {
            let _slot = slots.acquire_owned().await.expect("nobody closes it");
            way.send(layer).await;
        });
    }
    while running.join_next().await.is_some() {}
}

impl Way {
    async fn send(&self, layer: DiffId) {
        let Workshop { store, client, emit, cancel, .. } = &self.workshop;
        for to in &self.to {
            if cancel.load(Ordering::Relaxed) {
                return;
            }
            let sent =
                image::send_layer(store, client, layer, (to, self.codec), (&self.name, emit));
            if let Err(error) = sent.await {
                tracing::debug!(%error, %layer, %to, "left to the push");
            }
        }
    }
}
