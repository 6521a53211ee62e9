//! The command line as a script sees it: exit codes, streams, JSON, and no debris.
//!
//! Topics: the main job · strategies, space, usage · extract · pack · base · cache · overlay and rebase ·
//! create · info · attach · errors · io and map.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's helpers panic like the test itself"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs commands in a folder of its own.
struct Shell(tempfile::TempDir);

impl Shell {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_disk-engine"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses its input early closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// The JSON report of a command that succeeds and says nothing else.
    fn report(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The JSON error of a command that fails with `exit` and reports nothing.
    fn error(&self, arguments: &[&str], exit: i32) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"].clone()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn raw(&self, name: &str, length: u64) {
        fs::File::create(self.path(name)).unwrap().set_len(length).unwrap();
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// A disk with something in its first and last block, and nothing between.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..512].fill(1);
    disk[(1 << 20) - 512..].fill(2);
    disk
}

#[test]
fn the_main_job_runs_with_no_source_at_all() {
    let shell = Shell::new();
    let report = shell.report(&["prepare", "--nodes", "3", "--dir", "vms", "--min-size", "1G"]);
    assert_eq!(report["base"]["origin"], "extracted");
    let disks = report["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 3);
    for (node, disk) in disks.iter().enumerate() {
        assert_eq!(disk["filename"], format!("vms/vm{node}/primary.qcow2"));
        assert_eq!(disk["virtual-size"], 1 << 30);
        assert_eq!(disk["reused"], false);
        assert!(disk["actual-size"].as_u64().unwrap() <= 16 << 10);
    }
    let inode =
        |node| fs::metadata(shell.path(&format!("vms/vm{node}/primary.qcow2"))).unwrap().ino();
    let before = inode(0);
    let report = shell.report(&["prepare", "--nodes", "3", "--dir", "vms", "--min-size", "1G"]);
    assert_eq!(report["base"]["origin"], "hit");
    assert_eq!(report["disks"][0]["reused"], true);
    assert_eq!(inode(0), before);
    shell.report(&["prepare", "--nodes", "1", "--dir", "vms", "--fresh"]);
    assert_ne!(inode(0), before);
}

#[test]
fn a_preparation_that_fails_removes_what_it_made_and_nothing_else() {
    let shell = Shell::new();
    fs::create_dir_all(shell.path("vms/vm1")).unwrap();
    fs::write(shell.path("vms/vm1/primary.qcow2"), b"precious").unwrap();
    let error = shell.error(&["prepare", "--nodes", "2", "--dir", "vms"], 3);
    assert_eq!(error["code"], "mismatch");
    assert!(!shell.path("vms/vm0").exists());
    assert_eq!(fs::read(shell.path("vms/vm1/primary.qcow2")).unwrap(), b"precious");
}

#[test]
fn a_strategy_is_named_reported_and_kept_to() {
    let shell = Shell::new();
    fn prepare<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["prepare", "--nodes", "2", "--dir", "vms", "--cache", "cache"], more].concat()
    }
    let report = shell.report(&prepare(&["--strategy", "copy", "--min-size", "65M"]));
    for (node, disk) in report["disks"].as_array().unwrap().iter().enumerate() {
        assert_eq!(disk["filename"], format!("vms/vm{node}/primary.img"));
        assert_eq!((&disk["format"], &disk["strategy"]), (&"raw".into(), &"copy".into()));
        assert_eq!(disk["virtual-size"], 65 << 20);
        let copied = &disk["copied"];
        assert!(copied["offloaded"].as_u64().unwrap() + copied["written"].as_u64().unwrap() > 0);
        assert!(disk["actual-size"].as_u64().unwrap() < 1 << 20);
    }
    let error = shell.error(&prepare(&[]), 3);
    assert_eq!(error["code"], "mismatch");
    assert!(error["hint"].as_str().unwrap().contains("reflink or copy"), "{error}");
    let report = shell.report(&prepare(&["--raw"]));
    assert_eq!(report["disks"][1]["strategy"], "kept");
    assert!(report["disks"][1].get("copied").is_none());
    let report = shell.report(&prepare(&["--fresh"]));
    assert_eq!(report["disks"][0]["strategy"], "overlay");
    assert!(!shell.path("vms/vm0/primary.img").exists());
    for wrong in [&["--strategy", "overlay", "--raw"][..], &["--strategy", "clone"]] {
        assert_eq!(shell.error(&prepare(wrong), 2)["code"], "invalid-input", "{wrong:?}");
    }
    let text = shell.run(&prepare(&["--fresh", "--strategy", "copy"]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("raw, read-write, new copy"), "{text}");
}

#[test]
fn disks_that_cannot_fit_end_with_the_exit_code_for_space() {
    let shell = Shell::new();
    let error = shell.error(&["prepare", "--nodes", "2", "--dir", "vms", "--reserve", "1E"], 4);
    assert_eq!((&error["code"], error["errno"].is_null()), (&"no-space".into(), true));
    assert!(error["message"].as_str().unwrap().contains("2305843009"), "{error}");
    assert!(!shell.path("vms/vm0").exists());
}

#[test]
fn a_damaged_base_is_reported_before_the_exit_code_and_made_anew() {
    let shell = Shell::new();
    fs::write(shell.path("disk"), vec![7; 1 << 20]).unwrap();
    let made = shell.report(&["base", "disk", "--cache", "cache"]);
    let (path, key) = (made["path"].as_str().unwrap(), made["key"].as_str().unwrap());
    let report = shell.report(&["cache", "verify", "--cache", "cache", "--full", key]);
    assert_eq!((&report["damaged"], &report["bytes-read"]), (&0.into(), &(1 << 20).into()));
    assert_eq!(report["bases"][0]["verdict"], "intact");
    assert_eq!(report["bases"][0]["verified-fully"], true);

    fs::remove_file(path).unwrap();
    fs::write(path, vec![8; 1 << 20]).unwrap();
    let verify = ["cache", "verify", "--cache", "cache", "--json"];
    for (keep, moved) in [(true, false), (false, true)] {
        let output = shell.run(&[&verify[..], if keep { &["--keep"] } else { &[] }].concat());
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["bases"][0]["verdict"], "damaged");
        assert_eq!(report["bases"][0]["quarantined"].is_string(), moved);
        assert_eq!(Path::new(path).exists(), keep);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["code"], "corrupt");
    }
    assert_eq!(shell.error(&["cache", "verify", "--cache", "cache", key], 1)["code"], "not-found");
    assert_eq!(shell.report(&["base", "disk", "--cache", "cache"])["origin"], "extracted");
    assert_eq!(shell.report(&verify[..4])["damaged"], 0);

    assert_eq!(shell.error(&["cache", "verify", "--cache", "absent"], 1)["code"], "not-found");
    assert!(!shell.path("absent").exists(), "a mistyped name makes no cache");
    shell.error(&["cache", "verify", "--cache", "cache", "nokey"], 2);
}

