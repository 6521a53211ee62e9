//! (attachment)
