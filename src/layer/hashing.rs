//! Hashing beside reading and writing: the digest of a large layer is made on a thread of its own, while the next bytes
//! are read, decompressed and written.
//!
//! Knows pieces of bytes in their order; knows no archive. Small layers are hashed where they are.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use crate::oci::{Digest, Hasher};

/// Pieces that are hashed by the caller: a thread is not worth its start for less.
const PIECES_ALONE: usize = 4;

/// Pieces that wait for the thread, at most.
const QUEUE_MAX: usize = 4;

/// Hashes pieces in their order.
pub(super) struct PieceHasher {
    hasher: Hasher,
    pieces: usize,
    thread: Option<Thread>,
}

struct Thread {
    pieces: SyncSender<Vec<u8>>,
    /// Pieces come back, to be filled again.
    used: Receiver<Vec<u8>>,
    ended: JoinHandle<Hasher>,
}

impl PieceHasher {
    pub(super) fn new() -> Self {
        Self { hasher: Hasher::new(), pieces: 0, thread: None }
    }

    /// Takes in a piece; hands back an empty buffer for the next one.
    pub(super) fn take(&mut self, mut piece: Vec<u8>) -> Vec<u8> {
        self.pieces += 1;
        if self.thread.is_none() && self.pieces > PIECES_ALONE {
            self.thread = start(&mut self.hasher);
        }
        let Some(thread) = &self.thread else {
            self.hasher.update(&piece);
            piece.clear();
            return piece;
        };
        let capacity = piece.capacity();
        thread
            .pieces
            .send(piece)
            .expect("the thread takes pieces until it is asked for its digest");
        // It goes on with less than the queue holds: then there is a new buffer.
        thread.used.try_recv().unwrap_or_else(|_| Vec::with_capacity(capacity))
    }

    /// Digest of all pieces.
    pub(super) fn finish(self) -> Digest {
        let Some(Thread { pieces, used, ended }) = self.thread else { return self.hasher.finish() };
        drop((pieces, used));
        match ended.join() {
            Ok(hasher) => hasher.finish(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Goes on with what was hashed so far on a new thread; where none can be had, the caller goes on.
fn start(hasher: &mut Hasher) -> Option<Thread> {
    let (pieces, queue) = sync_channel::<Vec<u8>>(QUEUE_MAX);
    let (give_back, used) = sync_channel(QUEUE_MAX);
    let mut taken = hasher.clone();
    let work = move || {
        for mut piece in queue {
            taken.update(&piece);
            piece.clear();
            // Nobody wants it when enough are there.
            drop(give_back.try_send(piece));
        }
        taken
    };
    let ended = std::thread::Builder::new().name("hash".to_owned()).spawn(work).ok()?;
    Some(Thread { pieces, used, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_digest_of_their_bytes() {
        for count in [0, 1, PIECES_ALONE, PIECES_ALONE + 1, 100] {
            let mut hasher = PieceHasher::new();
            let (mut all, mut buffer) = (Vec::new(), Vec::new());
            for number in 0..count {
                buffer.extend_from_slice(&vec![number as u8; 1000 * (number % 7)]);
                all.extend_from_slice(&buffer);
                buffer = hasher.take(buffer);
                assert!(buffer.is_empty());
            }
            assert_eq!(hasher.finish(), Digest::of(&all), "{count} pieces");
        }
    }
}
