//! Images that `qemu-io` and `disk-engine io` write to, each its own copy.
//!
//! ```text
//! images/plain ─┬─ copy ─▶ theirs/plain ◀─ qemu-io           beside each: what stands below
//!               └─ copy ─▶ ours/plain   ◀─ disk-engine io
//! ```
//!
//! Callers: the suites `io_write_command`, `io_sessions`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::qemu::{img, img_in};
use crate::told::Told;
use crate::tool::memory_folder;

/// An image that is written to.
#[derive(Debug)]
pub struct Image {
    /// Name of its file.
    pub name: &'static str,
    /// Its format, as QEMU calls it.
    pub format: &'static str,
    /// Name, size and options for `qemu-img create`.
    pub create: &'static [&'static str],
    /// What is written to it before.
    pub content: &'static [&'static str],
}

/// Images of each kind; the first is a plain one.
pub const IMAGES: &[Image] = &[
    Image {
        name: "plain",
        format: "qcow2",
        create: &["plain", "1M"],
        content: &[
            "write -P 0x41 0 128k",
            "write -z 192k 64k",
            "write -c -P 9 256k 64k",
            "write -P 1 1000k 24k",
        ],
    },
    Image {
        name: "top",
        format: "qcow2",
        create: &["-b", "base", "-F", "qcow2", "top", "2M"],
        content: &["write -P 5 512k 64k", "write -z 64k 64k", "write -P 6 1984k 64k"],
    },
    Image {
        name: "sub",
        format: "qcow2",
        create: &["-o", "extended_l2=on", "-b", "base", "-F", "qcow2", "sub", "1M"],
        content: &["write -P 3 2k 2k", "write -z 8k 2k", "write -P 4 128k 64k"],
    },
    Image {
        name: "old",
        format: "qcow2",
        create: &["-o", "compat=0.10,cluster_size=4k", "old", "1M"],
        content: &["write -P 3 0 68k", "write -c -P 4 128k 64k"],
    },
    Image { name: "raw", format: "raw", create: &[], content: &["write -P 7 0 64k"] },
];

/// What stands below, and what `-s` reads.
const BESIDE: &[&str] = &["base", "source", "nothing"];

/// Both programs' folders, and the images both start from.
#[derive(Debug)]
pub struct Lab {
    place: tempfile::TempDir,
    /// Our program.
    engine: &'static str,
}

impl Lab {
    /// Makes them, with QEMU's programs; `engine` is ours.
    ///
    /// # Panics
    ///
    /// They cannot be made.
    #[must_use]
    pub fn new(engine: &'static str) -> Self {
        let place = memory_folder();
        let folder = place.path();
        for name in ["images", "theirs", "ours"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let images = folder.join("images");
        let letters: Vec<u8> = (b'a'..=b'z').cycle().take(1000).collect();
        fs::write(images.join("source"), letters).unwrap();
        fs::write(images.join("nothing"), "").unwrap();
        fs::write(images.join("odd"), [7; 1000]).unwrap();
        fs::write(images.join("raw"), [0; 1 << 20]).unwrap();
        img_in(&images, &["create", "-q", "-f", "qcow2", "base", "1M"]);
        fill(&images, "qcow2", "base", &["write -P 7 0 128k", "write -P 8 600k 300k"]);
        for image in IMAGES {
            if !image.create.is_empty() {
                let create = [&["create", "-q", "-f", image.format][..], image.create].concat();
                img_in(&images, &create);
            }
            fill(&images, image.format, image.name, image.content);
        }
        for name in BESIDE {
            for program in ["theirs", "ours"] {
                fs::hard_link(images.join(name), folder.join(program).join(name)).unwrap();
            }
        }
        Self { place, engine }
    }

    /// The folder `images`, or a program's: `theirs` or `ours`.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Runs both programs on fresh copies of `image`, theirs first. A reason that only ours gives
    /// for a failure is left out.
    ///
    /// # Panics
    ///
    /// A program does not start.
    #[must_use]
    pub fn both(
        &self,
        format: &str,
        image: &str,
        options: &[&str],
        commands: &[&str],
    ) -> (Told, Told) {
        let run = |program: &str, name: &str, first: &[&str]| {
            let folder = self.folder(name);
            fs::copy(self.folder("images").join(image), folder.join(image)).unwrap();
            let arguments = [first, options, &["-f", format, image]].concat();
            Told::by(program, &folder, &arguments, commands)
        };
        let theirs = run("qemu-io", "theirs", &[]);
        let mut ours = run(self.engine, "ours", &["io"]);
        if theirs.stdout.iter().any(|line| line.contains("failed: ")) {
            ours.stderr.retain(|line| theirs.stderr.contains(line));
        }
        (theirs, ours)
    }

    /// Both programs do, say and leave the same.
    ///
    /// # Panics
    ///
    /// They do not.
    pub fn same(&self, image: &Image, options: &[&str], commands: &[&str]) {
        let (theirs, ours) = self.both(image.format, image.name, options, commands);
        let what = format!("{options:?} {} {commands:?}", image.name);
        assert_eq!(ours, theirs, "{what}");
        let (theirs, ours) = (self.folder("theirs"), self.folder("ours"));
        let (theirs, ours) = (theirs.join(image.name), ours.join(image.name));
        let (theirs, ours) = (theirs.to_str().unwrap(), ours.to_str().unwrap());
        let compared = img(["compare", "-f", image.format, "-F", image.format, theirs, ours]);
        assert!(compared.status.success(), "{what}: {compared:?}");
        self.sound(image.format, image.name);
    }

    /// No cluster of our `image` is lost or counted wrong.
    ///
    /// # Panics
    ///
    /// One is.
    pub fn sound(&self, format: &str, image: &str) {
        if format == "qcow2" {
            img_in(&self.folder("ours"), &["check", "-q", "-f", "qcow2", image]);
        }
    }
}

fn fill(folder: &Path, format: &str, image: &str, commands: &[&str]) {
    let told = Told::by("qemu-io", folder, &["-f", format, image], commands);
    assert_eq!(told.exit, Some(0), "{told:?}");
}
