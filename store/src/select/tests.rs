//! The grammar against the recorded answers of the original, against a table of our own, and at random.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::name::Tag;
use crate::revision::{BackendType, RevisionId, Stats, Trust};
use crate::timestamp::Timestamp;

fn revision(id: &str, time: &str, tags: &[&str], trust: Trust, server: &str) -> Revision {
    Revision {
        id: RevisionId::parse(id).unwrap(),
        timestamp: Timestamp::parse(time, &Zone::utc()).unwrap(),
        parent: None,
        sequence: None,
        stats: Stats { duration_secs: Some(1.0), ..Stats::default() },
        tags: tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect(),
        backend_type: BackendType::Chunked,
        trust,
        orig_tags: BTreeSet::new(),
        server: server.to_owned(),
        image_size: None,
        map_seal: None,
        data_bytes: None,
        stored_bytes: None,
        source: BTreeMap::new(),
        extra: BTreeMap::new(),
    }
}

/// The history over which the original gave its answers.
fn alpha() -> Vec<Revision> {
    vec![
        revision(
            "NxyGWkXECyEtAaa2ZZbmVZ",
            "2024-03-04T02:10:00.123456Z",
            &["daily", "weekly"],
            Trust::Verified,
            "",
        ),
        revision("CuXGKyux5nBE7qrcNYMeut", "2024-03-05T02:10:00.500000Z", &["daily"], Trust::Distrusted, ""),
        revision(
            "NasmZPQrm9pQg5pU2YqsRq",
            "2024-03-05T14:33:07Z",
            &["manual:before-upgrade"],
            Trust::Trusted,
            "",
        ),
        revision("nLtZRhDykuHTLKWoFJ9Twg", "2024-03-06T02:10:00.000001Z", &["daily"], Trust::Trusted, ""),
    ]
}

fn ids(spec: &str, revisions: &[Revision]) -> Result<Vec<String>> {
    let chosen = select(spec, revisions, &Zone::utc())?;
    Ok(chosen.into_iter().map(|revision| revision.id.to_string()).collect())
}

fn reason(spec: &str, revisions: &[Revision]) -> String {
    match select(spec, revisions, &Zone::utc()) {
        Err(Error::SpecInvalid { reason, .. }) => reason,
        other => panic!("{spec:?} gave {other:?}"),
    }
}

#[test]
fn answers_are_those_of_the_original_but_for_its_defects() {
    // Where we differ on purpose, and what we answer.
    let all: Vec<String> = alpha().iter().map(|revision| revision.id.to_string()).collect();
    let ours: BTreeMap<&str, Vec<String>> = BTreeMap::from([
        // A date before the first or after the last revision selects nothing; the original gave the nearest
        // one.
        ("..2024-01-01", vec![]),
        ("2025-01-01..", vec![]),
        // The exact date of the first revision is a date like any other; the original took it for a wrong
        // word.
        ("2024-03-04T02:10:00.123456..", all.clone()),
        // A bare tag is its newest revision, as the manual page promises; the original's newest code had
        // dropped it.
        ("daily", vec![all[3].clone()]),
    ]);
    let recorded: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/vm-alpha.revspec.json")).unwrap();
    let answers = recorded["answers"].as_object().unwrap();
    for (spec, answer) in answers {
        let theirs: Vec<String> = serde_json::from_value(answer["uuids"].clone()).unwrap();
        let got = ids(spec, &alpha());
        match ours.get(spec.as_str()) {
            Some(expected) => {
                assert_eq!(got.as_ref().unwrap(), expected, "{spec:?}");
                assert!(answer["rc"] != 0 || theirs != *expected, "{spec:?} does not differ any more");
            }
            None if answer["rc"] == 0 => assert_eq!(got.unwrap(), theirs, "{spec:?}"),
            None => assert!(got.is_err(), "{spec:?} gave {got:?}"),
        }
    }
    assert!(answers.len() > 50 && ours.keys().all(|spec| answers.contains_key(*spec)));
}

