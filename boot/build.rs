//! Links again when the layout of the image changes: cargo does not know of it otherwise.

fn main() {
    println!("cargo:rerun-if-changed=../linker.ld");
}
