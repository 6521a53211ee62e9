//! `-o KEY=VALUE,…`: the options of a new image, with qemu-img's types and messages.
//!
//! ```text
//! -o a=1,b -o c=x,,y ─▶ a=1  b=on  c="x,y" ─▶ checked by type ─▶ the last of each name counts
//! ```
//!
//! Callers: `create`, `measure`, `convert`, `dd`.

use std::fmt::Write;

use super::number;

/// What an option's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Switch,
    Size,
    Number,
}

impl Kind {
    const fn shown(self) -> &'static str {
        match self {
            Self::Text => "str",
            Self::Switch => "bool (on/off)",
            Self::Size => "size",
            Self::Number => "num",
        }
    }
}

/// An option there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described {
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
}

const fn option(name: &'static str, kind: Kind, help: &'static str) -> Described {
    Described { name, kind, default: None, help }
}

const fn defaulted(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Described {
    Described { name, kind, default: Some(default), help }
}

/// A raw image's own.
const RAW: &[Described] = &[option("size", Kind::Size, "Virtual disk size")];

/// A qcow2 image's own, in the order in which they are shown.
const QCOW2: &[Described] = &[
    option(
        "encryption",
        Kind::Switch,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option("encrypt.format", Kind::Text, "Encrypt the image, format choices: 'aes', 'luks'"),
    option(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option("encrypt.cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    option("encrypt.cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    option("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    option("encrypt.ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    option("encrypt.hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    option("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    defaulted("cluster_size", Kind::Size, "65536", "qcow2 cluster size"),
    defaulted("extended_l2", Kind::Switch, "off", "Extended L2 tables"),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    defaulted(
        "compression_type",
        Kind::Text,
        "zlib",
        "Compression method used for image cluster compression",
    ),
    option("size", Kind::Size, "Virtual disk size"),
    option("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option("data_file_raw", Kind::Switch, "The external data file must stay valid as a raw image"),
    defaulted("lazy_refcounts", Kind::Switch, "off", "Postpone refcount updates"),
    defaulted("refcount_bits", Kind::Number, "16", "Width of a reference count entry in bits"),
];

/// Those of the file that an image lies in. Of a name that the image has as well, the image's counts.
const FILE: &[Described] = &[
    option("size", Kind::Size, "Virtual disk size"),
    option("nocow", Kind::Switch, "Turn off copy-on-write (valid only on btrfs)"),
    option("preallocation", Kind::Text, "Preallocation mode (allowed values: off, falloc, full)"),
    option("extent_size_hint", Kind::Size, "Extent size hint for the image file, 0 to disable"),
];

/// A format that images can be made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Raw,
    Qcow2,
}

impl Target {
    fn options(self, file: bool) -> Vec<Described> {
        let own = match self {
            Self::Raw => RAW,
            Self::Qcow2 => QCOW2,
        };
        let mut options = own.to_vec();
        if file {
            let new = |option: &&Described| own.iter().all(|other| other.name != option.name);
            options.extend(FILE.iter().filter(new));
        }
        options
    }
}

/// The value of an option that was given.
#[derive(Clone, Debug)]
struct Given {
    name: &'static str,
    kind: Kind,
    text: String,
    number: u64,
}

/// What is asked of a new image.
#[derive(Clone, Debug)]
pub(super) struct Opts {
    known: Vec<Described>,
    given: Vec<Given>,
}

/// Adds the argument of one more `-o` to a list.
pub(super) fn add(list: &mut Option<String>, more: &str) -> Result<(), String> {
    if !is_list(more) {
        return Err(format!("Invalid option list: {more}"));
    }
    match list {
        None => *list = Some(more.to_owned()),
        Some(list) => {
            list.push(',');
            list.push_str(more);
        }
    }
    Ok(())
}

/// Whether a list can have another one behind it: it neither begins nor ends with a lone comma.
fn is_list(list: &str) -> bool {
    let trailing = list.len() - list.trim_end_matches(',').len();
    !list.is_empty() && !list.starts_with(',') && trailing.is_multiple_of(2)
}

/// Whether a list asks for help.
pub(super) fn asks_help(list: &str) -> bool {
    split(list).iter().any(|part| part == "help" || part == "?")
}

/// The parts of a list; two commas stand for one that belongs to a value.
pub(super) fn split(list: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = list;
    loop {
        let (part, behind) = first(rest);
        parts.push(part);
        if behind.is_empty() {
            return parts;
        }
        rest = behind;
    }
}

/// The first part of a list, and what is behind its comma.
fn first(list: &str) -> (String, &str) {
    let mut part = String::new();
    let mut rest = list;
    loop {
        let (before, behind) = rest.split_once(',').unwrap_or((rest, ""));
        part.push_str(before);
        match behind.strip_prefix(',') {
            Some(behind) => {
                part.push(',');
                rest = behind;
            }
            None => return (part, behind),
        }
    }
}

impl Opts {
    /// No option given, of those that an image of that format in a file has.
    pub(super) fn new(target: Target) -> Self {
        Self { known: target.options(true), given: Vec::new() }
    }

    /// Takes the options of a list.
    pub(super) fn parse(&mut self, list: &str) -> Result<(), String> {
        let mut rest = list;
        while !rest.is_empty() {
            // In a name a comma is a comma, however many there are.
            let end = rest.find(['=', ',']).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            let (name, value) = match behind.strip_prefix('=') {
                Some(behind) => {
                    let (value, behind) = first(behind);
                    rest = behind;
                    (name, value)
                }
                None => {
                    rest = behind.strip_prefix(',').unwrap_or(behind);
                    match name.strip_prefix("no") {
                        Some(name) => (name, "off".to_owned()),
                        None => (name, "on".to_owned()),
                    }
                }
            };
            if name != "id" {
                self.set(name, value)?;
            }
        }
        Ok(())
    }

    /// Gives an option; one given before counts no more.
    pub(super) fn set(&mut self, name: &str, text: String) -> Result<(), String> {
        let Some(known) = self.known.iter().find(|known| known.name == name) else {
            return Err(format!("Invalid parameter '{name}'"));
        };
        let number = match known.kind {
            Kind::Text => 0,
            Kind::Switch => u64::from(switch(name, &text)?),
            Kind::Size => size(name, &text)?,
            Kind::Number => count(name, &text)?,
        };
        self.given.push(Given { name: known.name, kind: known.kind, text, number });
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Given> {
        self.given.iter().rev().find(|given| given.name == name)
    }

    /// The text of an option that was given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.find(name).map(|given| given.text.as_str())
    }

    /// Whether an option whose name begins like this was given.
    pub(super) fn any(&self, start: &str) -> bool {
        self.given.iter().any(|given| given.name.starts_with(start))
    }

    /// The number of an option that was given.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.find(name).map(|given| given.number)
    }

    /// Whether a switch was given and is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.number(name) == Some(1)
    }

    /// All that were given or have a value anyway, in one line.
    pub(super) fn shown(&self) -> String {
        let mut line = String::new();
        for known in &self.known {
            let value = match self.find(known.name) {
                Some(given) => match given.kind {
                    Kind::Text => given.text.replace(',', ",,"),
                    Kind::Switch => given.text.clone(),
                    // As C prints what does not fit.
                    Kind::Size | Kind::Number => given.number.cast_signed().to_string(),
                },
                None => match known.default {
                    Some(default) => default.to_owned(),
                    None => continue,
                },
            };
            let _ =
                write!(line, "{}{}={value}", if line.is_empty() { "" } else { " " }, known.name);
        }
        line
    }
}

/// What `-o help` says.
pub(super) fn help(target: Target, name: &str, file: bool) -> String {
    let mut options = target.options(file);
    options.sort_by_key(|option| option.name);
    let mut text = if file {
        "Supported options:\n".to_owned()
    } else {
        format!("Supported {name} options:\n")
    };
    for option in options {
        let left = format!("{}=<{}>", option.name, option.kind.shown());
        let _ = writeln!(text, "  {left:<22} - {}", option.help);
    }
    if !file {
        text.push_str(
            "\nThe protocol level may support further options.\n\
             Specify the target filename to include those options.\n",
        );
    }
    text
}

pub(super) fn switch(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

pub(super) fn size(name: &str, text: &str) -> Result<u64, String> {
    number::parse(text).map_err(|wrong| match wrong {
        number::Wrong::Range => format!("Value '{text}' is out of range for parameter '{name}'"),
        number::Wrong::Word => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
    })
}

pub(super) fn count(name: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("Parameter '{name}' expects a number");
    // As C has it: a number below zero wraps around.
    let (negative, text) = match text.trim_start().strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.trim_start()),
    };
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let number = u64::from_str_radix(digits, radix).map_err(|_| wrong())?;
    Ok(if negative { number.wrapping_neg() } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_put_together() {
        for (list, whole) in [
            ("a=1", true),
            ("a,,", true),
            ("a,,,b", true),
            ("", false),
            (",", false),
            ("a,", false),
            (",a", false),
            ("a,,,", false),
        ] {
            assert_eq!(is_list(list), whole, "{list}");
        }
        assert_eq!(split("a=1,b,c=x,,y,,,d"), ["a=1", "b", "c=x,y,", "d"]);
    }

    #[test]
    fn a_line_shows_what_was_given_and_what_is_so_anyway() {
        let mut opts = Opts::new(Target::Qcow2);
        opts.parse("size=1M,compat=1.1,nolazy_refcounts,backing_file=x,,y,nocow=on").unwrap();
        assert_eq!(
            opts.shown(),
            "cluster_size=65536 extended_l2=off compression_type=zlib size=1048576 compat=1.1 \
             backing_file=x,,y lazy_refcounts=off refcount_bits=16 nocow=on"
        );
        assert_eq!(opts.parse("colour=red").unwrap_err(), "Invalid parameter 'colour'");
    }
}
