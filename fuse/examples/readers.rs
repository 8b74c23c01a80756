//! Times reads of one block each, at given places, from a file or, for comparison, straight from a store without any
//! mount. `scripts/bench` uses it: a program in a scripting language would measure itself.
//!
//! ```text
//! readers FILE BLOCK THREADS OFFSETS          OFFSETS is a file with one decimal number per line
//! readers --chunks JOB BLOCK THREADS OFFSETS  decodes the whole chunk for every block, as if there were no frames
//! ```
//!
//! Prints `median_us p99_us wall_us`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool for measuring, run by hand and by scripts/bench"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use backy_store::{Extent, FrameCache, Repository};

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let chunks = arguments.first().is_some_and(|argument| argument == "--chunks");
    if chunks {
        arguments.remove(0);
    }
    let [path, block, threads, offsets] = &arguments[..] else { panic!("see the source for the usage") };
    let block: usize = block.parse().unwrap();
    let offsets = std::fs::read_to_string(offsets).unwrap();
    let offsets: Vec<u64> = offsets.lines().map(|line| line.parse().unwrap()).collect();
    if chunks {
        let job = Repository::discover(path.as_ref()).unwrap().job.unwrap();
        let newest = job.revisions().unwrap().revisions.pop().unwrap();
        // Nothing stays in the cache, as with random reads of a large disk.
        let reader = job.open_revision(&newest, &Arc::new(FrameCache::new(1))).unwrap();
        measure(&offsets, threads.parse().unwrap(), |offset| {
            std::hint::black_box(reader.piece(offset, block, Extent::Chunk).unwrap());
        });
    } else {
        let file = File::open(path).unwrap();
        measure(&offsets, threads.parse().unwrap(), |offset| {
            file.read_exact_at(&mut vec![0; block], offset).unwrap();
        });
    }
}

fn measure(offsets: &[u64], threads: usize, read: impl Fn(u64) + Sync) {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let mut times: Vec<u128> = std::thread::scope(|scope| {
        let read_all = || {
            let mut times = Vec::new();
            while let Some(&offset) = offsets.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                read(offset);
                times.push(start.elapsed().as_nanos());
            }
            times
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read_all)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let wall = start.elapsed().as_micros();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100] as f64 / 1000.0;
    println!("{:.1} {:.1} {wall}", at(50), at(99));
}
