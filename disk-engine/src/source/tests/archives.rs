//! Files made by other programs.