#[test]
fn binding_and_blanks() {
    let revisions = alpha();
    let at = |spec: &str| -> Vec<usize> {
        let chosen = ids(spec, &revisions).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        let position =
            |id: &String| revisions.iter().position(|revision| revision.id.as_str() == id).unwrap();
        chosen.iter().map(position).collect()
    };
    assert_eq!(at("last,all&tag:weekly"), [3, 0], "& binds closer than ,");
    assert_eq!(at("0..1&tag:daily"), [3], ".. binds closer than &");
    assert_eq!(at("(last,all) & tag: daily"), [3, 0, 1], "the order of the left side stays");
    assert_eq!(at(" not ( all ) , first"), [0]);
    assert_eq!(
        at("(first)..(last(tag:weekly),0&0..0&tag:weekly)"),
        [0],
        "an end in parentheses is one revision"
    );
    assert_eq!(at("..,last"), [0, 1, 2, 3]);
    assert_eq!(at("manual:before-upgrade"), [2], "a tag with a colon");
    assert_eq!(at("manual:before-upgrade..daily"), [2, 3], "tags as ends of a range");
    assert_eq!(at("2024-03-06..2024-03-05"), [1, 2], "dates in either order");
    assert_eq!(at("2024-03-05T16:00+02:00..last"), [2, 3], "a date with its own zone");
    assert_eq!(at("1990-01-01..1991-01-01").len(), 0);
    assert_eq!(at("first..2023-01-01"), [0], "a named end is always included");
    assert_eq!(at("+1"), [2]);
}

#[test]
fn reasons_name_the_token() {
    for (spec, expected) in [
        ("", "it is empty"),
        (" \t", "it is empty"),
        ("nosuch", "no revision, tag or keyword is called \"nosuch\""),
        ("0,nosuch..", "no revision, tag or keyword is called \"nosuch\""),
        ("4", "there is no revision 4: counts go from 0, the newest, to 3"),
        ("-1", "there is no revision -1: counts go from 0, the newest, to 3"),
        (
            "99999999999999999999999",
            "there is no revision 99999999999999999999999: counts go from 0, the newest, to 3",
        ),
        ("trust:bogus", "there is no trust state \"bogus\", only trusted, verified and distrusted"),
        ("last(all", "a \")\" is missing at the end"),
        ("last)", "there is a \")\" without its \"(\""),
        ("()", "a revision is missing between \"(\" and \")\""),
        ("0,,1", "a revision is missing between \",\" and \",\""),
        ("&0", "a revision is missing before \"&\""),
        ("0&", "a revision is missing between \"&\" and the end"),
        ("(all)first", "\"first\" was not expected"),
        ("0..1..2", "a range has two ends, there is one \"..\" too many"),
        ("newest(all)", "there is no function \"newest\", only first, last, not and reverse"),
        ("all..", "\"all\" cannot be an end of a range: use first(all) or last(all)"),
        ("not(0)..", "not(...) and reverse(...) cannot be an end of a range: use first(...) or last(...)"),
        ("(0,1)..", "parentheses at the end of a range must hold exactly one revision"),
        ("first(tag:nope)", "first(...) of nothing: no revision matches inside"),
        ("2024-03-05", "the date \"2024-03-05\" can only be an end of a range: 2024-03-05.. or ..2024-03-05"),
    ] {
        assert_eq!(reason(spec, &alpha()), expected, "{spec:?}");
    }
    let twins = [
        revision("a", "2024-01-01T00:00Z", &[], Trust::Trusted, ""),
        revision("b", "2024-01-01T00:00Z", &[], Trust::Trusted, ""),
    ];
    assert!(reason("2024-01-01..", &twins).starts_with("2 revisions were made exactly at"));
}

#[test]
fn an_empty_history_has_no_single_revision() {
    for spec in ["last", "first", "latest", "0", "last(all)", "last..", "daily"] {
        assert!(ids(spec, &[]).is_err(), "{spec:?}");
    }
    for spec in ["all", "tag:daily", "not(all)", "..", "2024-01-01.."] {
        assert!(ids(spec, &[]).unwrap().is_empty(), "{spec:?}");
    }
}

