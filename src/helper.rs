//! backy as `mount` calls it: under the names `mount.backy` and `mount.fuse.backy`, which are links to it in `/sbin`.
//! The arguments are translated into those of `backy mount`.
//!
//! ```text
//! mount.backy SOURCE MOUNTPOINT [-fnsv] [-o OPTIONS] [-t TYPE]
//! ```
//!
//! There is no such thing for `umount`: for every FUSE file system it looks for a helper `umount.fuse` only.

use std::ffi::OsString;
use std::path::Path;

/// Returns the arguments to be parsed in place of `given`; `None` if there is nothing to do.
pub(crate) fn translate(given: Vec<OsString>) -> Option<Vec<OsString>> {
    let name = given.first().and_then(|name| Path::new(name).file_name()?.to_str()).unwrap_or_default();
    match name {
        "mount.backy" | "mount.fuse.backy" => mount(&given[1..]),
        _ => Some(given),
    }
}

fn mount(given: &[OsString]) -> Option<Vec<OsString>> {
    let call = Call::parse(given);
    // A rehearsal.
    if call.flags.contains('f') {
        return None;
    }
    let mut places = call.places.into_iter();
    let mut arguments: Vec<OsString> = vec!["backy".into()];
    if let Some(source) = places.next() {
        arguments.extend(["-b".into(), source]);
    }
    arguments.extend(["mount", "--background", "--helper"].map(OsString::from));
    if call.flags.contains('s') {
        arguments.push("--sloppy".into());
    }
    for options in call.options {
        arguments.extend(["-o".into(), options]);
    }
    // What is missing or too much is complained of as with our own command.
    arguments.push("--".into());
    arguments.extend(places);
    Some(arguments)
}

/// A call by `mount`.
#[derive(Debug, Default)]
struct Call {
    places: Vec<OsString>,
    flags: String,
    options: Vec<OsString>,
}

impl Call {
    fn parse(given: &[OsString]) -> Self {
        let mut call = Self::default();
        let mut given = given.iter();
        while let Some(argument) = given.next() {
            match argument.to_str().and_then(|text| text.strip_prefix('-')) {
                Some("o") => call.options.extend(given.next().cloned()),
                // The type is known, and a mount in another namespace needs no help of ours.
                Some("t" | "N") => drop(given.next()),
                Some(flags) if flags.starts_with('o') => call.options.push(flags[1..].into()),
                Some(flags) if !flags.is_empty() && flags.chars().all(|flag| "fnsv".contains(flag)) => {
                    call.flags.push_str(flags);
                }
                // `-tTYPE`, and what `mount` may know one day.
                Some(flags) if !flags.is_empty() => {}
                _ => call.places.push(argument.clone()),
            }
        }
        call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Option<String> {
        let words = translate(line.split(' ').map(OsString::from).collect())?;
        Some(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn calls_by_mount_become_commands() {
        for (line, wanted) in [
            ("backy -b /srv mount /mnt", "backy -b /srv mount /mnt"),
            ("/sbin/mount.backy /srv /mnt", "backy -b /srv mount --background --helper -- /mnt"),
            (
                "mount.fuse.backy /srv /mnt -s -o ro,cache=1M -t fuse.backy",
                "backy -b /srv mount --background --helper --sloppy -o ro,cache=1M -- /mnt",
            ),
            ("mount.backy -nv /srv /mnt", "backy -b /srv mount --background --helper -- /mnt"),
            ("mount.backy -oro /srv /mnt", "backy -b /srv mount --background --helper -o ro -- /mnt"),
            ("mount.backy /srv", "backy -b /srv mount --background --helper --"),
        ] {
            assert_eq!(translated(line).as_deref(), Some(wanted), "{line}");
        }
        assert_eq!(translated("mount.backy /srv /mnt -f"), None);
        let wanted = "backy -b /srv mount --background --helper -- /mnt";
        assert_eq!(translated("mount.backy -tfuse.backy /srv /mnt --foreground").as_deref(), Some(wanted));
    }
}
