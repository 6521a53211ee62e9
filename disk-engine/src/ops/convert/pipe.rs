//! To standard output, or whatever else takes bytes in order.
//!
//! Caller: `ops::convert`.

use std::io::Write;
use std::path::Path;

use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::Origin;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::stream::StreamSink;
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    writer: &mut dyn Write,
    label: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let mut report = ConvertReport::default();
    match &options.format {
        TargetFormat::Raw { .. } => {
            let mut sink = StreamSink::new(writer, label)?;
            origin.with_extents(options, &mut report, |source| {
                pump(source, &mut sink, &options.control)
            })?;
            report.stored_bytes = report.virtual_size;
            report.file_length = report.virtual_size;
            Ok(report)
        }
        TargetFormat::Qcow2(_) => {
            Err(Error::new(ErrorKind::Unsupported, "a qcow2 image cannot be written to a pipe yet"))
        }
    }
}
