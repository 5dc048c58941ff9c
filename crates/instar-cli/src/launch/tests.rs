//! Names and formats, against what `qemu-img` says about the same.

use super::*;
use crate::oracle;
use std::ffi::OsString;

fn options(name: &str, format: Option<&str>) -> ImageOptions {
    ImageOptions {
        format: format.map(OsString::from),
        image_opts: false,
        force_share: false,
        object: Vec::new(),
        files: vec![name.into()],
    }
}

fn sentence(options: &ImageOptions) -> String {
    image(options).map(|image| image.path).unwrap_err().sentence
}

#[test]
fn refusals_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), [0; 512]).unwrap();
    for (name, format) in [
        ("a", Some("bogus")),
        ("a", Some("")),
        ("missing", Some("bogus")),
        ("foo:a", None),
        ("", None),
    ] {
        let mut arguments = vec!["info"];
        if let Some(format) = format {
            arguments.extend(["-f", format]);
        }
        arguments.push(name);
        let theirs = oracle::qemu_img(folder.path(), &arguments).stderr;
        let ours = sentence(&options(name, format));
        assert_eq!(format!("qemu-img: {ours}\n").as_bytes(), theirs);
    }
}

#[test]
fn names_mean_local_files() {
    for name in ["a", "./a:b", "file:a", "file:./a:b", "/x/a:b"] {
        let image = image(&options(name, Some("raw"))).map(|image| image.path);
        assert_eq!(image, Ok(PathBuf::from(name)));
    }
}

#[test]
fn what_is_not_there_is_said_in_one_sentence() {
    assert!(sentence(&options("nbd:x", None)).ends_with("over the protocol 'nbd'"));
    assert!(sentence(&options("json:{}", None)).ends_with("over the protocol 'json'"));
    assert!(sentence(&options("a", Some("vmdk"))).ends_with("does not read the format 'vmdk'"));
    let mut opts = options("a", None);
    opts.object.push("secret,id=s".into());
    assert!(sentence(&opts).contains("--object is not there yet"));
    opts.image_opts = true;
    assert!(sentence(&opts).contains("--image-opts is not there yet"));
    opts.format = Some("raw".into());
    assert_eq!(
        sentence(&opts),
        "--image-opts and --format are mutually exclusive"
    );
    opts.files.push("b".into());
    assert_eq!(sentence(&opts), "Expecting one image file name");
}

#[test]
fn foreign_formats_are_those_of_qemu_img() {
    let help = String::from_utf8(oracle::stdout(std::path::Path::new("/"), &["--help"])).unwrap();
    let (_, list) = help.split_once("Supported image formats:").unwrap();
    let (list, _) = list.split_once("See ").unwrap();
    for format in list.split_whitespace() {
        assert!(
            ["raw", "qcow2"].contains(&format) || FOREIGN_FORMATS.contains(&format),
            "{format}"
        );
    }
}
