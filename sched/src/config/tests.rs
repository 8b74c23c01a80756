//! Files that must load, files that must not and what is said about them.

use super::*;

/// As the original's scheduler writes it; the newest form has `path`.
const ORIGINAL: &str = "\
schedule:
  daily:
    interval: 1d
    keep: 9
  monthly: {interval: 30d, keep: 3}
source:
  backend: chunked
  cow: false
  filename: /var/lib/images/test01.img
  type: file
path: /srv/backy/test01
";

fn problems(text: &str) -> Vec<String> {
    JobConfig::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_of_the_original_loads() {
    let config = JobConfig::parse(ORIGINAL).unwrap();
    let file = FileConfig {
        filename: "/var/lib/images/test01.img".into(),
        cow: Some(false),
        backend: Some("chunked".to_owned()),
    };
    assert_eq!(config.source, SourceConfig::File(file));
    let rules: Vec<(&str, i64, u32)> = config
        .schedule
        .rules
        .iter()
        .map(|(tag, rule)| (tag.as_str(), rule.interval_secs, rule.keep))
        .collect();
    assert_eq!(rules, [("daily", 86_400, 9), ("monthly", 2_592_000, 3)]);
    assert_eq!((config.verify, config.compression_level), (VerifyMode::Full, 1));
    assert_eq!(config.verify_limit_secs, 300);
}

#[test]
fn sources_on_ceph_are_understood() {
    let text =
        "source: {type: flyingcircus, vm: test03, consul_acl_token: 5b1c, pool: test, image: test03.root}";
    let config = JobConfig::parse(text).unwrap();
    assert_eq!(config.verify, VerifyMode::Sample);
    assert!(config.schedule.rules.is_empty());
    let SourceConfig::Rbd(rbd) = &config.source else { panic!() };
    assert_eq!((rbd.vm.as_deref(), rbd.full_always), (Some("test03"), false));
    assert_eq!(rbd.consul_acl_token.as_ref().unwrap().expose(), "5b1c");
    for name in ["ceph", "ceph-rbd", "rbd"] {
        let text = format!("source: {{type: {name}, pool: rbd, image: test02, full-always: true}}");
        assert_eq!(JobConfig::parse(&text).unwrap().source.source_type(), name);
    }
}

#[test]
fn every_setting_of_an_rbd_image_is_read_and_written() {
    let text = "\
source:
  type: rbd
  pool: images/customer
  image: web01.root
  user: backy
  conf: /etc/ceph/far.conf
  consul: http://consul:8500
  read-with: librbd
  timeout: 2m
  pre-snapshot: ssh web01 fsfreeze --freeze /srv
  post-snapshot: ssh web01 fsfreeze --unfreeze /srv
  hook-timeout: \"10\"
";
    let config = JobConfig::parse(text).unwrap();
    let SourceConfig::Rbd(rbd) = &config.source else { panic!() };
    assert_eq!((rbd.timeout_secs, rbd.hook_timeout_secs, rbd.read_with), (120, 10, ReadWith::Librbd));
    assert_eq!(JobConfig::parse(&config.to_yaml()).unwrap(), config);
    for (from, to, expected) in [
        ("image: web01.root", "image: web01@now", "it cannot be the name of image at Ceph"),
        ("image: web01.root", "image: a/b", "it cannot be the name of image"),
        ("pool: images/customer", "pool: -x", "it cannot be the name of pool"),
        ("pool: images/customer", "pool: a/b/c", "it cannot be the name of pool"),
        ("timeout: 2m", "timeout: 2y", "it must be a time from 1s to 1d"),
        ("read-with: librbd", "read-with: dd", "it must be auto, librbd or rbd"),
        ("pre-snapshot: ssh", "pre-snapshot: [] #", "it must be a text"),
    ] {
        let problems = problems(&text.replace(from, to));
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_line_and_nearest_key() {
    let text = "\
sorce: {}
source:
  type: file
  filname: /disk
schedule:
  daily: {interval: 1d, keep: 0}
  weekly:
    interval: 7
    kep: 3
  a/b: {interval: 1y, keep: 1}
verify: often
compression-level: 20
";
    assert_eq!(
        problems(text),
        [
            "line 1, sorce: unknown key \"sorce\", did you mean source?",
            "line 4, source.filname: unknown key \"filname\", did you mean filename?",
            "line 2, source: the key filename is missing",
            "line 10, schedule.a/b.interval: invalid interval \"1y\": it must be one whole number with one of w, d, h, m, s, as in 1d",
            "line 10, schedule.a/b: invalid tag \"a/b\": '/' and ',' are not allowed",
            "line 6, schedule.daily.keep: it must be a whole number from 1 to 4294967295",
            "line 9, schedule.weekly.kep: unknown key \"kep\", did you mean keep?",
            "line 8, schedule.weekly.interval: an interval is a text: write 1d, 12h, or \"7\" for seconds",
            "line 7, schedule.weekly: the key keep is missing",
            "line 11, verify: it must be full, sample or off",
            "line 12, compression-level: it must be a whole number from 1 to 19",
        ]
    );
}

#[test]
fn bad_yaml_is_told_with_line_and_column() {
    for text in ["source: [", "source: {type: file}\n\tx: 1", "a: b: c", "\"", "source: *x", "--- 1\n--- 2"] {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{text:?}");
    }
    assert!(
        problems("schedule: {}\nsource: [\n")[0].contains("line 3 column 1"),
        "{:?}",
        problems("source: [")
    );
}

#[test]
fn duplicates_are_problems() {
    for text in [
        "source: {}\nsource: {}",
        "source: {type: file, type: file}",
        "source: {}\nschedule:\n  a: 1\n  a: 2",
    ] {
        let problems = problems(text);
        assert!(problems[0].contains("duplicate"), "{problems:?}");
    }
}

#[test]
fn every_shape_of_nonsense_is_an_error() {
    for text in [
        "",
        "null",
        "[]",
        "7",
        "source:",
        "source: 7",
        "source: []",
        "source: {}",
        "1: 2",
        "schedule: {}",
        "? {a: b}\n: c",
        "source: {type: 7}",
        "source: {type: tape}",
        "source: {type: file, filename: 7}",
        "source: {type: file, filename: \"\"}",
        "source: {type: file, filename: \"a\\0b\"}",
        "source: {type: file, filename: /a, cow: maybe}",
        "source: {type: rbd, pool: p}",
        "source: {type: flyingcircus, pool: p, image: i}",
        "source: {type: file, filename: /a, pool: p}",
        "source: !x {type: file, filename: /a}",
        "source: {type: file, filename: /a}\nschedule: []",
        "source: {type: file, filename: /a}\nschedule: {daily: 1d}",
        "source: {type: file, filename: /a}\nschedule: {1: {interval: 1d, keep: 1}}",
        "source: {type: file, filename: /a}\nschedule: {a: {interval: 1d, keep: 1.5}}",
        "source: {type: file, filename: /a}\ncompression-level: high",
    ] {
        assert!(!problems(text).is_empty(), "{text:?}");
    }
    let tape = problems("source: {type: fiel}");
    assert!(
        tape[0].ends_with("only file, ceph, ceph-rbd, rbd, flyingcircus, did you mean file?"),
        "{tape:?}"
    );
}

#[test]
fn words_of_older_yaml_are_truth_values() {
    for (word, expected) in [("yes", true), ("No", false), ("off", false), ("true", true)] {
        let config = JobConfig::parse(&format!("source: {{type: file, filename: /a, cow: {word}}}")).unwrap();
        assert!(matches!(config.source, SourceConfig::File(FileConfig { cow, .. }) if cow == Some(expected)));
    }
    let config = JobConfig::parse("source: {type: file, filename: /a}\nverify: false").unwrap();
    assert_eq!(config.verify, VerifyMode::Off);
}

#[test]
fn what_is_written_reads_the_same() {
    let mut config = JobConfig::parse(ORIGINAL).unwrap();
    for verify in VerifyMode::ALL {
        config.verify = verify;
        config.compression_level = 7;
        config.verify_limit_secs = 90;
        assert_eq!(JobConfig::parse(&config.to_yaml()).unwrap(), config, "{}", config.to_yaml());
    }
    let odd =
        "source: {type: ceph, pool: 'no', image: '1e3', vm: ': #', full-always: true, consul_acl_token: x}";
    let odd = JobConfig::parse(odd).unwrap();
    assert_eq!(JobConfig::parse(&odd.to_yaml()).unwrap(), odd);
}

#[test]
fn a_new_job_has_the_usual_schedule() {
    let setting = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let config = JobConfig::for_source("file", &[setting("filename", "/var/lib/images/web01.img")]).unwrap();
    assert_eq!(
        config.to_yaml(),
        "source:\n  type: file\n  filename: /var/lib/images/web01.img\nschedule:\n  daily:\n    interval: 1d\n    keep: 7\n  \
         monthly:\n    interval: 30d\n    keep: 3\n  weekly:\n    interval: 1w\n    keep: 4\n"
    );
    let relative =
        JobConfig::for_source("file", &[setting("filename", "disk.img"), setting("cow", "false")]).unwrap();
    assert!(
        matches!(relative.source, SourceConfig::File(FileConfig { filename, .. }) if filename.is_absolute())
    );
}

#[test]
fn settings_of_a_new_job_are_checked() {
    let message = |source_type: &str, settings: &[(&str, &str)]| {
        let settings: Vec<(String, String)> =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        JobConfig::for_source(source_type, &settings).unwrap_err().to_string()
    };
    for (source_type, settings, expected) in [
        ("file", &[][..], "source: the key filename is missing"),
        ("file", &[("filname", "/a")], "source.filname: unknown key \"filname\", did you mean filename?"),
        ("file", &[("filename", "/a"), ("filename", "/b")], "the key filename is given twice"),
        ("flie", &[("filename", "/a")], "did you mean file?"),
        (
            "rbd",
            &[("pool", "p"), ("image", "i"), ("full-always", "2")],
            "source.full-always: it must be true or false",
        ),
    ] {
        let message = message(source_type, settings);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn files_are_read_within_bounds() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("config");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        JobConfig::load(&path)
    };
    assert!(load(ORIGINAL.as_bytes()).is_ok());
    let mut large = ORIGINAL.as_bytes().to_vec();
    large.resize(1 << 20, b'\n');
    assert!(load(&large).is_ok());
    large.push(b'\n');
    for bytes in [&large[..], b"source: \xff"] {
        assert!(
            matches!(load(bytes).unwrap_err(), Error::ConfigInvalid { problems, .. } if problems.len() == 1)
        );
    }
    assert!(matches!(JobConfig::load(dir.path()).unwrap_err(), Error::ConfigUnreadable { .. }));
    let missing = JobConfig::load(&dir.path().join("nothing")).unwrap_err();
    assert!(missing.to_string().ends_with("nothing"), "{missing}");
}

#[test]
fn aliases_cannot_grow_without_bound() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..30 {
        let before = format!("*a{}, ", n - 1).repeat(9);
        text.push_str(&format!("a{n}: &a{n} [{before}]\n"));
    }
    assert!(!problems(&text).is_empty());
    assert!(!problems(&"[".repeat(100_000)).is_empty());
}

#[test]
fn no_cut_and_no_flipped_byte_makes_it_panic() {
    for end in 0..ORIGINAL.len() {
        let _ = JobConfig::parse(&ORIGINAL[..end]);
        for byte in [b':', b'\n', b'"', b'&', b'{', b'-', b'\t', b'!'] {
            let mut text = ORIGINAL.as_bytes().to_vec();
            text[end] = byte;
            let _ = JobConfig::parse(&String::from_utf8(text).unwrap());
        }
    }
}

#[test]
fn the_first_versions_of_the_original_had_the_source_at_the_top() {
    let config =
        JobConfig::parse("type: file\nfilename: /x.img\nschedule: {daily: {interval: 1d, keep: 7}}\n")
            .unwrap();
    let SourceConfig::File(file) = &config.source else { panic!() };
    assert_eq!((file.filename.to_str(), config.schedule.rules.len()), (Some("/x.img"), 1));
    assert_eq!(
        problems("type: file\nfilenam: /x\n")[0],
        "line 2, filenam: unknown key \"filenam\", did you mean filename?"
    );
    assert!(problems("type: file\nsource: {type: file, filename: /x}\n")[0].contains("unknown key \"type\""));
}
