//! libzstd's parameters, chosen so that threads decide nothing.
//!
//! ```text
//! level, window     the caller's; long distance matching always, since disks repeat themselves
//! workers ≥ 1       libzstd gives the same bytes for any number of workers but none
//! job, overlap      fixed for a level: where one job ends and how much the next one sees of it
//! size, checksum    in every frame: a reader knows what comes, and that it came whole
//! ```
//!
//! The bytes may differ between versions of libzstd; this crate compiles in its own. Callers: `whole`,
//! `frames`.

use zstd::zstd_safe::{self, CCtx, CParameter, InBuffer, OutBuffer};

pub(crate) use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective as EndDirective;

use crate::error::{Error, ErrorKind, Result};

/// Most threads libzstd is asked for; it takes 256 where pointers are wide.
pub(crate) const THREADS_MAX: usize = 256;

/// How hard to compress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters {
    /// 1 to 22.
    pub(crate) level: i32,
    /// Log2 of the window in bytes, 10 to 31; libzstd takes less for less content.
    pub(crate) window_log: u32,
}

/// One frame on its way.
pub(crate) struct Frame(CCtx<'static>);

impl Frame {
    /// A frame of `length` bytes. With `workers` it is cut into jobs, which as many threads do.
    ///
    /// Its context is a new one: what libzstd compressed before can decide nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is no memory; [`ErrorKind::InvalidInput`] if libzstd refuses a
    /// parameter.
    pub(crate) fn new(parameters: Parameters, length: u64, workers: Option<usize>) -> Result<Self> {
        let mut context = CCtx::try_create()
            .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd compressor"))?;
        let refused = |code| {
            let name = zstd_safe::get_error_name(code);
            Error::new(ErrorKind::InvalidInput, format!("zstd refuses a parameter: {name}"))
        };
        let mut set = |parameter| context.set_parameter(parameter).map(|_| ()).map_err(refused);
        set(CParameter::CompressionLevel(parameters.level))?;
        set(CParameter::WindowLog(parameters.window_log))?;
        set(CParameter::EnableLongDistanceMatching(true))?;
        set(CParameter::ContentSizeFlag(true))?;
        set(CParameter::ChecksumFlag(true))?;
        if let Some(workers) = workers {
            let workers = workers.clamp(1, THREADS_MAX);
            set(CParameter::NbWorkers(u32::try_from(workers).unwrap_or(1)))?;
            set(CParameter::JobSize(job_size(parameters.level)))?;
            set(CParameter::OverlapSizeLog(7))?;
        }
        context.set_pledged_src_size(Some(length)).map_err(refused)?;
        Ok(Self(context))
    }

    /// Takes from `input`, gives into `output` from `*filled` on. Returns what is left to come out,
    /// as far as libzstd knows; 0 at the end means that the frame is complete.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] for want of memory; anything else would be a mistake of ours.
    pub(crate) fn step(
        &mut self,
        input: &mut InBuffer<'_>,
        output: &mut [u8],
        filled: &mut usize,
        end: EndDirective,
    ) -> Result<usize> {
        let mut to = OutBuffer::around_pos(output, *filled);
        let outcome = self.0.compress_stream2(&mut to, input, end);
        *filled = to.pos();
        outcome.map_err(|code| {
            let name = zstd_safe::get_error_name(code);
            let kind = if name.contains("memory") { ErrorKind::Limit } else { ErrorKind::Io };
            Error::new(kind, format!("zstd cannot compress: {name}"))
        })
    }
}

/// Bytes of a job. The harder the level looks, the more it wants to see; the smaller the job, the
/// smaller the disk that keeps all cores busy.
fn job_size(level: i32) -> u32 {
    match level {
        ..=9 => 4 << 20,
        10..=15 => 16 << 20,
        _ => 64 << 20,
    }
}
