//! A folder to convert in: disks drawn from a seed, the command, and QEMU to judge.
//!
//! Callers: the suites of `convert`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::qemu;
use crate::random::Random;

/// A folder, gone with its value.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    engine: PathBuf,
}

impl Lab {
    /// A new folder, for the command at `engine`.
    ///
    /// # Panics
    ///
    /// There is no room for it.
    #[must_use]
    pub fn new(engine: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), engine: engine.into() }
    }

    /// The file called `name`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All names there are, hidden ones too.
    ///
    /// # Panics
    ///
    /// The folder cannot be read.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The file's bytes.
    ///
    /// # Panics
    ///
    /// It cannot be read.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Makes a raw disk of `size` bytes, some of it noise, text, numbers and stored zeros, the rest holes.
    ///
    /// # Panics
    ///
    /// It cannot be written.
    pub fn disk(&self, name: &str, size: u64, random: &mut Random) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        scatter(&file, size, random);
    }

    /// The command, in this folder.
    #[must_use]
    pub fn engine(&self) -> Command {
        let mut command = Command::new(&self.engine);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// What the command says of `convert` with these words, as JSON.
    ///
    /// # Panics
    ///
    /// It fails.
    pub fn convert(&self, words: &[&str]) -> serde_json::Value {
        let output = self.engine().args(["--json", "convert"]).args(words).output().unwrap();
        assert!(output.status.success(), "convert {words:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// How the command fails at `convert` with these words: its error's code and message.
    ///
    /// # Panics
    ///
    /// It does not.
    pub fn refused(&self, words: &[&str]) -> (String, String) {
        let output = self.engine().args(["--json", "convert"]).args(words).output().unwrap();
        assert!(!output.status.success(), "convert {words:?} succeeds");
        let error: serde_json::Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|_| panic!("convert {words:?}: {}", said(&output)));
        let text = |field: &str| error["error"][field].as_str().unwrap_or_default().to_owned();
        (text("code"), error["error"].to_string())
    }

    /// What a shell says of `script`, with the command as `$E`.
    ///
    /// # Panics
    ///
    /// It fails.
    pub fn shell(&self, script: &str) -> String {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .env("E", &self.engine)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `qemu-img` in this folder, which succeeds.
    pub fn qemu(&self, words: &[&str]) -> String {
        qemu::img_in(self.folder.path(), words)
    }

    /// That QEMU finds the image without fault, not even a leak, and the same disk in both.
    ///
    /// # Panics
    ///
    /// It does not.
    pub fn judge(&self, raw: &str, image: &str, what: &str) {
        self.is_sound(image, what);
        self.is_same((raw, "raw"), (image, "qcow2"), what);
    }

    /// That QEMU finds the image without fault.
    ///
    /// # Panics
    ///
    /// It does not.
    pub fn is_sound(&self, image: &str, what: &str) {
        let check = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", image])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(check.status.success(), "{what}: {image}: {}", said(&check));
    }

    /// That QEMU finds the same bytes in both, each with its format.
    ///
    /// # Panics
    ///
    /// It does not.
    pub fn is_same(&self, one: (&str, &str), other: (&str, &str), what: &str) {
        let compare = Command::new("qemu-img")
            .args(["compare", "-f", one.1, "-F", other.1, one.0, other.0])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(compare.status.success(), "{what}: {one:?} {other:?}: {}", said(&compare));
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Writes noise, text, numbers and zeros into a disk of `size` bytes, here and there.
///
/// # Panics
///
/// It cannot be written.
pub fn scatter(file: &File, size: u64, random: &mut Random) {
    if size == 0 {
        return;
    }
    for _ in 0..2 + random.below(30) {
        let most = [1, 512, 4096, 65_536, 300_000][random.below(5)];
        let length = (1 + random.below(most) as u64).min(size);
        let mut offset = random.word() % (size - length + 1);
        if random.once_in(2) {
            offset -= offset % 4096;
        }
        let bytes: Vec<u8> = match random.below(4) {
            0 => (0..length).map(|_| random.word().to_le_bytes()[0]).collect(),
            1 => b"the quick brown fox and so on; "
                .iter()
                .copied()
                .cycle()
                .take(length as usize)
                .collect(),
            // Half as long once compressed.
            2 => (0..length).map(|_| random.word().to_le_bytes()[0] & 15 | 64).collect(),
            _ => vec![0; length as usize],
        };
        file.write_all_at(&bytes, offset).unwrap();
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
