//! One file per verb: options in, one report out. The command line adds words to these.

pub mod create;
pub mod info;
