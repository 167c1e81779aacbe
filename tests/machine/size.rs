//! The size of what must be trusted: lines of the hypervisor and of the mediator, bytes of the image (design section 6).

use std::fs;
use std::path::{Path, PathBuf};

/// The hypervisor without device models, both virtualization backends included.
const HV: (&str, &[&str], usize) = ("hv", &["hv/src", "hv/emu/src", "hv/defs/src"], 15_000);
const DEVICES: (&str, &[&str], usize) = ("hv/dev", &["hv/dev/src"], 7_000);
const GVT: (&str, &[&str], usize) = ("gvt", &["gvt/src", "gvt/defs/src"], 12_000);
const IMAGE_BYTES: u64 = 2 << 20;

#[test]
fn trusted_code_is_small_enough_to_read() {
    for (name, folders, bound) in [HV, DEVICES, GVT] {
        let count = lines(folders);
        println!("{name} {count} lines; tests, comments and blank lines left out");
        assert!(count <= bound, "{name} has {count} lines; the bound is {bound}");
    }
}

#[test]
fn the_image_is_small() {
    let bytes = fs::metadata(tests::image()).unwrap().len();
    println!("image {bytes} bytes");
    assert!(bytes < IMAGE_BYTES, "the image has {bytes} bytes; the bound is {IMAGE_BYTES}");
}

fn lines(folders: &[&str]) -> usize {
    let root = qemu::paths::workspace();
    let mut files = Vec::new();
    folders.iter().for_each(|folder| collect(&root.join(folder), &mut files));
    files.iter().map(|file| code_lines(&fs::read_to_string(file).unwrap())).sum()
}

/// Source files, those of tests left out.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if stem == "tests" || stem == "testing" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Lines that are code; what is compiled for tests only is not counted.
fn code_lines(text: &str) -> usize {
    let mut lines = text.lines();
    let mut count = 0;
    while let Some(line) = lines.next() {
        if let Some(indent) = line.strip_suffix("#[cfg(test)]") {
            // The item that it belongs to: the code is formatted, so its last line is the first as far to the left.
            let ends = |line: &str| line.strip_prefix(indent).is_some_and(|rest| !rest.starts_with([' ', '/', '#']));
            let _last = lines.find(|line| ends(line) && line.ends_with(['}', ';', ',']));
        } else if !line.trim().is_empty() && !line.trim().starts_with("//") {
            count += 1;
        }
    }
    count
}
