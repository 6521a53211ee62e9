//! A seed for cloud-init's NoCloud data source: a config disk with fixed names.
//!
//! ```text
//! label cidata     user-data        what to do             must be there
//!                  meta-data        who the machine is     must be there
//!                  network-config   how it is reached      optional
//!                  vendor-data      more to do             optional
//! ```
//!
//! cloud-init does its work once per `instance-id`, which stands in `meta-data`. Callers: the library's
//! users; the command line checks a folder with [`CloudInit::check_folder`].

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config_disk::ConfigDisk;
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};

/// The label by which cloud-init finds a seed.
pub const LABEL: &str = "cidata";

/// Files without which a folder is no seed.
const REQUIRED: [&str; 2] = ["user-data", "meta-data"];

/// What a seed holds.
///
/// ```
/// use disk_engine::config_disk::CloudInit;
///
/// let seed = CloudInit::new("#cloud-config\nhostname: vm0\n").disk();
/// let image = seed.build()?;
/// # Ok::<(), disk_engine::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CloudInit {
    user_data: Vec<u8>,
    meta_data: Option<Vec<u8>>,
    network_config: Option<Vec<u8>>,
    vendor_data: Option<Vec<u8>>,
}

impl CloudInit {
    /// A seed with this `user-data`.
    #[must_use]
    pub fn new(user_data: impl Into<Vec<u8>>) -> Self {
        Self {
            user_data: user_data.into(),
            meta_data: None,
            network_config: None,
            vendor_data: None,
        }
    }

    /// Sets `meta-data`. Without it, it names an instance id that is made from the other parts: a
    /// guest whose seed changes runs cloud-init anew, one whose seed stays does not.
    #[must_use]
    pub fn meta_data(mut self, meta_data: impl Into<Vec<u8>>) -> Self {
        self.meta_data = Some(meta_data.into());
        self
    }

    /// Sets `network-config`.
    #[must_use]
    pub fn network_config(mut self, network_config: impl Into<Vec<u8>>) -> Self {
        self.network_config = Some(network_config.into());
        self
    }

    /// Sets `vendor-data`.
    #[must_use]
    pub fn vendor_data(mut self, vendor_data: impl Into<Vec<u8>>) -> Self {
        self.vendor_data = Some(vendor_data.into());
        self
    }

    /// The disk, labelled `cidata`. More files may be added to it.
    #[must_use]
    pub fn disk(self) -> ConfigDisk {
        let meta_data = self.meta_data.clone().unwrap_or_else(|| self.made_up().into_bytes());
        let mut disk = ConfigDisk::new()
            .label(LABEL)
            .file("user-data", self.user_data)
            .file("meta-data", meta_data);
        for (name, content) in
            [("network-config", self.network_config), ("vendor-data", self.vendor_data)]
        {
            if let Some(content) = content {
                disk = disk.file(name, content);
            }
        }
        disk
    }

    /// Whether `folder` holds what cloud-init needs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] with the file that is missing; [`ErrorKind::Refused`] if it is a folder.
    pub fn check_folder(folder: &Path) -> Result<()> {
        for name in REQUIRED {
            let path = folder.join(name);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => {
                    let message = format!("cloud-init needs a file {name}, and this is a folder");
                    return Err(Error::new(ErrorKind::Refused, message).with_path(&path));
                }
                // What else is no file is refused when the folder is read.
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let message = format!("cloud-init needs a file {name}, and there is none");
                    return Err(Error::new(ErrorKind::NotFound, message)
                        .with_path(&path)
                        .with_hint("an empty user-data will do; meta-data names an instance-id"));
                }
                Err(error) => return Err(Error::io("look at", &path, error)),
            }
        }
        Ok(())
    }

    fn made_up(&self) -> String {
        let mut hash = Sha256::new();
        let user_data = Some(&self.user_data);
        for part in [user_data, self.network_config.as_ref(), self.vendor_data.as_ref()] {
            let bytes = part.map_or(&[][..], Vec::as_slice);
            hash.update([u8::from(part.is_some())]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        let digest = Sha256Digest(hash.finalize().into()).to_string();
        format!("instance-id: iid-{}\n", digest.get(..16).unwrap_or_default())
    }
}
