//! The options after `-o`, as `mount` and `/etc/fstab` write them. Pure.

use std::path::{Path, PathBuf};

use backy_store::nearest::nearest;
use glob::Pattern;
use nix::unistd::{Group, User};

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

/// How strictly options are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// Each must be known, and none may ask for what a mount never is: somebody has typed them.
    #[default]
    Exact,
    /// As `mount` passes them, which says `rw` where nobody said `ro`.
    Helper,
    /// As `mount -s` passes them: unknown ones are for others.
    Sloppy,
}

/// Where writes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The directory that keeps what was written.
    pub dir: PathBuf,
    /// Bytes of data that it may hold, over all images; `None` for no limit but the file system's.
    pub max_bytes: Option<u64>,
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory for decoded data.
    pub cache_bytes: usize,
    /// How far a sequential reader is read ahead; 0 turns it off.
    pub readahead_bytes: u64,
    /// Event loops.
    pub threads: usize,
    /// Who may look into it.
    pub access: Access,
    /// To whom everything belongs; `None` for who mounts.
    pub uid: Option<u32>,
    /// To which group everything belongs; `None` for that of who mounts.
    pub gid: Option<u32>,
    /// Rights that are taken away, as with the shell's `umask`; `None` for what `access` makes sensible.
    pub umask: Option<u16>,
    /// The jobs that are shown: those whose name fits any of these; all without any.
    pub jobs: Vec<Pattern>,
    /// Whether the mount point may have entries, which are hidden while it is mounted.
    pub nonempty: bool,
    /// Makes images writable; without it everything is read-only.
    pub overlay: Option<OverlayOptions>,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cache_bytes: 128 << 20,
            readahead_bytes: 16 << 20,
            // More than there are cores: some wait for a chunk that is being decoded.
            threads: cores.clamp(4, 8),
            access: Access::Owner,
            uid: None,
            gid: None,
            umask: None,
            jobs: Vec::new(),
            nonempty: false,
            overlay: None,
        }
    }
}

const CACHE_MIN: usize = 1 << 20;
const THREADS_MAX: usize = 64;
/// One block.
const OVERLAY_MIN_BYTES: u64 = 4096;

/// What an option does.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Cache,
    ReadAhead,
    Threads,
    Uid,
    Gid,
    Umask,
    Job,
    Access(Access),
    Nonempty,
    Overlay,
    OverlayMax,
    /// Whether images can be written, which the overlay decides.
    Writable(bool),
    /// It says what is true anyway, or it is for others who read `/etc/fstab`.
    Nothing,
    /// The same, with a value or without.
    Remark,
    /// It asks for what a mount of revisions never is.
    Refused(&'static str),
}

const KNOWN: [(&str, Effect); 38] = [
    ("cache", Effect::Cache),
    ("readahead", Effect::ReadAhead),
    ("uid", Effect::Uid),
    ("gid", Effect::Gid),
    ("umask", Effect::Umask),
    ("job", Effect::Job),
    ("threads", Effect::Threads),
    ("allow_other", Effect::Access(Access::Everyone)),
    ("allow_root", Effect::Access(Access::OwnerAndRoot)),
    ("nonempty", Effect::Nonempty),
    ("overlay", Effect::Overlay),
    ("overlay-max", Effect::OverlayMax),
    ("ro", Effect::Writable(false)),
    ("rw", Effect::Writable(true)),
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
    ("user", Effect::Remark),
    ("users", Effect::Nothing),
    ("nouser", Effect::Nothing),
    ("owner", Effect::Nothing),
    ("group", Effect::Nothing),
    ("_netdev", Effect::Nothing),
    ("comment", Effect::Remark),
    ("suid", Effect::Refused("the mounted tree has no set-user-id programs")),
    ("dev", Effect::Refused("the mounted tree has no devices")),
    ("exec", Effect::Refused("the mounted tree has no programs")),
    ("atime", Effect::Refused("the mounted tree is read-only")),
    ("auto_unmount", Effect::Refused("a mount is taken away when its process is asked to end")),
];

