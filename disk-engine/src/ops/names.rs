//! How a report calls the files of a chain: as QEMU does.
//!
//! ```text
//! vm.qcow2 ─▶ ./base.img     opened: a name that no option or protocol looks like
//!             base.img       reported
//! ```
//!
//! Callers: `info`, `map`, `cli::qemu_img`.

use std::path::Path;

/// What a report calls the file at `path`, which the chain of the image at `top` names.
pub(crate) fn reported<'a>(top: &Path, path: &'a Path) -> &'a Path {
    let beside = top.parent().is_none_or(|folder| folder.as_os_str().is_empty());
    if beside { path.strip_prefix("./").unwrap_or(path) } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_folder_is_named_by_who_named_it() {
        for (top, path, name) in [
            ("vm", "./base", "base"),
            ("vm", "/images/base", "/images/base"),
            ("./vm", "./base", "./base"),
            ("images/vm", "images/base", "images/base"),
            ("vm", "../base", "../base"),
        ] {
            assert_eq!(reported(Path::new(top), Path::new(path)), Path::new(name), "{top} {path}");
        }
    }
}
