//! Verifying one base.

use std::num::NonZero;

use benches::{preparations, scratch, verifications};
use disk_engine::cache::{ImageCache, VerifyMode, VerifyOptions};

use crate::Setting;
use crate::samples::{Samples, ratio};
use crate::table::Table;

/// Most rounds of what reads every hole.
const MOST_ROUNDS: usize = 2;

/// Measures ours beside `sha256sum`.
pub fn measure(setting: &Setting) -> Table {
    let folder = scratch::empty(setting.scratch, "cache");
    let report = preparations::ours(setting.archive, &folder, &setting.scratch.join("nothing"), 0);
    let path = report.base.image.path().to_path_buf();
    drop(report);
    scratch::settle(setting.scratch);
    let cache = ImageCache::open(&folder).expect("the cache opens");
    let verify = |mode, threads: Option<usize>| {
        let threads = threads.and_then(NonZero::new);
        let options = VerifyOptions { mode, threads, ..VerifyOptions::default() };
        let report = cache.verify(&options).expect("the base is verified");
        assert_eq!(report.damaged(), 0);
    };
    let [mut quick, mut one, mut all, mut sum] = <[Samples; 4]>::default();
    for round in 0..setting.rounds {
        eprintln!("verification: round {} of {}", round + 1, setting.rounds);
        quick.time(|| verify(VerifyMode::Quick, None));
        one.time(|| verify(VerifyMode::Full, Some(1)));
        all.time(|| verify(VerifyMode::Full, None));
        if round < MOST_ROUNDS {
            let _ = sum.time(|| verifications::sha256sum(&path));
        }
    }
    let mut table =
        Table::new("Verifying a base", &["", "median", "from, to", "all cores", "runs"]);
    for (name, samples) in [
        ("disk-engine, metadata", &quick),
        ("disk-engine, every byte, 1 thread", &one),
        ("disk-engine, every byte, all cores", &all),
        ("`sha256sum`", &sum),
    ] {
        table.row([
            name.to_owned(),
            samples.typical(),
            samples.spread(),
            ratio(all.median() / samples.median()),
            samples.count().to_string(),
        ]);
    }
    table.note("From the page cache. `sha256sum` reads the holes, too.");
    table
}
