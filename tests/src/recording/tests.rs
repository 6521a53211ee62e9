//! States a crash may leave, against what was done.

use std::collections::BTreeSet;

use super::*;
use crate::random::Random;

/// Two files: 1024 bytes in the first one, nothing in the second.
fn recording() -> Recording {
    Recording::new(vec![Sparse::new(&[1; 1024]), Sparse::default()])
}

#[test]
fn a_kill_keeps_what_was_done() {
    let recording = recording();
    let (one, two) = (recording.storage(0), recording.storage(1));
    one.write_all_at(&[2; 600], 900).unwrap();
    two.write_zeros_at(0, 100).unwrap();
    one.set_length(950).unwrap();
    let mut replay = recording.replay();
    assert_eq!(replay.killed()[0].length(), 1024);
    assert!(replay.advance());
    assert_eq!(replay.killed()[0].length(), 1500);
    assert_eq!(replay.killed()[0].bytes(890, 20), [[1; 10], [2; 10]].concat());
    assert_eq!(replay.killed()[1].length(), 0);
    assert!(replay.advance() && replay.advance() && !replay.advance());
    assert_eq!(replay.killed()[0].length(), 950);
    assert_eq!(replay.killed()[1].length(), 100);
    assert_eq!(replay.killed(), recording.files());
}

#[test]
fn a_kill_in_a_write_leaves_whole_sectors_of_its_beginning() {
    let recording = recording();
    recording.storage(0).write_all_at(&[2; 1000], 100).unwrap();
    let (replay, mut random) = (recording.replay(), Random(3));
    let mut ends = BTreeSet::new();
    for _ in 0..50 {
        let files = replay.cut_short(&mut random).unwrap();
        let bytes = files[0].bytes(0, 2048);
        let end = 100 + bytes[100..].iter().take_while(|byte| **byte == 2).count();
        assert_eq!(bytes[..100], [1; 100]);
        assert!(bytes[end..1024].iter().all(|byte| *byte == 1));
        ends.insert(end);
    }
    assert_eq!(ends, BTreeSet::from([512, 1024]));
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let recording = recording();
    let storage = recording.storage(0);
    storage.write_all_at(&[2; 512], 0).unwrap();
    storage.flush().unwrap();
    // The other file's flush is not this one's.
    storage.write_all_at(&[3; 256], 0).unwrap();
    storage.write_all_at(&[4; 256], 256).unwrap();
    storage.write_all_at(&[5; 1024], 512).unwrap();
    recording.storage(1).flush().unwrap();
    let mut replay = recording.replay();
    while replay.advance() {}
    assert_eq!(replay.unflushed(), 3);
    let mut random = Random(4);
    let (mut firsts, mut seconds, mut lengths) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..2000 {
        let file = replay.power_loss(&mut random).swap_remove(0);
        let bytes = file.bytes(0, 2048);
        firsts.insert((bytes[0], bytes[255], bytes[256], bytes[511]));
        seconds.insert((bytes[512], bytes[1023], bytes[1024], bytes[1535]));
        lengths.insert(file.length());
    }
    // A sector is as it was at some time, never a mixture that never was.
    let all = [(2, 2, 2, 2), (3, 3, 2, 2), (3, 3, 4, 4)];
    assert_eq!(firsts, BTreeSet::from(all));
    let all = [(1, 1, 0, 0), (1, 1, 5, 5), (5, 5, 0, 0), (5, 5, 5, 5)];
    assert_eq!(seconds, BTreeSet::from(all));
    assert_eq!(lengths, BTreeSet::from([1024, 1536]));
    assert_eq!(replay.power_loss_keeping(0)[0].bytes(0, 1024), [[2; 512], [1; 512]].concat());
    assert_eq!(replay.power_loss_keeping(0b111)[0], replay.killed()[0]);
}

#[test]
fn a_failed_flush_promises_nothing_and_a_replaced_file_is_durable() {
    let recording = recording();
    let storage = recording.storage(0);
    storage.write_all_at(&[2; 512], 0).unwrap();
    storage.note(Action::FailedFlush);
    let mut replay = recording.replay();
    while replay.advance() {}
    assert_eq!(replay.power_loss_keeping(0)[0].bytes(0, 1), [1]);
    recording.replace(0, Sparse::new(&[7; 10]));
    let mut replay = recording.replay();
    while replay.advance() {}
    assert_eq!(replay.power_loss_keeping(0)[0], Sparse::new(&[7; 10]));
}
