//! The cache's folders: made, trusted or refused, and what lies where in them.
//!
//! The drawing is in the [module's documentation](super). Everything below the root is reached by
//! path: that is sound because nobody but us may write to any of these folders, and [`Layout::open`]
//! refuses a cache of which that is not true. The folders above the root are the caller's choice.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::key::CacheKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::host;
use crate::sys::lock::{self, FileLock};
use crate::sys::pending::{self, FileMode, Temporary};

/// The folder of this layout. A later layout gets a folder of its own beside it.
const VERSION: &str = "v1";

/// Tells backup programs to leave the folder out: <https://bford.info/cachedir/>.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55
# A cache of disk-engine: bases of virtual disks, extracted from their archives.
# Overlays may stand on the files in v1/bases. Everything else here can be made again.
";

/// Where everything lies in an opened cache.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    bases: PathBuf,
    locks: PathBuf,
    sources: PathBuf,
    uses: PathBuf,
    tmp: PathBuf,
}

impl Layout {
    /// Opens the cache in `root`, making what is missing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if a folder of it is not ours alone to write, or not a folder;
    /// otherwise what the system says.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let root = open_root(root)?;
        tag(&root);
        let version = root.join(VERSION);
        let layout = Self {
            bases: version.join("bases"),
            locks: version.join("locks"),
            sources: version.join("sources"),
            uses: version.join("uses"),
            tmp: version.join("tmp"),
            root,
        };
        let Self { bases, locks, sources, uses, tmp, .. } = &layout;
        let parts = [&version, bases, locks, sources, uses, tmp];
        parts.into_iter().try_for_each(|folder| make(folder))?;
        Ok(layout)
    }

    /// Opens the cache in `root` if there is one, making none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is none; otherwise as [`Layout::open`].
    pub(crate) fn existing(root: &Path) -> Result<Self> {
        let bases = root.join(VERSION).join("bases");
        match fs::symlink_metadata(&bases) {
            Ok(_) => Self::open(root),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::NotFound, "there is no cache").with_path(root))
            }
            Err(error) => Err(Error::io("look at the cache", &bases, error)),
        }
    }

    /// The cache a base's path lies in, as far as the path tells, and the base's key.
    pub(crate) fn of_base(path: &Path) -> Option<(&Path, CacheKey)> {
        let key = CacheKey::of_file(path.file_name()?, "img")?;
        let bases = path.parent()?;
        let version = bases.parent()?;
        let fits = bases.ends_with("bases") && version.ends_with(VERSION);
        Some((version.parent()?, key)).filter(|_| fits)
    }

    /// The cache's folder: absolute, without symbolic links.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn bases(&self) -> &Path {
        &self.bases
    }

    pub(crate) fn base(&self, key: &CacheKey) -> PathBuf {
        self.bases.join(format!("{key}.img"))
    }

    pub(crate) fn manifest(&self, key: &CacheKey) -> PathBuf {
        self.bases.join(format!("{key}.manifest"))
    }

    /// Where each base's overlays are noted.
    pub(crate) fn uses_folder(&self) -> &Path {
        &self.uses
    }

    /// Who needs the base of `key`.
    pub(crate) fn uses(&self, key: &CacheKey) -> PathBuf {
        self.uses.join(key.to_string())
    }

    pub(crate) fn locks(&self) -> &Path {
        &self.locks
    }

    pub(crate) fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// Held by whoever makes the base of `key`.
    pub(crate) fn key_lock(&self, key: &CacheKey) -> PathBuf {
        self.locks.join(format!("{key}.lock"))
    }

    /// Held by whoever extracts a source of `length` bytes: see the module's documentation.
    pub(crate) fn length_lock(&self, length: u64) -> PathBuf {
        self.locks.join(format!("length-{length}.lock"))
    }

    /// The remembered digest of one file.
    pub(crate) fn memo(&self, device: u64, inode: u64) -> PathBuf {
        self.sources.join(format!("{device:x}-{inode:x}"))
    }

    /// Starts a file in `tmp`, which lies in the same file system as everything else here.
    pub(crate) fn temporary(&self) -> Result<Temporary> {
        Temporary::create_in(&self.tmp, FileMode::Exact(0o600), |word| word.into())
    }

    /// Keeps everybody else from giving a base its name, or taking it away as damaged, for a moment. The
    /// lock of a key does so too, unless a cleaner removes its file; the folder stays. `None` where a
    /// folder cannot be locked.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn alone(&self) -> Result<Option<FileLock>> {
        let failed = |error| Error::io("lock the cache's folder", &self.bases, error);
        let folder = fs::File::open(&self.bases).map_err(failed)?;
        match FileLock::acquire(folder) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if lock::needs_writer(&error) || lock::is_unsupported(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Where damaged bases are kept for a person to look at; made now if it is not there.
    ///
    /// # Errors
    ///
    /// As [`Layout::open`].
    pub(crate) fn quarantine(&self) -> Result<PathBuf> {
        let folder = self.quarantine_folder();
        make(&folder)?;
        Ok(folder)
    }

    /// That folder, which may not be there.
    pub(crate) fn quarantine_folder(&self) -> PathBuf {
        self.root.join(VERSION).join("quarantine")
    }

    /// Held for a moment by whoever opens the cache, to see that locks exclude.
    pub(crate) fn probe(&self) -> PathBuf {
        self.locks.join("probe.lock")
    }

    /// Removes what killed processes left in `tmp`. What cannot be looked at stays.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.tmp) else { return };
        for entry in entries.flatten() {
            pending::remove_if_abandoned(&entry.path());
        }
    }
}

