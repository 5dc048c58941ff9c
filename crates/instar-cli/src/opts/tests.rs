//! Images that options describe.

use super::json::{self, Value};
use super::node::{self, Node};
use super::{Options, Scalar, list};
use crate::files::{Encryption, Part};
use instar_shared::op::ImageFormat;
use proptest::prelude::*;

fn of_list(text: &str) -> Result<Node, String> {
    node::read(list::parse(text.as_bytes())?.options, None)
}

fn of_json(text: &str) -> Result<Node, String> {
    match json::parse(text)? {
        Value::Object(pairs) => node::read(json::flatten(&pairs), None),
        _ => Err("no object".to_owned()),
    }
}

/// Why it is not opened, or what is below it.
fn refusal(text: &str) -> String {
    of_list(text).map_or_else(|error| error, |node| node.refused.unwrap())
}

fn path(node: &Node) -> &str {
    node.path.to_str().unwrap()
}

#[test]
fn both_languages_describe_the_same_image() {
    let listed = of_list("driver=qcow2,file.driver=file,file.filename=a,,b,encrypt.key-secret=s,backing.backing.encrypt.key-secret=t").unwrap();
    let json = of_json(
        r#"{'driver':'qcow2','file':{'driver':'file','filename':'a,b'},'encrypt.key-secret':'s',
            'backing':{'backing':{'encrypt':{'key-secret':'t'}}}}"#,
    )
    .unwrap();
    assert_eq!(listed, json);
    assert_eq!(path(&listed), "file:a,b");
    assert_eq!(listed.format, ImageFormat::Qcow2);
    assert_eq!(listed.keys, [(0, "s".to_owned()), (2, "t".to_owned())]);
    assert_eq!(
        listed.shown.as_deref(),
        Some(
            r#"json:{"encrypt.key-secret": "s", "driver": "qcow2", "file": {"driver": "file", "filename": "a,b"}}"#
        )
    );
    assert_eq!(
        listed.below.as_deref(),
        Some("backing.backing.encrypt.key-secret")
    );
}

#[test]
fn a_name_stays_a_name() {
    assert_eq!(path(&of_list("file.filename=a").unwrap()), "a");
    assert_eq!(path(&of_list("file.filename=nbd:a").unwrap()), "file:nbd:a");
    assert_eq!(
        path(&of_list("file.filename=json:{}").unwrap()),
        "file:json:{}"
    );
    let device = of_list("driver=raw,file.driver=host_device,file.filename=/dev/x").unwrap();
    assert_eq!(path(&device), "host_device:/dev/x");
    let bare = of_list("driver=file,filename=a").unwrap();
    assert!(bare.bare && bare.format == ImageFormat::Raw);
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (text, word) in [
        (
            "driver=qcow2,file.filename=a,data-file.driver=qcow2,data-file.file.filename=b",
            "'qcow2'",
        ),
        (
            "driver=qcow2,file.filename=a,data-file.driver=raw,data-file.size=512,data-file.file.filename=b",
            "'data-file.size'",
        ),
        (
            "driver=qcow2,file.driver=raw,file.file.filename=a",
            "'file.driver' is 'raw'",
        ),
        ("driver=blkdebug,image.filename=a", "'blkdebug'"),
        (
            "driver=qcow2,file.driver=throttle,file.file.filename=a",
            "'throttle'",
        ),
        ("driver=qcow2,file.driver=nbd,file.host=a", "'nbd'"),
    ] {
        let sentence = refusal(text);
        assert!(
            sentence.starts_with("instar ") && sentence.contains(word),
            "{text}: {sentence}"
        );
    }
}

#[test]
fn images_below_are_described_in_the_order_of_the_chain() {
    let node = of_list(
        "driver=qcow2,file.filename=a,file.locking=off,cache.direct=on,data-file.filename=d,\
         backing.driver=qcow2,backing.encrypt.format=luks,backing.backing.driver=raw,backing.backing.offset=1k,\
         backing.backing.size=2k,backing.backing.file.filename=c,backing.backing.file.cache.direct=off",
    )
    .unwrap();
    assert_eq!(node.refused, None);
    let [top, middle, last] = node.images.as_slice() else {
        panic!("{:?}", node.images);
    };
    assert!(top.file.unlocked && top.direct == Some(true) && !top.told && !top.alone);
    let data = top.data.as_ref().unwrap().path.as_deref();
    assert_eq!(data, Some(std::path::Path::new("file:d")));
    assert!(middle.told && middle.file.path.is_none() && !middle.file.unlocked);
    assert_eq!(middle.encryption, Some(Encryption::Luks));
    assert_eq!(middle.format, Some(ImageFormat::Qcow2));
    let part = Part {
        offset: 1024,
        size: Some(2048),
    };
    assert_eq!(last.file.part, part);
    assert_eq!(last.file.path.as_deref(), Some(std::path::Path::new("c")));
    assert_eq!((last.direct, last.file.direct), (Some(true), Some(false)));
    let alone = of_json(r#"{"file.filename":"a","driver":"qcow2","backing":null}"#).unwrap();
    assert!(alone.images[0].alone && alone.images.len() == 1);
}

#[test]
fn words_alone_are_on_or_off_and_said_to_be_old() {
    let read = list::parse(b"driver=raw,read-only,noforce-share,file.filename=a").unwrap();
    let text = |key: &str| match &read.options[key] {
        Scalar::Text(text) => String::from_utf8(text.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (text("read-only"), text("force-share")),
        ("on".into(), "off".into())
    );
    assert_eq!(
        read.warnings,
        [
            "short-form boolean option 'read-only' deprecated\nPlease use read-only=on instead",
            "short-form boolean option 'noforce-share' deprecated\nPlease use force-share=off instead"
        ]
    );
}

#[test]
fn deep_and_long_json_is_refused() {
    let deep = format!("{}1{}", "{\"a\":".repeat(1100), "}".repeat(1100));
    assert_eq!(
        json::parse(&deep).unwrap_err(),
        "JSON nesting depth limit exceeded"
    );
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    assert_eq!(
        json::parse(&long).unwrap_err(),
        "JSON token size limit exceeded"
    );
    let chain = format!(
        "driver=qcow2,file.filename=a,{}encrypt.key-secret=s",
        "backing.".repeat(300)
    );
    assert!(refusal(&chain).contains("too long a chain"));
}

#[test]
fn values_keep_their_types() {
    let value =
        json::parse(r#"{"a":[1,{"b":null}],"c":true,"d":1.5,"e":{},"f":'it\'s "q"'}"#).unwrap();
    let Value::Object(pairs) = value else {
        panic!("{value:?}");
    };
    let expected: Options = [
        ("a.0", Scalar::Number("1".into())),
        ("a.1.b", Scalar::Null),
        ("c", Scalar::Bool(true)),
        ("d", Scalar::Number("1.5".into())),
        ("e", Scalar::Empty),
        ("f", Scalar::Text(b"it's \"q\"".to_vec())),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    assert_eq!(json::flatten(&pairs), expected);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,100}") {
        let _ = of_list(&text);
        let _ = of_json(&text);
    }

    #[test]
    fn no_list_makes_it_panic(text in "(driver|file|filename|backing|qcow2|raw|encrypt|key-secret|no|=|,|\\.|on){0,20}") {
        let _ = of_list(&text);
    }

    #[test]
    fn no_json_makes_it_panic(text in "(\\{|\\}|\\[|\\]|:|,|\"|'|\\\\|a|1|null|driver|file){0,30}") {
        let _ = of_json(&text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = list::parse(&bytes).map(|read| node::read(read.options, None));
    }
}
