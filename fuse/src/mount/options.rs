//! The options after `-o`, as `mount` and `/etc/fstab` write them. Pure.

use crate::error::{Error, Result};

/// Who may look into a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Only who mounted it.
    #[default]
    Owner,
    /// Who mounted it, and root.
    OwnerAndRoot,
    /// Every user of the system.
    Everyone,
}

/// How to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory for decoded data.
    pub cache_bytes: usize,
    /// How far a sequential reader is read ahead; 0 turns it off.
    pub readahead_bytes: u64,
    /// Event loops.
    pub threads: usize,
    /// Who may look into it.
    pub access: Access,
    /// Whether the mount point may have entries, which are hidden while it is mounted.
    pub nonempty: bool,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cache_bytes: 128 << 20,
            readahead_bytes: 16 << 20,
            threads: cores.clamp(2, 4),
            access: Access::Owner,
            nonempty: false,
        }
    }
}

const CACHE_MIN: usize = 1 << 20;
const THREADS_MAX: usize = 64;

/// What an option does.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Cache,
    Threads,
    Access(Access),
    Nonempty,
    /// It says what is true anyway, or it is for others who read `/etc/fstab`.
    Nothing,
    /// It asks for what a mount of revisions never is.
    Refused(&'static str),
}

const KNOWN: [(&str, Effect); 31] = [
    ("cache", Effect::Cache),
    ("threads", Effect::Threads),
    ("allow_other", Effect::Access(Access::Everyone)),
    ("allow_root", Effect::Access(Access::OwnerAndRoot)),
    ("nonempty", Effect::Nonempty),
    ("ro", Effect::Nothing),
    ("default_permissions", Effect::Nothing),
    ("nosuid", Effect::Nothing),
    ("nodev", Effect::Nothing),
    ("noexec", Effect::Nothing),
    ("noatime", Effect::Nothing),
    ("nodiratime", Effect::Nothing),
    ("relatime", Effect::Nothing),
    ("async", Effect::Nothing),
    ("defaults", Effect::Nothing),
    ("auto", Effect::Nothing),
    ("noauto", Effect::Nothing),
    ("nofail", Effect::Nothing),
    ("user", Effect::Nothing),
    ("users", Effect::Nothing),
    ("nouser", Effect::Nothing),
    ("owner", Effect::Nothing),
    ("group", Effect::Nothing),
    ("_netdev", Effect::Nothing),
    ("comment", Effect::Nothing),
    ("rw", Effect::Refused("the mounted tree is read-only")),
    ("suid", Effect::Refused("the mounted tree has no set-user-id programs")),
    ("dev", Effect::Refused("the mounted tree has no devices")),
    ("exec", Effect::Refused("the mounted tree has no programs")),
    ("atime", Effect::Refused("the mounted tree is read-only")),
    ("auto_unmount", Effect::Refused("a mount is taken away when its process is asked to end")),
];

impl Options {
    /// Parses the texts given with `-o`, each a comma-separated list. Later ones override earlier ones.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut access = None;
        for option in texts.iter().flat_map(|text| text.split(',')).filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            // Comments of fstab and words for systemd.
            if name.starts_with("x-") {
                continue;
            }
            let invalid = |reason: String| Error::OptionInvalid { option: option.to_owned(), reason };
            let Some((_, effect)) = KNOWN.iter().find(|(known, _)| *known == name) else {
                return Err(Error::OptionUnknown { option: option.to_owned(), nearest: nearest(name) });
            };
            let takes_value = matches!(effect, Effect::Cache | Effect::Threads) || name == "comment";
            match (takes_value, value) {
                (true, None) => return Err(invalid("it needs a value".to_owned())),
                (false, Some(_)) => return Err(invalid("it takes no value".to_owned())),
                _ => {}
            }
            let value = value.unwrap_or_default();
            match *effect {
                Effect::Cache => options.cache_bytes = parse_size(value).map_err(invalid)?,
                Effect::Threads => options.threads = parse_threads(value).map_err(invalid)?,
                Effect::Access(wanted) => {
                    if access.replace(wanted).is_some_and(|before| before != wanted) {
                        return Err(invalid("allow_other and allow_root exclude each other".to_owned()));
                    }
                }
                Effect::Nonempty => options.nonempty = true,
                Effect::Nothing => {}
                Effect::Refused(reason) => return Err(invalid(reason.to_owned())),
            }
        }
        Ok(Self { access: access.unwrap_or_default(), ..options })
    }
}

