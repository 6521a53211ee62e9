//! An image of ours as a target, and as a reader finds it.
//!
//! ```text
//! ImageTarget ─▶ WritableImage ─▶ FaultStorage ─▶ Recording     calls of a program
//!      │  snapshots: closed, stored in the Lab, qemu-img, loaded, opened
//! content(files) ─▶ Image ─▶ the disk                           states a crash left
//! ```
//!
//! Callers: `image_crash`, `image_faults`, `image_model`, `image_differential`.

use qcow2_format::image::{
    DetectZeroes, Discard, Durability as Sync, WritableImage, WriteOptions, ZeroMode,
};
use qcow2_format::{Error, GuestOffset, Image, ReadOptions, WriteAt};

use super::{Call, Durability, Failure, Lab, Shape, Target};
use crate::faulty::{FaultStorage, Faults, Kind};
use crate::model::Change;
use crate::recording::Recording;
use crate::sparse::Sparse;

/// How an image of this shape is written.
#[must_use]
pub fn write_options(shape: &Shape) -> WriteOptions {
    let options = WriteOptions::new()
        .durability(match shape.durability {
            Durability::None => Sync::None,
            Durability::Flush => Sync::Flush,
            Durability::Full => Sync::Full,
        })
        .detect_zeroes(
            [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap]
                [shape.detect_zeroes as usize],
        )
        .discard(if shape.ignore_discards { Discard::Ignore } else { Discard::Unmap })
        .below(shape.backing.map_or(0, |backing| backing.length))
        .threads(2);
    if shape.small_caches {
        return options.l2_cache(1).l2_slice(512).refcount_cache(1).cluster_cache(1);
    }
    options
}

/// Opens an image, and its data file, for writing.
///
/// # Errors
///
/// What the writer says.
pub fn open<S: WriteAt + std::marker::Sync>(
    shape: &Shape,
    mut storages: Vec<S>,
) -> Result<WritableImage<S>, Error> {
    let options = write_options(shape);
    let data = (storages.len() > 1).then(|| storages.pop()).flatten();
    let image = storages.pop().expect("an image has a file");
    match data {
        None => WritableImage::open(image, &options),
        Some(data) => WritableImage::open_with_data(image, data, &options),
    }
}

/// What the backing file holds for `buffer`: zeros where it has ended.
pub fn below(base: &[u8], buffer: &mut [u8], offset: GuestOffset) {
    let start = usize::try_from(offset.0).map_or(base.len(), |start| start.min(base.len()));
    let count = buffer.len().min(base.len() - start);
    buffer[..count].copy_from_slice(&base[start..start + count]);
    buffer[count..].fill(0);
}

/// What a reader finds on the disk of an image, or in one of its snapshots.
///
/// # Errors
///
/// What the reader says.
pub fn content(files: &[Sparse], base: &[u8], snapshot: Option<&str>) -> Result<Vec<u8>, Error> {
    let mut options = ReadOptions::new().threads(1);
    if let Some(name) = snapshot {
        options = options.snapshot(name);
    }
    let image = match files {
        [image, data] => Image::open_with_data(image, data, &options)?,
        _ => Image::open(&files[0], &options)?,
    };
    let mut disk = vec![0; image.virtual_size() as usize];
    image.read_over(&mut disk, GuestOffset(0), |buffer, offset| {
        below(base, buffer, offset);
        Ok::<_, Error>(())
    })?;
    Ok(disk)
}

/// An image that is written.
#[derive(Debug)]
pub struct ImageTarget<'a> {
    lab: &'a Lab,
    shape: Shape,
    base: Vec<u8>,
    /// What is done to its files.
    pub recording: Recording,
    /// How they fail.
    pub faults: Faults,
    image: Option<WritableImage<FaultStorage>>,
    /// A fault nobody was told of.
    pub swallowed: Option<String>,
    /// Whether a flush has failed since the image was opened.
    flush_failed: bool,
}

impl<'a> ImageTarget<'a> {
    /// The image in these files; it is opened by the first call.
    #[must_use]
    pub fn new(lab: &'a Lab, shape: &Shape, files: Vec<Sparse>, faults: Faults) -> Self {
        Self {
            lab,
            shape: shape.clone(),
            base: shape.base(),
            recording: Recording::new(files),
            faults,
            image: None,
            swallowed: None,
            flush_failed: false,
        }
    }

