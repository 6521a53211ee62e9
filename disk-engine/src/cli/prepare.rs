//! `disk-engine prepare`: the main job, and what it cost in time and space.

use std::fmt::Write;
use std::io::Cursor;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::attachment::Disk;
use crate::cache::{BaseOptions, ImageCache, KeyPolicy};
use crate::cli::source::SourceOptions;
use crate::cli::{Output, progress, size};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::boot::{BootExit, BootOptions, BootReport, boot};
use crate::ops::boot_image::BOOT_IMAGE;
use crate::ops::prepare::{PrepareOptions, PrepareReport, PreparedDisk, prepare};
use crate::source::Source;
use crate::strategy::{Copied, Provided, Strategy};

/// Prepare the disks of N VMs from one archive: the main job
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The archive or image; '-' reads standard input; a small bootable image unless given
    source: Option<PathBuf>,
    /// Number of VMs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    nodes: u32,
    /// Where their folders go: DIR/vm0/primary.qcow2, …; a raw disk is DIR/vm0/primary.img
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The cache's folder; DIR/cache unless given
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Least size of each disk, as in 50G; the base's size is never cut
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    min_size: Option<u64>,
    /// How the disks are made; auto makes overlays, or for --raw reflinks where possible, else copies
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = strategy)]
    strategy: Strategy,
    /// Make raw disks, which need no base afterwards
    #[arg(long)]
    raw: bool,
    /// Refuse to start unless each disk can grow by this much, as in 10G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    reserve: Option<u64>,
    /// What makes it the same base: content, sha256:HEX (verified) or name:NAME (vouched for)
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    key: Option<KeyPolicy>,
    #[command(flatten)]
    options: SourceOptions,
    /// Name the base relative to each overlay's folder, so that the tree can move as a whole
    #[arg(long)]
    relative: bool,
    /// Replace disks that stand there, instead of keeping those that fit
    #[arg(long)]
    fresh: bool,
    /// Boot each disk once under QEMU and show what its serial port says
    #[arg(long)]
    boot: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    base: BaseReport,
    disks: Vec<DiskReport>,
    seconds: f64,
    base_seconds: f64,
    disks_seconds: f64,
    /// Bytes the base and all disks take together; storage that is shared counts each time.
    actual_size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct BaseReport {
    path: String,
    key: Option<String>,
    origin: &'static str,
    virtual_size: u64,
    actual_size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct DiskReport {
    filename: String,
    format: &'static str,
    /// What the disk was made by, whatever was asked for.
    strategy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied: Option<CopiedReport>,
    virtual_size: u64,
    actual_size: u64,
    reused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<Boot>,
}

/// What a copy came to.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CopiedReport {
    /// Bytes the kernel copied from file to file.
    offloaded: u64,
    /// Bytes that were read and written.
    written: u64,
    /// Whether the file shares storage with others, where the file system says.
    shared: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Boot {
    serial: String,
    exit: String,
    seconds: f64,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let (source, default_key) = source(&arguments);
    let cache =
        ImageCache::open(arguments.cache.clone().unwrap_or_else(|| arguments.dir.join("cache")))?;
    let (control, drawing) = progress::draw(output);
    let options = PrepareOptions {
        nodes: arguments.nodes as usize,
        folder: arguments.dir.clone(),
        min_size: arguments.min_size.unwrap_or(0),
        strategy: arguments.strategy,
        raw: arguments.raw,
        reserve: arguments.reserve.unwrap_or(0),
        relative: arguments.relative,
        fresh: arguments.fresh,
        base: BaseOptions {
            policy: arguments.key.clone().unwrap_or(default_key),
            control,
            ..BaseOptions::default()
        },
    };
    let prepared = prepare(&cache, source, &options)?;
    drop(drawing);

    let mut report = Report::of(&prepared);
    if arguments.boot {
        for (prepared_disk, disk) in prepared.disks.iter().zip(&mut report.disks) {
            let booted = boot(
                &Disk::provided(&prepared_disk.disk, &prepared.base.image)?,
                &BootOptions::default(),
            )?;
            check_boot(&booted, arguments.source.is_none(), &disk.filename)?;
            disk.boot = Some(Boot::of(&booted));
        }
    }
    output.report(&report, &render(&report))
}

/// The archive, and the key it is cached under unless the caller chooses one.
fn source(arguments: &Arguments) -> (Source, KeyPolicy) {
    match &arguments.source {
        None => {
            let digest = Sha256Digest(Sha256::digest(BOOT_IMAGE).into());
            let source = Source::reader(Cursor::new(BOOT_IMAGE), "the built-in boot image");
            (arguments.options.apply(source), KeyPolicy::Stated(digest))
        }
        Some(path) => (arguments.options.at(path), KeyPolicy::default()),
    }
}

/// The built-in image says that it booted; of another nothing more is known than that QEMU ran it.
fn check_boot(booted: &BootReport, built_in: bool, disk: &str) -> Result<()> {
    let greeted = booted.serial.contains("disk-engine boot=");
    if built_in && !(greeted && booted.exit == BootExit::Wrote(0)) {
        return Err(Error::new(
            ErrorKind::Io,
            format!("the disk did not boot; its serial port said {:?}", booted.serial),
        )
        .with_path(disk));
    }
    Ok(())
}

impl Report {
    fn of(prepared: &PrepareReport) -> Self {
        let base = &prepared.base;
        let disks: Vec<_> = prepared
            .disks
            .iter()
            .map(|PreparedDisk { disk, allocated }| DiskReport {
                filename: disk.path().to_string_lossy().into_owned(),
                format: disk.format().as_str(),
                strategy: disk.how().as_str(),
                copied: copied(disk.how()),
                virtual_size: disk.virtual_size(),
                actual_size: *allocated,
                reused: disk.reused(),
                boot: None,
            })
            .collect();
        Self {
            seconds: seconds(prepared.base_time + prepared.disks_time),
            base_seconds: seconds(prepared.base_time),
            disks_seconds: seconds(prepared.disks_time),
            actual_size: base.allocated + disks.iter().map(|disk| disk.actual_size).sum::<u64>(),
            base: BaseReport {
                path: base.image.path().to_string_lossy().into_owned(),
                key: base.image.key().map(str::to_owned),
                origin: base.origin.as_str(),
                virtual_size: base.image.virtual_size(),
                actual_size: base.allocated,
            },
            disks,
        }
    }
}

impl Boot {
    fn of(booted: &BootReport) -> Self {
        let exit = match booted.exit {
            BootExit::PoweredOff => "powered off".to_owned(),
            BootExit::Wrote(value) => format!("exit code {value}"),
            BootExit::TimedOut => "still running".to_owned(),
        };
        Self { serial: booted.serial.clone(), exit, seconds: seconds(booted.duration) }
    }
}

fn render(report: &Report) -> String {
    let base = &report.base;
    let mut text = format!(
        "base   {:?}  raw, read-only, {} overlays on it\n       {} of disk in {} of storage, {} in {:.3} s\n",
        base.path,
        report.disks.iter().filter(|disk| disk.strategy == Strategy::Overlay.as_str()).count(),
        size::human(base.virtual_size),
        size::human(base.actual_size),
        base.origin,
        report.base_seconds,
    );
    for (node, disk) in report.disks.iter().enumerate() {
        let _ = writeln!(
            text,
            "vm{node:<4} {:?}  {}, read-write, {}, {} of disk in {}{}",
            disk.filename,
            disk.format,
            match (disk.reused, disk.strategy) {
                (true, _) => "kept".to_owned(),
                (false, strategy) => format!("new {strategy}"),
            },
            size::human(disk.virtual_size),
            size::human(disk.actual_size),
            match &disk.copied {
                Some(CopiedReport { shared: Some(true), .. }) => ", shared with the base",
                _ => "",
            },
        );
        if let Some(boot) = &disk.boot {
            let said = boot.serial.trim_end().escape_debug();
            let _ = writeln!(text, "       booted in {:.2} s, {}: {said}", boot.seconds, boot.exit);
        }
    }
    let copies = base.actual_size.saturating_mul(report.disks.len() as u64);
    let _ = writeln!(
        text,
        "total  {} disks in {:.6} s beyond the base; {} of storage, {} as copies",
        report.disks.len(),
        report.disks_seconds,
        size::human(report.actual_size),
        size::human(copies),
    );
    text
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn copied(how: Provided) -> Option<CopiedReport> {
    match how {
        Provided::Copy(Copied { offloaded, written, shared }) => {
            Some(CopiedReport { offloaded, written, shared })
        }
        _ => None,
    }
}

fn strategy(name: &str) -> Result<Strategy, String> {
    Strategy::ALL.into_iter().find(|strategy| strategy.as_str() == name).ok_or_else(|| {
        let names = Strategy::ALL.map(Strategy::as_str).join(", ");
        format!("one of {names}")
    })
}

fn parse_key(text: &str) -> Result<KeyPolicy> {
    text.parse()
}
