//! The qcow2 disk image format.