fn parse_size(text: &str) -> std::result::Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err("a size is a number with K, M or G after it, for instance 256M".to_owned()),
    };
    let bytes = parse_number(digits)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or("a size is a number with K, M or G after it, for instance 256M")?;
    if bytes < CACHE_MIN {
        return Err("the cache needs at least 1M".to_owned());
    }
    Ok(bytes)
}

fn parse_threads(text: &str) -> std::result::Result<usize, String> {
    parse_number(text)
        .filter(|threads| (1..=THREADS_MAX).contains(threads))
        .ok_or_else(|| format!("the number of threads is 1 to {THREADS_MAX}"))
}

/// Digits only: `+5` is no number here.
fn parse_number(text: &str) -> Option<usize> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Returns the known option that needs the fewest changed letters.
fn nearest(name: &str) -> &'static str {
    KNOWN.iter().map(|(known, _)| *known).min_by_key(|known| distance(known, name)).unwrap_or("ro")
}

/// Number of letters to insert, remove or replace to make one text of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, left) in one.chars().enumerate() {
        let mut corner = row[0];
        row[0] = line + 1;
        for (column, right) in other.chars().enumerate() {
            let replaced = corner + usize::from(left != right);
            corner = row[column + 1];
            row[column + 1] = replaced.min(corner + 1).min(row[column] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Options> {
        Options::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn both_ways_of_writing_options_are_one() {
        let options = parse(&["cache=64M,threads=3", "allow_other"]).unwrap();
        let wanted =
            Options { cache_bytes: 64 << 20, threads: 3, access: Access::Everyone, ..Options::default() };
        assert_eq!(options, wanted);
        assert_eq!(parse(&["cache=64M", "threads=3,,allow_other,"]).unwrap(), wanted);
        assert_eq!(parse(&[]).unwrap(), Options::default());
        assert_eq!(parse(&["cache=1G,cache=2097152"]).unwrap().cache_bytes, 2 << 20);
        assert_eq!(parse(&["allow_root,nonempty"]).unwrap().access, Access::OwnerAndRoot);
    }

    #[test]
    fn lines_of_fstab_are_accepted() {
        let line =
            "defaults,noauto,nofail,_netdev,ro,x-systemd.automount,x-systemd.idle-timeout=60,comment=a";
        assert_eq!(parse(&[line]).unwrap(), Options::default());
    }

    #[test]
    fn a_misspelt_option_names_the_nearest() {
        for (wrong, right) in [
            ("cahce=1M", "cache"),
            ("allow_othr", "allow_other"),
            ("thread=2", "threads"),
            ("nofial", "nofail"),
        ] {
            match parse(&[wrong]) {
                Err(Error::OptionUnknown { option, nearest }) => {
                    assert_eq!((option.as_str(), nearest), (wrong, right));
                }
                other => panic!("{wrong}: {other:?}"),
            }
        }
        assert!(matches!(parse(&["ä".repeat(500).as_str()]), Err(Error::OptionUnknown { .. })));
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for wrong in [
            "cache",
            "cache=",
            "cache=M",
            "cache=1X",
            "cache=1MM",
            "cache=-1",
            "cache=+5M",
            "cache=0",
            "cache=1K",
            "cache=99999999999999999999G",
            "cache=99999999999999G",
            "threads=0",
            "threads=65",
            "threads=two",
            "threads",
            "ro=1",
            "rw",
            "suid",
            "allow_other,allow_root",
            "cache=1ä",
        ] {
            assert!(matches!(parse(&[wrong]), Err(Error::OptionInvalid { .. })), "{wrong}");
        }
        assert_eq!(
            parse(&["rw"]).unwrap_err().to_string(),
            "cannot use mount option \"rw\": the mounted tree is read-only"
        );
    }
}
