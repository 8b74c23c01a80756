//! What can happen to a file of a store, and what a restore may say to it.

use std::fs;
use std::path::Path;

use backy_testkit::World;

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Harm {
    /// It is gone.
    Delete,
    /// It has no bytes.
    Empty,
    /// Half of it is gone.
    Halve,
    /// The last byte is gone.
    Shorten,
    /// A byte more.
    Lengthen,
    /// One bit at so many thousandths of the file.
    Flip(u64),
    /// 4 KiB of zeros in the middle, or all of a smaller file.
    ZeroPage,
    /// Another file's content.
    Swap,
    /// A directory stands there.
    Directory,
}

/// Every sort.
pub(crate) const HARMS: [Harm; 14] = [
    Harm::Delete,
    Harm::Empty,
    Harm::Halve,
    Harm::Shorten,
    Harm::Lengthen,
    Harm::Flip(0),
    Harm::Flip(10),
    Harm::Flip(120),
    Harm::Flip(400),
    Harm::Flip(700),
    Harm::Flip(1000),
    Harm::ZeroPage,
    Harm::Swap,
    Harm::Directory,
];

/// Does it. `other` is the file that is swapped with.
pub(crate) fn harm(path: &Path, other: &Path, harm: Harm) {
    let mut bytes = fs::read(path).unwrap();
    let length = bytes.len();
    match harm {
        Harm::Delete | Harm::Directory => fs::remove_file(path).unwrap(),
        Harm::Empty => bytes.clear(),
        Harm::Halve => bytes.truncate(length / 2),
        Harm::Shorten => bytes.truncate(length - 1),
        Harm::Lengthen => bytes.push(0),
        // The hash at the end is not what an image is read from.
        Harm::Flip(thousandths) => bytes[((length - 33) as u64 * thousandths / 1000) as usize] ^= 0x10,
        Harm::ZeroPage => {
            let start = if length > 12_288 { length / 2 / 4096 * 4096 } else { 0 };
            let end = (start + 4096).min(length);
            bytes[start..end].fill(0);
        }
        Harm::Swap => {
            fs::copy(path, path.with_extension("swap")).unwrap();
            fs::rename(other, path).unwrap();
            fs::rename(path.with_extension("swap"), other).unwrap();
            return;
        }
    }
    match harm {
        Harm::Delete => {}
        Harm::Directory => fs::create_dir(path).unwrap(),
        _ => fs::write(path, bytes).unwrap(),
    }
}

/// Restores: exact, or status 1.
pub(crate) fn restores_or_fails(world: &World, id: &str, what: &str) -> bool {
    let (run, image) = world.restore(id);
    assert!(!run.stderr.contains("panicked"), "{what}: {run}");
    match run.code() {
        0 => {
            let exact = image.as_ref() == Some(&*world.expected[id]);
            assert!(exact, "{what}: wrong bytes with status 0");
            true
        }
        code => {
            assert_eq!(code, 1, "{what}: {run}");
            assert!(image.is_none(), "{what}: a failed restore left a file\n{run}");
            false
        }
    }
}
