//! Independent readers and writers of the formats: qemu-img, libvhdi (vhdiinfo), and the vhdx-core crate.
//! Each reads what this crate wrote; this crate reads what qemu wrote.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use farshore_disk::vhdx::{Access, Chain, CreateOptions, Vhdx, create_child, merge_into_parent};
use farshore_disk::{Extents, FileDisk, RandomAccess, vhd};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// Runs a tool of a Debian package; its absence fails the test with the name of the package.
fn tool(package: &str, name: &str, args: &[&str]) -> String {
    let out = Command::new(name).args(args).output().unwrap_or_else(|e| {
        panic!("{name} cannot be run ({e}): this test needs the Debian package {package} (apt-get install {package})")
    });
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name} {args:?}: {}: {text}", out.status);
    text
}

fn qemu_img(args: &[&str]) -> String {
    tool("qemu-utils", "qemu-img", args)
}

fn vhdiinfo(path: &Path) -> String {
    tool("libvhdi-utils", "vhdiinfo", &[text(path)])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes in which every sector is different, with holes.
fn pattern(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    for (i, sector) in bytes.chunks_mut(512).enumerate() {
        if i % 4096 < 1500 || i % 7 == 0 {
            sector.fill(seed.wrapping_add((i % 250) as u8) | 1);
            sector[..8].copy_from_slice(&(i as u64).to_le_bytes());
        }
    }
    // One block of nothing.
    bytes[(3 * MIB) as usize..(4 * MIB) as usize].fill(0);
    bytes
}

fn raw(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("content.raw");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn create(path: &Path, fixed: bool, block_size: u32) {
    let options = CreateOptions { fixed, block_size, ..CreateOptions::new(SIZE, ID, Uuid::new_v4) };
    Vhdx::create(&FileDisk::create_new(path).unwrap(), &options).unwrap();
}

/// Writes what is not zero, so that the rest stays unallocated.
fn write_sparse(disk: &Chain, bytes: &[u8]) {
    for (i, part) in bytes.chunks(65536).enumerate() {
        if part.iter().any(|b| *b != 0) {
            disk.write_at(part, i as u64 * 65536).unwrap();
        }
    }
}

fn content(path: &Path) -> Vec<u8> {
    let disk = Chain::open(path, Access::ReadOnly).unwrap();
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The content as the vhdx-core crate reads it, leaf first.
fn content_by_vhdx_core(chain: &[&Path]) -> Vec<u8> {
    let mut reader = None;
    for path in chain.iter().rev() {
        let backing = vhdx::Backing::File(std::fs::File::open(path).unwrap());
        let parent = reader.take().map(Box::new);
        reader = Some(vhdx::VhdxReader::from_backing(backing, parent).unwrap());
    }
    let mut bytes = Vec::new();
    reader.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn qemu_and_vhdx_core_read_what_we_write() {
    for (fixed, block_size) in [(false, 1 << 20), (false, 2 << 20), (false, 32 << 20), (true, 1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut bytes) = (dir.path().join("ours.vhdx"), pattern(1));
        create(&path, fixed, block_size);
        let disk = Chain::open(&path, Access::ReadWrite(Uuid::new_v4)).unwrap();
        write_sparse(&disk, &bytes);
        disk.zero(5 * MIB, MIB).unwrap();
        bytes[(5 * MIB) as usize..(6 * MIB) as usize].fill(0);
        disk.close().unwrap();
        qemu_img(&["check", "-f", "vhdx", text(&path)]);
        qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw(dir.path(), &bytes))]);
        assert!(content_by_vhdx_core(&[&path]) == bytes, "vhdx-core: fixed {fixed}, blocks of {block_size}");
        let info = vhdiinfo(&path);
        // What libvhdi calls the identifier is DataWriteGuid: what a child must name.
        let written = Chain::open(&path, Access::ReadOnly).unwrap().data_write_guid().to_string();
        assert!(info.contains("8388608 bytes") && info.contains(&written), "{info}");
        let kind = if fixed { "Fixed" } else { "Dynamic" };
        assert!(info.contains(kind), "{info}");
    }
}

#[test]
fn qemu_replays_our_log() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = (dir.path().join("ours.vhdx"), pattern(2));
    create(&path, false, 1 << 20);
    let disk = Chain::open(&path, Access::ReadWrite(Uuid::new_v4)).unwrap();
    write_sparse(&disk, &bytes[..(2 * MIB) as usize]);
    disk.flush().unwrap();
    write_sparse(&disk, &bytes);
    disk.flush().unwrap();
    // As a power cut leaves it: the log is full, and of the pages that it would replay none reached its place.
    let crashed = dir.path().join("crashed.vhdx");
    std::fs::copy(&path, &crashed).unwrap();
    let file = FileDisk::open_rw(&crashed).unwrap();
    let bat = 3 * MIB;
    file.write_at(&[0; 4096], bat).unwrap();
    assert!(content(&crashed) == bytes);
    // (vhdx-core 0.4 reads the descriptors at other offsets than the specification, so it is no judge here.)
    qemu_img(&["check", "-f", "vhdx", "-r", "all", text(&crashed)]);
    qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&crashed), text(&raw(dir.path(), &bytes))]);
}