impl Options {
    /// Parses the texts given with `-o`, each a comma-separated list. Later ones override earlier ones.
    pub fn parse(texts: &[String]) -> Result<Self> {
        Self::parse_for(texts, Manner::Exact, None, None)
    }

    /// Parses options as they are given in some manner, together with an overlay's directory and size that were given
    /// elsewhere, which override those among the options. A directory whose name has a comma can be given only so.
    pub fn parse_for(
        texts: &[String],
        manner: Manner,
        dir: Option<&Path>,
        max: Option<&str>,
    ) -> Result<Self> {
        let mut options = Self::default();
        let mut access = None;
        let (mut overlay, mut max_bytes, mut writable) = (None, None, None);
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
                if manner == Manner::Sloppy {
                    tracing::warn!(option, "an unknown mount option is ignored");
                    continue;
                }
                return Err(Error::OptionUnknown {
                    option: option.to_owned(),
                    nearest: nearest(name, KNOWN.map(|(known, _)| known)),
                });
            };
            match (effect.takes_value(), value) {
                (Some(true), None) => return Err(invalid("it needs a value".to_owned())),
                (Some(false), Some(_)) => return Err(invalid("it takes no value".to_owned())),
                _ => {}
            }
            let value = value.unwrap_or_default();
            match *effect {
                Effect::Cache => options.cache_bytes = parse_cache(value).map_err(invalid)?,
                Effect::ReadAhead => options.readahead_bytes = parse_size(value).map_err(invalid)?,
                Effect::Uid => options.uid = Some(parse_user(value).map_err(invalid)?),
                Effect::Gid => options.gid = Some(parse_group(value).map_err(invalid)?),
                Effect::Umask => options.umask = Some(parse_umask(value).map_err(invalid)?),
                Effect::Job => options.jobs.push(parse_pattern(value).map_err(invalid)?),
                Effect::Threads => options.threads = parse_threads(value).map_err(invalid)?,
                Effect::Access(wanted) => {
                    if access.replace(wanted).is_some_and(|before| before != wanted) {
                        return Err(invalid("allow_other and allow_root exclude each other".to_owned()));
                    }
                }
                Effect::Nonempty => options.nonempty = true,
                Effect::Overlay if value.is_empty() => {
                    return Err(invalid("it needs a directory".to_owned()));
                }
                Effect::Overlay => overlay = Some(PathBuf::from(value)),
                Effect::OverlayMax => max_bytes = Some(parse_overlay_max(value).map_err(invalid)?),
                Effect::Writable(wanted) => writable = Some(wanted),
                Effect::Nothing | Effect::Remark => {}
                Effect::Refused(_) if manner != Manner::Exact => {}
                Effect::Refused(reason) => return Err(invalid(reason.to_owned())),
            }
        }
        options.access = access.unwrap_or_default();
        let contradiction =
            |option: &str, reason: String| Err(Error::OptionInvalid { option: option.to_owned(), reason });
        if let Some(max) = max {
            max_bytes = match parse_overlay_max(max) {
                Ok(bytes) => Some(bytes),
                Err(reason) => return contradiction(&format!("overlay-max={max}"), reason),
            };
        }
        let dir = dir.map(Path::to_owned).or(overlay);
        match (writable, &dir) {
            // `mount` says so unless it is told otherwise.
            (Some(true), None) if manner != Manner::Exact => {}
            (Some(true), None) => {
                return contradiction("rw", "the mounted tree is read-only without an overlay".to_owned());
            }
            (Some(false), Some(_)) => {
                return contradiction("ro", "an overlay makes images writable".to_owned());
            }
            _ if max_bytes.is_some() && dir.is_none() => {
                return contradiction("overlay-max", "there is no overlay; name its directory".to_owned());
            }
            _ => options.overlay = dir.map(|dir| OverlayOptions { dir, max_bytes }),
        }
        Ok(options)
    }

    /// Whether a job of this name is shown.
    pub(crate) fn shows(&self, job: &str) -> bool {
        self.jobs.is_empty() || self.jobs.iter().any(|pattern| pattern.matches(job))
    }

    /// Returns the rights that a file has that could have those of `most`.
    pub(crate) fn mode(&self, most: u16) -> u16 {
        let mask = match (self.umask, self.access) {
            (Some(mask), _) => mask,
            (None, Access::Everyone) => 0,
            (None, Access::Owner | Access::OwnerAndRoot) => 0o077,
        };
        most & !mask
    }
}

