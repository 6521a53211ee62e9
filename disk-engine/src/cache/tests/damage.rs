//! Bases and manifests that are not what they should be.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::cache::manifest::Manifest;

#[test]
fn a_damaged_base_is_made_anew() {
    let rewrite = |path: &Path, bytes: &[u8]| {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    };
    // A wrong length is noticed even under the right time.
    let resize = |path: &Path, bytes: &[u8]| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        rewrite(path, bytes);
        File::open(path).unwrap().set_modified(modified).unwrap();
    };
    let truncate = |path: &Path| resize(path, &disk(1)[..1000]);
    let grow = |path: &Path| resize(path, &[disk(1), vec![0; 512]].concat());
    let empty = |path: &Path| resize(path, b"");
    let edit = |path: &Path| rewrite(path, &disk(2));
    let replace = |path: &Path, plant: &dyn Fn(&Path)| {
        fs::remove_file(path).unwrap();
        plant(path);
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 9] = [
        ("truncated", &truncate),
        ("grown", &grow),
        ("edited", &edit),
        ("empty", &empty),
        ("writable", &|path| fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap()),
        ("link", &|path| replace(path, &|path| symlink("/dev/zero", path).unwrap())),
        ("dangling link", &|path| replace(path, &|path| symlink("/nowhere", path).unwrap())),
        ("folder", &|path| replace(path, &|path| fs::create_dir_all(path.join("junk")).unwrap())),
        ("absent", &|path| replace(path, &|_| {})),
    ];
    for (name, damage) in damages {
        for part in ["img", "manifest"] {
            if (name, part) == ("writable", "manifest") {
                continue;
            }
            let fixture = Fixture::new();
            let path = fixture.named().unwrap().image.path().to_owned();
            damage(&path.with_extension(part));
            let base = fixture.named().unwrap();
            assert_eq!(base.origin.as_str(), "extracted", "{name} {part}");
            assert_eq!(base.image.path(), path);
            assert_eq!(fs::read(&path).unwrap(), disk(1), "{name} {part}");
            assert_eq!(fixture.named().unwrap().origin.as_str(), "hit", "{name} {part}");
            assert_eq!(fixture.names("bases").len(), 2, "{name} {part}");
            assert_eq!(fixture.names("tmp"), Vec::<String>::new(), "{name} {part}");
        }
    }
}

#[test]
fn a_manifest_damaged_anywhere_is_noticed_and_made_anew() {
    let fixture = Fixture::new();
    let manifest = fixture.named().unwrap().image.path().with_extension("manifest");
    let length = fs::read(&manifest).unwrap().len();
    for at in 0..length {
        let mut bytes = fs::read(&manifest).unwrap();
        bytes[at] ^= 0x01;
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, bytes).unwrap();
        fs::set_permissions(&manifest, Permissions::from_mode(0o444)).unwrap();
        assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted", "byte {at}");
    }
}

#[test]
fn the_manifest_of_another_base_is_not_believed() {
    let fixture = Fixture::new();
    let one = fixture.named().unwrap().image.path().to_owned();
    let other = fixture.get(fixture.source(), &stated(1)).unwrap().image.path().to_owned();
    fs::rename(other.with_extension("manifest"), one.with_extension("manifest")).unwrap();
    assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
}

#[test]
fn a_base_that_was_not_synced_is_good_for_one_boot() {
    let fixture = Fixture::new();
    let reboot = |manifest: &Path| {
        let mut other = Manifest::parse(&fs::read(manifest).unwrap()).unwrap();
        let synced = other.boot.is_none();
        other.boot = other.boot.map(|_| crate::sys::host::BootId([0xee; 16]));
        fs::remove_file(manifest).unwrap();
        fs::write(manifest, other.encode()).unwrap();
        fs::set_permissions(manifest, Permissions::from_mode(0o444)).unwrap();
        synced
    };
    let manifest = fixture.named().unwrap().image.path().with_extension("manifest");
    let synced = reboot(&manifest);
    let again = fixture.named().unwrap();
    assert_eq!(again.origin.as_str(), if synced { "hit" } else { "extracted" });

    let durable = BaseOptions {
        policy: KeyPolicy::Named("disk".into()),
        durability: Durability::Full,
        ..impatient()
    };
    let hardened = fixture.cache.base_with(fixture.source(), &durable).unwrap();
    assert_eq!(hardened.origin.as_str(), "hit");
    assert!(reboot(&manifest), "it is synced now");
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
}

#[test]
fn a_hit_on_a_base_whose_maker_was_killed_completing_it_takes_what_the_maker_left() {
    let fixture = Fixture::new();
    drop(fixture.named().unwrap());
    let name = fixture.names("bases").into_iter().find(|name| name.ends_with(".manifest")).unwrap();
    let path = fixture.cache.path().join("v1/bases").join(name);
    let left = fixture.cache.path().join("v1/tmp/0123456789abcdef");
    let whole = Manifest::parse(&fs::read(&path).unwrap()).unwrap();
    assert!(whole.changed.is_some());
    // A base that is complete costs its users no look into the folder.
    fs::write(&left, b"left").unwrap();
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
    assert!(left.exists());
    fs::remove_file(&path).unwrap();
    fs::write(&path, Manifest { changed: None, ..whole }.encode()).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let live = fixture.cache.layout.temporary().unwrap();
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
    assert_eq!(fixture.names("tmp").len(), 1);
    assert!(live.path().exists() && !left.exists());
}

#[test]
fn whoever_publishes_second_leaves_a_good_base_alone() {
    let fixture = Fixture::new();
    let layout = &fixture.cache.layout;
    let key = fixture.named().unwrap().image.key().unwrap().parse().unwrap();
    let inode = || fs::metadata(layout.base(&key)).unwrap().ino();
    let publish = |durability| {
        let file = layout.temporary().unwrap();
        file.file().write_all_at(&disk(1), 0).unwrap();
        let manifest = Manifest::parse(&fs::read(layout.manifest(&key)).unwrap()).unwrap();
        publish::publish(layout, file, manifest, durability).unwrap();
        assert_eq!(fixture.names("tmp"), Vec::<String>::new());
        assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
        inode()
    };
    let first = inode();
    assert_eq!(publish(Durability::None), first);
    // One that would not survive a power cut is not what was asked for, and the one that does is.
    let durable = publish(Durability::Full);
    assert_ne!(durable, first);
    assert_eq!((publish(Durability::Full), publish(Durability::None)), (durable, durable));
    // A damaged one is nothing to leave alone.
    fs::set_permissions(layout.base(&key), Permissions::from_mode(0o644)).unwrap();
    assert_ne!(publish(Durability::None), durable);
}
