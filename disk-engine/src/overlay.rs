//! (overlay)
