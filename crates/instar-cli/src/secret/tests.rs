//! Objects, against what `qemu-img` says about the same, and what becomes of their bytes.

use super::*;
use crate::oracle;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

/// 32 bytes `k` in base64.
const KEY: &str = "secret,id=k,format=base64,data=a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
/// 16 bytes in base64.
const IV: &str = "aXZpdml2aXZpdml2aXZpdg==";
/// `abc`, encrypted with both.
const ABC: &str = "PLB43kImNKYTVsvfebWI6A==";

fn store(objects: &[&str]) -> Result<Store, Stop> {
    let mut store = Store::default();
    for object in objects {
        store.add(object.as_bytes())?;
    }
    Ok(store)
}

/// What we say about the objects: nothing, a sentence, or the help.
fn ours(objects: &[&str]) -> String {
    match store(objects) {
        Ok(_) => String::new(),
        Err(Stop::Wrong(sentence)) => format!("qemu-img: {sentence}\n"),
        Err(Stop::Help(text)) => text.to_owned(),
    }
}

/// `bytes` encrypted as [`ABC`] is, each as an object.
fn encrypted(data: &str) -> String {
    format!("secret,id=a,format=base64,keyid=k,iv={IV},data={data}")
}

#[test]
fn what_is_wrong_is_said_as_qemu_img_says_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), [0; 512]).unwrap();
    let of_key = [
        encrypted(ABC),
        encrypted("Rm1mxb3Vba/vO6STdX9Tbw=="),
        encrypted("AAAA"),
        encrypted(""),
        format!("secret,id=a,keyid=k,data=0123456789abcdef,iv={IV}"),
        format!("secret,id=a,keyid=k,data=0123456789abcde,iv={IV}"),
        format!("secret,id=a,format=base64,keyid=k,data={ABC}"),
        format!("secret,id=a,format=base64,keyid=k,iv=AAAA,data={ABC}"),
        format!("secret,id=a,format=base64,keyid=k,iv=!,data={ABC}"),
        format!("secret,id=a,format=base64,keyid=k,iv=,data={ABC}"),
        format!("secret,id=a,format=base64,keyid=a,iv={IV},data={ABC}"),
        format!("secret,id=a,format=base64,keyid=,iv={IV},data={ABC}"),
        "secret,id=k,data=x".to_owned(),
    ];
    let alone = [
        "secret",
        "secret,id=a",
        "secret,data=abc",
        "id=a,data=abc",
        "",
        "secret,id=a,data=x,file=a",
        "secret,id=a,data=x,id=b",
        "secret,id=a,data=",
        "secret,id=a,file=",
        "secret,id=a,file=missing",
        "secret,id=a,file=.",
        "secret,id=a,data=x,foo=bar",
        "secret,id=a,data=x,foo.x=bar",
        "secret,id=a,data=x,format=hex",
        "secret,id=a,data=x,format=",
        "secret,id=a,data=x,format=base64",
        "secret,id=a,data=!!!!,format=base64",
        "secret,id=a,data=Y W J j,format=base64",
        "secret,id=a,data=YWJj-_,format=base64",
        "secret,id=a,data=x,keyid=nope",
        "secret,id=a,data=x,iv=AAAA",
        "foo",
        "foo,id=a",
        "iothread,id=a",
        "secret,id=1a,data=x",
        "secret,id=a b,data=x",
        "secret,id=,data=x",
        "secret,id,data=x",
        "secret=x,id=a,data=x",
        "qom-type=secret,id=a,data=x",
        "secret,qom-type=secret,id=a,data=x",
        "secret,loaded=on,id=a,data=x",
        "secret,id=a,data=x,id.x=3",
        "secret,id=a,data.x=3",
        "secret,id=a,data=x,,y",
        "secret,id=a,data=x,",
        "secret,id=a,=x",
        "secret,id=a,f!o=x",
        "secret,id=a,9a=x",
        "secret,,id=a",
        "secret,help",
        "secret,id=a,help",
        r#"{"qom-type":"secret","id":"a","data":"x"}"#,
        r#"{'qom-type':'secret','id':'a','data':'x'}"#,
        r#"{"qom-type":"secret","id":"a","data":1}"#,
        r#"{"qom-type":"secret","id":1,"data":"x"}"#,
        r#"{"qom-type":1,"id":"a","data":"x"}"#,
        r#"{"qom-type":"secret","id":"a","data":"x","foo":1}"#,
        r#"{"qom-type":"secret","id":"a","data":"x","data.x":"y"}"#,
        r#"{"qom-type":"secret","id":"a","data":"x","data":"y"}"#,
        r#"{"qom-type":"secret","id":"a","format":"hex","data":"x"}"#,
        r#"{"qom-type":"secret","id":"a""#,
        r#"{"qom-type":"secret","id":"a","data":"x"}}"#,
        r#"{"qom-type":"secret"}"#,
        r#"{"id":"a"}"#,
        "{}",
        "[]",
        "{nonsense}",
        r#"{"a" "b"}"#,
        r#"{"a":}"#,
        r#"{"a":[1 2]}"#,
        r#"{"a":1 "b"}"#,
        r#"{"a":"\x"}"#,
        "{a:1}",
        "{1:1}",
    ];
    let with_key = of_key.iter().map(|object| vec![KEY, object]);
    let cases = alone.iter().map(|object| vec![*object]).chain(with_key);
    for objects in cases {
        let mut words = vec!["measure", "-f", "raw", "-O", "raw"];
        objects
            .iter()
            .for_each(|object| words.extend(["--object", object]));
        words.push("a");
        let theirs = oracle::qemu_img(folder.path(), &words);
        let said = ours(
            &objects
                .iter()
                .map(|object| in_folder(object, folder.path()))
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        );
        let said = said.replace(&format!("{}/", folder.path().display()), "");
        let theirs = if theirs.stderr.is_empty() && theirs.status.success() {
            let printed = String::from_utf8(theirs.stdout).unwrap();
            printed
                .strip_prefix("required size:")
                .map_or(printed.clone(), |_| String::new())
        } else {
            String::from_utf8(theirs.stderr).unwrap()
        };
        assert_eq!(said, theirs, "{objects:?}");
    }
}

