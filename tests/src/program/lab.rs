//! A folder with an image and what belongs to it, where QEMU can look at it.
//!
//! ```text
//! folder ─┬ image    ◀── store(files) · load()
//!         ├ data         the external data file, if there is one
//!         ├ base         the backing file, if there is one
//!         └ truth        what the disk ought to hold, for qemu-img compare
//! ```
//!
//! Callers: the suites of the image writer.

use std::fs;
use std::path::{Path, PathBuf};

use qcow2_format::Memory;
use qcow2_format::create::DataFile;

use super::Shape;
use crate::qemu::{self, Captured};
use crate::sparse::Sparse;
use crate::tool;

/// The folder.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    shape: Shape,
}

impl Lab {
    /// A folder for an image of this shape, with its base.
    ///
    /// # Panics
    ///
    /// Files or the base cannot be made.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let lab = Self { folder: tool::memory_folder(), shape: shape.clone() };
        if let Some(backing) = shape.backing {
            let raw = lab.path("base.raw");
            fs::write(&raw, shape.base()).unwrap();
            if backing.qcow2 {
                let base = lab.path("base");
                qemu::img(["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&base)])
                    .expect_success();
            } else {
                fs::rename(raw, lab.path("base")).unwrap();
            }
        }
        lab
    }

    /// A file in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new image.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    #[must_use]
    pub fn create(&self) -> Vec<Sparse> {
        let storages = [Memory::default(), Memory::default()];
        let mut options = self.shape.create_options();
        if let Some(raw) = self.shape.data_file {
            // QEMU takes a relative name to be in the folder it was started in.
            options = options.data_file(DataFile::new(text(&self.path("data")), raw));
        }
        let image = options.plan().unwrap();
        if self.shape.data_file.is_some() {
            image.write_with_data(&storages[0], &storages[1]).unwrap();
            return storages.map(|storage| Sparse::new(&storage.into_bytes())).into();
        }
        let [storage, _] = storages;
        image.write_to(&storage).unwrap();
        vec![Sparse::new(&storage.into_bytes())]
    }

    /// A new image of QEMU's, which stays in the folder.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    #[must_use]
    pub fn create_by_qemu(&self) -> Vec<Sparse> {
        let mut options = self.shape.qemu_options();
        if self.shape.data_file.is_some() {
            // QEMU takes a relative name to be in the folder it was started in.
            options.push_str(",data_file=");
            options.push_str(text(&self.path("data")));
        }
        let size = self.shape.disk.to_string();
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some(backing) = self.shape.backing {
            arguments.extend(["-b", "base", "-F", if backing.qcow2 { "qcow2" } else { "raw" }]);
        }
        arguments.extend(["image", &size]);
        qemu::img_in(self.folder.path(), &arguments);
        self.load()
    }

    /// Puts the image, and its data file, into the folder.
    ///
    /// # Panics
    ///
    /// They cannot be written.
    pub fn store(&self, files: &[Sparse]) {
        for (name, file) in ["image", "data"].iter().zip(files) {
            file.store(&self.path(name)).unwrap();
        }
    }

    /// The image, and its data file, as they lie in the folder.
    ///
    /// # Panics
    ///
    /// They cannot be read.
    #[must_use]
    pub fn load(&self) -> Vec<Sparse> {
        let names =
            if self.shape.data_file.is_some() { &["image", "data"][..] } else { &["image"] };
        names.iter().map(|name| Sparse::load(&self.path(name)).unwrap()).collect()
    }

    /// What `qemu-img check` says, with these arguments more.
    #[must_use]
    pub fn check(&self, more: &[&str]) -> Captured {
        let image = self.path("image");
        qemu::img([&["check", "-f", "qcow2"], more, &[text(&image)]].concat())
    }

    /// That `qemu-img check` finds no corruption. A dirty image is one QEMU repairs when it opens
    /// it: it has to be right after that.
    ///
    /// # Errors
    ///
    /// What QEMU says.
    pub fn sound(&self, dirty: bool) -> Result<(), String> {
        if dirty {
            let said = self.check(&["-r", "all"]);
            if said.status.code() != Some(0) {
                return Err(format!("repairing the dirty image: {said:#?}"));
            }
        }
        let said = self.check(&[]);
        match said.status.code() {
            Some(0) => Ok(()),
            Some(3) if !dirty => Ok(()),
            _ => Err(format!("{said:#?}")),
        }
    }

    /// That `qemu-img check` finds nothing at all.
    ///
    /// # Errors
    ///
    /// What QEMU says.
    pub fn clean(&self) -> Result<(), String> {
        let said = self.check(&[]);
        if said.status.code() == Some(0) { Ok(()) } else { Err(format!("{said:#?}")) }
    }

    /// That QEMU reads this from the image.
    ///
    /// # Errors
    ///
    /// What QEMU says.
    pub fn holds(&self, content: &[u8]) -> Result<(), String> {
        let (image, truth) = (self.path("image"), self.path("truth"));
        Sparse::new(content).store(&truth).unwrap();
        let said = qemu::img(["compare", "-f", "qcow2", "-F", "raw", text(&image), text(&truth)]);
        if said.status.success() { Ok(()) } else { Err(format!("{said:#?}")) }
    }

    /// What QEMU reads from the image, or from one of its snapshots.
    ///
    /// # Errors
    ///
    /// What QEMU says.
    pub fn converted(&self, snapshot: Option<&str>) -> Result<Vec<u8>, String> {
        let (image, raw) = (self.path("image"), self.path("converted"));
        let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
        if let Some(name) = snapshot {
            arguments.extend(["-l", name]);
        }
        arguments.extend([text(&image), text(&raw)]);
        let said = qemu::img(arguments);
        if !said.status.success() {
            return Err(format!("{said:#?}"));
        }
        let content = fs::read(&raw).unwrap();
        fs::remove_file(raw).unwrap();
        Ok(content)
    }

    /// Makes (`-c`) or deletes (`-d`) a snapshot. `false`, and nothing happened, if QEMU does not.
    #[must_use]
    pub fn snapshot(&self, verb: &str, name: &str) -> bool {
        let (image, before) = (self.path("image"), self.path("before"));
        fs::copy(&image, &before).unwrap();
        let done = qemu::img(["snapshot", verb, name, text(&image)]).status.success();
        if !done {
            fs::rename(before, image).unwrap();
        }
        done
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's name")
}
