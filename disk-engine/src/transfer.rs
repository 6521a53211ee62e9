//! A stand-in for the transfer, until it lands: a bare image, copied block by block.
#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value
)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::control::{Control, Event};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::ExtentSum;
use crate::source::{Input, Source};

#[derive(Clone, Debug, Default)]
pub struct TransferOptions {
    pub expected_sha256: Option<Sha256Digest>,
    pub hash_source: bool,
    pub control: Control,
}

#[derive(Clone, Debug, Default)]
pub struct TransferReport {
    pub virtual_size: u64,
    pub written_bytes: u64,
    pub source_bytes: u64,
    pub source_sha256: Option<Sha256Digest>,
    pub extents: Vec<ExtentSum>,
}

pub fn extract_into(
    source: Source,
    file: &File,
    path: &Path,
    options: &TransferOptions,
) -> Result<TransferReport> {
    let label = source.label();
    let mut reader: Box<dyn Read> = match source.input {
        Input::Path(path) => {
            Box::new(File::open(&path).map_err(|error| Error::io("open", &path, error))?)
        }
        Input::Reader(reader, _) => reader,
    };
    let mut report = TransferReport::default();
    let mut hash = Sha256::new();
    let mut block = vec![0; 4096];
    loop {
        options.control.check()?;
        let read = reader.read(&mut block).map_err(|error| Error::io("read", &label, error))?;
        if read == 0 {
            break;
        }
        let bytes = &block[..read];
        hash.update(bytes);
        if bytes.iter().any(|&byte| byte != 0) {
            file.write_all_at(bytes, report.virtual_size)
                .map_err(|error| Error::io("write", path, error))?;
            let length = read as u64;
            report.written_bytes += length;
            report.extents.push(ExtentSum {
                offset: report.virtual_size,
                length,
                crc32: crc32fast::hash(bytes),
            });
        }
        report.virtual_size += read as u64;
        options.control.emit(&Event::Progress {
            source_bytes: report.virtual_size,
            source_length: None,
            written_bytes: report.written_bytes,
        });
    }
    report.source_bytes = report.virtual_size;
    file.set_len(report.virtual_size).map_err(|error| Error::io("size", path, error))?;
    let digest = Sha256Digest(hash.finalize().into());
    if options.expected_sha256.is_some_and(|expected| expected != digest) {
        return Err(Error::new(ErrorKind::Mismatch, "the digest is another one").with_path(label));
    }
    report.source_sha256 =
        (options.hash_source || options.expected_sha256.is_some()).then_some(digest);
    Ok(report)
}
