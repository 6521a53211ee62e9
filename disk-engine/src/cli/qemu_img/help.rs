//! What the door says of itself: its version, its commands, their options.
//!
//! The first line of the version is one that scripts parse: `qemu-img version N`, where N is the release
//! of qemu-img whose command line, words and files this door has. The options of a command are those
//! that it takes, so that none is left out. Callers: `qemu_img`.

use super::getopt::Known;

/// The release of qemu-img that is answered for.
const RELEASE: &str = "10.0.2";

pub(super) fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!(
        "qemu-img version {RELEASE} (disk-engine {own})\nCommands and files as qemu-img {RELEASE} has them, made by disk-engine\n"
    )
}

/// What is said of a command.
pub(super) struct Help {
    /// What it does.
    pub(super) what: &'static str,
    /// The words that follow its name.
    pub(super) usage: &'static str,
    /// Its operands, and what each is.
    pub(super) operands: &'static [(&'static str, &'static str)],
}

/// What options take and do, by their names or letters; the first that names a command counts there.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("help", "", "show this and end"),
    ("version", "", "show the version and end"),
    ("trace", "EVENTS", "checked, and nothing else: there are no trace events"),
    ("quiet", "", "say nothing but errors"),
    ("p", "", "draw how far the work is"),
    ("progress", "", "draw how far the work is"),
    ("c", "", "store clusters compressed (qcow2)"),
    ("n", "", "write to the target that is there instead of making one"),
    ("object", "OBJECT", "taken and not used: no supported image needs one"),
    ("image-opts", "", "file names of sources are lists of options (driver=…,file.filename=…)"),
    ("source-image-opts", "", "the same as --image-opts"),
    ("target-image-opts", "", "the target's name is a list of options; needs -n"),
    ("force-share", "", "read also what another program writes to"),
    ("backing-chain", "", "show all images that the image stands on, too"),
    ("output", "human|json", "the form of what is printed"),
    ("format", "FMT", "the image's format, which otherwise its first bytes tell"),
    ("source-format", "FMT", "the format of the sources, which otherwise their first bytes tell"),
    ("a-format", "FMT", "the format of the first image"),
    ("left-format", "FMT", "the same as --a-format"),
    ("b-format", "FMT", "the format of the second image"),
    ("right-format", "FMT", "the same as --b-format"),
    ("output-format", "FMT", "the format of the target; raw unless given"),
    ("target-format", "FMT", "the format of the new image; raw unless given"),
    ("options", "KEY=VALUE,…", "how the new image is made; 'help' lists what there is"),
    ("backing", "FILE", "the image that the new one stands on"),
    ("backing-format", "FMT", "the format of that image"),
    ("backing-unsafe", "", "do not look whether the backing file can be opened"),
    ("cache", "MODE", "checked, and changes nothing that is read"),
    ("source-cache", "MODE", "checked, and changes nothing that is read"),
    ("output-cache", "MODE", "'unsafe' (so it is unless given) leaves syncing to the system"),
    ("snapshot", "SNAPSHOT", "the snapshot that is read, by its id or name"),
    ("sparse-size", "SIZE", "zeros in a row that are left out at the least; 0 stores all"),
    ("target-is-zero", "", "the target that is there reads as zeros everywhere; needs -n"),
    ("salvage", "", "put zeros for what cannot be read, and say where"),
    ("bitmaps", "", "copy the bitmaps of the source"),
    ("skip-broken-bitmaps", "", "leave out bitmaps that may be wrong"),
    ("rate", "RATE", "bytes a second at most"),
    ("parallel", "NUMBER", "checked; as many threads work as there are processors"),
    ("oob-writes", "", "changes nothing: the order of writes is chosen anyway"),
    ("copy-range-offloading", "", "have the kernel copy, where it can"),
    ("repair", "leaks|all", "repair leaked clusters, or all that is wrong"),
    ("strict", "", "sizes have to be the same, and what is allocated"),
    ("start-offset", "OFFSET", "where on the disk to begin"),
    ("max-length", "LENGTH", "bytes of the disk to tell of at most"),
    ("size", "SIZE", "measure an empty disk of that size"),
];

/// What `qemu-img --help` says, of these commands.
pub(super) fn general<'a>(
    standard: &[Known],
    commands: impl Iterator<Item = (&'a str, &'a Help)>,
) -> String {
    let commands: String =
        commands.map(|(name, help)| format!("  {name} - {}\n", help.what)).collect();
    format!(
        "{}Disk images, asked as qemu-img is.  Usage:\n\n  \
         qemu-img [standard options] COMMAND [--help | command options]\n\n\
         Standard options:\n{}\n\
         Recognized commands:\n\n{commands}\n\
         Supported image formats:\n\n  qcow2 raw\n",
        version(),
        options(standard)
    )
}

/// What `qemu-img COMMAND --help` says.
pub(super) fn command(name: &str, help: &Help, known: &[Known]) -> String {
    let operands: String =
        help.operands.iter().map(|(name, what)| format!("  {name}\n     {what}\n")).collect();
    format!(
        "Usage:\n\n  qemu-img {name} {}\n\n{}.\n\nArguments:\n{}{operands}\n",
        help.usage,
        help.what,
        options(known)
    )
}

/// Two lines for each option.
fn options(known: &[Known]) -> String {
    let line = |known: &Known| {
        let (argument, what) = described(*known).unwrap_or_default();
        let letter = known.short.map(|letter| format!("-{}", char::from(letter)));
        let long = (!known.long.is_empty()).then(|| format!("--{}", known.long));
        let names: Vec<_> = letter.into_iter().chain(long).collect();
        let space = if argument.is_empty() { "" } else { " " };
        format!("  {}{space}{argument}\n     {what}\n", names.join(", "))
    };
    known.iter().map(line).collect()
}

fn described(known: Known) -> Option<(&'static str, &'static str)> {
    let found = OPTIONS.iter().find(|(name, ..)| *name == known.name());
    found.map(|(_, argument, what)| (*argument, *what))
}

#[cfg(test)]
mod tests {
    use super::super::{COMMANDS, STANDARD};
    use super::*;

    #[test]
    fn each_option_is_described() {
        for known in COMMANDS.iter().flat_map(|command| command.known).chain(STANDARD) {
            let described = described(*known);
            assert!(
                described.is_some_and(|(argument, _)| argument.is_empty() != known.takes),
                "{known:?}: {described:?}"
            );
        }
    }
}
