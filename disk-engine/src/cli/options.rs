//! qemu-img's `-o KEY=VALUE,…` for new qcow2 images.

use qcow2_format::create::{BackingFormat, CreateOptions};
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::image::Preallocation;
use qcow2_format::{ClusterBits, RefcountOrder};

use crate::base::BaseFormat;
use crate::cli::size;
use crate::error::{Error, ErrorKind, Result};

/// What the options say, before size and backing file are settled.
#[derive(Debug)]
pub(crate) struct ImageOptions {
    pub(crate) image: CreateOptions,
    pub(crate) size: Option<u64>,
    pub(crate) backing_file: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
    pub(crate) data_file_raw: bool,
}

/// Parses every `-o` of a command line; later values win.
pub(crate) fn parse(arguments: &[String]) -> Result<ImageOptions> {
    let mut options = ImageOptions {
        image: CreateOptions::new(0),
        size: None,
        backing_file: None,
        backing_format: None,
        data_file: None,
        data_file_raw: false,
    };
    for argument in arguments {
        for option in split(argument) {
            let (key, value) = option.split_once('=').unwrap_or((&option, "on"));
            options.set(key, value)?;
        }
    }
    Ok(options)
}

/// Splits at commas; two of them stand for one that belongs to a value.
fn split(argument: &str) -> Vec<String> {
    let escaped = argument.replace(",,", "\0");
    escaped.split(',').filter(|o| !o.is_empty()).map(|option| option.replace('\0', ",")).collect()
}

impl ImageOptions {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let wrong = |expected: &str| invalid(key, value, expected);
        let image = self.image.clone();
        self.image = match key {
            "size" => {
                self.size = Some(size::parse(value).map_err(|_| wrong("a size"))?);
                image
            }
            "backing_file" => {
                self.backing_file = Some(value.to_owned());
                image
            }
            "backing_fmt" => {
                self.backing_format = Some(value.to_owned());
                image
            }
            "compat" => image.version(match value {
                "0.10" | "v2" => Version::V2,
                "1.1" | "v3" => Version::V3,
                _ => return Err(wrong("0.10 or 1.1")),
            }),
            "cluster_size" => image.cluster_bits(
                size::parse(value)
                    .ok()
                    .and_then(ClusterBits::from_bytes)
                    .ok_or_else(|| wrong("a power of two from 512 to 2M"))?,
            ),
            "refcount_bits" => image.refcount_order(
                value
                    .parse()
                    .ok()
                    .and_then(RefcountOrder::from_bits)
                    .ok_or_else(|| wrong("a power of two from 1 to 64"))?,
            ),
            "lazy_refcounts" => image.lazy_refcounts(on_off(key, value)?),
            "extended_l2" => image.extended_l2(on_off(key, value)?),
            "compression_type" => image.compression_type(match value {
                "zlib" => CompressionType::Zlib,
                "zstd" => CompressionType::Zstd,
                _ => return Err(wrong("zlib or zstd")),
            }),
            "preallocation" => image.preallocation(match value {
                "off" => Preallocation::Off,
                "metadata" => Preallocation::Metadata,
                "falloc" => Preallocation::Falloc,
                "full" => Preallocation::Full,
                _ => return Err(wrong("off, metadata, falloc or full")),
            }),
            "data_file" => {
                self.data_file = Some(value.to_owned());
                image
            }
            "data_file_raw" => {
                self.data_file_raw = on_off(key, value)?;
                image
            }
            "encryption" | "nocow" if !on_off(key, value)? => image,
            "encryption" | "nocow" => {
                return Err(unsupported(key, value));
            }
            _ if key.starts_with("encrypt.") => return Err(unsupported(key, value)),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("\"{}\" is no option of qcow2", key.escape_debug()),
                )
                .with_field("-o"));
            }
        };
        Ok(())
    }
}

/// The backing format of that name.
pub(crate) fn backing_format(name: &str) -> BackingFormat {
    match name {
        "raw" => BackingFormat::Raw,
        "qcow2" => BackingFormat::Qcow2,
        other => BackingFormat::Other(other.as_bytes().to_vec()),
    }
}

/// As [`backing_format`], of a file that is read.
pub(crate) fn base_format(name: &str) -> Result<BaseFormat> {
    match name {
        "raw" => Ok(BaseFormat::Raw),
        "qcow2" => Ok(BaseFormat::Qcow2),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("images of format \"{}\" are not read", other.escape_debug()),
        )),
    }
}

fn on_off(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(invalid(key, value, "on or off")),
    }
}

fn invalid(key: &str, value: &str, expected: &str) -> Error {
    let (key, value) = (key.escape_debug(), value.escape_debug());
    Error::new(ErrorKind::InvalidInput, format!("{key} is \"{value}\" and must be {expected}"))
        .with_field("-o")
}

fn unsupported(key: &str, value: &str) -> Error {
    let (key, value) = (key.escape_debug(), value.escape_debug());
    Error::new(ErrorKind::Unsupported, format!("the option {key}={value} is not supported"))
        .with_field("-o")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(option: &str) -> ErrorKind {
        parse(&[option.to_owned()]).unwrap_err().kind()
    }

    #[test]
    fn qemu_imgs_names_mean_what_they_mean_there() {
        let options = parse(&[
            "compat=1.1,cluster_size=2M,refcount_bits=1".to_owned(),
            "lazy_refcounts,extended_l2=on,compression_type=zstd,size=1.5G,preallocation=off"
                .to_owned(),
            "backing_file=a,,b,backing_fmt=raw".to_owned(),
        ])
        .unwrap();
        let expected = CreateOptions::new(0)
            .cluster_bits(ClusterBits::MAX)
            .refcount_order(RefcountOrder::from_bits(1).unwrap())
            .lazy_refcounts(true)
            .extended_l2(true)
            .compression_type(CompressionType::Zstd);
        assert_eq!(options.image, expected);
        assert_eq!(options.size, Some(3 << 29));
        assert_eq!(options.backing_file.as_deref(), Some("a,b"));
        assert_eq!(options.backing_format.as_deref(), Some("raw"));
    }

    #[test]
    fn what_is_not_supported_is_said_by_name() {
        for option in ["encrypt.format=luks", "nocow=on"] {
            assert_eq!(refused(option), ErrorKind::Unsupported, "{option}");
        }
        for option in ["colour=red", "cluster_size=3", "compat=2", "refcount_bits=3", "nocow=x"] {
            assert_eq!(refused(option), ErrorKind::InvalidInput, "{option}");
        }
    }
}