impl Effect {
    /// Whether the option must have a value; `None` where it may.
    fn takes_value(self) -> Option<bool> {
        match self {
            Self::Cache
            | Self::ReadAhead
            | Self::Threads
            | Self::Uid
            | Self::Gid
            | Self::Umask
            | Self::Job
            | Self::Overlay
            | Self::OverlayMax => Some(true),
            Self::Access(_) | Self::Nonempty | Self::Writable(_) | Self::Nothing | Self::Refused(_) => {
                Some(false)
            }
            Self::Remark => None,
        }
    }
}

fn parse_user(text: &str) -> std::result::Result<u32, String> {
    let named = || User::from_name(text).ok().flatten().map(|user| user.uid.as_raw());
    parse_id(text).or_else(named).ok_or_else(|| "there is no such user".to_owned())
}

fn parse_group(text: &str) -> std::result::Result<u32, String> {
    let named = || Group::from_name(text).ok().flatten().map(|group| group.gid.as_raw());
    parse_id(text).or_else(named).ok_or_else(|| "there is no such group".to_owned())
}

fn parse_id(text: &str) -> Option<u32> {
    // The largest number means "no such id" to the kernel.
    parse_number(text).and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX)
}

fn parse_umask(text: &str) -> std::result::Result<u16, String> {
    let octal = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| u16::from_str_radix(text, 8).ok());
    octal
        .flatten()
        .filter(|&mask| mask <= 0o777)
        .ok_or_else(|| "an umask is an octal number from 0 to 777".to_owned())
}

fn parse_pattern(text: &str) -> std::result::Result<Pattern, String> {
    match Pattern::new(text) {
        Ok(pattern) if !text.is_empty() => Ok(pattern),
        Ok(_) => Err("it needs a pattern, for instance web*".to_owned()),
        Err(error) => Err(format!("it is no pattern: {error}")),
    }
}

fn parse_cache(text: &str) -> std::result::Result<usize, String> {
    let bytes = usize::try_from(parse_size(text)?).map_err(|_| "it is more than this system can have")?;
    if bytes < CACHE_MIN {
        return Err("the cache needs at least 1M".to_owned());
    }
    Ok(bytes)
}

fn parse_overlay_max(text: &str) -> std::result::Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < OVERLAY_MIN_BYTES {
        return Err("an overlay needs at least 4K".to_owned());
    }
    Ok(bytes)
}

fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => Some(0),
        "K" | "k" => Some(10),
        "M" | "m" => Some(20),
        "G" | "g" => Some(30),
        "T" | "t" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| parse_number(digits)?.checked_mul(1 << shift));
    bytes
        .filter(|&bytes| bytes <= i64::MAX as u64)
        .ok_or_else(|| "a size is a number with K, M, G or T after it, for instance 256M".to_owned())
}

fn parse_threads(text: &str) -> std::result::Result<usize, String> {
    parse_number(text)
        .and_then(|threads| usize::try_from(threads).ok())
        .filter(|threads| (1..=THREADS_MAX).contains(threads))
        .ok_or_else(|| format!("the number of threads is 1 to {THREADS_MAX}"))
}

