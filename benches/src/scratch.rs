//! A folder on a real file system: what `/tmp` often is not.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A new folder in `parent`, or beside the compiled programs; removed with the value.
///
/// # Panics
///
/// It cannot be made.
#[must_use]
pub fn folder(parent: Option<&Path>) -> TempDir {
    let parent = parent.map_or_else(beside_the_program, Path::to_path_buf);
    fs::create_dir_all(&parent).expect("the scratch folder's place can be made");
    tempfile::Builder::new().prefix("bench-").tempdir_in(parent).expect("a scratch folder")
}

/// Waits until everything written to `folder`'s file system so far is on the medium, so that one
/// measurement does not pay for the last one.
///
/// # Panics
///
/// The system cannot tell.
pub fn settle(folder: &Path) {
    let folder = File::open(folder).expect("the scratch folder opens");
    nix::unistd::syncfs(&folder).expect("the file system syncs");
}

/// An empty folder of that name.
///
/// # Panics
///
/// It cannot be made.
#[must_use]
pub fn empty(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("an old folder can be removed");
    }
    fs::create_dir(&path).expect("a new folder can be made");
    path
}

fn beside_the_program() -> PathBuf {
    let program = std::env::current_exe().expect("the program knows where it is");
    program.parent().expect("a program is in a folder").to_path_buf()
}