#[test]
fn ids_go_before_keywords_and_numbers_before_ids() {
    let mut revisions = alpha();
    revisions[0].id = RevisionId::parse("last").unwrap();
    revisions[1].id = RevisionId::parse("0").unwrap();
    assert_eq!(ids("last", &revisions).unwrap(), ["last"]);
    assert_eq!(ids("0", &revisions).unwrap(), ["nLtZRhDykuHTLKWoFJ9Twg"]);
}

#[test]
fn a_revision_dated_in_the_future_is_neither_first_nor_last() {
    let mut revisions = alpha();
    revisions.push(revision("ahead", "2024-05-01T02:10:00Z", &["daily"], Trust::Trusted, ""));
    let now = Timestamp::parse("2024-03-06T12:00", &Zone::utc()).unwrap();
    crate::revision::order::sort(&mut revisions, now);
    let all = alpha().into_iter().map(|revision| revision.id.to_string()).collect::<Vec<_>>();
    for spec in ["last", "latest", "0", "daily", "last(all)", "last(tag:daily)"] {
        assert_eq!(ids(spec, &revisions).unwrap(), [all[3].clone()], "{spec}");
    }
    assert_eq!(ids("first", &revisions).unwrap(), [all[0].clone()]);
    assert_eq!(ids("2024-03-06..", &revisions).unwrap(), ["ahead", &all[3]]);
    assert_eq!(ids("..2024-03-05", &revisions).unwrap(), [all[0].clone()]);
    assert_eq!(ids("2024-04-01..", &revisions).unwrap(), ["ahead"]);
    assert_eq!(ids("first..last", &revisions).unwrap(), all);
    assert_eq!(ids("..last", &revisions).unwrap().len(), 5);
    assert_eq!(ids("4", &revisions).unwrap(), ["ahead"]);
    crate::revision::order::sort(&mut revisions, now.plus_secs(100 * 86_400));
    assert_eq!(ids("last", &revisions).unwrap(), ["ahead"], "when that time has come");
}

#[test]
fn servers_tell_local_from_remote() {
    let mut revisions = alpha();
    revisions[1].server = "backup2".to_owned();
    assert_eq!(ids("remote", &revisions).unwrap(), ids("server:backup2", &revisions).unwrap());
    assert_eq!(ids("server:", &revisions).unwrap(), ids("not(remote)", &revisions).unwrap());
}

#[test]
fn one_revision_or_none() {
    let one = |spec| select_one(spec, &alpha(), &Zone::utc());
    assert_eq!(one("tag:weekly").unwrap().id.as_str(), "NxyGWkXECyEtAaa2ZZbmVZ");
    assert!(one("tag:daily").unwrap_err().to_string().ends_with("3 revisions match, one is needed"));
    assert!(one("tag:nope").unwrap_err().to_string().ends_with("no revision matches, one is needed"));
}