/// Makes or finds the root, and resolves it.
fn open_root(root: &Path) -> Result<PathBuf> {
    if root.as_os_str().is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "the path of the cache is empty"));
    }
    // Collected from its components, a path has no slash at its end: that would follow a link.
    let root: PathBuf = root.components().collect();
    match fs::symlink_metadata(&root) {
        // A link of our own is as good as typing its target; a stranger's could lead anywhere.
        Ok(metadata) if metadata.is_symlink() => {
            if ![0, host::effective_user()].contains(&metadata.uid()) {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "the cache is a symbolic link that another user made",
                )
                .with_path(&root));
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent)
                    .map_err(|error| Error::io("create the folder", parent, error))?;
            }
            make(&root)?;
        }
        Err(error) => return Err(Error::io("look at the cache", &root, error)),
    }
    let root =
        fs::canonicalize(&root).map_err(|error| Error::io("resolve the cache", &root, error))?;
    trust(&root)?;
    Ok(root)
}

/// Makes a folder of mode 0700 whatever the umask, or makes sure that the one there can be trusted.
fn make(folder: &Path) -> Result<()> {
    // Look first: in a read-only cache that is complete, nothing needs making.
    match fs::symlink_metadata(folder) {
        Ok(_) => return trust(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("look at the cache", folder, error)),
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o700))
            .map_err(|error| Error::io("set the permissions of", folder, error)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => trust(folder),
        Err(error) => Err(Error::io("create the cache's folder", folder, error)),
    }
}

