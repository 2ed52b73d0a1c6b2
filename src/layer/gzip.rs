//! One gzip member made of blocks that are compressed at the same time, as `pigz` does.
//!
//! Every block knows the end of the one before as its dictionary and ends on a byte, so the blocks
//! joined are one deflate stream. Block borders are fixed: threads cannot change the bytes.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::compress::fill;

/// Input of one block, in bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// How far deflate looks back, in bytes.
const WINDOW_BYTES: usize = 32 << 10;

/// Blocks waiting or under way, a thread: bounds memory at about 3 MiB each.
const QUEUE_PER_THREAD: usize = 2;

/// No name, no time, unknown system: nothing that another machine would write differently.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// The shortest final deflate block, empty; after the last byte border it ends the stream.
const END: [u8; 2] = [3, 0];

/// A piece of input, and what may be referred back to.
struct Piece {
    bytes: Vec<u8>,
    dictionary: Vec<u8>,
    done: SyncSender<io::Result<Packed>>,
}

/// A compressed piece and the check sum of its input.
struct Packed {
    bytes: Vec<u8>,
    crc: Crc,
}

/// Compresses all of `input` as one member.
pub(super) fn compress(
    threads: usize,
    level: u32,
    input: &mut impl Read,
    output: &mut impl Write,
) -> io::Result<()> {
    output.write_all(&HEADER)?;
    let mut crc = Crc::new();
    let queue = threads.max(1) * QUEUE_PER_THREAD;
    let (sender, receiver) = sync_channel::<Piece>(queue);
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        // Moved in, so that leaving early for an error ends the workers.
        let sender = sender;
        let mut workers = 0;
        let mut waiting: VecDeque<Receiver<io::Result<Packed>>> = VecDeque::new();
        let mut dictionary = Vec::new();
        loop {
            let mut bytes = vec![0; BLOCK_BYTES];
            let count = fill(input, &mut bytes)?;
            bytes.truncate(count);
            if count == 0 {
                break;
            }
            // Threads are started as there is work for them: most layers are small.
            if workers < threads.max(1) {
                scope.spawn(|| work(&receiver, level));
                workers += 1;
            }
            let next = bytes[count.saturating_sub(WINDOW_BYTES)..].to_vec();
            let (done, result) = sync_channel(1);
            let piece = Piece { bytes, dictionary, done };
            sender.send(piece).map_err(|_| stopped())?;
            dictionary = next;
            waiting.push_back(result);
            if waiting.len() >= queue
                && let Some(result) = waiting.pop_front()
            {
                take(&result, &mut crc, output)?;
            }
            if count < BLOCK_BYTES {
                break;
            }
        }
        drop(sender);
        waiting.iter().try_for_each(|result| take(result, &mut crc, output))
    })?;
    output.write_all(&END)?;
    output.write_all(&crc.sum().to_le_bytes())?;
    output.write_all(&crc.amount().to_le_bytes())
}

fn take(
    result: &Receiver<io::Result<Packed>>,
    crc: &mut Crc,
    output: &mut impl Write,
) -> io::Result<()> {
    let packed = result.recv().map_err(|_| stopped())??;
    crc.combine(&packed.crc);
    output.write_all(&packed.bytes)
}

fn work(pieces: &Mutex<Receiver<Piece>>, level: u32) {
    loop {
        // A poisoned lock still guards a sound receiver.
        let piece = pieces.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(piece) = piece else { return };
        let packed = pack(&piece.bytes, &piece.dictionary, level);
        // Nobody waits any more when writing failed.
        drop(piece.done.send(packed));
    }
}

fn pack(bytes: &[u8], dictionary: &[u8], level: u32) -> io::Result<Packed> {
    let mut crc = Crc::new();
    crc.update(bytes);
    let mut deflate = Compress::new(Compression::new(level), false);
    if !dictionary.is_empty() {
        deflate.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let mut packed = Vec::with_capacity(bytes.len() / 2 + 1024);
    loop {
        let read = usize::try_from(deflate.total_in()).map_err(io::Error::other)?;
        if packed.capacity() == packed.len() {
            packed.reserve(packed.len() / 2 + 1024);
        }
        let rest = &bytes[read..];
        let status = deflate
            .compress_vec(rest, &mut packed, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        let all_read = deflate.total_in() == bytes.len() as u64;
        // Room left means that the flush is complete.
        if all_read && (packed.len() < packed.capacity() || status == Status::StreamEnd) {
            return Ok(Packed { bytes: packed, crc });
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("a compression thread stopped unexpectedly")
}