/// qemu closes its log at once, so the entries it wrote are made dirty again by naming them in both headers.
#[test]
fn we_replay_the_log_of_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu.vhdx");
    qemu_img(&["create", "-f", "vhdx", "-o", "block_size=1048576", text(&path), "8M"]);
    let (first, second) = ("write -P 5 0 3M", "write -P 6 5M 64k");
    tool("qemu-utils", "qemu-io", &["-f", "vhdx", "-c", first, "-c", second, text(&path)]);
    let want = content(&path);
    assert!(want[..(3 * MIB) as usize].iter().all(|b| *b == 5) && want[(5 * MIB) as usize] == 6);
    let mut file = std::fs::read(&path).unwrap();
    // The region table's entry of the BAT: {GUID, u64 offset}.
    let guid = uuid::uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08").to_bytes_le();
    let entry = (192 << 10..256 << 10).find(|at| file[*at..*at + 16] == guid).unwrap();
    let (log, bat) =
        (MIB as usize, u64::from_le_bytes(file[entry + 16..entry + 24].try_into().unwrap()) as usize);
    // Each entry of qemu has a LogGuid of its own; the last one has the whole page of the table.
    let last = (log..2 * log).step_by(4096).rfind(|at| file[*at..].starts_with(b"loge")).unwrap();
    let id: [u8; 16] = file[last + 32..last + 48].try_into().unwrap();
    for header in [64 << 10, 128 << 10] {
        file[header + 48..header + 64].copy_from_slice(&id);
        file[header + 4..header + 8].fill(0);
        let crc = crc32c::crc32c(&file[header..header + 4096]);
        file[header + 4..header + 8].copy_from_slice(&crc.to_le_bytes());
    }
    assert_ne!(file[bat..bat + 4096], [0; 4096]);
    file[bat..bat + 4096].fill(0);
    std::fs::write(&path, &file).unwrap();
    assert!(content(&path) == want);
    assert!(std::fs::read(&path).unwrap() == file, "reading does not write");
    Chain::open(&path, Access::ReadWrite(Uuid::new_v4)).unwrap().close().unwrap();
    qemu_img(&["check", "-f", "vhdx", text(&path)]);
    qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw(dir.path(), &want))]);
}

