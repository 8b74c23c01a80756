//! JSON has exactly the fields that `docs/cli.md` lists, of the types that it says.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::world;

const MANUAL: &str = include_str!("../../docs/cli.md");

/// The fields and types of the first table of fields after `mark`.
fn table(mark: &str) -> BTreeMap<&'static str, &'static str> {
    let (_, rest) = MANUAL.split_once(mark).unwrap_or_else(|| panic!("{mark:?} is not in the manual"));
    let (_, rest) = rest.split_once("| field | type | meaning |\n").expect("a table of fields");
    let rows = rest.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        (cells.next().expect("a field").trim_matches('`'), cells.next().expect("a type"))
    })
    .collect()
}

#[track_caller]
fn check(value: &Value, table: &BTreeMap<&str, &str>) {
    let object = value.as_object().expect("an object");
    let fields: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(fields, table.keys().copied().collect::<Vec<_>>());
    for (field, kind) in table {
        let value = &object[*field];
        let fits = kind.split(" or ").any(|kind| match kind {
            "string" => value.is_string(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "array of strings" => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            other => panic!("unknown type {other}"),
        });
        assert!(fits, "{field} is no {kind}: {value}");
    }
}

fn list<'v>(value: &'v Value, field: &str) -> &'v Vec<Value> {
    let list = value[field].as_array().unwrap_or_else(|| panic!("no list {field}: {value}"));
    assert!(!list.is_empty(), "{field} is empty");
    list
}

#[test]
fn status_find_undelete_and_expire_have_the_documented_fields() {
    let (world, [first, ..]) = world();
    let revision = table("**Revision objects** in JSON:");
    let status = world.ok(&["status", "--json"]).json();
    assert_eq!(
        status.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["damaged", "job", "revisions", "unfinished"]
    );
    list(&status, "revisions").iter().for_each(|one| check(one, &revision));

    let store = world.on_store(&["status", "--json"]).expect(0).json();
    assert_eq!(store.as_object().unwrap().keys().collect::<Vec<_>>(), ["jobs", "store"]);
    list(&store, "jobs").iter().for_each(|job| check(job, &table("JSON for a store:")));

    let found = world.ok(&["find", "-r", "all", "--json"]).json();
    let find = BTreeMap::from([("id", "string"), ("map", "string or null"), ("path", "string or null")]);
    list(&found, "revisions").iter().for_each(|one| check(one, &find));

    let plan = world.ok(&["expire", "--dry-run", "--json"]).json();
    let keys = plan.as_object().unwrap().keys().collect::<Vec<_>>();
    assert_eq!(keys, ["decisions", "dry_run", "held_back", "job"]);
    list(&plan, "decisions").iter().for_each(|one| check(one, &table("`held_back` (array of strings)")));

    world.ok(&["forget", "-r", &first]);
    let mut forgotten = revision;
    forgotten.insert("forgotten_at", "string");
    for words in [&["undelete", "--json"][..], &["status", "--forgotten", "--json"]] {
        let listed = world.ok(words).json();
        assert_eq!(listed["job"], "web01");
        list(&listed, "forgotten").iter().for_each(|one| check(one, &forgotten));
    }
}

#[test]
fn times_are_rfc_3339_in_utc() {
    let (mut world, _) = world();
    world.set("TZ", "America/New_York");
    let status = world.ok(&["status", "--json"]).json();
    let time = status["revisions"][0]["timestamp"].as_str().unwrap().to_owned();
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    let table = world.ok(&["status"]);
    assert!(table.text().contains("America/New_York"), "{table}");
}

#[test]
fn yaml_is_a_list_of_manifests_with_an_empty_line() {
    let (world, ids) = world();
    let run = world.ok(&["status", "--yaml"]);
    assert!(run.text().ends_with("\n\n"), "{run}");
    for id in &ids {
        assert!(
            run.text().contains(&format!("  uuid: {id}\n"))
                || run.text().contains(&format!("- uuid: {id}\n"))
        );
    }
    assert_eq!(run.text().lines().filter(|line| line.starts_with("- ")).count(), 3);
}
