//! Packs a file as the tar crate does: for `testdata/archives/make.sh`, which calls it.
//!
//! ```text
//! tar_crate KIND FILE NAME     the archive goes to standard output
//!   gnu      a GNU header; a name over 100 bytes goes before it     ustar   a POSIX header
//!   sparse   the file as it lies on the disk, its holes left out
//! ```

use std::fs::File;
use std::io::{self, Write};

use tar::{Builder, Header, HeaderMode};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, path, name] = arguments.as_slice() else {
        return Err(io::Error::other("three arguments are needed: KIND FILE NAME"));
    };
    let mut archive = Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    let mut file = File::open(path)?;
    let header = match kind.as_str() {
        "gnu" => Some(Header::new_gnu()),
        "ustar" => Some(Header::new_ustar()),
        "sparse" => None,
        _ => return Err(io::Error::other("KIND is gnu, ustar or sparse")),
    };
    match header {
        Some(mut header) => {
            header.set_size(file.metadata()?.len());
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &mut file)?;
        }
        None => archive.append_file(name, &mut file)?,
    }
    io::stdout().lock().write_all(&archive.into_inner()?)
}
