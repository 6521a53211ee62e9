//! What a file that replaces another takes over from it, so that whoever could use the old one can use
//! the new one, and nobody else.
//!
//! ```text
//! owner, group           else the group's bits shrink to those of all others
//! extended attributes    access control lists and security labels are among them; not our own note
//! permission bits        last: a change of owner takes some away
//! ```
//!
//! Caller: `pending`.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use crate::sys::{attribute, open};

/// Gives `new` what `old`, the metadata of the file at `path`, says; `false` if it could not be given
/// all.
///
/// # Errors
///
/// The permission bits cannot be set.
pub(super) fn everything(new: &File, path: &Path, old: &Metadata) -> io::Result<bool> {
    let made = new.metadata()?;
    let group = made.gid() == old.gid() || fchown(new, None, Some(old.gid())).is_ok();
    let owner = made.uid() == old.uid() || fchown(new, Some(old.uid()), None).is_ok();
    let attributes = attributes(new, path);
    let mode = old.permissions().mode() & 0o7777;
    let mode = if group && owner { mode } else { without_privileges(mode, group) };
    new.set_permissions(Permissions::from_mode(mode))?;
    Ok(owner && group && attributes)
}

/// The bits of a file that went to somebody else: no setuid or setgid, and for a group that was not
/// meant no more than for everybody.
const fn without_privileges(mode: u32, group: bool) -> u32 {
    let mode = mode & 0o1777;
    if group { mode } else { mode & !(0o070 & !((mode & 0o007) << 3)) }
}

/// Whether all of the file's attributes went over.
fn attributes(new: &File, path: &Path) -> bool {
    let Ok(old) = open::existing(path) else { return false };
    let Ok(names) = attribute::names(&old) else { return false };
    // Which base the old content came from says nothing of the new.
    names.iter().filter(|name| name.as_c_str() != attribute::BASE).all(|name| match attribute::get(
        &old, name,
    ) {
        Ok(Some(value)) => {
            // A label that the new file has anyway needs no privilege.
            matches!(attribute::get(new, name), Ok(Some(same)) if same == value)
                || attribute::set(new, name, &value).unwrap_or(false)
        }
        // Gone since.
        Ok(None) => true,
        Err(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_group_gets_what_everybody_gets() {
        assert_eq!(without_privileges(0o640, false), 0o600);
        assert_eq!(without_privileges(0o664, false), 0o644);
        assert_eq!(without_privileges(0o6755, true), 0o755);
        assert_eq!(without_privileges(0o606, false), 0o606);
    }
}