#[test]
fn we_read_and_change_what_qemu_writes() {
    for subformat in ["dynamic", "fixed"] {
        for block_size in ["1048576", "33554432"] {
            let dir = tempfile::tempdir().unwrap();
            let (path, mut bytes) = (dir.path().join("qemu.vhdx"), pattern(3));
            let from = raw(dir.path(), &bytes);
            let options = format!("subformat={subformat},block_size={block_size}");
            qemu_img(&["convert", "-O", "vhdx", "-o", &options, text(&from), text(&path)]);
            assert!(content(&path) == bytes, "{options}");

            let disk = Chain::open(&path, Access::ReadWrite(Uuid::new_v4)).unwrap();
            assert!(disk.allocated().unwrap().contains_range(0, 512));
            bytes[(3 * MIB) as usize + 512..(3 * MIB) as usize + 2048].fill(9);
            disk.write_at(&[9; 1536], 3 * MIB + 512).unwrap();
            bytes[..(2 * MIB) as usize].fill(0);
            disk.zero(0, 2 * MIB).unwrap();
            disk.close().unwrap();
            qemu_img(&["check", "-f", "vhdx", text(&path)]);
            qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw(dir.path(), &bytes))]);

            // And once more from the other side.
            tool("qemu-utils", "qemu-io", &["-f", "vhdx", "-c", "write -P 17 1M 64k", text(&path)]);
            bytes[MIB as usize..MIB as usize + 65536].fill(17);
            assert!(content(&path) == bytes, "{options} after qemu-io");
        }
    }
}

#[test]
fn vhdx_core_reads_our_chains_and_libvhdi_knows_the_parent() {
    let dir = tempfile::tempdir().unwrap();
    let [base, middle, leaf] = ["base.vhdx", "middle.avhdx", "leaf.avhdx"].map(|n| dir.path().join(n));
    let mut bytes = pattern(4);
    create(&base, false, 1 << 20);
    write_sparse(&Chain::open(&base, Access::ReadWrite(Uuid::new_v4)).unwrap(), &bytes);
    for (child, parent, at) in [(&middle, &base, MIB), (&leaf, &middle, 2 * MIB)] {
        create_child(parent, child, Uuid::new_v4).unwrap();
        let disk = Chain::open(child, Access::ReadWrite(Uuid::new_v4)).unwrap();
        assert_eq!(disk.disk_id(), ID);
        // Single sectors, half a block across a border, a whole block, a trimmed block, a trimmed part.
        for (offset, len, fill) in
            [(at + 512, 1024, 21), (at + MIB / 2, MIB, 22), (4 * MIB, MIB, 23), (at + 5 * MIB - 512, 512, 24)]
        {
            disk.write_at(&vec![fill; len as usize], offset).unwrap();
            bytes[offset as usize..(offset + len) as usize].fill(fill);
        }
        for (offset, len) in [(5 * MIB, MIB), (at + 4096, 4096)] {
            disk.zero(offset, len).unwrap();
            bytes[offset as usize..(offset + len) as usize].fill(0);
        }
    }
    assert!(content(&leaf) == bytes);
    assert!(content_by_vhdx_core(&[&leaf, &middle, &base]) == bytes);
    let info = vhdiinfo(&leaf);
    assert!(info.contains("Differential") && info.contains("middle.avhdx"), "{info}");

    merge_into_parent(&leaf, Uuid::new_v4).unwrap();
    assert!(content(&leaf) == bytes && content(&middle) == bytes);
    merge_into_parent(&middle, Uuid::new_v4).unwrap();
    assert!(content(&leaf) == bytes && content(&base) == bytes);
    qemu_img(&["check", "-f", "vhdx", text(&base)]);
    qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&base), text(&raw(dir.path(), &bytes))]);
    assert!(content_by_vhdx_core(&[&base]) == bytes);
}

