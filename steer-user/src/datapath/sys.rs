//! The few bpf() commands that aya has no call for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_FREEZE: libc::c_long = 22;
const DESCRIPTOR_BYTES: libc::c_long = 4;

/// Forbids user space to write to a map from now on: what is published does not change.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    // The attribute of BPF_MAP_FREEZE is the map's descriptor alone.
    let attribute = map.as_raw_fd();
    // SAFETY: the kernel reads as many bytes as the size says, which is the size of `attribute`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_FREEZE,
            &raw const attribute,
            DESCRIPTOR_BYTES,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The beginning of BPF_MAP_CREATE's attribute (linux/bpf.h).
#[repr(C)]
struct NewMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: i32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes an array of one map, which can hold any map like `inner`.
///
/// The kernel keeps the first 15 bytes of its name.
pub fn array_of_maps(name: &str, inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut short = [0; 16];
    for (place, byte) in short.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    let attribute = NewMap {
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: inner.as_raw_fd(),
        numa_node: 0,
        name: short,
    };
    // SAFETY: the kernel reads as many bytes as the size says, which is the size of `attribute`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            &raw const attribute,
            size_of::<NewMap>(),
        )
    };
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
