//! Single things.

use crate::user::User;
use instar_codec::Decoder;
use instar_plan_live::{ExtentKind, Extents, LiveError, LiveImage};
use instar_storage::{MemStorage, Storage};
use instar_tests::judge::{check, content, load, ok, save};
use instar_tests::kinds::{NAME, SIZE, make};
use instar_tests::rng::Rng;

#[test]
fn a_large_write_into_nothing_is_one_extent_and_one_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let args = ["create", "-q", "-f", "qcow2", NAME, "1G"];
    ok(dir, "qemu-img", &args);
    let image = load(&dir.join(NAME));
    let mut live = crate::image::open(dir, &image, None);
    let mut found = Extents::default();
    live.lookup(0, 512, &mut found).unwrap();
    let zero = found.list.first().unwrap();
    assert!(zero.kind == ExtentKind::Zero && zero.len >= 32 << 20);
    let ticket = live.allocate(4096, 64 << 20, &mut found).unwrap();
    assert!(ticket != 0);
    let places: Vec<_> = found.list.iter().map(|extent| extent.len).collect();
    assert_eq!(places.iter().sum::<u64>(), (64 << 20) + 65536);
    assert!(places.len() <= 3, "{places:?}");
    live.link(ticket).unwrap();
    live.lookup(0, 64 << 20, &mut found).unwrap();
    assert!(found.list.len() <= 3 && found.end() >= 64 << 20);
    live.close().unwrap();
}

#[test]
fn what_is_on_no_disk_or_has_no_ticket_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["write -P 1 0 8k"]);
    let image = load(&dir.join(NAME));
    let mut live = crate::image::open(dir, &image, None);
    let mut found = Extents::default();
    for (start, len) in [(0, 0), (SIZE, 512), (SIZE - 512, 1024), (u64::MAX, 2)] {
        assert_eq!(
            live.lookup(start, len, &mut found),
            Err(LiveError::Range),
            "{start}+{len}"
        );
        assert!(live.allocate(start, len, &mut found).is_err());
        assert!(live.discard(start, len).is_err());
        assert!(live.write_zeroes(start, len, true).is_err());
    }
    assert!(live.fetch(SIZE - 100, &mut [0; 200]).is_err());
    assert_eq!(live.link(0), Err(LiveError::NoTicket));
    assert_eq!(live.abandon(1), Err(LiveError::NoTicket));
    let ticket = live.allocate(100 << 10, 512, &mut found).unwrap();
    assert_eq!(
        live.allocate(101 << 10, 512, &mut found),
        Err(LiveError::Busy)
    );
    assert_eq!(live.discard(0, 200 << 10), Err(LiveError::Busy));
    assert_eq!(
        live.write_zeroes(96 << 10, 8192, true),
        Err(LiveError::Busy)
    );
    // A flush does not wait for it, and a close ends it.
    live.flush().unwrap();
    live.close().unwrap();
    assert_eq!(live.link(ticket), Err(LiveError::NoTicket));
    drop(live);
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
}

#[test]
fn a_raw_image_is_where_it_is() {
    let image = MemStorage::new(vec![7; 100_000]);
    let mut live = LiveImage::<_, Decoder>::raw(&image, 3);
    assert_eq!(live.len_bytes(), 100_352);
    let mut found = Extents::default();
    live.lookup(1024, 512, &mut found).unwrap();
    let all = ExtentKind::Data {
        file: 3,
        offset: 1024,
        in_place: true,
    };
    assert_eq!(found.list.len(), 1);
    assert_eq!((found.list[0].kind, found.end()), (all, 100_352));
    assert_eq!(live.allocate(512, 512, &mut found), Ok(0));
    live.write_zeroes(0, 512, true).unwrap();
    live.discard(512, 99_840).unwrap();
    live.flush().unwrap();
    let mut bytes = [1; 1];
    image.read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes, image.len_bytes()), ([0], 100_000));
}

/// A bitmap that records has every write, though most of them are not asked about: the first one to each place is.
#[test]
fn bitmaps_know_what_was_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let what = ["write -P 1 0 200k", "bitmap"];
    make(dir, "cluster_size=4k", &what);
    let image = load(&dir.join(NAME));
    let mut user = User::new(dir, (&image, None), content(dir, NAME), &what);
    let mut rng = Rng::of(1, 1);
    for at in [70 << 10, 70 << 10, 71 << 10] {
        let bytes = vec![rng.below(255) as u8; 512];
        if let Some(open) = user.begin(at, &bytes) {
            user.end(&open, true);
        }
    }
    let model = user.close();
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    assert!(content(dir, NAME) == model);
    let info = String::from_utf8(ok(dir, "qemu-img", &["info", NAME])).unwrap();
    assert!(info.contains("rec") && !info.contains("in-use"), "{info}");
    // The bitmap's table and its one cluster of bits: the judge's map of it would need a server.
    let count = ok(dir, "qemu-img", &["measure", "-O", "qcow2", NAME]);
    assert!(String::from_utf8(count).unwrap().contains("bitmaps size"));
}

#[test]
fn an_image_that_takes_no_writes_takes_none() {
    use instar_layers::{Chain, Layer};
    use instar_plan_live::Backing;
    let layer = Layer::raw(MemStorage::new(vec![5; 1000]));
    let chain = Backing::new(Chain::new(vec![layer]), Decoder::new(), |_| 4);
    let mut live = LiveImage::<MemStorage, _>::read_only(chain);
    let mut found = Extents::default();
    live.lookup(0, 1024, &mut found).unwrap();
    assert!(matches!(
        found.list[0].kind,
        ExtentKind::Data {
            file: 4,
            offset: 0,
            in_place: false
        }
    ));
    assert_eq!(found.end(), 1024);
    assert!(live.is_read_only());
    assert_eq!(live.allocate(0, 512, &mut found), Err(LiveError::ReadOnly));
    assert_eq!(live.discard(0, 512), Err(LiveError::ReadOnly));
    assert_eq!(live.write_zeroes(0, 512, false), Err(LiveError::ReadOnly));
    live.close().unwrap();
}
