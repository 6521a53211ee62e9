//! A small bootable disk, compiled in, so that the main job can be tried without a source.
//!
//! ```text
//! BOOT_IMAGE = zstd( tar( disk.img: raw, 64 MiB, sparse ) )
//!                              └ LBA 0: a boot sector; all else a hole
//! ```
//!
//! Booted by a BIOS from a virtio or any other disk, it counts its boots in LBA 1 and prints one line
//! to COM1: `disk-engine boot=<count> id=<8 hexadecimal digits>`. The id is drawn at the first boot,
//! so two overlays of one base show different ids, and an overlay that is booted again shows its own.
//! The source of the sector and the commands that make the archive are in `assets/boot`.

/// The archive, ready to be a source: it takes the way of any other image.
pub const BOOT_IMAGE: &[u8] = include_bytes!("../../assets/boot/boot.tar.zst");
