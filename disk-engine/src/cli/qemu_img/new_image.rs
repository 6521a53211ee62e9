//! What `-o` asks of a new image, as the format library takes it, with qemu-img's objections in its order.
//!
//! ```text
//! cluster_size=4k,compat=1.1 … ─▶ Opts ─▶ CreateOptions, or what qemu-img says against it
//! ```
//!
//! Callers: `create`, `convert`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use qcow2_format::create::{BackingFile, BackingFormat, DataFile};
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::image::Preallocation;
use qcow2_format::{ClusterBits, CreateOptions, RefcountOrder};

use super::image;
use super::opts::Opts;

/// The preallocation that is asked of a raw disk.
pub(super) fn raw_preallocation(asked: &Opts) -> Result<Preallocation, String> {
    match preallocation(asked) {
        Ok(Preallocation::Metadata) => Err("Unsupported preallocation mode: metadata".to_owned()),
        Ok(preallocation) => Ok(preallocation),
        Err(mode) => Err(format!("invalid parameter value: {mode}")),
    }
}

/// Whether the word for a raw disk's preallocation is one, which qemu-img asks before it makes the file.
pub(super) fn check_raw_preallocation(asked: &Opts) -> Result<(), String> {
    preallocation(asked).map(drop).map_err(|mode| format!("invalid parameter value: {mode}"))
}

/// The preallocation that is asked for; the word that is none.
fn preallocation(asked: &Opts) -> Result<Preallocation, String> {
    match asked.text("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(other.to_owned()),
    }
}

/// The image that options describe, with qemu-img's objections in its order.
pub(super) fn qcow2(backing: Option<&OsStr>, asked: &Opts) -> Result<CreateOptions, String> {
    let unsupported =
        |option: &str| format!("the option '{option}' is not supported by this program");
    if let Some(format) = asked.text("encrypt.format") {
        if !matches!(format, "aes" | "luks" | "qcow") {
            return Err(format!("Parameter 'format' does not accept value '{format}'"));
        }
        return Err(unsupported("encrypt.format"));
    }
    if asked.any("encrypt.") {
        return Err("Parameter 'encrypt.format' is missing".to_owned());
    }
    if asked.is_on("encryption") {
        return Err(unsupported("encryption"));
    }
    let compression = match asked.text("compression_type") {
        None | Some("zlib") => CompressionType::Zlib,
        Some("zstd") => CompressionType::Zstd,
        Some(other) => {
            return Err(format!("Parameter 'compression-type' does not accept value '{other}'"));
        }
    };
    let preallocation = preallocation(asked)
        .map_err(|mode| format!("Parameter 'preallocation' does not accept value '{mode}'"))?;
    if let Some(format) = asked.text("backing_fmt").filter(|format| !image::is_known(format)) {
        return Err(format!("Parameter 'backing-fmt' does not accept value '{format}'"));
    }
    let version = match asked.text("compat") {
        None | Some("1.1" | "v3") => Version::V3,
        Some("0.10" | "v2") => Version::V2,
        Some(other) => return Err(format!("Parameter 'version' does not accept value '{other}'")),
    };
    let data_file = asked.text("data_file");
    if data_file == Some("") {
        return Err("Could not create '': No such file or directory".to_owned());
    }
    let cluster_size = asked.number("cluster_size").unwrap_or(65536);
    let cluster_bits = ClusterBits::from_bytes(cluster_size)
        .ok_or("Cluster size must be a power of two between 512 and 2048k")?;
    let extended_l2 = asked.is_on("extended_l2");
    if extended_l2 && cluster_bits < ClusterBits::EXTENDED_L2_MIN {
        return Err(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
                .to_owned(),
        );
    }
    if extended_l2 && version == Version::V2 {
        return Err(needs_v3(
            "Extended L2 entries are only supported with compatibility level 1.1 and \
                             above",
        ));
    }
    if preallocation != Preallocation::Off && backing.is_some() && !extended_l2 {
        return Err(
            "Backing file and preallocation can only be used at the same time if extended_l2 \
                    is on"
                .to_owned(),
        );
    }
    if asked.text("backing_fmt").is_some() && backing.is_none() {
        return Err("Backing format cannot be used without backing file".to_owned());
    }
    let lazy_refcounts = asked.is_on("lazy_refcounts");
    if lazy_refcounts && version == Version::V2 {
        return Err(needs_v3(
            "Lazy refcounts only supported with compatibility level 1.1 and above",
        ));
    }
    let refcount_bits = asked.number("refcount_bits").unwrap_or(16);
    let refcount_order = u32::try_from(refcount_bits)
        .ok()
        .and_then(RefcountOrder::from_bits)
        .ok_or("Refcount width must be a power of two and may not exceed 64 bits")?;
    if version == Version::V2 && refcount_order != RefcountOrder::DEFAULT {
        return Err(needs_v3(
            "Different refcount widths than 16 bits require compatibility level 1.1 \
                             or above",
        ));
    }
    let raw_data = asked.is_on("data_file_raw");
    if raw_data && data_file.is_none() {
        return Err("data-file-raw requires data-file".to_owned());
    }
    if raw_data && backing.is_some() {
        return Err("Backing file and data-file-raw cannot be used at the same time".to_owned());
    }
    if data_file.is_some() && version == Version::V2 {
        return Err(needs_v3(
            "External data files are only supported with compatibility level 1.1 and above",
        ));
    }
    if compression != CompressionType::Zlib && version == Version::V2 {
        return Err(needs_v3(
            "Non-zlib compression type is only supported with compatibility level 1.1 \
                             and above",
        ));
    }
    let mut image = CreateOptions::new(asked.number("size").unwrap_or(0))
        .version(version)
        .cluster_bits(cluster_bits)
        .refcount_order(refcount_order)
        .extended_l2(extended_l2)
        .lazy_refcounts(lazy_refcounts)
        .compression_type(compression)
        .preallocation(preallocation);
    if let Some(name) = backing {
        let format = match asked.text("backing_fmt") {
            Some("raw") => BackingFormat::Raw,
            Some("qcow2") => BackingFormat::Qcow2,
            Some(other) => BackingFormat::Other(other.as_bytes().to_vec()),
            None => return Err("Backing file specified without backing format".to_owned()),
        };
        image = image.backing(BackingFile::new(name.as_bytes(), format));
    }
    if let Some(name) = data_file {
        image = image.data_file(DataFile::new(name, raw_data));
    }
    Ok(image)
}

fn needs_v3(what: &str) -> String {
    format!("{what} (use version=v3 or greater)")
}
