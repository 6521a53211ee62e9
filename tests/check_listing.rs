//! What a check tells of an image with thousands of findings.
//!
//! ```text
//! thousands of entries damaged ─┬▶ called as qemu-img: its lines, in its order, all of them
//!                               └▶ our command: the first ones, the rest counted; the counts qemu-img's
//! ```

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use testkit::damage::Map;
use testkit::qemu::img_in;
use testkit::tool;

/// The command, as the suite is built with it.
const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// An image of 16,384 clusters: 11,000 flags are wrong, some reserved bits set, some clusters leak.
fn damaged(folder: &Path) {
    let options = "cluster_size=512,preallocation=metadata";
    img_in(folder, &["create", "-q", "-f", "qcow2", "-o", options, "image", "8M"]);
    let mut bytes = fs::read(folder.join("image")).unwrap();
    let map = Map::new(&bytes);
    let tables: Vec<u64> = map.l1().iter().map(|at| map.number(*at, 8) << 8 >> 8).collect();
    let block = map.block();
    let entries = tables.iter().flat_map(|table| (0..64).map(move |entry| table + 8 * entry));
    for (number, at) in entries.enumerate() {
        match number {
            0..11_000 => bytes[at as usize] ^= 0x80,
            11_000..11_700 => bytes[at as usize + 7] ^= 2,
            _ => {}
        }
    }
    // The last clusters that the first block counts.
    for cluster in 200..256 {
        bytes[block as usize + 2 * cluster + 1] += 1;
    }
    fs::write(folder.join("image"), bytes).unwrap();
}

fn start(folder: &Path, program: &str, words: &[&str]) -> Output {
    Command::new(program).current_dir(folder).args(words).output().unwrap()
}

#[test]
fn thousands_of_findings_are_told_as_qemu_img_does_or_counted() {
    if !tool::available("checks with many findings", &["qemu-img"]) {
        return;
    }
    let folder = tool::memory_folder();
    let folder = folder.path();
    damaged(folder);
    let theirs = start(folder, "qemu-img", &["check", "--output=json", "image"]);
    let ours = start(folder, ENGINE, &["qemu-img", "check", "--output=json", "image"]);
    let lines = |output: &Output| {
        String::from_utf8(output.stderr.clone()).unwrap().lines().map(str::to_owned).collect()
    };
    let (ours_said, theirs_said): (Vec<_>, Vec<_>) = (lines(&ours), lines(&theirs));
    assert!(theirs_said.len() > 11_000, "{}", theirs_said.len());
    let first = ours_said.iter().zip(&theirs_said).position(|(ours, theirs)| ours != theirs);
    let at = first.unwrap_or(ours_said.len().min(theirs_said.len()));
    assert!(
        ours_said == theirs_said,
        "line {at}: {:?} {:?}",
        ours_said.get(at),
        theirs_said.get(at)
    );
    assert_eq!((ours.status.code(), &ours.stdout), (theirs.status.code(), &theirs.stdout));

    let counts: serde_json::Value = serde_json::from_slice(&theirs.stdout).unwrap();
    for (list, most) in [(None, 1000), (Some("0"), 0), (Some("7"), 7), (Some("all"), usize::MAX)] {
        let words =
            [&["--json", "check", "image"][..], &[list.map_or("--threads=2", |_| "--list")]];
        let words = [&words.concat()[..], list.as_slice()].concat();
        let ours = start(folder, ENGINE, &words);
        let mut said: Vec<String> = lines(&ours);
        let mut report: serde_json::Value = serde_json::from_slice(&ours.stdout).unwrap();
        let unlisted = report.as_object_mut().unwrap().remove("not-listed");
        assert_eq!((ours.status.code(), &report), (theirs.status.code(), &counts), "{words:?}");
        let total = counts["corruptions"].as_u64().unwrap() + counts["leaks"].as_u64().unwrap();
        if most == usize::MAX {
            assert_eq!((said.len() as u64, unlisted), (total, None));
            continue;
        }
        let kinds = unlisted.unwrap().as_object().unwrap().clone();
        let behind = said.split_off(most);
        assert_eq!(behind.len(), 1 + kinds.len(), "{behind:?}");
        let unlisted: u64 = kinds.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(said.len() as u64 + unlisted, total, "{kinds:?}");
        assert!(kinds.keys().all(|kind| behind.iter().any(|line| line.ends_with(&**kind))));
    }
}