/// Content through a chain by a third reader. Not in the default run: no program of the lab needs Python's libvhdi.
#[test]
#[ignore = "needs the Debian package python3-libvhdi"]
fn libvhdi_reads_the_content_of_our_chains() {
    let script = r#"
import sys, pyvhdi
files = []
for path in sys.argv[1:]:
    f = pyvhdi.file()
    f.open(path)
    files.append(f)
for child, parent in zip(files, files[1:]):
    assert child.get_parent_identifier() == parent.get_identifier(), "identifiers"
    child.set_parent(parent)
leaf = files[0]
sys.stdout.buffer.write(leaf.read_buffer_at_offset(leaf.get_media_size(), 0))
"#;
    let dir = tempfile::tempdir().unwrap();
    let [base, leaf] = ["base.vhdx", "leaf.avhdx"].map(|n| dir.path().join(n));
    let mut bytes = pattern(7);
    create(&base, false, 1 << 20);
    write_sparse(&Chain::open(&base, Access::ReadWrite(Uuid::new_v4)).unwrap(), &bytes);
    create_child(&base, &leaf, Uuid::new_v4).unwrap();
    let disk = Chain::open(&leaf, Access::ReadWrite(Uuid::new_v4)).unwrap();
    for (offset, len, fill) in
        [(512, 1024, 21), (MIB / 2, MIB, 22), (4 * MIB, MIB, 23), (6 * MIB - 512, 512, 24)]
    {
        disk.write_at(&vec![fill; len as usize], offset).unwrap();
        bytes[offset as usize..(offset + len) as usize].fill(fill);
    }
    disk.close().unwrap();
    let out =
        Command::new("/usr/bin/python3").args(["-c", script, text(&leaf), text(&base)]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stdout == bytes);
}

#[test]
fn qemu_and_libvhdi_read_our_fixed_vhd() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours.vhd");
    // Not whole MiB: padded, as Azure wants it.
    let size = 7 * MIB + 4096;
    let mut bytes = pattern(5)[..size as usize].to_vec();
    bytes.resize(vhd::padded_size(size) as usize, 0);
    let mut blob = bytes.clone();
    blob.extend(vhd::footer(vhd::padded_size(size), ID, 848_000_000));
    assert_eq!(blob.len() as u64, 8 * MIB + vhd::FOOTER_SIZE);
    std::fs::write(&path, blob).unwrap();
    let info = qemu_img(&["info", "-f", "vpc", "--output", "json", text(&path)]);
    assert!(info.contains(r#""virtual-size": 8388608"#), "{info}");
    qemu_img(&["compare", "-f", "vpc", "-F", "raw", text(&path), text(&raw(dir.path(), &bytes))]);
    let info = vhdiinfo(&path);
    assert!(info.contains("Fixed") && info.contains("8388608 bytes"), "{info}");
}

#[test]
fn we_read_the_footer_of_qemus_fixed_vhd() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = (dir.path().join("qemu.vhd"), pattern(6));
    let from = raw(dir.path(), &bytes);
    qemu_img(&["convert", "-O", "vpc", "-o", "subformat=fixed,force_size=on", text(&from), text(&path)]);
    let blob = std::fs::read(&path).unwrap();
    let (data, footer) = blob.split_at(SIZE as usize);
    assert!(data == bytes);
    let footer = vhd::parse(footer).unwrap();
    assert_eq!(footer.size, SIZE);
    // Without force_size qemu rounds to its geometry; ours of the same size is the same.
    let ours = vhd::parse(&vhd::footer(SIZE, footer.id, footer.timestamp)).unwrap();
    let geometry = ours.geometry;
    let sectors = u64::from(geometry.0) * u64::from(geometry.1) * u64::from(geometry.2);
    assert!(sectors * 512 <= SIZE && sectors * 512 > SIZE - MIB, "{geometry:?}");
}

#[test]
fn a_map_of_a_sparse_image_names_what_qemu_calls_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.vhdx");
    qemu_img(&["create", "-f", "vhdx", "-o", "block_size=1048576", text(&path), "64M"]);
    for at in ["3M", "40M", "63M"] {
        tool("qemu-utils", "qemu-io", &["-f", "vhdx", "-c", &format!("write -P 5 {at} 4k"), text(&path)]);
    }
    let disk = Vhdx::open(Arc::new(FileDisk::open_read(&path).unwrap()), Access::ReadOnly).unwrap();
    let mut want = Extents::one(3 * MIB, MIB);
    want.insert(40 * MIB, MIB);
    want.insert(63 * MIB, MIB);
    assert_eq!(disk.allocated().unwrap(), want);
}
