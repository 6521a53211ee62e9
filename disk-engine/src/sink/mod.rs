//! A stand-in for the sinks, until they land.
#![allow(missing_docs)]

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentSum {
    pub offset: u64,
    pub length: u64,
    pub crc32: u32,
}