#[test]
fn usage_shows_disks_and_what_is_left_for_them() {
    let shell = Shell::new();
    shell.report(&["prepare", "--nodes", "2", "--dir", "vms"]);
    let report = shell.report(&["usage", "vms"]);
    let disks = report["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 2);
    for (node, disk) in disks.iter().enumerate() {
        assert_eq!(disk["filename"], format!("vms/vm{node}/primary.qcow2"));
        assert_eq!((&disk["in-use"], &disk["growth"]), (&false.into(), &0.into()));
        let base = &disk["base"];
        assert!(fs::metadata(base["filename"].as_str().unwrap()).is_ok());
        assert_eq!(base["key"].as_str().unwrap().len(), 64);
    }
    assert!(report["file-systems"][0]["available"].as_u64().unwrap() > 0);
    assert_eq!(report["skipped"], Value::Array(Vec::new()));
    assert_eq!(shell.error(&["usage", "absent"], 1)["code"], "not-found");
    let text = shell.run(&["usage", "vms"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("grown by 0 B, on") && text.contains("available"), "{text}");
}

#[test]
fn extract_pads_a_disk_unless_it_has_a_gpt() {
    let shell = Shell::new();
    let mut disk = vec![7; 5000];
    fs::write(shell.path("plain"), &disk).unwrap();
    let report = shell.report(&["extract", "plain", "a", "--pad"]);
    assert_eq!((&report["virtual-size"], &report["padding"]), (&8192.into(), &3192.into()));
    assert_eq!(fs::metadata(shell.path("a")).unwrap().len(), 8192);
    assert_eq!(shell.report(&["extract", "plain", "b"])["padding"], 0);
    disk[512..520].copy_from_slice(b"EFI PART");
    fs::write(shell.path("gpt"), &disk).unwrap();
    assert_eq!(shell.error(&["extract", "gpt", "c", "--pad"], 1)["code"], "unsupported");
    assert!(!shell.path("c").exists());
}

#[test]
fn extract_reads_files_links_and_standard_input() {
    let shell = Shell::new();
    fs::write(shell.path("disk.zst"), zstd(&disk())).unwrap();
    std::os::unix::fs::symlink("disk.zst", shell.path("link")).unwrap();
    for (source, destination) in [("disk.zst", "a"), ("link", "b")] {
        let report = shell.report(&["extract", source, destination]);
        assert_eq!(report["virtual-size"], 1 << 20);
        assert_eq!(report["compression"], "zstd");
        assert_eq!(fs::read(shell.path(destination)).unwrap(), disk());
    }
    let output = shell.with_input(&["extract", "-", "c"], &zstd(&disk()));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(shell.path("c")).unwrap(), disk());
    assert!(fs::metadata(shell.path("c")).unwrap().blocks() * 512 <= 16 << 10);
}

#[test]
fn extract_leaves_nothing_when_it_fails() {
    let shell = Shell::new();
    let good = zstd(&disk());
    fs::write(shell.path("cut"), &good[..good.len() - 3]).unwrap();
    fs::write(shell.path("good"), &good).unwrap();
    fs::write(shell.path("there"), b"precious").unwrap();
    let names = shell.names();
    assert_eq!(shell.error(&["extract", "cut", "x"], 3)["code"], "corrupt");
    assert_eq!(shell.error(&["extract", "absent", "x"], 1)["code"], "not-found");
    assert_eq!(shell.error(&["extract", ".", "x"], 2)["code"], "invalid-input");
    assert_eq!(shell.error(&["extract", "good", "there"], 1)["code"], "already-exists");
    let zeros = "0".repeat(64);
    let error = shell.error(&["extract", "good", "x", "--sha256", &zeros], 3);
    assert_eq!(
        (error["code"].as_str(), error["field"].as_str()),
        (Some("mismatch"), Some("sha256"))
    );
    assert_eq!(shell.names(), names);
    assert_eq!(fs::read(shell.path("there")).unwrap(), b"precious");
    assert!(shell.run(&["extract", "good", "there", "--force"]).status.success());
    assert_eq!(fs::read(shell.path("there")).unwrap(), disk());
}

/// A tar archive with these members, whole files or sparse ones, and with as long a comment.
fn tar(members: &[(&str, &[u8])], pieces: usize, comment: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let comment = "x".repeat(comment);
    archive.append_pax_extensions([("comment", comment.as_bytes())]).unwrap();
    if pieces > 0 {
        let map: Vec<_> = (0..pieces).map(|at| format!("{},512", at * 1024)).collect();
        let (map, size) = (map.join(","), (pieces * 1024).to_string());
        let records = [("GNU.sparse.map", map.as_str()), ("GNU.sparse.size", size.as_str())];
        let records = records.map(|(key, value)| (key, value.as_bytes()));
        archive = tar::Builder::new(Vec::new());
        archive.append_pax_extensions(records).unwrap();
    }
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A small disk behind a member of so many MiB that zstd makes 30,000 times smaller.
fn bomb(mib: u64) -> Vec<u8> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let mut header = tar::Header::new_ustar();
    header.set_size(mib << 20);
    archive.append_data(&mut header, "a", std::io::repeat(7).take(mib << 20)).unwrap();
    header.set_size(1);
    archive.append_data(&mut header, "disk.img", &b"x"[..]).unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn each_limit_of_a_source_has_its_option() {
    let shell = Shell::new();
    let noise: Vec<u8> =
        (0..3_u32 << 20).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(22).unwrap();
    window.write_all(&noise).unwrap();
    fs::write(shell.path("window"), window.finish().unwrap()).unwrap();
    fs::write(shell.path("size"), zstd(&disk())).unwrap();
    fs::write(shell.path("extents"), tar(&[("a", &[7; 5 * 512])], 5, 0)).unwrap();
    fs::write(shell.path("metadata"), tar(&[("a", b"x")], 0, 5000)).unwrap();
    let members = [("a", &b"x"[..]), ("b", b"x"), ("disk.img", b"x")];
    fs::write(shell.path("members"), tar(&members, 0, 1)).unwrap();
    fs::write(shell.path("expansion"), bomb(1300)).unwrap();
    for (source, option, low, enough) in [
        ("window", "--long", "21", "22"),
        ("size", "--max-size", "1023k", "1M"),
        ("extents", "--max-extents", "4", "5"),
        ("metadata", "--max-metadata", "5k", "6k"),
        ("members", "--max-members", "2", "3"),
        ("expansion", "--max-expansion", "1000", "40000"),
    ] {
        let error = shell.error(&["extract", source, "x", option, low], 1);
        assert_eq!(error["code"], "limit", "{source}: {error}");
        assert!(error["hint"].as_str().unwrap().contains(option), "{source}: {error}");
        assert!(error["offset"].is_u64() && error["path"] == source, "{source}: {error}");
        assert!(!shell.path("x").exists());
        shell.report(&["extract", source, "x", "--force", option, enough]);
        fs::remove_file(shell.path("x")).unwrap();
        // The other commands that read sources take it too.
        let base = ["base", source, "--cache", "cache", option];
        assert_eq!(shell.error(&[&base[..], &[low]].concat(), 1)["code"], "limit", "{source}");
    }
}

#[test]
fn extract_tells_frames_and_threads() {
    let shell = Shell::new();
    let noise: Vec<u8> =
        (0..2_u32 << 20).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    fs::write(shell.path("disk"), &noise).unwrap();
    shell.report(&["pack", "disk", "a.tar.zst", "--frames", "1M", "--level", "1"]);
    let mut disks = Vec::new();
    for threads in [1, 2, 4] {
        let count = threads.to_string();
        let report = shell.report(&["extract", "a.tar.zst", "x", "--threads", &count]);
        assert_eq!((&report["frames"], &report["threads"]), (&9.into(), &threads.into()));
        disks.push(fs::read(shell.path("x")).unwrap());
        let output = shell.run(&["extract", "a.tar.zst", "x", "--force", "--threads", &count]);
        let text = String::from_utf8(output.stdout).unwrap();
        let told = format!("(zstd in 9 frames, member \"disk.img\"), decoded on {threads} thread");
        assert!(text.contains(&told), "{text}");
        fs::remove_file(shell.path("x")).unwrap();
    }
    assert!(disks.iter().all(|disk| *disk == noise));
    let report = shell.report(&["extract", "disk", "x"]);
    assert_eq!((&report["frames"], &report["threads"]), (&0.into(), &1.into()));
    let prepare = ["prepare", "a.tar.zst", "--nodes", "1", "--dir", "vms", "--threads", "2"];
    assert_eq!(shell.report(&prepare)["base"]["origin"], "extracted");
    assert_eq!(
        shell.error(&["extract", "disk", "y", "--threads", "0"], 2)["code"],
        "invalid-input"
    );
}

#[test]
fn the_path_of_a_base_is_the_last_line_printed() {
    let shell = Shell::new();
    fs::write(shell.path("disk.zst"), zstd(&disk())).unwrap();
    for origin in ["extracted", "found"] {
        let output = shell.run(&["base", "disk.zst", "--cache", "cache"]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(origin), "{text}");
        let path = Path::new(text.lines().last().unwrap());
        assert!(path.is_absolute());
        assert_eq!(fs::read(path).unwrap(), disk());
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o444);
    }
    let named = shell.report(&["base", "disk.zst", "--cache", "cache", "--key", "name:x"]);
    let content = shell.report(&["base", "disk.zst", "--cache", "cache"]);
    assert_ne!(named["path"], content["path"]);
    assert_eq!(content["origin"], "hit");
}

#[test]
fn an_overlay_is_made_kept_and_rebased() {
    let shell = Shell::new();
    shell.raw("base.img", 10 << 20);
    let overlay = ["overlay", "base.img", "vm.qcow2", "--min-size", "1G"];
    assert_eq!(shell.report(&overlay)["virtual-size"], 1 << 30);
    assert_eq!(shell.error(&overlay, 1)["code"], "already-exists");
    assert_eq!(shell.report(&[&overlay[..], &["--reuse"]].concat())["reused"], true);
    fs::create_dir(shell.path("new")).unwrap();
    fs::rename(shell.path("base.img"), shell.path("new/base.img")).unwrap();
    let error = shell.error(&["overlay", "new/base.img", "vm.qcow2", "--reuse"], 3);
    assert_eq!(error["code"], "mismatch");
    let report = shell.report(&["rebase", "vm.qcow2", "new/base.img", "--relative"]);
    assert_eq!(report["backing-filename"], "new/base.img");
    assert_eq!(shell.report(&["overlay", "new/base.img", "vm.qcow2", "--reuse"])["reused"], true);
}

#[test]
fn a_base_that_looks_like_qcow2_needs_its_format_stated() {
    let shell = Shell::new();
    shell.report(&["create", "base.qcow2", "1G"]);
    assert_eq!(shell.error(&["overlay", "base.qcow2", "vm"], 2)["code"], "invalid-input");
    let report = shell.report(&["overlay", "base.qcow2", "vm", "--format", "qcow2"]);
    assert_eq!(report["virtual-size"], 1 << 30);
    let report = shell.report(&["overlay", "base.qcow2", "raw", "--format", "raw"]);
    assert!(report["virtual-size"].as_u64().unwrap() < 1 << 20);
}

#[test]
fn create_takes_qemu_imgs_options_and_refuses_what_no_image_can_have() {
    let shell = Shell::new();
    shell.raw("base.img", 3 << 20);
    let report = shell.report(&["create", "a", "-b", "base.img", "-F", "raw"]);
    assert_eq!(report["virtual-size"], 3 << 20);
    let report = shell.report(&["create", "b", "1.5G", "-o", "cluster_size=2M,compat=0.10"]);
    assert_eq!(report["cluster-size"], 2 << 20);
    for (arguments, exit, code) in [
        (&["create", "x"][..], 2, "invalid-input"),
        (&["create", "x", "1G", "-b", "base.img"], 2, "invalid-input"),
        (&["create", "x", "1G", "-b", "nbd:base", "-F", "raw"], 2, "invalid-input"),
        (&["create", "x", "1G", "-b", "absent", "-F", "raw"], 1, "not-found"),
        (&["create", "x", "1G", "-o", "compat=0.10,extended_l2=on"], 2, "invalid-input"),
        (&["create", "x", "200G", "-o", "cluster_size=512"], 2, "invalid-input"),
        (&["create", "x", "1G", "-o", "encryption=on"], 1, "unsupported"),
        (&["create", "x", "1G", "-o", "colour=red"], 2, "invalid-input"),
        (&["create", "a", "1G"], 1, "already-exists"),
        (&["create", "no/folder", "1G"], 1, "not-found"),
    ] {
        assert_eq!(shell.error(arguments, exit)["code"], code, "{arguments:?}");
    }
    assert_eq!(shell.names(), ["a", "b", "base.img"]);
}

#[test]
fn info_shows_roles_and_follows_only_what_it_may() {
    let shell = Shell::new();
    fs::create_dir_all(shell.path("cache")).unwrap();
    fs::create_dir_all(shell.path("vms")).unwrap();
    shell.raw("cache/base.img", 1 << 20);
    shell.report(&["overlay", "cache/base.img", "vms/vm.qcow2"]);
    let report = shell.report(&["info", "vms/vm.qcow2"]);
    assert_eq!(report["role"], "read-write-per-vm");
    assert_eq!(report["backing-chain"], Value::Array(Vec::new()));
    assert!(report["not-followed"].as_str().unwrap().contains("outside"));
    for allowed in [&["--backing-chain"][..], &["--allow", "cache"]] {
        let report = shell.report(&[&["info", "vms/vm.qcow2"], allowed].concat());
        assert_eq!(report["backing-chain"][0]["role"], "read-only-shared");
    }
    let text = shell.run(&["info", "vms/vm.qcow2"]);
    assert!(String::from_utf8(text.stdout).unwrap().contains("read-write, one VM's"));
}

#[test]
fn attach_speaks_both_languages() {
    let shell = Shell::new();
    shell.raw("base.img", 1 << 20);
    shell.raw("conf.img", 4096);
    shell.report(&["overlay", "base.img", "vm.qcow2"]);
    let xml = shell.report(&["attach", "vm.qcow2", "conf.img", "--for", "libvirt"]);
    let xml = xml["xml"].as_str().unwrap();
    assert_eq!(xml.matches("<disk ").count(), 2);
    assert!(xml.contains("<backingStore"));
    let arguments = shell.report(&["attach", "vm.qcow2", "conf.img", "--for", "qemu"]);
    assert!(arguments["arguments"].as_array().unwrap().iter().any(|word| word == "-blockdev"));
    let arguments = shell.report(&["attach", "vm.qcow2", "--for", "qemu", "--form", "drive"]);
    assert!(arguments["arguments"].as_array().unwrap().iter().any(|word| word == "-drive"));
    for no_disk in [".", "/dev/null"] {
        for hypervisor in ["libvirt", "qemu"] {
            let error = shell.error(&["attach", "--raw", no_disk, "--for", hypervisor], 2);
            assert_eq!(error["code"], "invalid-input");
        }
    }
}

#[test]
fn a_damaged_image_is_named_with_field_and_offset() {
    let shell = Shell::new();
    shell.report(&["create", "a", "1G"]);
    let mut bytes = fs::read(shell.path("a")).unwrap();
    bytes[20..24].copy_from_slice(&99_u32.to_be_bytes());
    fs::write(shell.path("a"), bytes).unwrap();
    let error = shell.error(&["info", "a"], 3);
    assert_eq!(error["code"], "corrupt");
    assert_eq!(error["field"], "cluster_bits");
    assert_eq!(error["offset"], 20);
    let output = shell.run(&["info", "a"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("disk-engine: "), "{text}");
}

#[test]
fn wrong_words_exit_with_two_and_help_with_zero() {
    let shell = Shell::new();
    for arguments in [&["frobnicate"][..], &["extract"], &["create", "x", "12Q"], &[]] {
        assert_eq!(shell.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["prepare", "--help"]] {
        assert_eq!(shell.run(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn what_is_read_is_never_replaced() {
    let shell = Shell::new();
    let archive = zstd(&disk());
    fs::write(shell.path("a"), &archive).unwrap();
    std::os::unix::fs::symlink("a", shell.path("link")).unwrap();
    fs::hard_link(shell.path("a"), shell.path("hard")).unwrap();
    for destination in ["a", "link", "hard", "./a"] {
        let error = shell.error(&["extract", "a", destination, "--force"], 2);
        assert_eq!(error["code"], "invalid-input", "{destination}");
        assert_eq!(fs::read(shell.path(destination)).unwrap(), archive, "{destination}");
    }
    let output = shell
        .command(&["extract", "-", "a", "--force"])
        .stdin(fs::File::open(shell.path("a")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(fs::read(shell.path("a")).unwrap(), archive);

    shell.raw("base", 1 << 20);
    for arguments in [
        &["overlay", "base", "base", "--force"][..],
        &["create", "base", "-b", "base", "-F", "raw", "--force"],
        &["create", "base", "1M", "-u", "-b", "./base", "-F", "raw", "--force"],
    ] {
        assert_eq!(shell.error(arguments, 2)["code"], "invalid-input", "{arguments:?}");
        assert_eq!(fs::metadata(shell.path("base")).unwrap().len(), 1 << 20);
    }
    assert!(shell.run(&["create", "image", "1M"]).status.success());
    let before = fs::read(shell.path("image")).unwrap();
    let error = shell.error(&["rebase", "image", "image", "-F", "qcow2", "--force"], 2);
    assert_eq!(error["code"], "invalid-input");
    assert_eq!(fs::read(shell.path("image")).unwrap(), before);
}

#[test]
fn a_dash_is_no_destination() {
    let shell = Shell::new();
    fs::write(shell.path("a"), zstd(&disk())).unwrap();
    for arguments in [&["extract", "a", "-"][..], &["extract", "a", "-", "--force"]] {
        assert_eq!(shell.error(arguments, 2)["code"], "invalid-input");
    }
    assert_eq!(shell.names(), ["a"]);
    shell.report(&["extract", "a", "./-"]);
    assert_eq!(shell.names(), ["-", "a"]);
}

#[test]
fn an_overlay_that_cannot_be_read_is_no_misfit() {
    let shell = Shell::new();
    shell.raw("base", 1 << 20);
    // A regular file whose first byte is an EIO.
    let error = shell.error(&["overlay", "base", "/proc/self/mem", "--reuse"], 1);
    assert_eq!((error["code"].as_str(), error["errno"].as_i64()), (Some("io"), Some(5)));
}

#[test]
fn a_rebase_onto_a_larger_base_or_of_no_file_is_refused() {
    let shell = Shell::new();
    shell.raw("small", 1 << 20);
    shell.raw("large", 2 << 20);
    assert!(shell.run(&["create", "vm", "-b", "small", "-F", "raw"]).status.success());
    assert_eq!(shell.error(&["rebase", "vm", "large"], 3)["code"], "mismatch");
    assert!(shell.run(&["rebase", "vm", "large", "--force"]).status.success());
    assert_eq!(shell.error(&["rebase", ".", "small"], 2)["code"], "invalid-input");
    assert_eq!(shell.error(&["rebase", "/dev/null", "small"], 2)["code"], "invalid-input");
}

#[test]
fn wrong_words_are_json_where_json_is_asked_for() {
    let shell = Shell::new();
    for arguments in [
        &["extract", "a"][..],
        &["nonsense"],
        &[],
        &["info", "--nonsense", "x"],
        &["prepare", "--nodes", "0", "--dir", "x"],
    ] {
        let error = shell.error(arguments, 2);
        assert_eq!(error["code"], "invalid-input", "{arguments:?}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    }
    // After `--` it is a file's name.
    let output = shell.run(&["info", "--", "--json", "more"]);
    assert!(output.stderr.starts_with(b"error:"), "{output:?}");
}

#[test]
fn a_limit_on_file_sizes_is_an_error_like_others() {
    let shell = Shell::new();
    let tool = env!("CARGO_BIN_EXE_disk-engine");
    let script = format!("ulimit -f 8; exec '{tool}' create image 1G --json");
    let output =
        Command::new("sh").args(["-c", &script]).current_dir(shell.path(".")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"].clone();
    assert_eq!(error["errno"], 27);
    assert!(shell.names().is_empty());
}

#[test]
fn an_error_is_written_at_once_so_that_two_do_not_mix() {
    let shell = Shell::new();
    for arguments in [&["info", "absent"][..], &["info", "absent", "--json"]] {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let stderr = std::os::fd::OwnedFd::from(theirs);
        assert!(!shell.command(arguments).stderr(stderr).status().unwrap().success());
        ours.set_nonblocking(true).unwrap();
        // Each write is a datagram.
        let mut line = [0; 4096];
        let length = ours.recv(&mut line).unwrap();
        assert!(line[..length].ends_with(b"\n"), "{}", line[..length].escape_ascii());
    }
}

#[test]
fn a_closed_pipe_is_a_normal_ending() {
    let shell = Shell::new();
    shell.report(&["create", "a", "1G"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = shell.command(&["info", "a"]).stdout(writer).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_config_disk_is_made_whole_or_not_at_all_and_attached_raw() {
    let shell = Shell::new();
    fs::create_dir_all(shell.path("seed/sub")).unwrap();
    fs::write(shell.path("seed/sub/a"), "a").unwrap();
    fs::write(shell.path("seed/user-data"), "#cloud-config\n").unwrap();

    let missing = shell.error(&["config-disk", "seed", "c.img", "--cloud-init"], 1);
    assert_eq!(missing["code"], "not-found");
    assert!(missing["path"].as_str().unwrap().ends_with("seed/meta-data"), "{missing}");
    assert_eq!(shell.names(), ["seed"]);

    fs::write(shell.path("seed/meta-data"), "instance-id: 1\n").unwrap();
    let report = shell.report(&["config-disk", "seed", "c.img", "--cloud-init"]);
    assert_eq!((&report["label"], &report["format"]), (&"cidata".into(), &"raw".into()));
    assert_eq!((&report["files"], &report["folders"]), (&3.into(), &1.into()));
    let metadata = fs::metadata(shell.path("c.img")).unwrap();
    assert_eq!(report["virtual-size"], metadata.len());
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let first = fs::read(shell.path("c.img")).unwrap();

    let taken = shell.error(&["config-disk", "seed", "c.img"], 1);
    assert_eq!(taken["code"], "already-exists");
    assert!(fs::read(shell.path("c.img")).unwrap() == first);
    shell.report(&["config-disk", "seed", "c.img", "--cloud-init", "--force"]);
    assert!(fs::read(shell.path("c.img")).unwrap() == first, "the same seed gave other bytes");
    let report = shell.report(&["config-disk", "seed", "c.img", "--force", "--size", "8M"]);
    assert_eq!((&report["label"], &report["virtual-size"]), (&"CONFIG".into(), &(8 << 20).into()));

    for (arguments, field) in [
        (&["config-disk", "seed", "d.img", "--label", "a.b"][..], Some("label")),
        (&["config-disk", "seed", "seed/sub/d.img"], None),
        (&["config-disk", "seed", "d.img", "--size", "much"], None),
    ] {
        let error = shell.error(arguments, 2);
        assert_eq!(error["code"], "invalid-input");
        assert_eq!(error["field"].as_str(), field, "{error}");
    }
    std::os::unix::fs::symlink("/etc/passwd", shell.path("seed/link")).unwrap();
    let refused = shell.error(&["config-disk", "seed", "c.img", "--force"], 1);
    assert_eq!(refused["code"], "refused");
    assert_eq!(shell.names(), ["c.img", "seed"]);

    let report = shell.report(&["attach", "--for", "qemu", "--read-only", "--raw", "c.img"]);
    let line = report["arguments"].to_string();
    assert!(line.contains("c.img") && line.contains("raw"), "{line}");
}

#[test]
fn pack_reports_what_extract_reads_back() {
    let shell = Shell::new();
    fs::write(shell.path("disk"), disk()).unwrap();
    let report = shell.report(&["pack", "disk", "a.tar.zst", "--frames", "64k", "--threads", "2"]);
    let size = fs::metadata(shell.path("a.tar.zst")).unwrap().len();
    assert_eq!(report["virtual-size"], disk().len());
    assert_eq!((&report["archive-bytes"], &report["frame-size"]), (&size.into(), &65_536.into()));
    assert_eq!((&report["member"], &report["threads"]), (&"disk.img".into(), &2.into()));
    let digest = report["sha256"].as_str().unwrap();
    shell.report(&["extract", "a.tar.zst", "again", "--sha256", digest]);
    assert_eq!(fs::read(shell.path("again")).unwrap(), disk());

    // To standard output: the archive there, the report beside it.
    let output = shell.run(&["pack", "disk", "-", "--frames", "64k", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, fs::read(shell.path("a.tar.zst")).unwrap());
    let beside: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(beside["sha256"], digest);
    assert_eq!(shell.error(&["pack", "disk", "-", "--force"], 2)["code"], "invalid-input");

    assert_eq!(shell.error(&["pack", "disk", "a.tar.zst"], 1)["code"], "already-exists");
    shell.report(&["pack", "disk", "a.tar.zst", "--force", "--durable", "--level", "1"]);
    for (option, value) in
        [("--frames", "1k"), ("--level", "23"), ("--long", "9"), ("--member", "/x")]
    {
        let error = shell.error(&["pack", "disk", "b.tar.zst", option, value], 2);
        assert_eq!(error["code"], "invalid-input", "{option}");
    }
    assert_eq!(shell.names(), ["a.tar.zst", "again", "disk"]);
}

#[test]
fn a_disk_is_not_overwritten_by_its_own_archive_on_standard_output() {
    let shell = Shell::new();
    shell.raw("base", 1 << 20);
    shell.report(&["create", "vm", "-b", "base", "-F", "raw"]);
    for (source, format, stdout) in
        [("base", "raw", "base"), ("vm", "qcow2", "vm"), ("vm", "qcow2", "base")]
    {
        let before = fs::read(shell.path(stdout)).unwrap();
        let open = || fs::File::options().write(true).open(shell.path(stdout)).unwrap();
        let output =
            shell.command(&["pack", "-f", format, source, "-"]).stdout(open()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(fs::read(shell.path(stdout)).unwrap() == before, "{source} into {stdout}");
    }
}

#[test]
fn paths_that_are_not_utf_8_are_reported_all_the_same() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let shell = Shell::new();
    let name = |start: &str| OsStr::from_bytes(&[start.as_bytes(), b"\xff"].concat()).to_owned();
    fs::write(shell.path("").join(name("disk")), disk()).unwrap();
    fs::create_dir(shell.path("").join(name("folder"))).unwrap();
    for (command, source, made, key) in [
        ("pack", "disk", "packed", "destination"),
        ("extract", "packed", "extracted", "destination"),
        ("config-disk", "folder", "config", "filename"),
    ] {
        let mut command = shell.command(&["--json", command]);
        let output = command.args([name(source), name(made)]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report[key], format!("{made}\u{fffd}"), "{report}");
    }
}

#[test]
fn pack_wants_the_format_of_what_looks_like_qcow2_stated() {
    let shell = Shell::new();
    shell.report(&["create", "image.qcow2", "1M"]);
    let error = shell.error(&["pack", "image.qcow2", "a.tar.zst"], 2);
    assert!(error["hint"].as_str().unwrap().contains("--format qcow2"), "{error}");
    let length = fs::metadata(shell.path("image.qcow2")).unwrap().len();
    for (format, size) in [("raw", length), ("qcow2", 1 << 20)] {
        let report = shell.report(&["pack", "-f", format, "image.qcow2", format]);
        assert_eq!(report["virtual-size"], size, "{format}");
    }
}

// ---------------------------------------------------------------------------------------------
// cache
// ---------------------------------------------------------------------------------------------

/// A cache with one base, and its key.
fn cache_with_a_base(shell: &Shell) -> String {
    fs::write(shell.path("disk.img"), vec![7; 64 << 10]).unwrap();
    let base = shell.report(&["base", "disk.img", "--cache", "cache", "--key", "name:it"]);
    base["key"].as_str().unwrap().to_owned()
}

#[test]
fn cache_ls_tells_bases_who_needs_them_and_what_they_take() {
    let shell = Shell::new();
    let key = cache_with_a_base(&shell);
    let base = shell.path("cache/v1/bases").join(format!("{key}.img"));
    let arguments = ["overlay", base.to_str().unwrap(), "vm\n.qcow2"];
    assert!(shell.run(&arguments).status.success());
    let report = shell.report(&["cache", "ls", "--cache", "cache"]);
    let listed = &report["bases"][0];
    assert_eq!(listed["key"], key.as_str());
    assert_eq!(listed["state"], "good");
    assert_eq!((&listed["virtual-size"], &listed["name"]), (&(64 << 10).into(), &"it".into()));
    assert_eq!((&listed["leased"], &listed["durable"]), (&false.into(), &false.into()));
    assert_eq!(listed["overlays"][0]["state"], "stands");
    assert_eq!(report["actual-size"], listed["actual-size"]);
    let text = shell.run(&["cache", "ls", "--cache", "cache"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&key) && text.contains("1 overlay\n") && text.contains("\\n"), "{text}");
}

#[test]
fn cache_prune_takes_what_nobody_needs_and_says_what_it_kept() {
    let shell = Shell::new();
    let key = cache_with_a_base(&shell);
    let base = shell.path("cache/v1/bases").join(format!("{key}.img"));
    assert!(shell.run(&["overlay", base.to_str().unwrap(), "vm.qcow2"]).status.success());
    let prune = ["cache", "prune", "--cache", "cache", "--max-age", "0s"];
    let report = shell.report(&prune);
    assert_eq!(report["kept"][0]["because"], "overlays");
    let overlay = shell.path("vm.qcow2");
    assert_eq!(report["kept"][0]["overlays"][0]["filename"], overlay.to_str().unwrap());
    assert!(base.exists());
    fs::remove_file(&overlay).unwrap();
    let dry = shell.report(&[&prune[..], &["--dry-run"]].concat());
    assert_eq!((&dry["dry-run"], &dry["removed"][0]["key"]), (&true.into(), &key.as_str().into()));
    assert!(base.exists());
    let report = shell.report(&prune);
    assert_eq!(report["removed"][0]["virtual-size"], 64 << 10);
    assert_eq!(report["removed-actual-size"], 64 << 10);
    assert!(!base.exists());
    let none = shell.report(&["cache", "prune", "--cache", "cache", "--keep-free", "1k"]);
    assert_eq!((none["removed"].as_array().unwrap().len(), &none["goals-met"]), (0, &true.into()));
}

#[test]
fn cache_commands_make_no_cache_and_refuse_one_that_is_not_ours_alone() {
    use std::os::unix::fs::PermissionsExt;
    let shell = Shell::new();
    for command in ["ls", "prune"] {
        let error = shell.error(&["cache", command, "--cache", "nowhere"], 1);
        assert_eq!(error["code"], "not-found");
        assert_eq!(shell.names(), Vec::<String>::new());
    }
    cache_with_a_base(&shell);
    fs::set_permissions(shell.path("cache"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = shell.error(&["cache", "prune", "--cache", "cache"], 1);
    assert_eq!(error["code"], "refused");
    for wrong in [["--max-age", "7"], ["--max-size", "x"], ["--keep-free", "-1"]] {
        let arguments = [&["cache", "prune", "--cache", "cache"], &wrong[..]].concat();
        assert_eq!(shell.run(&arguments).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn io_runs_commands_and_fails_if_one_did() {
    let shell = Shell::new();
    fs::write(shell.path("disk"), disk()).unwrap();
    let output = shell.run(&["io", "-r", "disk", "-c", "read -P 1 0 512", "-c", "length"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("read 512/512 bytes at offset 0\n512 bytes, 1 ops; "), "{text}");
    assert!(text.ends_with("\n1 MiB\n"), "{text}");

    let output = shell.with_input(&["io", "-r", "disk"], b"read -qP 2 0 512\nlength\nfoo\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "Pattern verification failed at offset 0, 512 bytes\n1 MiB\n");
    assert_eq!(output.stderr, b"command \"foo\" not found\n");

    let error = shell.error(&["io", "-r", "disk", "-c", "write 0 512"], 1);
    assert_eq!(error["code"], "permission-denied");
    assert_eq!(shell.error(&["io", "-r", "absent", "-c", "length"], 1)["code"], "not-found");
    assert_eq!(shell.error(&["io", "-r", "-f", "qcow2", "disk"], 3)["code"], "corrupt");
    assert_eq!(fs::read(shell.path("disk")).unwrap(), disk());
}

#[test]
fn map_tells_for_whom_it_is_asked() {
    let shell = Shell::new();
    shell.raw("disk", 1 << 20);
    fs::File::options()
        .write(true)
        .open(shell.path("disk"))
        .unwrap()
        .write_all(&[7; 65536])
        .unwrap();
    let entries = shell.report(&["map", "disk"]);
    let first = &entries[0];
    assert_eq!((&first["start"], &first["length"]), (&0.into(), &65536.into()));
    assert_eq!((&first["depth"], &first["data"]), (&0.into(), &true.into()));
    assert_eq!(entries[1]["zero"], true);
    let output = shell.run(&["map", "disk", "--output", "json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), entries);
    let text = String::from_utf8(shell.run(&["map", "disk"]).stdout).unwrap();
    assert_eq!(
        text,
        "Offset          Length          Mapped to       File\n\
         0               0x10000         0               disk\n"
    );
    assert_eq!(shell.error(&["map", "absent"], 1)["code"], "not-found");
    assert_eq!(shell.error(&["map", "disk", "-f", "qcow2"], 3)["code"], "corrupt");
    assert_eq!(shell.error(&["map", "disk", "--snapshot", "x"], 2)["code"], "invalid-input");
}
