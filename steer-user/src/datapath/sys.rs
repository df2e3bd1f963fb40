//! The few bpf() commands that aya has no call for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

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
