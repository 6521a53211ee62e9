//! The `attach` command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::attachment::{CacheMode, Disk, Target, libvirt, qemu};
use crate::cli::Output;
use crate::error::{Error, ErrorKind, Result};

/// Print what a hypervisor needs to attach disks: libvirt XML or QEMU arguments
///
/// A FILE with a qcow2 header is a qcow2 disk, and its backing files are those its header names; any
/// other FILE is raw. A guest can write a qcow2 header into a raw disk, so a raw disk that has been in
/// use is named with --raw.
///
/// For QEMU one line is printed, quoted for the shell: eval it, or pipe it to
/// `xargs qemu-system-x86_64 …` (a file name with a newline needs eval).
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Disks, in the order the guest will see them
    #[arg(value_name = "FILE", required_unless_present = "raw")]
    files: Vec<PathBuf>,
    /// A disk that is raw whatever its content says; comes after the FILEs
    #[arg(long, value_name = "FILE")]
    raw: Vec<PathBuf>,
    /// Who the disks are for
    #[arg(long = "for", value_name = "HYPERVISOR")]
    hypervisor: Hypervisor,
    /// The form of QEMU arguments
    #[arg(long, default_value = "blockdev")]
    form: Form,
    /// How the host caches the disks; `none` needs a file system with O_DIRECT (tmpfs: Linux 6.6)
    #[arg(long, value_name = "MODE", default_value = "none", value_parser = cache_mode)]
    cache: CacheMode,
    /// Let the guest only read
    #[arg(long)]
    read_only: bool,
    /// libvirt's name for the first disk; the next ones count on
    #[arg(long, value_name = "NAME", default_value = "vda")]
    first_target: Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Hypervisor {
    Libvirt,
    Qemu,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Blockdev,
    Drive,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Report<'a> {
    Xml(&'a str),
    Arguments(&'a [String]),
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let disks = arguments
        .files
        .iter()
        .map(Disk::probe)
        .chain(arguments.raw.iter().map(Disk::raw))
        .map(|disk| Ok(disk?.cache(arguments.cache).read_only(arguments.read_only)))
        .collect::<Result<Vec<_>>>()?;
    match arguments.hypervisor {
        Hypervisor::Libvirt => {
            let targets = (0..).map(|index| arguments.first_target.plus(index));
            let elements = disks
                .iter()
                .zip(targets)
                .map(|(disk, target)| libvirt::element(disk, target))
                .collect::<Result<Vec<_>>>()?;
            let xml = elements.join("\n");
            output.report(&Report::Xml(&xml), &xml)
        }
        Hypervisor::Qemu => {
            let form = match arguments.form {
                Form::Blockdev => qemu::Form::Blockdev,
                Form::Drive => qemu::Form::Drive,
            };
            let arguments = qemu::arguments(&disks, form)?
                .into_iter()
                .map(printable)
                .collect::<Result<Vec<_>>>()?;
            let line = arguments.iter().map(|word| shell_quote(word)).collect::<Vec<_>>().join(" ");
            output.report(&Report::Arguments(&arguments), &line)
        }
    }
}

fn cache_mode(name: &str) -> Result<CacheMode, String> {
    CacheMode::ALL.into_iter().find(|mode| mode.as_str() == name).ok_or_else(|| {
        let names = CacheMode::ALL.map(CacheMode::as_str).join(", ");
        format!("one of {names}")
    })
}

/// QEMU takes any bytes; a report is text.
fn printable(argument: OsString) -> Result<String> {
    argument.into_string().map_err(|argument| {
        Error::new(ErrorKind::Unsupported, "an argument that is not UTF-8 cannot be printed")
            .with_path(argument)
            .with_hint("rename the file, or call the library")
    })
}

/// Quotes a word for a POSIX shell. xargs reads the same quotes, a newline excepted.
fn shell_quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=,./:+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_would_split_them() {
        for (word, quoted) in [
            ("driver=file,filename=/a-b_c.img", "driver=file,filename=/a-b_c.img"),
            ("a b", "'a b'"),
            ("$(x)", "'$(x)'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("~", "'~'"),
        ] {
            assert_eq!(shell_quote(word), quoted);
        }
    }
}
