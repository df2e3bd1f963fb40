//! The few bpf() commands that aya has no call for.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Forbids user space to write to a map from now on: what is published does not change.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    // The attribute of BPF_MAP_FREEZE is the map's descriptor alone.
    bpf(BPF_MAP_FREEZE, &map.as_raw_fd()).map(drop)
}

/// Detaches the link that is pinned at `pin`, whoever else holds it; the program has seen its last
/// packet soon after.
///
/// The kernel detaches by itself a link whose last pin is removed, but not before the removal
/// returns (`bpf_link_put` defers).
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attribute = PinnedObject {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let link = owned(bpf(BPF_OBJ_GET, &attribute)?)?;
    // The attribute of BPF_LINK_DETACH is the link's descriptor alone.
    bpf(BPF_LINK_DETACH, &link.as_raw_fd()).map(drop)
}

/// The beginning of BPF_OBJ_GET's attribute (linux/bpf.h).
#[repr(C)]
struct PinnedObject {
    path: u64,
    fd: u32,
    flags: u32,
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
    owned(bpf(BPF_MAP_CREATE, &attribute)?)
}

/// The system call; `attribute` begins like the command's part of `union bpf_attr`.
fn bpf<T>(command: libc::c_long, attribute: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads as many bytes as the size says, which is the size of `attribute`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
