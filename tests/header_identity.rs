//! Images by qemu-img over its whole option space, and after each command that rewrites a header:
//! each header is read, and written again byte for byte.
//!
//! What is small enough to keep lies in `testdata/images`; here is the rest, made on the spot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use qcow2_format::Header;
use testkit::qemu::img_in;
use testkit::tool::memory_folder;

/// Reads the header of an image and compares what we write with what stands there, to the end of
/// the first cluster.
fn check(folder: &Path, name: &str, how: &str) -> Header {
    let file = File::open(folder.join(name)).unwrap();
    let header = Header::read(&file).unwrap_or_else(|error| panic!("{how}: {error}"));
    let cluster = usize::try_from(header.geometry().cluster_bits.bytes()).unwrap();
    let mut found = vec![0; cluster];
    file.read_exact_at(&mut found, 0).unwrap();
    let mut written = header.encode().unwrap();
    written.resize(cluster, 0);
    assert!(written == found, "{how}: the header is written differently");
    header
}

/// Makes an image with qemu-img and checks it.
fn create(folder: &Path, options: &str, more: &[&str], size: &str) -> Header {
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", options];
    arguments.extend_from_slice(more);
    arguments.extend(["new.qcow2", size]);
    img_in(folder, &arguments);
    check(folder, "new.qcow2", &format!("{arguments:?}"))
}

#[test]
fn every_cluster_size_version_and_refcount_width() {
    let folder = memory_folder();
    for bits in 9..=21 {
        let cluster = 1 << bits;
        let header =
            create(folder.path(), &format!("compat=0.10,cluster_size={cluster}"), &[], "9M");
        assert_eq!(header.geometry().cluster_bits.to_u32(), bits);
        for order in 0..=6 {
            let width = 1 << order;
            let options = format!("cluster_size={cluster},refcount_bits={width}");
            let header = create(folder.path(), &options, &[], "9M");
            assert_eq!(header.geometry().refcount_order.to_u32(), order);
        }
        for more in ["lazy_refcounts=on", "compression_type=zstd", "extended_l2=on"] {
            if bits >= 14 || more != "extended_l2=on" {
                create(folder.path(), &format!("cluster_size={cluster},{more}"), &[], "9M");
            }
        }
    }
}

#[test]
fn every_preallocation_and_size() {
    let folder = memory_folder();
    for preallocation in ["off", "metadata", "falloc", "full"] {
        for (cluster, sizes) in [
            (512, ["0", "512", "1M"]),
            (65_536, ["0", "1M", "5000K"]),
            (2 << 20, ["0", "512", "5M"]),
        ] {
            for size in sizes {
                for compat in ["0.10", "1.1"] {
                    let options = format!(
                        "preallocation={preallocation},cluster_size={cluster},compat={compat}"
                    );
                    create(folder.path(), &options, &[], size);
                }
            }
        }
    }
    for (options, size) in [
        ("cluster_size=512", "16G"),
        ("cluster_size=65536", "2P"),
        ("cluster_size=2M,extended_l2=on", "1E"),
    ] {
        create(folder.path(), options, &[], size);
    }
}

#[test]
fn every_backing_name_and_format() {
    let folder = memory_folder();
    for compat in ["0.10", "1.1"] {
        for length in [1, 7, 8, 9, 500, 1015, 1022, 1023] {
            let name = "b".repeat(length);
            for format in ["raw", "qcow2", "vmdk"] {
                let more = ["-u", "-b", &name, "-F", format];
                let header = create(folder.path(), &format!("compat={compat}"), &more, "1M");
                assert_eq!(header.backing_file(), Some(name.as_bytes()));
                assert_eq!(header.backing_format(), Some(format.as_bytes()));
            }
        }
    }
}

#[test]
fn encryption_and_external_data() {
    let folder = memory_folder();
    let secret = ["--object", "secret,id=key,data=open sesame"];
    for compat in ["0.10", "1.1"] {
        for cluster in [512, 65_536, 2 << 20] {
            for method in ["aes", "luks,encrypt.iter-time=10"] {
                let options = format!(
                    "compat={compat},cluster_size={cluster},\
                     encrypt.format={method},encrypt.key-secret=key"
                );
                create(folder.path(), &options, &secret, "1M");
            }
        }
    }
    for raw in ["off", "on"] {
        for name in ["guest.data", "json-looks-odd.data", "ünïcode.data"] {
            let options = format!("data_file={name},data_file_raw={raw}");
            let header = create(folder.path(), &options, &[], "1M");
            assert_eq!(header.external_data_file(), Some(name.as_bytes()));
        }
    }
}

#[test]
fn every_command_that_rewrites_a_header() {
    let folder = memory_folder();
    let folder = folder.path();
    img_in(folder, &["create", "-q", "-f", "raw", "base.img", "1M"]);
    img_in(folder, &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    let on_base = ["-b", "base.img", "-F", "raw"];
    let long = format!("./{}base.img", "./".repeat(500));
    let stories: &[&[&[&str]]] = &[
        &[&["amend", "-o", "compat=0.10"], &["amend", "-o", "compat=1.1,lazy_refcounts=on"]],
        &[&["amend", "-o", "refcount_bits=1"], &["amend", "-o", "refcount_bits=64"]],
        &[
            &["rebase", "-u", "-b", &long, "-F", "raw"],
            &["rebase", "-b", "base.qcow2", "-F", "qcow2"],
            &["rebase", "-u", "-b", ""],
        ],
        &[&["snapshot", "-c", "a"], &["snapshot", "-c", "b"], &["snapshot", "-d", "a"]],
        &[&["bitmap", "--add"], &["bitmap", "--disable"], &["bitmap", "--remove"]],
        &[&["snapshot", "-c", "a"], &["bitmap", "--add"], &["resize", "-q", "+40M"]],
        &[&["resize", "-q", "600M"], &["resize", "-q", "--shrink", "1M"]],
        &[&["commit", "-q"], &["check", "-q", "-r", "all"]],
    ];
    for cluster in ["512", "4096", "65536", "2M"] {
        for story in stories {
            let options = format!("cluster_size={cluster}");
            let says = |word| story.iter().any(|command| command.contains(&word));
            // Such a name does not fit; and qemu-img counts a block of millions for minutes.
            if cluster == "512" && says(long.as_str()) || cluster == "2M" && says("refcount_bits=1")
            {
                continue;
            }
            create(folder, &options, &on_base, "1M");
            for command in *story {
                let mut arguments = command.to_vec();
                arguments.push("new.qcow2");
                match command {
                    ["bitmap", ..] => arguments.push("bits"),
                    // The size follows the image's name.
                    ["resize", .., _] => arguments.swap(command.len() - 1, command.len()),
                    _ => {}
                }
                img_in(folder, &arguments);
                check(folder, "new.qcow2", &format!("{cluster}: {arguments:?}"));
            }
        }
    }
}

#[test]
fn images_in_use_and_killed_writers() {
    let folder = memory_folder();
    for options in ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512"] {
        create(folder.path(), options, &[], "1M");
        // Killed by its own command: the dirty bit stays.
        Command::new("qemu-io")
            .current_dir(folder.path())
            .args(["-c", "write 0 64k", "-c", "abort", "new.qcow2"])
            .output()
            .expect("qemu-io runs; the test script installs it");
        let header = check(folder.path(), "new.qcow2", options);
        assert_eq!(header.incompatible_features().0, 1, "the dirty bit");
    }
}