/// The object with its file in `folder`, which is not this process's own.
fn in_folder(object: &str, folder: &std::path::Path) -> String {
    match object.split_once("file=") {
        Some((_, "")) | None => object.to_owned(),
        Some((before, name)) => format!("{before}file={}/{name}", folder.display()),
    }
}

#[test]
fn secrets_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    std::fs::write(&file, "YWJj\n").unwrap();
    let file = file.display();
    let store = store(&[
        KEY,
        &encrypted(ABC),
        &encrypted("YK3pvhRCpR5fHO2KZVPEBQ==").replace("id=a", "id=empty"),
        "secret,id=plain,data=a,,b",
        "secret,id=y,format=base64,data=Y",
        "secret,id=yw,format=base64,data=YW",
        &format!("secret,id=file,file={file}"),
        &format!("secret,id=file64,format=base64,file={file}"),
        r#"{"qom-type":"secret","id":"json","data":"é\""}"#,
    ])
    .unwrap();
    let get = |id| {
        store
            .password(id)
            .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    for (id, bytes) in [
        ("k", "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"),
        ("a", "abc"),
        ("empty", ""),
        ("plain", "a,b"),
        ("y", ""),
        ("yw", "a"),
        ("file", "YWJj\n"),
        ("file64", "abc"),
        ("json", "é\""),
    ] {
        assert_eq!(get(id), Ok(bytes.to_owned()), "{id}");
    }
    assert_eq!(get("nope"), Err("No secret with id 'nope'".to_owned()));
}

#[test]
fn passwords_are_text_of_some_length() {
    let long = format!("secret,id=long,data={}", "x".repeat(MAX_SECRET_BYTES + 1));
    let store = store(&[
        "secret,id=a,format=base64,data=//4=",
        "secret,id=nul,format=base64,data=YQBi",
        &long,
    ])
    .unwrap();
    for id in ["a", "nul"] {
        let sentence = format!("Data from secret {id} is not valid UTF-8");
        assert_eq!(store.password(id).unwrap_err(), sentence);
    }
    let sentence = store.password("long").unwrap_err();
    assert!(sentence.contains("longer than 4096"), "{sentence}");
}

#[test]
fn other_objects_are_refused_by_name() {
    let sentence = ours(&["throttle-group,id=a"]);
    assert!(
        sentence.contains("'throttle-group'; --object takes secrets"),
        "{sentence}"
    );
    assert_eq!(ours(&["help"]), TYPES);
    assert!(
        matches!(store(&["secret,id=a,file=/dev/zero"]), Err(Stop::Wrong(text)) if text.contains("1 MiB"))
    );
}

#[test]
fn the_store_forgets() {
    load(&["secret,id=kept,data=x".into()]).unwrap();
    assert!(find("kept").is_ok());
    forget();
    assert!(find("kept").is_err());
}

proptest! {
    #[test]
    fn no_object_makes_it_panic(object in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Store::default().add(&object);
        let mut typed = b"secret,id=a,data=".to_vec();
        typed.extend(&object);
        let _ = Store::default().add(&OsString::from_vec(typed).into_vec());
    }

    #[test]
    fn no_list_makes_it_panic(object in "(secret|qom-type|id|data|format|base64|keyid|iv|=|,|\\.|\\{|\\}|\"|:){0,20}") {
        let _ = Store::default().add(object.as_bytes());
        let _ = Store::default().add(format!("{{{object}").as_bytes());
    }
}