    fn image(&mut self) -> Result<&WritableImage<FaultStorage>, Error> {
        if self.image.is_none() {
            let files = if self.shape.data_file.is_some() { 2 } else { 1 };
            let storages = (0..files).map(|file| self.faults.storage(self.recording.storage(file)));
            self.image = Some(open(&self.shape, storages.collect())?);
            self.flush_failed = false;
        }
        Ok(self.image.as_ref().expect("just opened"))
    }

    /// Closes the image.
    ///
    /// # Errors
    ///
    /// What the writer says.
    pub fn close(&mut self) -> Result<(), Error> {
        self.image.take().map_or(Ok(()), WritableImage::close)
    }

    fn snapshot(&mut self, verb: &str, name: &str) -> Result<bool, Error> {
        self.close()?;
        self.lab.store(&self.recording.files());
        let done = self.lab.snapshot(verb, name);
        if done {
            self.recording.replace(0, self.lab.load().swap_remove(0));
        }
        self.image()?;
        Ok(done)
    }

    fn happen(&mut self, call: &Call, change: Option<&Change>, name: &str) -> Result<bool, Error> {
        let data = change.map_or(&[][..], |change| &change.data);
        match *call {
            Call::Close => {
                let closed = self.close();
                self.image()?;
                closed?;
            }
            Call::Drop => {
                drop(self.image.take());
                self.image()?;
            }
            Call::Kill => {
                self.faults.kill();
                drop(self.image.take());
                self.image()?;
            }
            Call::Snapshot => return self.snapshot("-c", name),
            Call::Forget => return self.snapshot("-d", name),
            _ => {}
        }
        let base = std::mem::take(&mut self.base);
        let fill = |buffer: &mut [u8], offset| {
            below(&base, buffer, offset);
            Ok::<_, Error>(())
        };
        let image = self.image();
        let done = image.and_then(|image| match *call {
            Call::Write { offset, .. } => image.write_over(data, GuestOffset(offset), fill),
            Call::Zero { offset, length, unmap } => {
                let mode = if unmap { ZeroMode::Unmap } else { ZeroMode::Keep };
                image.write_zeroes_over(GuestOffset(offset), length, mode, fill)
            }
            Call::Discard { offset, length } => image.discard(GuestOffset(offset), length),
            Call::Compress { offset, .. } => image.write_compressed(data, GuestOffset(offset)),
            Call::Flush => image.flush(),
            _ => Ok(()),
        });
        self.base = base;
        done.map(|()| true)
    }
}

impl Target for ImageTarget<'_> {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        self.faults.suspend(true);
        let base = std::mem::take(&mut self.base);
        let read = self.image().and_then(|image| {
            image.read_over(buffer, GuestOffset(offset), |buffer, offset| {
                below(&base, buffer, offset);
                Ok::<_, Error>(())
            })
        });
        self.base = base;
        self.faults.suspend(false);
        Ok(read?)
    }

    fn call(&mut self, call: &Call, change: Option<&Change>, name: &str) -> Result<bool, Failure> {
        let before = self.faults.failed().len();
        let flush_failed = self.flush_failed;
        let happened = self.happen(call, change, name);
        let failed = self.faults.failed().split_off(before);
        // Space that is not given back, or not taken ahead of time, harms nobody; and a drop has
        // nobody to tell.
        let harmless = |kind: &Kind| matches!(kind, Kind::Punch | Kind::Allocate);
        let ends = matches!(call, Call::Drop | Call::Kill);
        if happened.is_ok() && !ends && !failed.iter().all(harmless) {
            self.swallowed = Some(format!("{call} succeeded though {failed:?} failed"));
        }
        let flushes = matches!(call, Call::Flush | Call::Close | Call::Snapshot | Call::Forget);
        // Those end with another image, which has lost nothing.
        let ends = ends || flushes && *call != Call::Flush;
        self.flush_failed |= failed.contains(&Kind::Flush) && !ends;
        if happened.is_ok() && flush_failed && flushes {
            self.swallowed = Some(format!("{call} succeeded after a flush had failed"));
        }
        Ok(happened?)
    }

    fn position(&self) -> usize {
        self.recording.position()
    }
}
