//! Plain tar → gzip or zstd, on all cores, with bytes that do not depend on how many there are.
//!
//! Knows no tar.

use std::{
    io::{self, Read, Write},
    thread,
};

use zstd::stream::{raw::CParameter, write::Encoder};

use super::gzip;
use crate::oci::Codec;

/// Level of gzip unless another is asked for. Layers are compressed once and waited for: level 1 does
/// 99 MB a second and core, level 4 half of that, level 6 less than half for 6 % smaller layers.
const GZIP_LEVEL: u32 = 1;

/// Level of zstd unless another is asked for: smaller than gzip 6 and 2.5 times faster than gzip 1.
const ZSTD_LEVEL: u32 = 3;

/// Input of one zstd job, in bytes. Fixed, since jobs are what the output depends on.
const ZSTD_JOB_BYTES: u32 = 4 << 20;

/// Size of the piece that is handed to the encoder, in bytes.
const COPY_BYTES: usize = 256 << 10;

/// Most threads that one stream is compressed on.
const THREADS_MAX: usize = 16;

/// Compresses `input` to `output`; returns `output`. The bytes depend on `codec`, `level` and the
/// input only, never on the number of threads. `level` `None` is the codec's default (gzip 1,
/// zstd 3); levels beyond the codec's range are its nearest.
///
/// # Errors
///
/// When reading or writing fails.
pub fn compress<W: Write + Send>(
    codec: Codec,
    level: Option<u32>,
    input: impl Read + Send,
    output: W,
) -> io::Result<W> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    compress_on(threads, codec, level, input, output)
}

pub(super) fn compress_on<W: Write + Send>(
    threads: usize,
    codec: Codec,
    level: Option<u32>,
    mut input: impl Read + Send,
    mut output: W,
) -> io::Result<W> {
    match codec {
        Codec::Plain => {
            copy(&mut input, &mut output)?;
            Ok(output)
        }
        Codec::Gzip => {
            gzip::compress(threads, level.unwrap_or(GZIP_LEVEL).min(9), &mut input, &mut output)?;
            Ok(output)
        }
        Codec::Zstd => {
            let level = i32::try_from(level.unwrap_or(ZSTD_LEVEL).clamp(1, 22)).unwrap_or(22);
            let mut encoder = Encoder::new(output, level)?;
            // At least one worker: without any, zstd has no jobs and writes other bytes.
            encoder.multithread(u32::try_from(threads.max(1)).unwrap_or(1))?;
            encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_BYTES))?;
            encoder.include_checksum(true)?;
            copy(&mut input, &mut encoder)?;
            encoder.finish()
        }
    }
}

fn copy(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        // Whole pieces: zstd's jobs must not depend on how the input was cut.
        let count = fill(input, &mut buffer)?;
        output.write_all(&buffer[..count])?;
        if count < buffer.len() {
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the input ends.
pub(super) fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::decompress;

    /// Words and noise: compressible, but not the same everywhere.
    fn sample(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..bytes).map(|at| if at % 7 < 4 { b"layer"[at % 5] } else { next() }).collect()
    }

    fn plain(compressed: Vec<u8>) -> Vec<u8> {
        let mut plain = Vec::new();
        decompress(Box::new(io::Cursor::new(compressed))).unwrap().read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn what_is_compressed_reads_back_and_threads_do_not_change_it() {
        for size in [0, 1, 1000, 1 << 20, (1 << 20) + 1, 9 << 20] {
            let input = sample(size);
            for codec in [Codec::Plain, Codec::Gzip, Codec::Zstd] {
                let on = |threads| {
                    compress_on(threads, codec, None, input.as_slice(), Vec::new()).unwrap()
                };
                let one = on(1);
                assert!(one == on(4), "{codec:?} of {size} bytes depends on threads");
                assert!(plain(one) == input, "{codec:?} of {size} bytes");
            }
        }
    }

    #[test]
    fn other_programs_read_our_gzip() {
        use std::process::{Command, Stdio};
        let input = sample(3 << 20);
        let mut child = Command::new("python3")
            .args(["-c", "import sys,gzip; d=gzip.decompress(sys.stdin.buffer.read()); print(len(d), __import__('zlib').crc32(d))"])
            .stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        drop(compress(Codec::Gzip, None, input.as_slice(), stdin).unwrap());
        let output = child.wait_with_output().unwrap();
        let mut crc = flate2::Crc::new();
        crc.update(&input);
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("{} {}\n", input.len(), crc.sum())
        );
    }

    #[test]
    fn l10_members_join_and_damage_is_an_error() {
        let member = |text: &[u8]| compress(Codec::Gzip, None, text, Vec::new()).unwrap();
        let two = [member(b"one "), member(b"two")].concat();
        assert_eq!(plain(two.clone()), b"one two");
        let damaged = |bytes: Vec<u8>| {
            decompress(Box::new(io::Cursor::new(bytes)))
                .unwrap()
                .read_to_end(&mut Vec::new())
                .is_err()
        };
        assert!(damaged(two[..two.len() - 1].to_vec()), "truncated");
        let mut crc = member(b"text");
        let at = crc.len() - 8;
        crc[at] ^= 1;
        assert!(damaged(crc), "wrong check sum");
        let frame = compress(Codec::Zstd, None, &b"text"[..], Vec::new()).unwrap();
        assert!(damaged(frame[..frame.len() - 1].to_vec()), "truncated zstd");
    }

    #[test]
    fn a_zstd_window_beyond_the_limit_is_refused() {
        let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&sample(1 << 20)).unwrap();
        let frame = encoder.finish().unwrap();
        let mut reader = decompress(Box::new(io::Cursor::new(frame))).unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
