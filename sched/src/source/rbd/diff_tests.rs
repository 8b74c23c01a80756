//! Streams that are right, cut, changed and made of anything.

use proptest::prelude::*;

use super::*;

/// A record with its data.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Meta(Record),
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

fn encode(items: &[Item], is_v2: bool) -> Vec<u8> {
    let mut out = if is_v2 { b"rbd diff v2\n".to_vec() } else { b"rbd diff v1\n".to_vec() };
    let mut put = |tag: u8, payload: &[u8]| {
        out.push(tag);
        if is_v2 {
            out.extend((payload.len() as u64).to_le_bytes());
        }
        out.extend(payload);
    };
    let name = |name: &str| [&(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat();
    let range = |offset: u64, length: u64| [offset.to_le_bytes(), length.to_le_bytes()].concat();
    for item in items {
        match item {
            Item::Meta(Record::FromSnapshot(text)) => put(b'f', &name(text)),
            Item::Meta(Record::ToSnapshot(text)) => put(b't', &name(text)),
            Item::Meta(Record::Size(size)) => put(b's', &size.to_le_bytes()),
            Item::Meta(_) => unreachable!("ranges are no metadata"),
            Item::Data(offset, data) => {
                put(b'w', &[range(*offset, data.len() as u64), data.clone()].concat())
            }
            Item::Zero(offset, length) => put(b'z', &range(*offset, *length)),
        }
    }
    out.push(b'e');
    out
}

fn decode(bytes: &[u8]) -> Result<Vec<Item>, DiffError> {
    let mut reader = DiffReader::new(bytes)?;
    let mut items = Vec::new();
    while let Some(record) = reader.next_record()? {
        items.push(match record {
            Record::Data { offset, length } => {
                let mut data = vec![0; length as usize];
                // In two parts, as chunks cut it.
                let (first, second) = data.split_at_mut(length as usize / 3);
                reader.read(first)?;
                reader.read(second)?;
                Item::Data(offset, data)
            }
            Record::Zero { offset, length } => Item::Zero(offset, length),
            other => Item::Meta(other),
        });
    }
    Ok(items)
}

fn example() -> Vec<Item> {
    vec![
        Item::Meta(Record::FromSnapshot("backy-old".to_owned())),
        Item::Meta(Record::ToSnapshot("backy-new".to_owned())),
        Item::Meta(Record::Size(1 << 20)),
        Item::Data(4096, vec![7; 100]),
        Item::Zero(8192, 4096),
        Item::Data((1 << 20) - 3, vec![9; 3]),
    ]
}

#[test]
fn both_versions_come_back() {
    for is_v2 in [false, true] {
        assert_eq!(decode(&encode(&example(), is_v2)).unwrap(), example());
        assert_eq!(decode(&encode(&example()[2..3], is_v2)).unwrap(), example()[2..3]);
    }
}

#[test]
fn every_cut_is_an_error_and_so_is_every_byte_more() {
    for is_v2 in [false, true] {
        let whole = encode(&example(), is_v2);
        for end in 0..whole.len() {
            match decode(&whole[..end]) {
                Err(DiffError::Cut { at }) => assert_eq!(at, end as u64),
                other => panic!("cut at {end}: {other:?}"),
            }
        }
        let longer = [&whole[..], b"e"].concat();
        assert!(matches!(
            decode(&longer),
            Err(DiffError::Malformed { problem: "bytes follow the end mark", .. })
        ));
    }
}

#[test]
fn nonsense_is_named() {
    let size = Item::Meta(Record::Size(1000));
    let v1 = |items: &[Item]| encode(items, false);
    let mut unknown = v1(&[]);
    unknown[12] = b'q';
    for (bytes, expected) in [
        (b"rbd diff v3\ne".to_vec(), "does not begin"),
        (b"<html><body>".to_vec(), "does not begin"),
        (unknown, "unknown type"),
        (v1(&[Item::Zero(0, 1)]), "before the size"),
        (v1(&[size.clone(), Item::Zero(0, 1001)]), "outside"),
        (v1(&[size.clone(), Item::Zero(u64::MAX, 2)]), "outside"),
        (v1(&[size.clone(), Item::Zero(0, 1), size.clone()]), "metadata follow"),
        (v1(&[size.clone(), size.clone()]), "size makes no sense"),
        (v1(&[Item::Meta(Record::Size(u64::MAX))]), "size makes no sense"),
        (v1(&[Item::Meta(Record::ToSnapshot("x".repeat(5000)))]), "impossible length"),
    ] {
        let message = decode(&bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut bad_length = encode(&[size, Item::Zero(0, 1)], true);
    let at = bad_length.len() - 25;
    bad_length[at] ^= 1;
    assert!(decode(&bad_length).is_err());
}

#[test]
fn version_2_skips_what_it_does_not_know() {
    let mut bytes = b"rbd diff v2\np".to_vec();
    bytes.extend(8_u64.to_le_bytes());
    bytes.extend([1; 8]);
    bytes.extend(&encode(&example(), true)[12..]);
    assert_eq!(decode(&bytes).unwrap(), example());
}

#[test]
fn what_the_writer_writes_is_read() {
    let mut writer = DiffWriter::new(Vec::new(), 5000).unwrap();
    writer.data(10, b"abc").unwrap();
    writer.data(4999, b"z").unwrap();
    let bytes = writer.finish().unwrap();
    let expected =
        [Item::Meta(Record::Size(5000)), Item::Data(10, b"abc".to_vec()), Item::Data(4999, b"z".to_vec())];
    assert_eq!(decode(&bytes).unwrap(), expected);
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let item = (0_u64..1 << 16, prop::option::of(prop::collection::vec(any::<u8>(), 0..300)), 0_u64..1 << 10)
        .prop_map(|(offset, data, length)| match data {
            Some(data) => Item::Data(offset, data),
            None => Item::Zero(offset, length),
        });
    (".{0,20}", prop::collection::vec(item, 0..20)).prop_map(|(name, items)| {
        let meta = [Item::Meta(Record::ToSnapshot(name)), Item::Meta(Record::Size(1 << 17))];
        meta.into_iter().chain(items).collect()
    })
}

proptest! {
    #[test]
    fn any_diff_comes_back(items in items(), is_v2: bool) {
        prop_assert_eq!(decode(&encode(&items, is_v2)).unwrap(), items);
    }

    #[test]
    fn a_cut_diff_is_never_taken_for_whole(items in items(), is_v2: bool, cut in any::<prop::sample::Index>()) {
        let bytes = encode(&items, is_v2);
        let end = cut.index(bytes.len());
        let is_cut = matches!(decode(&bytes[..end]), Err(DiffError::Cut { .. }));
        prop_assert!(is_cut);
    }

    #[test]
    fn changed_bytes_do_no_harm(items in items(), is_v2: bool, place in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode(&items, is_v2);
        let at = place.index(bytes.len());
        bytes[at] = byte;
        read_any(&bytes);
    }
}
