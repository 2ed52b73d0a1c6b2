//! What a run says of the blobs of an image, once: a layer that left early is at the registry when the push comes to it.
//!
//! Knows events; what they are shown as is the business of who takes them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use crate::event::{Direction, Emit, Event};

/// Events without those that say of a blob that it exists, after it was pushed or said to exist for the same image.
pub(super) fn once(emit: &Emit) -> Emit {
    let (emit, known) = (Arc::clone(emit), Mutex::new(HashSet::new()));
    Arc::new(move |event| {
        let is_new = |image: &String, digest| {
            known.lock().expect("no holder panics").insert((image.clone(), digest))
        };
        if let Event::TransferSkipped { image, direction: Direction::Push, digest, reason } = &event
            && !is_new(image, *digest)
            && *reason == "exists"
        {
            return;
        }
        if let Event::Transfer { image, direction: Direction::Push, digest, done, total } = &event
            && done == total
        {
            is_new(image, *digest);
        }
        emit(event);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn that_a_blob_exists_is_said_once_an_image_and_never_after_its_transfer() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&said);
        let told: Emit = Arc::new(move |event| kept.lock().unwrap().push(event));
        let told = once(&told);
        let of = |text: &str| Digest::of(text.as_bytes());
        let skipped = |image: &str, blob: &str, reason| Event::TransferSkipped {
            image: image.to_owned(),
            direction: Direction::Push,
            digest: of(blob),
            reason,
        };
        let moved = |blob: &str, done| Event::Transfer {
            image: "a".to_owned(),
            direction: Direction::Push,
            digest: of(blob),
            done,
            total: 2,
        };
        let events = [
            (skipped("a", "x", "exists"), true),
            (skipped("a", "x", "exists"), false),
            (skipped("b", "x", "exists"), true),
            (skipped("a", "x", "mounted"), true),
            (moved("y", 1), true),
            (moved("y", 2), true),
            (skipped("a", "y", "exists"), false),
            (moved("z", 1), true),
            (skipped("a", "z", "exists"), true),
        ];
        for (event, is_told) in events {
            told(event.clone());
            let last = said.lock().unwrap().pop();
            assert_eq!(last, is_told.then_some(event));
        }
    }
}