/// Refuses a folder that anyone else could change under our hands.
fn trust(folder: &Path) -> Result<()> {
    let look = || {
        fs::symlink_metadata(folder).map_err(|error| Error::io("look at the cache", folder, error))
    };
    let refused = |message: String| Error::new(ErrorKind::Refused, message).with_path(folder);
    let mut metadata = look()?;
    // Someone with a umask of 0777 makes it right now.
    for _ in 0..20 {
        if metadata.permissions().mode() & 0o700 != 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        metadata = look()?;
    }
    let user = host::effective_user();
    if metadata.permissions().mode() & 0o700 == 0 && metadata.is_dir() && metadata.uid() == user {
        // Whoever made it was killed before it could set the permissions.
        fs::set_permissions(folder, Permissions::from_mode(0o700))
            .map_err(|error| Error::io("set the permissions of", folder, error))?;
        metadata = look()?;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() {
        return Err(refused("a symbolic link stands where a folder of the cache belongs".into()));
    }
    if !metadata.is_dir() {
        return Err(refused("no folder stands where one of the cache belongs".into()));
    }
    if metadata.uid() != user {
        return Err(refused(format!(
            "the cache's folder belongs to user {}, and we are user {user}",
            metadata.uid()
        ))
        .with_hint("give each user a cache of their own"));
    }
    if mode & 0o022 != 0 {
        return Err(refused(format!("others may write to the cache's folder (mode {mode:04o})"))
            .with_hint("chmod go-w, if what is in it can be trusted"));
    }
    Ok(())
}

/// Tags a folder that is a cache and nothing else: one without any entry yet. A courtesy, so
/// failures are not told.
fn tag(root: &Path) {
    if !fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none()) {
        return;
    }
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(root.join("CACHEDIR.TAG"));
    if let Ok(mut file) = made {
        let _ = file.write_all(TAG.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_left_without_permissions_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cache");
        Layout::open(&root).unwrap();
        for part in ["", "v1", "v1/bases", "v1/locks", "v1/sources", "v1/uses", "v1/tmp"] {
            fs::set_permissions(root.join(part), Permissions::from_mode(0o000)).unwrap();
            Layout::open(&root).unwrap();
            assert_eq!(mode(&root.join(part)), 0o700, "{part}");
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn an_opened_cache_is_ours_alone_and_tagged() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(&folder.path().join("a/b/cache")).unwrap();
        for part in [layout.root(), &layout.bases, &layout.locks, &layout.sources, &layout.tmp] {
            assert_eq!(mode(part), 0o700, "{part:?}");
        }
        assert!(fs::read_to_string(layout.root().join("CACHEDIR.TAG")).unwrap().contains("8a477f"));
        Layout::open(layout.root()).unwrap();
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_not_tagged() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), b"").unwrap();
        Layout::open(folder.path()).unwrap();
        assert!(!folder.path().join("CACHEDIR.TAG").exists());
    }

    #[test]
    fn planted_things_are_refused_by_name() {
        for part in ["v1", "v1/bases", "v1/locks", "v1/sources", "v1/uses", "v1/tmp"] {
            for plant in [
                (|path| symlink("/tmp", path).unwrap()) as fn(&Path),
                |path| symlink("/nowhere", path).unwrap(),
                |path| fs::write(path, b"").unwrap(),
                |path| {
                    fs::create_dir(path).unwrap();
                    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
                },
            ] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join(part);
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(path.parent().unwrap())
                    .unwrap();
                plant(&path);
                let error = Layout::open(folder.path()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
                assert!(error.path().unwrap().ends_with(part), "{error}");
            }
        }
    }

    #[test]
    fn a_root_others_may_write_to_is_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        for (bits, fine) in [(0o777, false), (0o770, false), (0o755, true), (0o700, true)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(bits)).unwrap();
            let outcome = Layout::open(folder.path());
            assert_eq!(outcome.is_ok(), fine, "{bits:o}");
            if let Err(error) = outcome {
                assert_eq!(error.kind(), ErrorKind::Refused);
                assert!(error.hint().is_some());
            }
        }
    }

    #[test]
    fn our_own_link_to_the_root_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink(folder.path().join("real"), &link).unwrap();
        assert_eq!(Layout::open(&link).unwrap_err().kind(), ErrorKind::NotFound);
        fs::create_dir(folder.path().join("real")).unwrap();
        let layout = Layout::open(&link.join("")).unwrap();
        assert!(layout.root().ends_with("real"));
    }

    #[test]
    fn the_sweep_leaves_what_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let live = layout.temporary().unwrap();
        for (name, bits) in [("a", 0o600), ("b", 0o444), ("c", 0o000)] {
            let path = layout.tmp.join(name);
            fs::write(&path, b"abandoned").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
        }
        layout.sweep();
        let left: Vec<_> = fs::read_dir(&layout.tmp).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [live.path()]);
    }
}