#[test]
fn length_and_depth_are_bounded() {
    let nested = |depth: usize| format!("{}all{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(ids(&nested(64), &alpha()).unwrap().len(), 4);
    assert!(reason(&nested(65), &alpha()).starts_with("more than 64"));
    assert!(reason(&"(".repeat(4096), &alpha()).starts_with("more than 64"));
    assert!(reason(&"a".repeat(4097), &alpha()).starts_with("it is longer"));
    assert!(ids(&"0,".repeat(2047), &alpha()).is_err());
}

/// Specifications that can be evaluated over `alpha`.
fn specs() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "all",
        "clean",
        "local",
        "remote",
        "0",
        "3",
        "last",
        "first",
        "tag:daily",
        "tag:nope",
        "trust:VERIFIED",
        "daily",
        "..",
        "..2024-03-05",
        "1..2024-03-05T12:00",
        "server:x",
        "NasmZPQrm9pQg5pU2YqsRq",
    ]);
    words.prop_map(str::to_owned).prop_recursive(5, 40, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inside| format!("not({inside})")),
            inner.clone().prop_map(|inside| format!(" reverse ({inside})")),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join(" , "))),
            prop::collection::vec(inner, 1..4).prop_map(|parts| parts.join("&")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(spec in "\\PC{0,60}") {
        let _ = select(&spec, &alpha(), &Zone::utc());
        let _ = select_one(&spec, &[], &Zone::utc());
    }

    #[test]
    fn no_salad_of_tokens_makes_it_panic(words in prop::collection::vec(prop::sample::select(vec![
        "(", ")", ",", "&", "..", ".", " ", ":", "first", "last", "not", "reverse",
        "all", "0", "-1", "tag:", "trust:", "2024-03-05", "daily",
    ]), 0..40)) {
        let _ = select(&words.concat(), &alpha(), &Zone::utc());
    }

    #[test]
    fn not_twice_is_the_set_itself(spec in specs()) {
        let once: BTreeSet<String> = ids(&spec, &alpha()).unwrap().into_iter().collect();
        let twice: BTreeSet<String> = ids(&format!("not(not({spec}))"), &alpha()).unwrap().into_iter().collect();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn results_have_no_duplicates_and_reverse_is_its_own_inverse(spec in specs()) {
        let chosen = ids(&spec, &alpha()).unwrap();
        let distinct: BTreeSet<&String> = chosen.iter().collect();
        prop_assert_eq!(distinct.len(), chosen.len());
        prop_assert_eq!(&ids(&format!("reverse(reverse({spec}))"), &alpha()).unwrap(), &chosen);
        prop_assert_eq!(&ids(&format!("({spec})&all"), &alpha()).unwrap(), &chosen);
    }
}

#[test]
fn tags_that_could_not_be_selected_are_refused_and_old_ones_are_found_in_quotes() {
    let odd = [
        "last",
        "latest",
        "first",
        "all",
        "clean",
        "local",
        "remote",
        "0",
        "17",
        "-1",
        "2024-01-01",
        "2024-01-01T12:00",
        "a&b",
        "a..b",
        "not(x)",
        "(x",
        "tag:x",
        "trust:trusted",
        "server:",
        " x",
        "x ",
        "\"x\"",
        "a\"b",
        "a\u{202e}b",
        "\u{a0}x",
        "x\u{2028}",
    ];
    for tag in odd {
        let revisions = [
            revision("aaa", "2024-03-04T02:10:00Z", &[tag], Trust::Trusted, ""),
            revision("bbb", "2024-03-05T02:10:00Z", &["daily"], Trust::Trusted, ""),
        ];
        assert!(check_new_tags(&revisions[0].tags).is_err(), "{tag:?}");
        assert_eq!(ids(&format!("tag:\"{tag}\""), &revisions).unwrap_or_default(), ["aaa"], "{tag:?}");
        assert_eq!(
            ids(&format!(" last( tag: \"{tag}\" ) , bbb"), &revisions).unwrap_or_default(),
            ["aaa", "bbb"]
        );
    }
    for tag in
        ["daily", "manual:last", "manual:before upgrade", "v1.2", "a b", "not", "x-1", "t\u{e4}glich", "1d"]
    {
        let revisions = [revision("aaa", "2024-03-04T02:10:00Z", &[tag], Trust::Trusted, "")];
        assert!(check_new_tags(&revisions[0].tags).is_ok(), "{tag:?}");
        for spec in [tag.to_owned(), format!("\"{tag}\""), format!("tag:{tag}"), format!("tag:\"{tag}\"&all")]
        {
            assert_eq!(ids(&spec, &revisions).unwrap(), ["aaa"], "{spec}");
        }
    }
    let open = [revision("aaa", "2024-03-04T02:10:00Z", &["\"x"], Trust::Trusted, "")];
    assert_eq!(ids("tag:\"x", &open).unwrap(), ["aaa"], "a quote that is not closed is part of the word");
}