/// Digits only: `+5` is no number here.
fn parse_number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
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
    fn owners_rights_and_jobs_are_chosen() {
        let options = parse(&["uid=root,gid=5,umask=027", "readahead=0,job=web*,job=db?"]).unwrap();
        assert_eq!((options.uid, options.gid, options.umask), (Some(0), Some(5), Some(0o27)));
        assert_eq!(options.readahead_bytes, 0);
        for (job, shown) in [("web01", true), ("db1", true), ("db01", false), ("mail", false)] {
            assert_eq!(options.shows(job), shown, "{job}");
        }
        assert!(Options::default().shows("mail"));
    }

    #[test]
    fn rights_are_what_the_access_makes_sensible_or_what_was_said() {
        let modes = |text: &str| {
            let options = parse(&[text]).unwrap();
            (options.mode(0o555), options.mode(0o444))
        };
        assert_eq!(modes(""), (0o500, 0o400));
        assert_eq!(modes("allow_root"), (0o500, 0o400));
        assert_eq!(modes("allow_other"), (0o555, 0o444));
        assert_eq!(modes("allow_other,umask=027"), (0o550, 0o440));
        assert_eq!(modes("umask=0"), (0o555, 0o444));
    }

    #[test]
    fn lines_of_fstab_are_accepted() {
        let line = "defaults,noauto,nofail,_netdev,ro,x-systemd.automount,x-systemd.idle-timeout=60,comment=a,user=joe";
        assert_eq!(parse(&[line]).unwrap(), Options::default());
    }

    #[test]
    fn an_overlay_makes_the_mount_writable() {
        let overlay = |dir: &str, max_bytes| Some(OverlayOptions { dir: PathBuf::from(dir), max_bytes });
        assert_eq!(parse(&["overlay=/x,rw"]).unwrap().overlay, overlay("/x", None));
        assert_eq!(parse(&["rw,overlay-max=2T,overlay=/x"]).unwrap().overlay, overlay("/x", Some(2 << 40)));
        let texts = ["rw,overlay=/x,overlay-max=8K".to_owned()];
        let given = Options::parse_for(&texts, Manner::Exact, Some(Path::new("/a,b")), Some("4096")).unwrap();
        assert_eq!(given.overlay, overlay("/a,b", Some(4096)));
        let given = Options::parse_for(&[], Manner::Exact, None, Some("1M"));
        assert!(matches!(given, Err(Error::OptionInvalid { .. })), "{given:?}");
        assert_eq!(
            Options::parse_for(&[], Manner::Exact, Some(Path::new("/x")), Some("1X"))
                .unwrap_err()
                .to_string(),
            "cannot use mount option \"overlay-max=1X\": a size is a number with K, M, G or T after it, for instance 256M"
        );
    }

    #[test]
    fn a_misspelt_option_names_the_nearest() {
        for (wrong, right) in [
            ("cahce=1M", Some("cache")),
            ("allow_othr", Some("allow_other")),
            ("thread=2", Some("threads")),
            ("nofial", Some("nofail")),
            ("foo", None),
            ("x", None),
            ("compression=zstd", None),
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
            "readahead",
            "readahead=-1",
            "readahead=99999999999G",
            "uid=",
            "uid=-1",
            "uid=4294967295",
            "uid=4294967296",
            "uid=no such user",
            "gid=no such group",
            "umask=",
            "umask=9",
            "umask=1000",
            "umask=+7",
            "job",
            "job=",
            "job=[",
            "noauto=1",
            "rw",
            "overlay",
            "overlay=",
            "overlay=/x,ro",
            "overlay-max=1M",
            "overlay=/x,overlay-max=1K",
            "overlay=/x,overlay-max=",
            "suid",
            "allow_other,allow_root",
            "cache=1ä",
        ] {
            assert!(matches!(parse(&[wrong]), Err(Error::OptionInvalid { .. })), "{wrong}");
        }
        let helped =
            |manner| Options::parse_for(&["rw,dev,suid,exec,new_one=1".to_owned()], manner, None, None);
        assert!(matches!(helped(Manner::Helper), Err(Error::OptionUnknown { .. })));
        assert_eq!(helped(Manner::Sloppy).unwrap(), Options::default());
        assert_eq!(
            parse(&["rw"]).unwrap_err().to_string(),
            "cannot use mount option \"rw\": the mounted tree is read-only without an overlay"
        );
    }
}
