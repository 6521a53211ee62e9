//! The imago crate, in its synchronous form.

use std::fmt;
use std::path::Path;

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

use super::Disk;

/// An image open with imago, which opens what the image names as its backing file.
pub struct Imago(FormatAccess<ImagoFile>);

impl Imago {
    /// Opens the image at `path`.
    ///
    /// # Panics
    ///
    /// It does not open.
    #[must_use]
    pub fn open(path: &Path, write: bool) -> Self {
        let image = Qcow2::<ImagoFile>::builder_path(path)
            .write(write)
            .open(PermissiveImplicitOpenGate::default())
            .expect("imago opens the image");
        Self(FormatAccess::new(image))
    }
}

impl Disk for Imago {
    fn read(&self, buffer: &mut [u8], offset: u64) {
        self.0.read(buffer, offset).expect("imago reads");
    }

    fn write(&self, data: &[u8], offset: u64) {
        self.0.write(data, offset).expect("imago writes");
    }

    fn bring_down(&self) {
        self.0.flush().expect("imago flushes its caches");
    }

    fn sync(&self) {
        self.bring_down();
        self.0.sync().expect("imago syncs");
    }
}

impl fmt::Debug for Imago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imago").finish_non_exhaustive()
    }
}
