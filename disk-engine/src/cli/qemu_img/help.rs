//! What the door says of itself: its version, its commands, their options.
//!
//! The first line of the version is one that scripts parse: `qemu-img version N`, where N is the release
//! of qemu-img whose command line, words and files this door has. Callers: `qemu_img`.

/// The release of qemu-img that is answered for.
const RELEASE: &str = "10.0.2";

pub(super) fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!(
        "qemu-img version {RELEASE} (disk-engine {own})\nCommands and files as qemu-img {RELEASE} has them, made by disk-engine\n"
    )
}

/// A command, what it does, and its usage.
struct Command {
    name: &'static str,
    what: &'static str,
    usage: &'static str,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "check",
        what: "Check basic image integrity",
        usage: "[-f FMT | --image-opts] [-T CACHE_MODE] [-r leaks|all] [-q] [-U]\n        [--output human|json] FILENAME",
    },
    Command {
        name: "compare",
        what: "Check if two images have the same contents",
        usage: "[--image-opts | [-f FMT] [-F FMT]] [-s] [-p] [-q]\n        [-T CACHE] [-U] FILENAME1 FILENAME2",
    },
    Command {
        name: "convert",
        what: "Copy one image to another with optional format conversion",
        usage: "[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-l SNAPSHOT]\n        [-O TGT_FMT | --target-image-opts] [-o TGT_OPTS] [-t TGT_CACHE] [-n] [-c]\n        [-B BACKING_FILENAME [-F BACKING_FMT]] [-S SIZE] [-m N] [-W] [-p] [-q] [-U]\n        [--salvage] [--target-is-zero] SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
    },
    Command {
        name: "create",
        what: "Create and format new image file",
        usage: "[-f FMT] [-o FMT_OPTS] [-b BACKING_FILENAME [-F BACKING_FMT]]\n        [-q] [-u] FILENAME [SIZE[bkKMGTPE]]",
    },
    Command {
        name: "dd",
        what: "Copy input to output with optional format conversion",
        usage: "[-f FMT | --image-opts] [-O OUTPUT_FMT] [-U]\n        [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    },
    Command {
        name: "info",
        what: "Display information about image",
        usage: "[-f FMT | --image-opts] [--backing-chain] [-U]\n        [--output human|json] FILENAME",
    },
    Command {
        name: "map",
        what: "Dump image metadata",
        usage: "[-f FMT | --image-opts] [--output human|json]\n        [-s OFFSET] [-l LENGTH] [-U] FILENAME",
    },
    Command {
        name: "measure",
        what: "Calculate file size required for a new image",
        usage: "[-f FMT | --image-opts] [-o OPTIONS] [-O OUTPUT_FMT]\n        [--output human|json] [-l SNAPSHOT] [-U] (--size SIZE | FILENAME)",
    },
];

/// What `qemu-img --help` says.
pub(super) fn general() -> String {
    let commands: String =
        COMMANDS.iter().map(|command| format!("  {} - {}\n", command.name, command.what)).collect();
    format!(
        "{}QEMU disk image utility.  Usage:\n\n  \
         qemu-img [standard options] COMMAND [--help | command options]\n\n\
         Standard options:\n  -h, --help\n     display this help and exit\n  \
         -V, --version\n     display version info and exit\n  \
         -T,--trace TRACE\n     accepted and ignored: there are no trace events\n\n\
         Recognized commands (run qemu-img COMMAND --help for command-specific help):\n\n\
         {commands}\nSupported image formats:\n\n  qcow2 raw\n",
        version()
    )
}

/// What `qemu-img COMMAND --help` says.
pub(super) fn command(name: &str) -> String {
    let found = COMMANDS.iter().find(|command| command.name == name);
    found.map_or_else(String::new, |command| {
        format!(
            "{}.  Usage:\n\n  qemu-img {} {}\n\nOptions mean what they mean in qemu-img {RELEASE}.\n",
            command.what, command.name, command.usage
        )
    })
}
